"""The byte beam: sums over tokenizations of a context, pruned to the likely ones.

The algorithm is that of Vieira et al., "From Language Models over Tokens to Language Models over
Characters" (arXiv 2412.03719). A candidate is one tokenization of the context: tokens and a partial
token, a node of the trie. Its weight is the log-probability of both. To *extend* a candidate is to
end its token where it stands and to start the next, which takes one evaluation.

This module must not know how a token LM computes, nor HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from bytelm import read_ahead
from bytelm.beam import kernels
from bytelm.beam.deferred import NOTHING, POINTER, Deferred, Path, log_sum
from bytelm.beam.judge import Judge
from bytelm.beam.late import Known, Part, canonical, gather, settle
from bytelm.beam.params import BeamParams
from bytelm.beam.ration import MOST, RATION, narrowed
from bytelm.byte_lm import StatefulByteLM, Walk
from bytelm.draws import Draw
from bytelm.errors import BeamError, ContextTooLong, EmptyBeam, Terminated, VocabError
from bytelm.genlm import BackendLM, as_token_lm
from bytelm.genlm_states import GenlmState, genlm_states
from bytelm.healing import Reading, heal
from bytelm.logprobs import (
    EOS,
    Chart,
    LazyByteProbs,
    check_symbol,
    checked_bytes,
    escape,
    log_normalised,
)
from bytelm.prefill import JOINED, TAIL, Trunk, TrunkFinder
from bytelm.read_ahead import Ahead
from bytelm.rows import Row, RowSource
from bytelm.stand_in import START, can_follow
from bytelm.threads import by_length
from bytelm.token_lm import AsyncTokenLM, StatefulTokenizedLM
from bytelm.trie import ROOT, TokenTrie
from bytelm.waves import LONG, KnownWalk

if TYPE_CHECKING:
    from bytelm.token_sampling import Method

SHORT = 32
"""Up to so many bytes added to a text are walked even by a fast prefill."""
AHEAD = 64
"""How many evaluations a fast prefill submits at once at most; each holds a row of memory."""
RECENT = 64
"""So many bytes tell which can follow, where not every byte of a token is one."""


class Candidate(NamedTuple):
    """One tokenization of the context.

    Attributes:
        weight: log-probability of tokens and partial token.
        tokens: token ids, the initial context included.
        partial: the bytes of the token under way.
        terminated: whether EOS was consumed.
        lm_state: the tokens as a state of the token LM.

    Its ``repr`` is ``weight: token|token‖partial``.
    """

    weight: float
    tokens: Path
    partial: bytes
    terminated: bool
    lm_state: StatefulTokenizedLM

    def __repr__(self) -> str:
        end = "<EOS>" if self.terminated else ""
        return f"{self.weight:.2f}: {self.lm_state!r}‖{escape(self.partial)}{end}"


class _Candidates(NamedTuple):
    """Candidates below the root, best first, as ``kernels`` describes them."""

    weight: kernels.F64
    node: kernels.I32
    start: kernels.I64
    mass: kernels.F64
    pieces: kernels.Pieces

    def chosen(self, which: slice | kernels.I64) -> _Candidates:
        weight, node, start, mass, pieces = self
        return _Candidates(weight[which], node[which], start[which], mass[which], pieces)


_NONE = _Candidates(
    np.empty(0), np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0), np.empty(0, np.float32)
)


class _Wanted(NamedTuple):
    """A candidate to evaluate: a root, or an extension.

    Attributes:
        key: (the candidate that is extended, the token that ends it); (-1, i) for root i.
        path: its tokens.
        weight: its weight.
    """

    key: tuple[int, int]
    path: Path
    weight: float


_RESORT = (-2, 0)
"""The key of the last resort."""


class _Opened(NamedTuple):
    """A candidate at the root of the trie, with the evaluation of its tokens."""

    path: Path
    weight: float
    row: Row

    def moved(self, trie: TokenTrie, child: int, b: int) -> Part:
        """One byte on, which leads to ``child``."""
        share = self.row.root[b]
        piece, mass = self.row.piece(trie.lo[child], trie.hi[child], share)
        return Part(self.path, self.weight + math.log(share), child, mass, piece)


class _Lost(NamedTuple):
    """Of a beam that a byte emptied: the text before it, and why nothing goes on with it."""

    text: bytes = b""
    why: str = ""


class ByteBeamState(StatefulByteLM):
    """A byte LM's state as a beam of tokenizations; see ``initial``.

    Attributes:
        params: the beam's parameters.
        terminated: whether EOS was consumed.
    """

    def __init__(
        self,
        source: RowSource,
        params: BeamParams,
        anchor: Path,
        paths: Sequence[Path] = (),
        candidates: _Candidates = _NONE,
        roots: Sequence[tuple[Path, float]] = (),
        terminated: bool = False,
        rows: dict[tuple[int, int], Row] | None = None,
        is_cut: bool = False,
        is_weighed: bool = True,
        ahead: Ahead = read_ahead.NOTHING,
        deferred: Deferred = NOTHING,
    ) -> None:
        """For this package; users begin with ``initial``.

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
        self._extended_by: list[_Wanted] | None = None
        self._chosen: tuple[list[_Wanted], list[_Wanted]] | None = None
        self._lost = _Lost()

    @classmethod
    async def initial(
        cls,
        llm: AsyncTokenLM | BackendLM,
        params: BeamParams,
        trie_opts: Mapping[str, Any] | None = None,
        *,
        initial_context: Sequence[int] | None = None,
    ) -> Self:
        """The state before any byte.

        Args:
            llm: the token LM; a genlm.backend model is adapted (see ``bytelm.genlm``).
            params: the beam's parameters.
            trie_opts: how genlm-bytes builds its trie; not used, but calls that have it run.
            initial_context: token ids; by default the model's BOS. What its tokenizer puts before
                a text stands behind that alone. Of more than ``params.max_context_length``, the
                first and the last are taken.

        Raises:
            VocabError: when no context is given and the model has neither BOS nor EOS.
            BeamError: when an EOS token is not in the vocabulary.
        """
        lm = as_token_lm(llm)
        source = RowSource(lm, params.eos_byte_strings, params.special_tokens == "literal")
        vocab = lm.vocab
        anchor = vocab.initial_context if initial_context is None else tuple(initial_context)
        state = cls(source, params, anchor, roots=[(anchor, 0.0)])
        if vocab.prefix and vocab.has_initial_context and anchor == vocab.initial_context:
            # The tokenizer put it there, not the model: it has no part in logZ.
            state = (await state._walk(vocab.prefix))._weighing_as(state)
        return state._shortened()

    # What the beam holds.

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
    def states(self) -> list[GenlmState]:
        """The candidates as genlm-bytes has them, best first."""
        trie, (_, nodes, starts, _, pieces) = self.source.trie, self._candidates
        ends = starts + trie.hi[nodes] - trie.lo[nodes]
        kept = [pieces[start:end] for start, end in zip(starts, ends, strict=True)]
        return genlm_states(self.source, self, nodes.tolist(), kept)

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
    def at_limit(self) -> bool:
        """Whether what ought to come next is longer than the model takes.

        That is so where the best candidate ought to be extended, but is as long as that; and where
        nothing is left but to extend candidates that are.
        """
        if self._most is not None:
            return False
        if not self._paths:
            return any(not self.source.fits(len(path)) for path, _ in self._roots)
        if self.source.fits(self._longest + 1):
            return False
        extensions = self._extensions()
        least = log_sum([self.log_weight, *(one.weight for one in extensions)])
        least += self.params.log_prune_threshold
        beyond = [one for one in extensions if not self.source.fits(len(one.path))]
        ought = any(one.key[0] == 0 and one.weight > least for one in beyond)
        return ought or (len(beyond) == len(extensions) > 0 and not self._mixed().any())

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

    def through(self, text: bytes, share: int = 1) -> Walk[Self]:
        """See ``StatefulByteLM``: in waves where the text is long; see ``bytelm.waves``."""
        if len(text) < LONG:
            return Walk(self, text)
        return KnownWalk(self, text, reports=True, share=share)

    # What comes next.

    @read_ahead.walking
    async def logp_next(self) -> LazyByteProbs:
        """The distribution over the next byte or EOS; evaluates extensions that weigh enough."""
        self._check_open()
        top = self.log_weight
        total = self._mixed()
        wanted, others = self._chosen = await self._wanted(top, need_one=not total.any())
        for one in await self._open(wanted):
            ends = total[EOS]
            total += math.exp(one.weight - top) * one.row.root
            if not self._ends(one):
                total[EOS] = ends
        if not total.any():
            raise EmptyBeam(
                f"no candidate after {_ending(self.context)} can go on: all that are left stand at "
                "the longest context that the model takes, or have no probability; "
                "raise K or lower prune_threshold, or use a shorter context"
            )
        if not self.params.deferred:
            return LazyByteProbs(log_normalised(total))
        held = log_sum([self._deferred.log_mass, *(one.weight for one in others)])
        report = total + math.exp(held - top) * self._stand_in()
        return LazyByteProbs(log_normalised(report), kept=total)

    async def __lshift__(self, b: int) -> Self:
        try:
            return await self.advanced(b)
        except EmptyBeam as error:
            # Code for genlm-bytes looks at the length.
            state = self._with((), _NONE)
            state._lost = _Lost(self._text, str(error))
            return state

    async def advanced(self, b: int) -> Self:
        """See ``StatefulByteLM.advanced``."""
        state = await self._moved(b)
        return state if state.terminated else await state._with_room()

    @read_ahead.walking
    async def _moved(self, b: int) -> Self:
        """The state after ``b``, however long its candidates are."""
        b = check_symbol(b)
        self._check_open()
        trie, deferred = self.source.trie, self.params.deferred
        log_z, parent, *moved = kernels.advance(
            *self._candidates, trie.lo, trie.hi, trie.first, trie.byte, b
        )
        if deferred and self._chosen is not None:
            wanted, others = self._chosen
        else:
            need_one = not len(parent) and not (deferred and self._mixed().any())
            wanted, others = await self._wanted(self.log_weight if deferred else log_z, need_one)
        begins = b == EOS or trie.child(ROOT, b) >= 0
        opened = await self._open(wanted) if begins else []
        if b == EOS:
            state = await self._ended(opened, others)
        else:
            opened = [o for o in opened if o.row.root[b] > 0.0]
            paths = [self._paths[i] for i in parent.tolist()]
            child = trie.child(ROOT, b)
            parts = [o.moved(trie, child, b) for o in opened]
            candidates = _Candidates(*moved)
            if deferred:
                held = self._deferred
                for one in wanted:
                    held = held.beside(one.path) if one.key == _RESORT else held
                state = await self._settled(paths, candidates, log_z, parts, b, held, others)
            else:
                state = self._joined(paths, candidates, parts)
        if not len(state):
            healed = await heal(self, b) if self.params.heal and not deferred else None
            if healed is None:
                raise EmptyBeam(self._why_empty(b))
            state = healed
        if self.params.verbose:
            print(f"\n{state!r}")
        return state

    def spells_eos(self, which: int) -> bool:
        """Whether a candidate below the root counts some EOS token as its bytes.

        Candidates do that are left of a prefill.
        """
        trie, node = self.source.trie, self._candidates.node[which]
        spelled = self.source.spelled_eos(trie.lo[node], trie.hi[node])
        at = self._candidates.start[which] - trie.lo[node]
        return bool(self._candidates.pieces[at + spelled].any())

    def draw_tokens(self, uniform: Callable[[], float]) -> tuple[Path, bytes]:
        """One tokenization of the context, drawn by weight, its current token drawn to the end.

        Evaluates nothing.

        Args:
            uniform: gives random numbers in [0, 1).

        Returns:
            Token ids, and what the last one adds to the context; nothing at the end of a token.

        Raises:
            Terminated: when the state is at EOS.
        """
        self._check_open()
        if self._roots:
            weights = np.array([weight for _, weight in self._roots])
            return self._roots[_drawn(np.exp(weights - weights.max()), uniform())][0], b""
        weight, nodes, start, _, pieces = self._candidates
        which = _drawn(np.exp(weight - weight.max()), uniform())
        trie, node = self.source.trie, nodes[which]
        lo, hi = trie.lo[node], trie.hi[node]
        # Probabilities alone: what ends the text was left out of the piece when it was made.
        piece = pieces[start[which] : start[which] + hi - lo]
        token = int(trie.order[lo + _drawn(piece, uniform())])
        rest = self.source.vocab.token_bytes[token][trie.depth[node] :]
        return (*self._paths[which], token), rest

    def prune(self) -> Self:
        """At most K candidates, and always the best.

        Those alone whose share is above the threshold, unless what is dropped is deferred: what
        was evaluated already costs nothing, and matters as soon as a surprising byte comes.
        """
        weight = self._candidates.weight
        if len(weight) <= 1:
            return self
        most = len(weight) if self.params.K is None else min(self.params.K, len(weight))
        if self.params.deferred:
            if most == len(weight):
                return self
        else:
            least = self.log_weight + self.params.log_prune_threshold
            most = min(most, max(1, int(np.count_nonzero(weight > least))))
        kept = list(range(most))
        if self.params.keep_canonical and most < len(weight):
            kept += [i for i in range(most, len(weight)) if self._is_canonical(i)]
        return self._keeping(kept)

    def _keeping(self, kept: Sequence[int]) -> Self:
        """Some of the candidates below the root alone; the others are dropped."""
        weight = self._candidates.weight
        if len(kept) == len(weight):
            return self
        candidates = self._candidates.chosen(np.array(kept))
        places = {i: place for place, i in enumerate(kept)}
        rows = {(places[i], t): row for (i, t), row in self._rows.items() if i in places}
        state = self._with([self._paths[i] for i in kept], candidates, rows=rows)
        if self._extended_by is not None:
            found = [one for one in self._extended_by if one.key[0] in places]
            state._extended_by = [
                one._replace(key=(places[one.key[0]], one.key[1])) for one in found
            ]
        if self.params.deferred:
            dropped = log_sum([w for i, w in enumerate(weight.tolist()) if i not in places])
            state._deferred = self._deferred.without(dropped)
        return state

    @read_ahead.walking
    async def prefill(
        self, bs: bytes | Iterable[int], mode: str = "fast", tail: int = TAIL
    ) -> Self:
        """The state after bytes that are known in advance.

        EOS tokens that have bytes count as these meanwhile, and no byte ends the text.

        Args:
            bs: bytes to consume.
            mode: ``"fast"`` takes the trunk of the whole text as it is and walks the rest,
                see ``bytelm.prefill``; ``logZ`` is None behind it. What it walks and
                evaluates is bounded whatever the text, but for a beam without a threshold. Where
                little is added to a text, and with ``"exact"``, the beam walks byte by byte.
            tail: how many word ends lie behind the trunk, where as many are near enough.

        Raises:
            BeamError: when ``mode`` is unknown, or ``tail`` below 1.
            ContextTooLong: when the canonical tokens are more than the model takes.
        """
        if mode not in ("fast", "exact"):
            raise BeamError(f'mode is "fast" or "exact", got {mode!r}')
        if tail < 1:
            raise BeamError(f"tail must be at least 1, got {tail}")
        added = checked_bytes(bs)
        self._check_open()
        if not added:
            return self
        whole = self._text + added
        finder = TrunkFinder.of(self.source.vocab)
        if self._most is None:
            await finder.check_fits(len(self._anchor), whole, self.source.lm.max_context_tokens)
        trunk = await finder.found(whole, tail)
        length = len(self._anchor) + len(trunk.tokens) + len(trunk.rest_tokens)
        fresh = self._is_fresh
        spelling = self._reading(self.source.spelling_eos())
        if mode == "exact" or (len(added) <= SHORT and not fresh):
            state = await spelling._walk(added)
        elif self._most is not None and length > self._most:
            state = await spelling._ending(whole, tail)
        elif trunk.tokens or fresh:
            state = await spelling._from_trunk(trunk)
        else:
            state = await spelling._walk(added)
        return await state._reading(self.source)._with_room()

    async def check_room(self, bs: bytes) -> None:
        """See ``StatefulByteLM``: by the canonical tokens of ``bs`` alone, where those are certain.

        The last token needs no evaluation, and others may be joined with what is there already.
        """
        best = next(iter(self), None)
        if self._most is None and best is not None:
            # A byte that cannot be spelled has no probability, which is no matter of room.
            with contextlib.suppress(VocabError):
                finder = TrunkFinder.of(self.source.vocab)
                most = self.source.lm.max_context_tokens
                await finder.check_fits(len(best.tokens) - JOINED, bs, most)

    def insert(self, tokens: Sequence[int], text: bytes = b"") -> Self:
        """The state after ``text`` and tokens that are none, such as ``<|im_start|>``.

        This is an intervention: all text before the tokens is read canonically, so that one
        candidate is left; no weight changes, and nothing is evaluated. What ``max_context_length``
        has no room for is left out at the beginning.

        Raises:
            VocabError: when one of ``tokens`` is not in the vocabulary, or has bytes.
            ContextTooLong: when the canonical tokens are more than the model takes.
        """
        self._check_open()
        # Whatever a text's special tokens are read as, these are none of its bytes.
        vocab = self.source.lm.vocab
        for token in tokens:
            if not 0 <= token < vocab.size or vocab.token_bytes[token]:
                raise VocabError(f"token {token} cannot be inserted: it is no special token")
        ids = vocab.encode(self._text + text) if text or not self._is_fresh else []
        anchor = (*self._anchor, *ids, *tokens)
        if self._most is None:
            self._check_fits(len(anchor))
        is_weighed = self._is_weighed and not text
        state = self._anchored(anchor, self.log_weight, self._is_cut, is_weighed)
        return state._shortened()

    async def sample(
        self,
        context: bytes | Iterable[int],
        steps: int,
        draw: Callable[[Chart], int] | None = None,
        method: Method = "auto",
    ) -> bytes:
        """``context`` and bytes drawn after it, ``steps`` times; see ``StatefulByteLM.sample``.

        Args:
            context: bytes to prefill.
            steps: how many bytes to draw at most.
            draw: a ``Draw``, or any function from a Chart to one of its keys.
            method: by tokens, by bytes, or ``"auto"``: by tokens wherever that is possible; see
                ``bytelm.token_sampling``.

        Raises:
            MethodError: when ``"token"`` is wanted but not possible.
        """
        from bytelm.token_sampling import sample

        begin = checked_bytes(context)
        pieces = sample(await self.prefill(begin), steps, draw or Draw(), method=method)
        return begin + b"".join([piece.data async for piece in pieces])

    # How it gets there.

    async def _wanted(self, log_z: float, need_one: bool) -> tuple[list[_Wanted], list[_Wanted]]:
        """The candidates at the root with the extensions that weigh enough, and the others.

        Args:
            log_z: what the extensions' weights are added to before they are compared with it.
            need_one: take the heaviest extension if none weighs enough.
        """
        found = self._extensions()
        if found and not self._fits(self._longest + 1):
            found = [one for one in found if self._fits(len(one.path))]
        wanted: list[_Wanted] = []
        others: list[_Wanted] = []
        if found:
            least = log_sum([log_z, *(one.weight for one in found)])
            least += self.params.log_prune_threshold
            for one in found:
                # What was asked for in advance costs nothing.
                enough = one.weight > least or self.source.knows(one.path)
                (wanted if enough else others).append(one)
        if self._roots:
            roots = [_Wanted((-1, i), *root) for i, root in enumerate(self._roots)]
            wanted = wanted + [one for one in roots if self._fits(len(one.path))]
        if not wanted and need_one:
            others.sort(key=lambda one: -one.weight)
            wanted, others = others[:1], others[1:]
            if not wanted and self.params.deferred:
                wanted = await self._last_resort()
        return wanted, others

    async def _last_resort(self) -> list[_Wanted]:
        """The canonical tokenization of the text, where nothing else can go on."""
        found = await self._canonical(self._text, whole=True)
        if found is None:
            return []
        path, weight, _, self._rows[_RESORT] = found
        return [_Wanted(_RESORT, path, weight)]

    async def _canonical(self, text: bytes, whole: bool) -> tuple[Path, float, bytes, Row] | None:
        """See ``late.canonical``."""
        nodes = self._candidates.node.tolist()
        known = [
            Known(path, float(weight), node)
            for path, weight, node in zip(self._paths, self._candidates.weight, nodes, strict=True)
        ]
        known += [Known(path, weight, ROOT) for path, weight in self._roots]
        return await canonical(self.source, len(self._anchor), text, whole, known, self._fits)

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

    def _extended(self, path: Path, token: int) -> Path | None:
        """``path`` and a token that ended behind it; None if it may not."""
        if self._judge is None:
            return (*path, token)
        return self._judge.extended(path, token, len(self._anchor))

    def _is_canonical(self, which: int) -> bool:
        """Whether a candidate is the canonical tokenization of the text."""
        tokens = self.source.trie.tokens_at(self._candidates.node[which]).tolist()
        return self._judge is not None and self._judge.is_canonical(
            self._paths[which], tokens, len(self._anchor)
        )

    async def _ended(self, opened: list[_Opened], others: list[_Wanted]) -> Self:
        """The state after EOS; empty when nothing can end here."""
        spare = sorted(others, key=lambda one: one.weight)
        while self.params.deferred and not any(self._ends(one) for one in opened):
            is_last = not spare
            opened = await self._open(await self._last_resort() if is_last else [spare.pop()])
            if is_last:
                break
        ended = [(o.path, o.weight + math.log(p)) for o in opened if (p := self._ends(o)) > 0.0]
        ended.sort(key=lambda one: -one[1])
        state = self._with((), _NONE, ended, terminated=True)
        state._deferred = NOTHING
        return state

    def _ends(self, one: _Opened) -> float:
        """The probability that the text ends behind tokens that ended."""
        may_end = self._judge is None or self._judge.may_end(one.path, len(self._anchor))
        return float(one.row.root[EOS]) if may_end else 0.0

    async def _settled(
        self,
        paths: list[Path],
        moved: _Candidates,
        log_z: float,
        parts: list[Part],
        b: int,
        deferred: Deferred,
        others: Sequence[_Wanted],
    ) -> Self:
        """The state after ``b`` with what is deferred; empty when nothing has any probability.

        Args:
            paths: of the candidates that moved by ``b``.
            moved: these.
            log_z: what their weights sum to, as a log.
            parts: the evaluated extensions, moved by ``b``.
            b: the byte.
            deferred: what was deferred before it.
            others: the extensions that were not evaluated.
        """
        source, params = self.source, self.params
        q = float(self._stand_in()[b])
        log_q = math.log(q) if q > 0.0 else -math.inf
        deferred = deferred.after(b, log_q, [(o.path, o.weight) for o in others])
        log_z = log_sum([log_z, *(part.weight for part in parts)])
        late, deferred = await settle(
            source, deferred, log_z, params.log_prune_threshold, self._fits, self._extended
        )
        if not paths and not parts and not late:
            text = self._text + bytes([b])
            found = await self._canonical(text, whole=False)
            if found is not None:
                path, weight, partial, row = found
                node = source.trie.descend(partial)
                late = [part] if (part := Part.of(path, weight, row, source.trie, node)) else []
                deferred = deferred.beside(path)
        state = self._joined(paths, moved, [*parts, *late])
        state._deferred = deferred.settled(state.log_weight)
        return state

    async def _open(self, wanted: Sequence[_Wanted]) -> list[_Opened]:
        """Evaluates what was not evaluated yet."""
        missing = [one for one in wanted if one.key not in self._rows]
        if missing:
            if not self.source.is_prepared and read_ahead.is_idle(self.source.lm):
                self._read_ahead(missing)
            await gather([self._row_of(one) for one in missing])
            self._ahead = self._ahead.without(one.path for one in missing)
        return [_Opened(one.path, one.weight, self._rows[one.key]) for one in wanted]

    async def _row_of(self, one: _Wanted) -> Row:
        """Its evaluation: the first call that wants it makes it, the others wait for that.

        They fail if it fails; if the first one was cancelled, the next makes it.
        """
        while (row := self._rows.get(one.key)) is None:
            opening = self._opening.get(one.key)
            if opening is not None:
                await asyncio.wait([opening])
                if opening.cancelled():
                    continue
                return opening.result()
            opening = self._opening[one.key] = asyncio.get_running_loop().create_future()
            try:
                row = self._rows[one.key] = await self._evaluate(one)
                opening.set_result(row)
            except Exception as error:
                opening.set_exception(error)
                opening.exception()  # there may be no others
                raise
            finally:
                del self._opening[one.key]
                opening.cancel()
        return row

    async def _evaluate(self, one: _Wanted) -> Row:
        which, token = one.key
        answer = self._ahead.find(self._paths[which], token) if which >= 0 else None
        if answer is None:
            return await self.source.evaluate(one.path)
        return self.source.read(await answer)

    def _read_ahead(self, missing: Sequence[_Wanted]) -> None:
        """Begin evaluations that will probably be asked for after those that are missing now."""
        trie, (_, nodes, starts, _, pieces) = self.source.trie, self._candidates
        threshold = self.params.prune_threshold
        soon: list[tuple[Path, int]] = []
        for i in dict.fromkeys(one.key[0] for one in missing):
            if i >= 0 and self._fits(len(self._paths[i]) + 1):
                size = trie.hi[nodes[i]] - trie.lo[nodes[i]]
                piece = pieces[starts[i] : starts[i] + size]
                coming = read_ahead.coming(trie, int(nodes[i]), piece, threshold)
                soon += [(self._paths[i], token) for token in coming]
        self._ahead = self._ahead.asking(self.source.lm, soon[: read_ahead.MOST])

    def _extensions(self) -> list[_Wanted]:
        """All that may end here, as long as it may be."""
        if self._extended_by is None:
            self._extended_by = self._all_extensions() if self._paths else []
        return self._extended_by

    def _all_extensions(self) -> list[_Wanted]:
        trie = self.source.trie
        parent, token, weight = kernels.extensions(*self._candidates, trie.lo, trie.end, trie.order)
        ended = zip(parent.tolist(), token.tolist(), weight.tolist(), strict=True)
        return [
            _Wanted((i, t), path, w)
            for i, t, w in ended
            if (path := self._extended(self._paths[i], t)) is not None
        ]

    def _joined(self, paths: list[Path], moved: _Candidates, parts: Iterable[Part | None]) -> Self:
        """The beam of candidates that moved already, best first, and of others that join them."""
        joining = [part for part in parts if part is not None]
        if not joining:
            return self._with(paths, moved)
        sizes = [len(moved.pieces), *(len(part.piece) for part in joining)]
        weight = [*moved.weight.tolist(), *(part.weight for part in joining)]
        node = [*moved.node.tolist(), *(part.node for part in joining)]
        start = [*moved.start.tolist(), *list(accumulate(sizes))[:-1]]
        mass = [*moved.mass.tolist(), *(part.mass for part in joining)]
        paths = [*paths, *(part.path for part in joining)]
        ranks = sorted(range(len(weight)), key=weight.__getitem__, reverse=True)
        joined = _Candidates(
            np.array([weight[i] for i in ranks]),
            np.array([node[i] for i in ranks], np.int32),
            np.array([start[i] for i in ranks], np.int64),
            np.array([mass[i] for i in ranks]),
            np.concatenate([moved.pieces, *(part.piece for part in joining)]),
        )
        return self._with([paths[i] for i in ranks], joined)

    async def _walk(self, bs: bytes) -> Self:
        if len(bs) < LONG:
            state = self
            for b in bs:
                state = await state.prune().advanced(b)
            return state
        walk = KnownWalk(self, bs, reports=False)
        for _ in bs:
            await walk.advance()
        return walk.state

    # How long it gets.

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

    def has_room_for(self, tokens: int) -> bool:
        """Whether so many tokens can be added before ``max_context_length`` plays a part."""
        most = self._most
        return most is None or all(len(c.tokens) + 1 + tokens <= most for c in self)

    async def _with_room(self) -> Self:
        """The same text with room for a token behind each candidate.

        Where there is none, only the end of the text is left to condition on.
        """
        most = self._most
        if most is None or all(len(path) < most for path in self._paths):
            return self
        # Bytes of EOS tokens can only be there because somebody prefilled them.
        spelling = self._reading(self.source.spelling_eos())
        state = await spelling._ending(self._text, TAIL)
        return state._weighing_as(self)._reading(self.source)

    async def _ending(self, text: bytes, tail: int) -> Self:
        """The state after ``text`` behind the anchor, by no more than half as many tokens as fit.

        What its walk made too long to go on is left out; of nothing else, the canonical
        tokenization is in its place.
        """
        finder = TrunkFinder.of(self.source.vocab)
        base, rest = await by_length(len(text), self._halved, text)
        trunk = await finder.found(rest, tail)
        state = await base._from_trunk(trunk)
        assert self._most is not None
        kept = [i for i, path in enumerate(state._paths) if len(path) < self._most]
        if kept or not state._paths:
            return state._keeping(kept)
        before = base._at(trunk)
        known = Known(*before._roots[0], ROOT)
        return await before._canonical_behind(known, trunk, 0) or state

    def _halved(self, text: bytes) -> tuple[Self, bytes]:
        """The beginning of a state, and what it is to consume, in half as many tokens as fit.

        The first token stays in its place: models do not work well without it.
        """
        vocab, anchor = self.source.vocab, self._anchor
        assert self._most is not None
        half = self._most // 2
        rest = TrunkFinder.of(vocab).last(text, half)
        room = half - len(vocab.encode(text)) if rest == text else 0
        kept = (*anchor[:1], *anchor[max(1, len(anchor) - max(room, 0)) :])
        is_cut = self._is_cut or kept != anchor or rest != text
        return self._anchored(kept, 0.0, is_cut, is_weighed=False), rest

    def _shortened(self) -> Self:
        """A state right behind its anchor, of which only the end is left if it is too long."""
        if self._fits(len(self._anchor)) or self._most is None:
            return self
        return self._halved(b"")[0]._weighing_as(self)

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

    async def _from_trunk(self, trunk: Trunk) -> Self:
        """The state behind a trunk, walked on through the rest.

        The rest's canonical tokenization is where most of the weight will be: its evaluations are
        submitted ahead of the walk, the longest first. A cache that keeps what this one computes
        leaves a single token to each of the others; submitted together, all would compute the same.
        """
        base = (*self._anchor, *trunk.tokens)
        lengths = range(len(trunk.rest_tokens) + 1)
        ahead = [(*base, *trunk.rest_tokens[:n]) for n in lengths if self._fits(len(base) + n)]
        ahead = ahead[:AHEAD]
        submitted: dict[Path, asyncio.Future[NDArray[np.float32]]] = {}
        try:
            for path in reversed(ahead):
                call = self.source.lm.next_token_logprobs(path)
                submitted[path] = asyncio.ensure_future(call)
                if path is ahead[-1]:
                    await submitted[path]
            state = self._at(trunk)
            known = Known(*state._roots[0], ROOT)
            state.source = self.source.knowing(submitted)
            ration = RATION - len(submitted)
            for at, b in enumerate(trunk.rest):
                if self.params.prune_threshold and len(submitted) + state.source.asked > MOST:
                    ended = await state._canonical_behind(known, trunk, at)
                    if ended is not None:
                        state = ended
                        break
                before = state.prune()
                is_spent = state.source.asked > ration * (at + 1) / len(trunk.rest)
                before.params = narrowed(self.params) if is_spent else self.params
                state = await before._moved(b)
                state.params = self.params
            # The canonical tokens of the whole text are likely to be asked for next.
            done = [(path, answer) for path, answer in submitted.items() if answer.done()]
            nodes = state._candidates.node
            answers = Ahead.of(done, state._paths)
            state._ahead = answers.of_candidates(self.source.trie, state._paths, nodes)
            return state
        finally:
            for task in submitted.values():
                task.cancel()
            await asyncio.gather(*submitted.values(), return_exceptions=True)

    def _at(self, trunk: Trunk) -> Self:
        """The state right behind a trunk, whose own weight nobody knows."""
        if not trunk.tokens and not self._text:
            return self._with((), _NONE, self._roots)
        state = self._with((), _NONE, [((*self._anchor, *trunk.tokens), 0.0)])
        state._deferred = NOTHING
        state._is_weighed = False
        return state

    async def _canonical_behind(self, known: Known, trunk: Trunk, at: int) -> Self | None:
        """The state behind all of a rest, of which ``at`` bytes are walked, without further walk.

        The rest's canonical tokenization goes on, with its exact weight; all else is deferred.

        Args:
            known: the trunk's tokens.
            trunk: what the rest is behind of.
            at: how many bytes of the rest this state has consumed.

        Returns:
            The state; None if the tokenization has no probability or does not fit.
        """
        source, rest = self.source, trunk.rest
        *ended, last = trunk.rest_tokens
        path, weight, partial = known.path, known.weight, source.vocab.token_bytes[last]
        if not self._fits(len(path) + len(ended)):
            return None
        for token in ended:
            weight += (await source.evaluate(path)).log_prob(token)
            path = (*path, token)
        row = await source.evaluate(path)
        part = Part.of(path, weight, row, source.trie, source.trie.descend(partial))
        if part is None or part.weight == -math.inf:
            return None
        state = self._joined([], _NONE, [part])
        if self.params.deferred:
            deferred = self._deferred.without(self.log_weight)
            for i in range(at, len(rest)):
                log_q = source.stand_in.log_of(rest[i : i + 1], rest[:i])
                deferred = deferred.after(rest[i], log_q, ())
            state._deferred = deferred.settled(state.log_weight)
        return state

    def _check_fits(self, length: int) -> None:
        if not self.source.fits(length):
            raise ContextTooLong.of(self.source.lm.max_context_tokens, length)

    def from_reading(self, reading: Reading) -> Self:
        """The beam whose only candidate is ``reading``."""
        if reading.ended:
            return self._with((), _NONE, [(reading.path, reading.weight)], terminated=True)
        if reading.node == ROOT:
            return self._with((), _NONE, [(reading.path, reading.weight)])
        lo, hi = self.source.trie.lo[reading.node], self.source.trie.hi[reading.node]
        piece, mass = reading.row.piece(lo, hi)
        candidates = _Candidates(
            np.array([reading.weight]),
            np.array([reading.node], np.int32),
            np.zeros(1, np.int64),
            np.array([mass]),
            piece,
        )
        return self._with([reading.path], candidates)

    def _with(
        self,
        paths: Sequence[Path],
        candidates: _Candidates,
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

    def _reading(self, source: RowSource) -> Self:
        """The same candidates; contexts are evaluated by ``source`` from here on."""
        rows = None if source.has_spelled_eos or self.source.has_spelled_eos else self._rows
        state = self._with(self._paths, self._candidates, self._roots, self.terminated, rows)
        state.source = source
        return state

    def _check_open(self) -> None:
        if self.terminated:
            raise Terminated(f"the text ended (EOS) after {_ending(self.context)}")
        if self._lost.why:
            raise EmptyBeam(self._lost.why)

    def _why_empty(self, b: int) -> str:
        what = "EOS" if b == EOS else repr(bytes([b]))
        if b != EOS and self.source.trie.child(ROOT, b) < 0:
            return (
                f"no tokenization of {_ending(self.context)} goes on with {what}: the vocabulary "
                "has no token that begins with this byte"
            )
        if self.at_limit:
            return (
                f"nothing can follow {_ending(self.context)}: the text is as long as the model "
                f"takes, {self.source.lm.max_context_tokens} tokens"
            )
        advice = "raise K, lower prune_threshold" + ("" if self.params.heal else ", or allow heal")
        return f"no tokenization of {_ending(self.context)} goes on with {what}: {advice}"

    def __repr__(self) -> str:
        lines = [f"Z: {self.logZ}", "Candidates:"]
        lines += [f"({math.exp(c.weight - self.log_weight):.4f}) {c!r}" for c in self]
        if self.deferred_share:
            lines.append(f"deferred: {self.deferred_share:.2g} of this")
        return "\n".join(lines) + "\n"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{math.exp(c.weight - self.log_weight):.4f}</td><td>{c.weight:.2f}</td>"
            f"<td><code>{html.escape(repr(c.lm_state))}</code></td>"
            f"<td><code>{html.escape(escape(c.partial))}{'&lt;EOS&gt;' if c.terminated else ''}"
            "</code></td></tr>"
            for c in self
        )
        return (
            f"<p>Z: {self.logZ}</p><table><tr><th>share</th><th>weight</th><th>tokens</th>"
            f"<th>partial</th></tr>{rows}</table>"
        )


def _drawn(shares: NDArray[np.floating], u: float) -> int:
    """The index that ``u`` in [0, 1) falls on when all shares lie side by side."""
    bounds = np.cumsum(shares, dtype=np.float64)
    return int(bounds.searchsorted(u * bounds[-1], side="right"))


def _ending(context: bytes) -> str:
    """The last bytes of a context, for messages."""
    return repr(context) if len(context) <= 24 else f"…{context[-24:]!r}"
