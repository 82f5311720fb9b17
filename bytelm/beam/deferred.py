"""What a beam knows of without having evaluated it; see ``bytelm.beam.reference``.

An *item* is tokens that ended somewhere, with their exact weight and the bytes since; what no item
tells is one *remainder*. Both move on with each byte, by what the stand-in gives it.

This module knows numbers alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

from bytelm.beam.params import LISTED

Path = tuple[int, ...]


POINTER = 8
"""Bytes that a tuple takes for each of its items."""

LONG = 64
"""So many bytes that no item needs any more are let go."""

ITEM_BYTES = 200
"""About what an item takes besides its tokens."""


def log_sum(weights: Sequence[float]) -> float:
    """log(sum(exp(weights))); -inf of nothing."""
    top = max(weights, default=-math.inf)
    if top == -math.inf:
        return top
    return top + math.log(sum([math.exp(weight - top) for weight in weights]))


class Item(NamedTuple):
    """Tokens whose continuation nobody evaluated.

    Attributes:
        path: token ids, the initial context included.
        since: the bytes behind them.
        weight: log-probability of the tokens.
        share: log of what stands in for the tokens and these bytes.
    """

    path: Path
    since: bytes
    weight: float
    share: float


class _Listed(NamedTuple):
    """An item without what each byte changes; its bytes begin at a place of those kept for all."""

    path: Path
    begin: int
    weight: float


class Deferred:
    """All that is deferred; an immutable value.

    Attributes:
        shares: of each item.
        rest: log of the remainder.
        log_mass: the log of all of it.
    """

    __slots__ = ("_bytes", "_listed", "log_mass", "rest", "shares")

    def __init__(
        self,
        listed: Sequence[_Listed] = (),
        shares: Sequence[float] = (),
        since: bytes = b"",
        rest: float = -math.inf,
    ) -> None:
        self._listed = listed
        self._bytes = since
        self.shares = shares
        self.rest = rest
        self.log_mass = log_sum([*shares, rest])

    @classmethod
    def of(cls, items: Sequence[Item], rest: float = -math.inf) -> Self:
        """Some items and a remainder; the bytes of each are the last of the longest one's."""
        since = max((item.since for item in items), key=len, default=b"")
        listed = [_Listed(i.path, len(since) - len(i.since), i.weight) for i in items]
        return cls(listed, [item.share for item in items], since, rest)

    @property
    def items(self) -> tuple[Item, ...]:
        """What is listed."""
        return tuple(
            Item(one.path, self._bytes[one.begin :], one.weight, share)
            for one, share in zip(self._listed, self.shares, strict=True)
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Deferred):
            return NotImplemented
        return self.items == other.items and self.rest == other.rest

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Deferred({self.items!r}, {self.rest!r})"

    @property
    def nbytes(self) -> int:
        """About how much memory it takes."""
        return len(self._bytes) + sum(ITEM_BYTES + POINTER * len(i.path) for i in self._listed)

    def after(self, b: int, log_q: float, ended: Sequence[tuple[Path, float]]) -> Deferred:
        """What is deferred one byte later.

        Args:
            b: the byte.
            log_q: its log-probability by the stand-in.
            ended: tokens and weight of the extensions that were not evaluated before it.
        """
        if log_q == -math.inf:
            return NOTHING
        since = self._bytes if self._listed else b""
        begin = len(since)
        listed, shares = self._listed, [share + log_q for share in self.shares]
        if ended:
            listed = [*listed, *(_Listed(path, begin, weight) for path, weight in ended)]
            shares += [weight + log_q for _, weight in ended]
        return Deferred(listed, shares, since + bytes([b]), self.rest + log_q)

    def beside(self, path: Path) -> Deferred:
        """What is deferred beside tokens that were evaluated as the last resort.

        An item that they begin with would give them a second time: it has a share in the remainder.
        """
        begun = [path[: len(one.path)] == one.path for one in self._listed]
        given = [share for share, is_begun in zip(self.shares, begun, strict=True) if is_begun]
        kept = [i for i, is_begun in enumerate(begun) if not is_begun]
        return self._keeping(kept, log_sum([*given, self.rest]))

    def without(self, weight: float) -> Deferred:
        """With the mass of something that is dropped, by its log."""
        return self._with(rest=log_sum([self.rest, weight]))

    def settled(self, log_z: float) -> Deferred:
        """The largest items alone, and no more in the remainder than is kept elsewhere (log)."""
        deferred = self
        if len(self.shares) > LISTED:
            ranks = sorted(range(len(self.shares)), key=self.shares.__getitem__, reverse=True)
            rest = log_sum([*(self.shares[i] for i in ranks[LISTED:]), self.rest])
            deferred = self._keeping(ranks[:LISTED], rest)
        return deferred if deferred.rest <= log_z else deferred._with(rest=log_z)

    def weighing(self, more: float) -> Deferred:
        """The same, all logs larger by ``more``."""
        listed = [one._replace(weight=one.weight + more) for one in self._listed]
        return Deferred(listed, [s + more for s in self.shares], self._bytes, self.rest + more)

    def _with(self, rest: float) -> Deferred:
        return Deferred(self._listed, self.shares, self._bytes, rest)

    def _keeping(self, which: Sequence[int], rest: float) -> Deferred:
        listed = [self._listed[i] for i in which]
        # The bytes before all of theirs are let go.
        least = min((one.begin for one in listed), default=len(self._bytes))
        if least < LONG:
            least = 0
        else:
            listed = [one._replace(begin=one.begin - least) for one in listed]
        return Deferred(listed, [self.shares[i] for i in which], self._bytes[least:], rest)


NOTHING = Deferred()
