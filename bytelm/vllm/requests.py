"""What the engine sends to vLLM: prompts and sampling parameters.

The engine imports this module once vLLM is loaded anyway. It must not know about steps or slots'
owners.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
from numpy.typing import NDArray
from vllm import SamplingParams
from vllm.inputs import TokensInput, tokens_input
from vllm.sampling_params import RequestOutputKind

from bytelm.vllm.burst_scheduler import more_follow
from bytelm.vllm.capture import ban, flag

# To make and check these takes longer than all else that is done for a request.
_ROW = SamplingParams(
    max_tokens=1,
    temperature=0.0,
    ignore_eos=True,
    detokenize=False,
    output_kind=RequestOutputKind.FINAL_ONLY,
    skip_clone=True,
)


def prompt(token_ids: Sequence[int], cache_salt: str | None) -> TokensInput:
    """A context; only those of the same salt share cached work."""
    return tokens_input(list(token_ids), cache_salt=cache_salt)


def row_params(slot: int, nonce: int, *, more: bool) -> SamplingParams:
    """The parameters of an evaluation.

    Args:
        slot: where its row goes.
        nonce: what is written beside it.
        more: whether more requests of its burst follow.
    """
    params = copy(_ROW)
    params.extra_args = flag(slot, nonce) | more_follow(more)
    return params


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
