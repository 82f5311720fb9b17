"""Rows: what one evaluation says about the next token, in the order of the trie.

Here the special tokens leave: ids without bytes that are not EOS get probability zero and the rest
is renormalised, once. This module knows token LMs and tries; it must not know beams.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Iterable, Mapping
from copy import copy

import numpy as np
from numpy.typing import NDArray

from bytelm import memory
from bytelm.compiled import compiled
from bytelm.errors import BeamError
from bytelm.logprobs import EOS, SIZE
from bytelm.raw_rows import as_row, no_distribution
from bytelm.stand_in import StandIn
from bytelm.token_lm import AsyncTokenLM
from bytelm.trie import REORDER, ROOT, TokenTrie
from bytelm.vocab import ByteVocab

TINY = 1e-30
"""Below this mass float32 nears its smallest normal number, so sums go through logarithms."""
FAR = 1e-37
"""Below this probability float32 loses digits, and below 1e-45 all of them."""


@compiled(fastmath=REORDER)
def gather_sum(
    values: NDArray[np.float32],
    order: NDArray[np.uint32],
    start: int,
    stop: int,
    out: NDArray[np.float32],
) -> float:
    """Copies ``values[order[i]]`` to ``out[i]`` for i in a range, and gives the sum.

    As exact as ``sum_range``: short blocks in float32, their sums in float64.
    """
    total = 0.0
    i = start
    while i + 16 <= stop:
        block = np.float32(0.0)
        for j in range(16):
            x = values[order[i + j]]
            out[i + j] = x
            block += x
        total += float(block)
        i += 16
    while i < stop:
        x = values[order[i]]
        out[i] = x
        total += x
        i += 1
    return total


@compiled()
def exact_probs(
    logprobs: NDArray[np.float32],
    order: NDArray[np.uint32],
    hidden: NDArray[np.int64],
    start: int,
    stop: int,
) -> NDArray[np.float64]:
    """Probabilities of a range of the order in float64, which reach far below float32's."""
    exact = np.empty(stop - start, np.float64)
    for i in range(start, stop):
        exact[i - start] = math.exp(np.float64(logprobs[order[i]]))
    for position in hidden:
        if start <= position < stop:
            exact[position - start] = 0.0
    return exact


@compiled()
def goes_far(
    logprobs: NDArray[np.float32],
    probs: NDArray[np.float32],
    order: NDArray[np.uint32],
    start: int,
    stop: int,
) -> bool:
    """Whether a range of the order has probabilities below ``FAR``, besides zero."""
    found = False
    for i in range(start, stop):
        found |= probs[i] < FAR and logprobs[order[i]] > -math.inf
    return found


@compiled()
def read_row(
    logprobs: NDArray[np.float32],
    probs: NDArray[np.float32],
    order: NDArray[np.uint32],
    hidden: NDArray[np.int64],
    eos_ids: NDArray[np.int64],
    banned_ids: NDArray[np.int64],
    root_bounds: NDArray[np.int32],
    root_bytes: NDArray[np.int64],
) -> tuple[NDArray[np.float32], NDArray[np.float64], float]:
    """A model's answer in the trie's order: see ``Row`` for what is returned.

    Args:
        logprobs: float32 ``[vocab.size]``.
        probs: float32 ``[vocab.size]``, their exponentials; changed.
        order: see ``TokenTrie``; so are the last two.
        hidden: see ``Row``.
        eos_ids: ids that end the text.
        banned_ids: ids that get no probability.
        root_bounds: the ranges of the root's children.
        root_bytes: their bytes.

    Returns:
        What ``Row`` has as ``probs``, ``root`` and ``mass``; a mass that is not finite where any
        of the log-probabilities is NaN or +inf: such a value is in some sum, whatever its id.
    """
    eos = 0.0
    for token in eos_ids:
        eos += math.exp(np.float64(logprobs[token]))
    for position in hidden:
        probs[order[position]] = 0.0
    ordered = np.empty(order.size, np.float32)
    root = np.zeros(SIZE)
    total = eos
    for i in range(root_bytes.size):
        start, stop = root_bounds[i], root_bounds[i + 1]
        mass = gather_sum(probs, order, start, stop, ordered)
        if mass < TINY:
            mass = exact_probs(logprobs, order, hidden, start, stop).sum()
        root[root_bytes[i]] = mass
        total += mass
    root[EOS] = eos
    if total > 0.0:
        root /= total
    banned = 0.0
    for token in banned_ids:
        banned += probs[token]
    return ordered, root, total if math.isfinite(banned) else banned


