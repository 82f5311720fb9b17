"""What a beam holds: candidates, evaluations that were made, and what is deferred.

This module must not know how a beam goes on.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from bytelm.beam import kernels, read_ahead
from bytelm.beam.candidates import NONE, Candidate, Candidates
from bytelm.beam.deferred import NOTHING, POINTER, Deferred, Path, log_sum
from bytelm.beam.judge import Judge
from bytelm.beam.params import BeamParams
from bytelm.beam.read_ahead import Ahead
from bytelm.beam.rows import Row, RowSource
from bytelm.errors import ContextTooLong, EmptyBeam, Terminated
from bytelm.models.byte_lm import StatefulByteLM
from bytelm.models.token_lm import AsyncTokenLM, StatefulTokenizedLM
from bytelm.vocabulary.stand_in import START, can_follow
from bytelm.vocabulary.trie import ROOT

if TYPE_CHECKING:
    from bytelm.beam.healing import Reading

RECENT = 64
"""So many bytes tell which can follow, where not every byte of a token is one."""


class Wanted(NamedTuple):
    """A candidate to evaluate: a root, or an extension.

    Attributes:
        key: (the candidate that is extended, the token that ends it); (-1, i) for root i.
        path: its tokens.
        weight: its weight.
    """

    key: tuple[int, int]
    path: Path
    weight: float


class Lost(NamedTuple):
    """Of a beam that a byte emptied: the text before it, and why nothing goes on with it."""

    text: bytes = b""
    why: str = ""


class Beam(StatefulByteLM, ABC):
    """The candidates of a text; see ``ByteBeamState``, which is one that users can ask.

    What begins with an underscore is for this package.

    Attributes:
        source: evaluates contexts.
        params: the beam's parameters.
        terminated: whether EOS was consumed.
    """

    def __init__(
        self,
        source: RowSource,
        params: BeamParams,
        anchor: Path,
        paths: Sequence[Path] = (),
        candidates: Candidates = NONE,
        roots: Sequence[tuple[Path, float]] = (),
        terminated: bool = False,
        rows: dict[tuple[int, int], Row] | None = None,
        is_cut: bool = False,
        is_weighed: bool = True,
        ahead: Ahead = read_ahead.NOTHING,
        deferred: Deferred = NOTHING,
    ) -> None:
        """For this package; users begin with ``ByteBeamState.initial``.

        Args:
            source: evaluates contexts.
            params: the beam's parameters.
            anchor: the tokens that are no text, up to where the text begins.
            paths: the tokens of each of ``candidates``.
            candidates: those below the root of the trie, best first.
            roots: tokens and weight of candidates at the root, or at EOS if ``terminated``.
            terminated: whether EOS was consumed.
            rows: evaluations made so far, by (candidate, token that ends it).
            is_cut: whether ``max_context_length`` took something from the beginning.
            is_weighed: whether the weights count all of the text.
            ahead: evaluations of extensions that were asked for in advance.
            deferred: what was not evaluated, but has mass.
        """
        self.source = source
        self.params = params
        self.terminated = terminated
        self._anchor = anchor
        self._paths = paths
        self._candidates = candidates
        self._roots = roots
        self._rows: dict[tuple[int, int], Row] = {} if rows is None else rows
        self._opening: dict[tuple[int, int], asyncio.Future[Row]] = {}
        self._is_cut = is_cut
        self._is_weighed = is_weighed
        self._ahead = ahead.of_candidates(source.trie, paths, candidates.node)
        self._deferred = deferred
        self._judge = Judge.of(source.vocab, params.tokenizations, params.keep_canonical)
        if self._judge is not None:
            length = len(anchor)
            self._paths = [self._judge.judged(path, length) for path in paths]
            self._roots = [(self._judge.judged(path, length), weight) for path, weight in roots]
        self._log_weight: float | None = None
        self._extended_by: list[Wanted] | None = None
        self._chosen: tuple[list[Wanted], list[Wanted]] | None = None
        self._lost = Lost()

    def __len__(self) -> int:
        return len(self._paths) + len(self._roots)

    def __iter__(self) -> Iterator[Candidate]:
        trie, lm = self.source.trie, self.source.lm
        for path, weight, node in zip(
            self._paths, self._candidates.weight, self._candidates.node, strict=True
        ):
            yield Candidate(
                float(weight), path, trie.prefix(node), False, StatefulTokenizedLM(lm, path)
            )
        for path, weight in self._roots:
            yield Candidate(weight, path, b"", self.terminated, StatefulTokenizedLM(lm, path))

    @property
    def logZ(self) -> float | None:
        """Log-probability of the bytes consumed so far, as far as the beam covers it.

        None where nobody weighed some of them: the trunk of a fast prefill, and what was inserted.
        """
        return self.log_weight if self._is_weighed else None

    @property
    def log_weight(self) -> float:
        """The log of what the candidates' weights sum to.

        Where ``logZ`` is None, weights tell no more than what they are to each other.
        """
        if self._log_weight is None:
            weights = [weight for _, weight in self._roots] or self._candidates.weight.tolist()
            self._log_weight = log_sum(weights)
        return self._log_weight

    @property
    def deferred_share(self) -> float:
        """What stands in for tokenizations that were not evaluated, as a multiple of the others."""
        return math.exp(self._deferred.log_mass - self.log_weight)

    @property
    def context(self) -> bytes:
        """The bytes consumed so far, without those that ``max_context_length`` left out."""
        # Nobody consumed what is no text, even where it is read as the bytes of its name.
        text = self.source.lm.vocab.decode(self._anchor) + self._text
        return text.removeprefix(self._prefix)

    @property
    def _prefix(self) -> bytes:
        """What the tokenizer put before the whole text; nothing if a special token comes first."""
        vocab = self.source.lm.vocab
        if self._is_cut or not vocab.has_initial_context:
            return b""
        length = len(vocab.initial_context)
        first = self._anchor[length : length + 1]
        begins = self._anchor[:length] == vocab.initial_context
        return vocab.prefix if begins and all(vocab.token_bytes[t] for t in first) else b""

    @property
    def _is_fresh(self) -> bool:
        """Whether no byte was consumed behind the anchor."""
        if self._paths and len(self._paths[0]) > len(self._anchor) + len(self.source.vocab.prefix):
            return False
        text = self._text
        return not text or (
            text == self._prefix and len(self._anchor) == len(self.source.vocab.initial_context)
        )

    @property
    def _text(self) -> bytes:
        """The bytes consumed behind the anchor, the tokenizer's prefix included."""
        for candidate in self:
            text = self.source.vocab.decode(candidate.tokens[len(self._anchor) :])
            return text + candidate.partial
        return self._lost.text

    @property
    def nbytes(self) -> int:
        """About how much memory it takes: candidates, their tokens, evaluations that it keeps."""
        rows = sum(row.nbytes for row in self._rows.values())
        paths = POINTER * sum(map(len, self._paths))
        candidates = sum(array.nbytes for array in self._candidates)
        extensions = POINTER * sum(len(one.path) for one in self._extended_by or ())
        return candidates + paths + extensions + rows + self._ahead.nbytes + self._deferred.nbytes

    def on(self, lm: AsyncTokenLM) -> Self:
        """The same state, evaluated from here on by another token LM, which runs the same model."""
        state = self._with(self._paths, self._candidates, self._roots, self.terminated, self._rows)
        state.source = self.source.on(lm)
        return state

    def apart(self, lm: AsyncTokenLM) -> Self:
        """As ``on`` another that only resembles it: the two states share no evaluations to come."""
        state = self.on(lm)
        state._rows = dict(self._rows)
        return state

    def _mixed(self) -> NDArray[np.float64]:
        """The candidates' next bytes by weight: float64 ``[258]``, in units of exp(log_weight)."""
        trie = self.source.trie
        return kernels.mix_children(
            *self._candidates, trie.lo, trie.hi, trie.first, trie.byte, self.log_weight
        )

    def _stand_in(self) -> NDArray[np.float64]:
        """What the next byte of all that is deferred is taken to be: float64 ``[258]``."""
        source, trie = self.source, self.source.trie
        last = START
        if self._paths:
            last = int(trie.byte[self._candidates.node[0]])
        elif self._roots and (end := source.vocab.token_bytes[self._roots[0][0][-1]]):
            last = end[-1]
        probs = (source.stand_in.probs if source.may_end else source.stand_in.endless)[last]
        if source.stand_in.is_closed:
            return probs
        return probs * can_follow(trie, self._recent(), source.may_end)

    def _recent(self) -> bytes:
        """The end of the text, from where some candidate's token begins."""
        path = self._paths[0] if self._paths else self._roots[0][0]
        text = self.source.trie.prefix(self._candidates.node[0]) if self._paths else b""
        for token in reversed(path[len(self._anchor) :]):
            if len(text) > RECENT:
                break
            text = self.source.vocab.token_bytes[token] + text
        return text

    @property
    def _most(self) -> int | None:
        """The length at which it goes on with a part of its tokens; None if it does not."""
        most, model = self.params.max_context_length, self.source.lm.max_context_tokens
        return most if most is None or model is None else min(most, model)

    @property
    def _longest(self) -> int:
        """The length of the longest candidate below the root, if there is any."""
        return max(map(len, self._paths))

    def _fits(self, length: int) -> bool:
        most = self._most
        return self.source.fits(length) if most is None else length <= most

    def _surely_fit(self, bs: bytes) -> bool:
        """Whether the vocabulary spells these bytes, and each may be a token; reads no more."""
        longest = 1 + max(len(path) for path in self._paths or [path for path, _ in self._roots])
        vocab, closed = self.source.vocab, self.source.stand_in.is_closed
        return closed and vocab.alphabet.issuperset(bs) and self._fits(longest + len(bs))

    def has_room_for(self, tokens: int) -> bool:
        """Whether so many tokens can be added before ``max_context_length`` plays a part."""
        most = self._most
        return most is None or all(len(c.tokens) + 1 + tokens <= most for c in self)

    def _anchored(self, anchor: Path, weight: float, is_cut: bool, is_weighed: bool) -> Self:
        roots = [(anchor, weight)]
        return type(self)(
            self.source, self.params, anchor, roots=roots, is_cut=is_cut, is_weighed=is_weighed
        )

    def _weighing_as(self, other: Self) -> Self:
        """The same shares of another state's total."""
        more = other.log_weight - self.log_weight
        candidates = self._candidates._replace(weight=self._candidates.weight + more)
        roots = [(path, weight + more) for path, weight in self._roots]
        state = self._with(self._paths, candidates, roots, self.terminated, self._rows)
        state._deferred = self._deferred.weighing(more)
        state._is_weighed = other._is_weighed
        return state

    def _with(
        self,
        paths: Sequence[Path],
        candidates: Candidates,
        roots: Sequence[tuple[Path, float]] = (),
        terminated: bool = False,
        rows: dict[tuple[int, int], Row] | None = None,
    ) -> Self:
        return type(self)(
            self.source,
            self.params,
            self._anchor,
            paths,
            candidates,
            roots,
            terminated,
            rows,
            self._is_cut,
            self._is_weighed,
            self._ahead,
            self._deferred,
        )

    def spells_eos(self, which: int) -> bool:
        """Whether a candidate below the root counts some EOS token as its bytes.

        Candidates do that are left of a prefill.
        """
        trie, node = self.source.trie, self._candidates.node[which]
        spelled = self.source.spelled_eos(trie.lo[node], trie.hi[node])
        at = self._candidates.start[which] - trie.lo[node]
        return bool(self._candidates.pieces[at + spelled].any())

    def from_reading(self, reading: Reading) -> Self:
        """The beam whose only candidate is ``reading``."""
        if reading.ended:
            return self._with((), NONE, [(reading.path, reading.weight)], terminated=True)
        if reading.node == ROOT:
            return self._with((), NONE, [(reading.path, reading.weight)])
        lo, hi = self.source.trie.lo[reading.node], self.source.trie.hi[reading.node]
        piece, mass = reading.row.piece(lo, hi)
        candidates = Candidates(
            np.array([reading.weight]),
            np.array([reading.node], np.int32),
            np.zeros(1, np.int64),
            np.array([mass]),
            piece,
        )
        return self._with([reading.path], candidates)

    def _reading(self, source: RowSource) -> Self:
        """The same candidates; contexts are evaluated by ``source`` from here on."""
        rows = None if source.has_spelled_eos or self.source.has_spelled_eos else self._rows
        state = self._with(self._paths, self._candidates, self._roots, self.terminated, rows)
        state.source = source
        return state

    def _check_fits(self, length: int) -> None:
        if not self.source.fits(length):
            raise ContextTooLong.of(self.source.lm.max_context_tokens, length)

    def _check_open(self) -> None:
        if self.terminated:
            raise Terminated(f"the text ended (EOS) after {last_bytes(self.context)}")
        if self._lost.why:
            raise EmptyBeam(self._lost.why)


B = TypeVar("B", bound=Beam)


def last_bytes(context: bytes) -> str:
    """The end of a context, for messages."""
    return repr(context) if len(context) <= 24 else f"…{context[-24:]!r}"
