"""What a beam knows of without having evaluated it; see ``bytelm.beam.reference``.

An *item* is tokens that ended somewhere, with their exact weight and the bytes since; what no item
tells is one *remainder*. Both move on with each byte, by what the stand-in gives it.

This module knows numbers alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np

from bytelm.beam.params import LISTED

Path = tuple[int, ...]


POINTER = 8
"""Bytes that a tuple takes for each of its items."""

ITEM_BYTES = 200
"""About what an item takes besides its tokens and bytes."""


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


class Deferred(NamedTuple):
    """All that is deferred; an immutable value.

    Attributes:
        items: the largest share first.
        rest: log of the remainder.
    """

    items: tuple[Item, ...] = ()
    rest: float = -math.inf

    @property
    def log_mass(self) -> float:
        """The log of all of it."""
        return float(np.logaddexp.reduce([item.share for item in self.items] + [self.rest]))

    @property
    def nbytes(self) -> int:
        """About how much memory it takes."""
        return sum(ITEM_BYTES + len(item.since) + POINTER * len(item.path) for item in self.items)

    def after(self, b: int, log_q: float, ended: Iterable[tuple[Path, float]]) -> Self:
        """What is deferred one byte later.

        Args:
            b: the byte.
            log_q: its log-probability by the stand-in.
            ended: tokens and weight of the extensions that were not evaluated before it.
        """
        if log_q == -math.inf:
            return type(self)()
        byte = bytes([b])
        items = [Item(i.path, i.since + byte, i.weight, i.share + log_q) for i in self.items]
        items += [Item(path, byte, weight, weight + log_q) for path, weight in ended]
        return type(self)(tuple(items), self.rest + log_q)

    def beside(self, path: Path) -> Self:
        """What is deferred beside tokens that were evaluated as the last resort.

        An item that they begin with would give them a second time: it has a share in the remainder.
        """
        begun = [item for item in self.items if path[: len(item.path)] == item.path]
        rest = float(np.logaddexp.reduce([item.share for item in begun] + [self.rest]))
        return type(self)(tuple(item for item in self.items if item not in begun), rest)

    def without(self, weight: float) -> Self:
        """With the mass of something that is dropped, by its log."""
        return self._replace(rest=float(np.logaddexp(self.rest, weight)))

    def settled(self, log_z: float) -> Self:
        """The largest items alone, and no more in the remainder than is kept elsewhere (log)."""
        ranked = sorted(self.items, key=lambda item: -item.share)
        rest = np.logaddexp.reduce([item.share for item in ranked[LISTED:]] + [self.rest])
        return type(self)(tuple(ranked[:LISTED]), min(float(rest), log_z))

    def weighing(self, more: float) -> Self:
        """The same, all logs larger by ``more``."""
        items = [Item(i.path, i.since, i.weight + more, i.share + more) for i in self.items]
        return type(self)(tuple(items), self.rest + more)


NOTHING = Deferred()
