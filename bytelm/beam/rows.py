"""Rows: what one evaluation says about the next token, in the order of the trie.

Here the special tokens leave: ids without bytes that are not EOS get probability zero and the rest
is renormalised, once. This module knows token LMs and tries; it must not know beams.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Iterable, Mapping
from copy import copy
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bytelm import memory
from bytelm.compiled import compiled
from bytelm.errors import BeamError
from bytelm.models.logprobs import EOS, SIZE
from bytelm.models.ordered_rows import Answer, OrderedRow, RowOrder
from bytelm.models.raw_rows import as_row, no_distribution
from bytelm.models.token_lm import AsyncTokenLM, answer_of
from bytelm.vocabulary.stand_in import StandIn
from bytelm.vocabulary.trie import ROOT, TokenTrie, sum_range
from bytelm.vocabulary.vocab import ByteVocab

TINY = 1e-30
"""Below this mass float32 nears its smallest normal number, so sums go through logarithms."""
FAR = 1e-37
"""Below this probability float32 loses digits, and below 1e-45 all of them."""
LOG_FAR = math.log(FAR)


@compiled()
def range_sums(values: NDArray[np.float32], bounds: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sum of each range of values between two bounds."""
    sums = np.empty(bounds.size - 1)
    for i in range(sums.size):
        sums[i] = sum_range(values, bounds[i], bounds[i + 1])
    return sums


@compiled()
def exact_probs(
    values: NDArray[np.float32], hidden: NDArray[np.int64], start: int, stop: int
) -> NDArray[np.float64]:
    """Probabilities of a range of places in float64, which reach far below float32's."""
    exact = np.empty(stop - start, np.float64)
    for i in range(start, stop):
        exact[i - start] = math.exp(np.float64(values[i]))
    for place in hidden:
        if start <= place < stop:
            exact[place - start] = 0.0
    return exact


@compiled()
def goes_far(values: NDArray[np.float32], start: int, stop: int) -> bool:
    """Whether a range of places has probabilities below ``FAR``, besides zero."""
    found = False
    for i in range(start, stop):
        found |= -math.inf < values[i] < LOG_FAR
    return found


@compiled()
def read_masses(
    values: NDArray[np.float32],
    masses: NDArray[np.float64],
    bounds: NDArray[np.int64],
    root_bytes: NDArray[np.int64],
    hidden: NDArray[np.int64],
    eos_places: NDArray[np.int64],
) -> tuple[NDArray[np.float64], float]:
    """The distribution over the first byte: what ``Row`` has as ``root`` and ``mass``.

    Args:
        values: see ``OrderedRow``.
        masses: the same, without what is hidden.
        bounds: see ``RowOrder``: a range for each of the root's children, and one more.
        root_bytes: the bytes of the root's children.
        hidden: see ``Ends``.
        eos_places: the places of what ends the text.

    Returns:
        Both; a mass that is not finite where any of the log-probabilities is NaN or +inf: such a
        value is in some range, whatever its id.
    """
    eos = 0.0
    for place in eos_places:
        eos += math.exp(np.float64(values[place]))
    root = np.zeros(SIZE)
    total = eos
    for i in range(root_bytes.size):
        mass = masses[i]
        if mass < TINY:
            mass = exact_probs(values, hidden, bounds[i], bounds[i + 1]).sum()
        root[root_bytes[i]] = mass
        total += mass
    root[EOS] = eos
    if total > 0.0:
        root /= total
    rest = masses[root_bytes.size]
    return root, total if math.isfinite(rest) else rest


def laid_out(values: NDArray[np.float32], places: NDArray[np.int64], order: RowOrder) -> OrderedRow:
    """A row of which ``values[places[i]]`` is the log-probability at place i."""
    values = np.take(values, places, mode="clip")  # the fastest of its modes
    with np.errstate(over="ignore"):
        probs = np.exp(values)
    return OrderedRow(order, values, range_sums(probs, order.bounds))


class Ends(NamedTuple):
    """What ends a text.

    Attributes:
        places: int64, where its ids stand in the trie's order of rows.
        hidden: int64, those of them that count as EOS instead of as their bytes, in order.
        cut: the ranges of a row's masses that have any of these.
    """

    places: NDArray[np.int64]
    hidden: NDArray[np.int64]
    cut: list[int]

    @classmethod
    def of(cls, trie: TokenTrie, ids: Iterable[int]) -> Ends:
        """These ids, whether or not they have bytes."""
        places = np.sort(trie.row_order.places[list(ids)])
        hidden = places[places < len(trie.order)]
        ranges = np.searchsorted(trie.row_order.bounds, hidden, "right") - 1
        return cls(places, hidden, np.unique(ranges).tolist())

    def hidden_in(self, lo: int, hi: int) -> NDArray[np.int64]:
        """The hidden places in a range."""
        first, last = np.searchsorted(self.hidden, (lo, hi))
        return self.hidden[first:last]


