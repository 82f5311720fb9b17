"""Rows in the order in which whoever reads bytes wants them.

A row is one log-probability for each id of a vocabulary. Where ids stand in the order of their
bytes, all tokens that begin alike are neighbours, and whoever knows what each *range* of a few sums
to need not look at the others. Both are made once, where the row is made::

    place   0 ·············· n-1   n ······ size-1
    id      sorted by the bytes    without bytes
    ranges  "a…"   "b…"   "c…"     the last one

This module knows arrays alone: processes import it in which nothing may be compiled.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray


class RowOrder:
    """Where each id of a vocabulary stands in a row, and the ranges that are summed.

    Attributes:
        ids: int64 ``[size]``, the id at each place.
        places: int64 ``[size]``, the place of each id.
        bounds: int64 ``[ranges + 1]``; range i has the places ``bounds[i]`` to
            ``bounds[i + 1] - 1``, and together they have all.
    """

    def __init__(self, ids: NDArray[np.int64], bounds: NDArray[np.int64]) -> None:
        self.ids = ids
        self.bounds = bounds
        self.places = np.empty_like(ids)
        self.places[ids] = np.arange(len(ids))
        self._elsewhere: WeakKeyDictionary[RowOrder, NDArray[np.int64]] = WeakKeyDictionary()

    @property
    def ranges(self) -> int:
        """How many ranges there are."""
        return len(self.bounds) - 1

    def places_in(self, other: RowOrder) -> NDArray[np.int64]:
        """Where the ids of this order stand in another of the same ids, int64 ``[size]``."""
        found = self._elsewhere.get(other)
        if found is None:
            found = self._elsewhere[other] = other.places[self.ids]
        return found


class OrderedRow:
    """A row in an order, perhaps where a worker wrote it.

    Its arrays are not to be changed; nor to be kept while others have their turn, who may need the
    place: :meth:`move` puts others in their stead.

    Attributes:
        order: where each id stands.
        values: float32 ``[size]``, the log-probability of the id at each place.
        masses: float64 ``[ranges]``, the sum of the probabilities of each range: right to 1e-6
            wherever it is above 1e-30, NaN or infinite where any of the values is NaN or +inf.
    """

    __slots__ = ("__weakref__", "masses", "order", "values")

    def __init__(
        self, order: RowOrder, values: NDArray[np.float32], masses: NDArray[np.float64]
    ) -> None:
        self.order = order
        self.values = values
        self.masses = masses

    def by_id(self) -> NDArray[np.float32]:
        """The log-probability of each id, float32 ``[size]``: a read-only copy."""
        # Copied first, so that a core has them in its cache before it reads them at random.
        values = self.values.copy()
        row = np.take(values, self.order.places, mode="clip")  # the fastest of its modes
        row.flags.writeable = False
        return row

    def move(self) -> None:
        """Goes on with copies, in memory of its own."""
        self.values, self.masses = self.values.copy(), self.masses.copy()

    @property
    def nbytes(self) -> int:
        """How much memory it takes, at most."""
        return self.values.nbytes + self.masses.nbytes


Answer = OrderedRow | NDArray[np.float32]
"""What a token LM answers: a row in the order of its vocabulary's trie, or by id."""


def by_id(answer: Answer) -> NDArray[np.float32]:
    """An answer as a log-probability for each id."""
    return answer.by_id() if isinstance(answer, OrderedRow) else answer