class Row:
    """The distribution over the next token, as byte LMs need it.

    Attributes:
        logprobs: float32 ``[vocab.size]``, as the model gave it.
        order: the trie's order, uint32 ``[n]``.
        hidden: int64, positions in this order that count as EOS instead of as their bytes.
        probs: float32 ``[n]``, probabilities in the trie's order, not renormalised.
        root: float64 ``[258]``, probability of each first byte (and EOS at 257), renormalised.
        mass: float64, what ``probs`` and EOS sum to; the rest was special tokens.
    """

    __slots__ = ("hidden", "logprobs", "mass", "order", "probs", "root")

    def __init__(
        self,
        logprobs: NDArray[np.float32],
        trie: TokenTrie,
        eos_ids: NDArray[np.int64],
        banned_ids: NDArray[np.int64],
        hidden: NDArray[np.int64],
    ) -> None:
        """Reads a model's answer.

        Args:
            logprobs: float32 ``[vocab.size]``.
            trie: the trie of the vocabulary.
            eos_ids: ids that end the text.
            banned_ids: ids that get no probability.
            hidden: positions in the trie's order that count as EOS instead of as their bytes.
        """
        self.logprobs = logprobs
        self.order = trie.order
        self.hidden = hidden
        with np.errstate(over="ignore"):
            probs = np.exp(logprobs)
        self.probs, self.root, self.mass = read_row(
            logprobs,
            probs,
            trie.order,
            hidden,
            eos_ids,
            banned_ids,
            trie.root_bounds,
            trie.root_bytes,
        )

    @property
    def nbytes(self) -> int:
        """How much memory it takes that nothing else shares."""
        return self.logprobs.nbytes + self.probs.nbytes + self.root.nbytes

    def _exact(self, lo: int, hi: int) -> NDArray[np.float64]:
        return exact_probs(self.logprobs, self.order, self.hidden, int(lo), int(hi))

    def _goes_far(self, lo: int, hi: int) -> bool:
        # For numpy's integers it would be compiled once more.
        return bool(goes_far(self.logprobs, self.probs, self.order, int(lo), int(hi)))

    def piece(
        self, lo: int, hi: int, share: float | None = None
    ) -> tuple[NDArray[np.floating], float]:
        """A copy of a range that has some probability, and its sum, in a scale of their own.

        In float64 where float32 cannot hold what may be narrowed to later.

        Args:
            lo: where the range begins in the trie's order.
            hi: where it ends.
            share: the range's renormalised probability, where it is known already.
        """
        if share is None:
            mass = float(self.probs[lo:hi].sum(dtype=np.float64))
        else:
            mass = float(share) * self.mass
        piece = self.probs[lo:hi].copy()
        if mass >= TINY and (piece.min() >= FAR or not self._goes_far(lo, hi)):
            return piece, mass
        exact = self._exact(lo, hi)
        exact /= exact.max()
        return exact, float(exact.sum())

    def log_mass(self, lo: int, hi: int) -> float:
        """Log-probability that the next token is within a range of the order."""
        total = float(self.probs[lo:hi].sum(dtype=np.float64))
        if total < TINY:
            total = float(self._exact(lo, hi).sum())
        return math.log(total / self.mass) if total > 0.0 else -math.inf

    def log_prob(self, token: int) -> float:
        """Log-probability that the next token is this one, which has bytes."""
        return float(self.logprobs[token]) - math.log(self.mass)


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
        in_trie = [i for i in ids if self.vocab.token_bytes[i]]
        self._eos_ids = np.array(sorted(ids), np.int64)
        self._hidden = np.flatnonzero(np.isin(self.trie.order, in_trie))
        banned = np.ones(self.vocab.size, np.bool_)
        banned[self.trie.order] = False
        banned[self._eos_ids] = False
        self.banned_ids: NDArray[np.int64] = np.flatnonzero(banned)
        self._known: Mapping[tuple[int, ...], Awaitable[NDArray[np.float32]]] = {}
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
        return bool(self._hidden.size)

    def spelled_eos(self, lo: int, hi: int) -> NDArray[np.int64]:
        """The places in a range of the trie's order of EOS tokens that have bytes."""
        first, last = np.searchsorted(self._hidden, (lo, hi))
        return self._hidden[first:last]

    @property
    def eos_ids(self) -> list[int]:
        """The ids that end the text."""
        return [int(i) for i in self._eos_ids]

    @property
    def may_end(self) -> bool:
        """Whether anything ends a text."""
        return len(self._eos_ids) > 0

    def fits(self, length: int) -> bool:
        """Whether a context of ``length`` tokens can be evaluated."""
        return self.lm.max_context_tokens is None or length <= self.lm.max_context_tokens

    def spelling_eos(self) -> RowSource:
        """The same, but EOS tokens that have bytes are read as these bytes."""
        if not self.has_spelled_eos:
            return self
        source = copy(self)
        spelled = self.trie.order[self._hidden]
        source._eos_ids = self._eos_ids[~np.isin(self._eos_ids, spelled)]
        source._hidden = self._hidden[:0]
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

    def knowing(self, known: Mapping[tuple[int, ...], Awaitable[NDArray[np.float32]]]) -> RowSource:
        """The same, but contexts in ``known`` are not evaluated again."""
        source = copy(self)
        source._known = known
        source.asked = 0
        return source

    def warm_up(self) -> None:
        """Compiles what only rows need that reach far below float32."""
        far = np.full(self.vocab.size, -200.0, np.float32)
        far[self.trie.order[0]] = 0.0
        for far.flags.writeable in (True, False):  # kinds of their own where code is compiled
            self.read(far).piece(0, len(self.trie.order))

    async def evaluate(self, context: tuple[int, ...]) -> Row:
        """One evaluation of the tokens ``context``."""
        known = self._known.get(context)
        self.asked += known is None
        return self.read(await (known or self.lm.next_token_logprobs(context)))

    def read(self, logprobs: NDArray[np.float32]) -> Row:
        """A model's answer as a Row.

        Raises:
            RowError: when it is no row, has NaN or +inf, or gives no probability to any token with
                bytes, nor to EOS.
        """
        logprobs = as_row(logprobs, self.vocab.size)
        row = Row(logprobs, self.trie, self._eos_ids, self.banned_ids, self._hidden)
        if not 0.0 < row.mass < math.inf:
            raise no_distribution(logprobs)
        return row
