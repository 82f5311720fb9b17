"""What the engine sends to vLLM: prompts and sampling parameters.

The engine imports this module once vLLM is loaded anyway. It must not know about steps or slots'
owners.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from vllm import SamplingParams
from vllm.inputs import TokensInput, tokens_input
from vllm.sampling_params import RequestOutputKind

from bytelm.vllm.burst_message import Asked, pack
from bytelm.vllm.capture import ban

CARRIED: Sequence[int] = (0,)
"""What a carrier has for a context: vLLM wants one, which nobody reads."""


def prompt(token_ids: Sequence[int], cache_salt: str | None) -> TokensInput:
    """A context; only those of the same salt share cached work."""
    return tokens_input(list(token_ids), cache_salt=cache_salt)


def burst_params(asked: Iterable[Asked]) -> SamplingParams:
    """The parameters of the carrier of a burst, which seems to generate the report of its ends."""
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=pack(asked),
        skip_clone=True,
    )


def generation_params(
    max_tokens: int,
    temperature: float,
    seed: int | None,
    stop_token_ids: Sequence[int],
    banned: NDArray[np.int64],
) -> SamplingParams:
    """The parameters of a native generation; see :meth:`VllmEngine.generate`."""
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        ignore_eos=True,
        stop_token_ids=list(stop_token_ids),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=ban(banned) if len(banned) else None,
        skip_clone=True,
    )