class Row:
    """The distribution over the next token, as byte LMs need it.

    Attributes:
        made: the row as it was made, in the order of the trie.
        root: float64 ``[258]``, probability of each first byte (and EOS at 257), renormalised.
        mass: float64, what the tokens with bytes and EOS sum to; the rest was special tokens.
    """

    __slots__ = ("_ends", "made", "mass", "root")

    def __init__(self, made: OrderedRow, trie: TokenTrie, ends: Ends) -> None:
        self.made = made
        self._ends = ends
        masses, bounds = made.masses, made.order.bounds
        if ends.cut:
            masses = masses.copy()
            with np.errstate(over="ignore"):
                for i in ends.cut:  # what is hidden may be nearly all of it: nothing is subtracted
                    masses[i] = self._probs(bounds[i], bounds[i + 1]).sum(dtype=np.float64)
        self.root, self.mass = read_masses(
            made.values, masses, bounds, trie.root_bytes, ends.hidden, ends.places
        )

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """The log-probability of each id, float32 ``[vocab.size]``, as the model gave it."""
        return self.made.by_id()

    @property
    def probs(self) -> NDArray[np.float32]:
        """Probabilities in the trie's order, float32 ``[n]``, not renormalised."""
        return self._probs(0, int(self.made.order.bounds[-2]))

    @property
    def nbytes(self) -> int:
        """How much memory it takes that nothing else shares."""
        return self.made.nbytes + self.root.nbytes

    def _probs(self, lo: int, hi: int) -> NDArray[np.float32]:
        probs = np.exp(self.made.values[lo:hi])
        if self._ends.cut:
            probs[self._ends.hidden_in(lo, hi) - lo] = 0.0
        return probs

    def _exact(self, lo: int, hi: int) -> NDArray[np.float64]:
        # For numpy's integers it would be compiled once more.
        return exact_probs(self.made.values, self._ends.hidden, int(lo), int(hi))

    def piece(
        self, lo: int, hi: int, share: float | None = None
    ) -> tuple[NDArray[np.floating], float]:
        """The probabilities of a range that has some, and their sum, in a scale of their own.

        In float64 where float32 cannot hold what may be narrowed to later.

        Args:
            lo: where the range begins in the trie's order.
            hi: where it ends.
            share: the range's renormalised probability, where it is known already.
        """
        piece = self._probs(lo, hi)
        mass = float(piece.sum(dtype=np.float64)) if share is None else float(share) * self.mass
        if mass >= TINY and (
            piece.min() >= FAR or not goes_far(self.made.values, int(lo), int(hi))
        ):
            return piece, mass
        exact = self._exact(lo, hi)
        exact /= exact.max()
        return exact, float(exact.sum())

    def log_mass(self, lo: int, hi: int) -> float:
        """Log-probability that the next token is within a range of the order."""
        total = float(self._probs(lo, hi).sum(dtype=np.float64))
        if total < TINY:
            total = float(self._exact(lo, hi).sum())
        return math.log(total / self.mass) if total > 0.0 else -math.inf

    def log_prob(self, token: int) -> float:
        """Log-probability that the next token is this one, which has bytes."""
        made = self.made
        return float(made.values[made.order.places[token]]) - math.log(self.mass)


