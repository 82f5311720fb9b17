"""What an evaluation's request is made of, so that it travels to the workers at little cost."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from copy import copy
from typing import Any

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from bytelm.vllm.capture import flag, flag_of


class Tokens(array):
    """Token ids, of which vLLM wants a list: what it does with them takes less time here."""

    __slots__ = ()

    def copy(self) -> Tokens:
        """As a list has it."""
        return Tokens("i", self)


class RowParams(SamplingParams):
    """Asks for one token, whose full log-probabilities are what is wanted."""

    @classmethod
    def of(cls, slot: int, nonce: int) -> RowParams:
        """The parameters of an evaluation.

        Args:
            slot: where its row goes.
            nonce: what is written beside it.
        """
        made = copy(_ROW)
        made.extra_args = flag(slot, nonce)
        return made

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Slot and nonce alone; all else is the same for all."""
        found = flag_of(self)
        assert found is not None
        return RowParams.of, tuple(found)


# To make and check these takes longer than all else that is done for a request.
_ROW = RowParams(
    max_tokens=1,
    temperature=0.0,
    ignore_eos=True,
    detokenize=False,
    output_kind=RequestOutputKind.FINAL_ONLY,
    skip_clone=True,
    extra_args={},
)
