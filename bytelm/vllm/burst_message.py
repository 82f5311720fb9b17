"""A burst on its way: what one message to the engine core holds, and what comes back for it.

A burst travels as one request to vLLM, its *carrier*, whose ``extra_args`` hold what is to be
evaluated; ``burst_scheduler.py`` makes a request of its own of each evaluation there. What the
carrier seems to generate is the report: a number for each evaluation that has ended. The rows
themselves lie in slots. This module must not know vLLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

KEY = "bytelm_burst"

_SHIFT = 32


class Asked(NamedTuple):
    """An evaluation of a burst.

    Attributes:
        nonce: what is written beside its row.
        slot: where its row goes.
        tokens: its context, int32.
        cache_salt: contexts share cached work only with those of the same salt.
    """

    nonce: int
    slot: int
    tokens: bytes
    cache_salt: str | None


class Told(NamedTuple):
    """That an evaluation has ended.

    Attributes:
        position: which of its burst's.
        cached: how many tokens of its context had been computed before; None if it failed.
    """

    position: int
    cached: int | None


def request_id(nonce: int) -> str:
    """What an evaluation is called in the engine core."""
    return f"row-{nonce}"


def pack(asked: Iterable[Asked]) -> dict[str, Any]:
    """The ``extra_args`` of a carrier."""
    return {KEY: [list(one) for one in asked]}


def unpack(extra_args: dict[str, Any] | None) -> list[Asked] | None:
    """What :func:`pack` put there; None for every other request."""
    found = (extra_args or {}).get(KEY)
    return None if found is None else [Asked(*one) for one in found]


def report(told: Told) -> int:
    """The number that says it."""
    return ~told.position if told.cached is None else told.position << _SHIFT | told.cached


def reported(numbers: Sequence[int]) -> list[Told]:
    """What numbers of :func:`report` say."""
    return [
        Told(~number, None) if number < 0 else Told(number >> _SHIFT, number & ((1 << _SHIFT) - 1))
        for number in numbers
    ]