class RowSource:
    """Evaluates contexts of one token LM, with one reading of its special and EOS tokens.

    Attributes:
        banned_ids: the ids that get no probability: they have no bytes and do not end the text.
        asked: evaluations so far of contexts that were not ``knowing`` ones.

    Args:
        lm: the token LM.
        eos_tokens: what ends a text, as byte strings (special tokens by their names), ids or
            genlm Tokens; None for the vocabulary's own EOS ids.
        literal: read every id, special ones too, as the bytes of its text.

    Raises:
        BeamError: when an EOS token is not in the vocabulary.
    """

    def __init__(
        self,
        lm: AsyncTokenLM,
        eos_tokens: Iterable[bytes | int] | None = None,
        literal: bool = False,
    ) -> None:
        memory.keep_freed()
        self.lm = lm
        self.vocab: ByteVocab = lm.vocab.literal() if literal else lm.vocab
        self.trie = TokenTrie.of(self.vocab)
        self.stand_in = StandIn.of(self.vocab)
        ids = self.vocab.eos_token_ids if eos_tokens is None else self._find(eos_tokens)
        self._ends = Ends.of(self.trie, ids)
        banned = np.ones(self.vocab.size, np.bool_)
        banned[self.trie.order] = False
        banned[list(ids)] = False
        self.banned_ids: NDArray[np.int64] = np.flatnonzero(banned)
        self._known: Mapping[tuple[int, ...], Awaitable[Answer]] = {}
        self.asked = 0

    def _find(self, eos_tokens: Iterable[bytes | int]) -> set[int]:
        found: set[int] = set()
        for token in eos_tokens:
            # A genlm Token is bytes, too, but stands for itself alone.
            named = getattr(token, "token_id", token)
            if isinstance(named, bytes):
                found.update(self._spelled(named))
            elif not isinstance(named, (int, np.integer)):
                raise BeamError(f"an EOS token is bytes or a token id, got {named!r}")
            elif 0 <= named < self.vocab.size:
                found.add(int(named))
            else:
                raise BeamError(f"the EOS token {named} is not in 0..{self.vocab.size - 1}")
        return found

    def _spelled(self, token: bytes) -> set[int]:
        """The ids of a token by its bytes, or of special tokens by their names."""
        ids = {i for i in self.vocab.special_ids if self.vocab.spelling(i) == token}
        node = self.trie.descend(token)
        if node > ROOT:
            ids.update(self.trie.tokens_at(node).tolist())
        if not token or not ids:
            raise BeamError(f"the EOS token {token!r} is not in the vocabulary")
        return ids

    @property
    def has_spelled_eos(self) -> bool:
        """Whether some EOS token has bytes, so that prefilling reads rows differently."""
        return bool(self._ends.hidden.size)

    def spelled_eos(self, lo: int, hi: int) -> NDArray[np.int64]:
        """The places in a range of the trie's order of EOS tokens that have bytes."""
        return self._ends.hidden_in(lo, hi)

    @property
    def eos_ids(self) -> list[int]:
        """The ids that end the text."""
        return sorted(self.trie.row_order.ids[self._ends.places].tolist())

    @property
    def may_end(self) -> bool:
        """Whether anything ends a text."""
        return len(self._ends.places) > 0

    def fits(self, length: int) -> bool:
        """Whether a context of ``length`` tokens can be evaluated."""
        return self.lm.max_context_tokens is None or length <= self.lm.max_context_tokens

    def spelling_eos(self) -> RowSource:
        """The same, but EOS tokens that have bytes are read as these bytes."""
        if not self.has_spelled_eos:
            return self
        source = copy(self)
        token_bytes = self.vocab.token_bytes
        source._ends = Ends.of(self.trie, [i for i in self.eos_ids if not token_bytes[i]])
        return source

    def on(self, lm: AsyncTokenLM) -> RowSource:
        """The same reading of another token LM, which runs the same model."""
        source = copy(self)
        source.lm = lm
        return source

    @property
    def is_prepared(self) -> bool:
        """Whether there are contexts that are not evaluated again."""
        return bool(self._known)

    def knows(self, context: tuple[int, ...]) -> bool:
        """Whether a context is not evaluated again."""
        return self.is_prepared and context in self._known

    def knowing(self, known: Mapping[tuple[int, ...], Awaitable[Answer]]) -> RowSource:
        """The same, but contexts in ``known`` are not evaluated again."""
        source = copy(self)
        source._known = known
        source.asked = 0
        return source

    def warm_up(self) -> None:
        """Compiles what only rows need that reach far below float32."""
        far = np.full(self.vocab.size, -200.0, np.float32)
        far[self.trie.order[0]] = 0.0
        self.read(far).piece(0, len(self.trie.order))

    def ask(self, context: tuple[int, ...]) -> Awaitable[Answer]:
        """Begins an evaluation of the tokens ``context``, whoever reads its answer."""
        return answer_of(self.lm, context)

    async def evaluate(self, context: tuple[int, ...]) -> Row:
        """One evaluation of the tokens ``context``."""
        known = self._known.get(context)
        self.asked += known is None
        return self.read(await (known or self.ask(context)))

    def read(self, answer: Answer) -> Row:
        """A model's answer as a Row.

        Raises:
            RowError: when it is no row, has NaN or +inf, or gives no probability to any token with
                bytes, nor to EOS.
        """
        made = self.ordered(answer)
        row = Row(made, self.trie, self._ends)
        if not 0.0 < row.mass < math.inf:
            raise no_distribution(made.by_id())
        return row

    def ordered(self, answer: Answer) -> OrderedRow:
        """A model's answer in the order of this reading's trie.

        Raises:
            RowError: when it is no row.
        """
        order = self.trie.row_order
        if not isinstance(answer, OrderedRow):
            return laid_out(as_row(answer, self.vocab.size), order.ids, order)
        if answer.order is order:
            return answer
        return laid_out(answer.values, order.places_in(answer.order), order)
