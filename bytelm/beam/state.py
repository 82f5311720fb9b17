"""The byte beam: sums over tokenizations of a context, pruned to the likely ones.

The algorithm is that of Vieira et al., "From Language Models over Tokens to Language Models over
Characters" (arXiv 2412.03719). A candidate is one tokenization of the context: tokens and a partial
token, a node of the trie. Its weight is the log-probability of both. To *extend* a candidate is to
end its token where it stands and to start the next, which takes one evaluation.

This module must not know how a token LM computes, nor HTTP.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from bytelm.beam import read_ahead
from bytelm.beam.base import Beam, Lost, last_bytes
from bytelm.beam.candidates import NONE
from bytelm.beam.deferred import Path, log_sum
from bytelm.beam.extending import extensions_of, open_all, prob_of_end, weighed
from bytelm.beam.moving import moved_by
from bytelm.beam.params import BeamParams
from bytelm.beam.prefill import JOINED, TAIL, TrunkFinder
from bytelm.beam.prefilling import ending, from_trunk, shortened, walked, with_room
from bytelm.beam.pruning import prune
from bytelm.beam.rows import RowSource
from bytelm.beam.saying import as_html, as_text
from bytelm.beam.waves import LONG, KnownWalk
from bytelm.compat.genlm import BackendLM, as_token_lm
from bytelm.compat.genlm_states import GenlmState, genlm_states
from bytelm.errors import BeamError, EmptyBeam, VocabError
from bytelm.generating.draws import Draw
from bytelm.models.byte_lm import Walk
from bytelm.models.logprobs import EOS, Chart, LazyByteProbs, checked_bytes, log_normalised
from bytelm.models.token_lm import AsyncTokenLM

if TYPE_CHECKING:
    from bytelm.generating.token_sampling import Method

SHORT = 32
"""Up to so many bytes added to a text are walked even by a fast prefill."""


class ByteBeamState(Beam):
    """A byte LM's state as a beam of tokenizations: an immutable value; see ``initial``.

    Attributes:
        params: the beam's parameters.
        terminated: whether EOS was consumed.
    """

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
            llm: the token LM; a genlm.backend model is adapted (see ``bytelm.compat.genlm``).
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
            state = (await walked(state, vocab.prefix))._weighing_as(state)
        return shortened(state)

    @property
    def states(self) -> list[GenlmState]:
        """The candidates as genlm-bytes has them, best first."""
        trie, (_, nodes, starts, _, pieces) = self.source.trie, self._candidates
        ends = starts + trie.hi[nodes] - trie.lo[nodes]
        kept = [pieces[start:end] for start, end in zip(starts, ends, strict=True)]
        return genlm_states(self.source, self, nodes.tolist(), kept)

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
        extensions = extensions_of(self)
        least = log_sum([self.log_weight, *(one.weight for one in extensions)])
        least += self.params.log_prune_threshold
        beyond = [one for one in extensions if not self.source.fits(len(one.path))]
        ought = any(one.key[0] == 0 and one.weight > least for one in beyond)
        return ought or (len(beyond) == len(extensions) > 0 and not self._mixed().any())

    def through(self, text: bytes, share: int = 1) -> Walk[Self]:
        """See ``StatefulByteLM``: in waves where the text is long; see ``bytelm.beam.waves``."""
        if len(text) < LONG:
            return Walk(self, text)
        return KnownWalk(self, text, reports=True, share=share)

    @read_ahead.walking
    async def logp_next(self) -> LazyByteProbs:
        """The distribution over the next byte or EOS; evaluates extensions that weigh enough."""
        self._check_open()
        top = self.log_weight
        total = self._mixed()
        wanted, others = self._chosen = await weighed(self, top, need_one=not total.any())
        for one in await open_all(self, wanted):
            ends = total[EOS]
            total += math.exp(one.weight - top) * one.row.root
            if not prob_of_end(self, one):
                total[EOS] = ends
        if not total.any():
            raise EmptyBeam(
                f"no candidate after {last_bytes(self.context)} can go on: all that are left stand "
                "at the longest context that the model takes, or have no probability; "
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
            state = self._with((), NONE)
            state._lost = Lost(self._text, str(error))
            return state

    async def advanced(self, b: int) -> Self:
        """See ``StatefulByteLM.advanced``."""
        state = await moved_by(self, b)
        return state if state.terminated else await with_room(state)

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
        """At most K candidates, and always the best; see ``bytelm.beam.pruning``."""
        return prune(self)

    @read_ahead.walking
    async def prefill(
        self, bs: bytes | Iterable[int], mode: str = "fast", tail: int = TAIL
    ) -> Self:
        """The state after bytes that are known in advance.

        EOS tokens that have bytes count as these meanwhile, and no byte ends the text.

        Args:
            bs: bytes to consume.
            mode: ``"fast"`` takes the trunk of the whole text as it is and walks the rest,
                see ``bytelm.beam.prefill``; ``logZ`` is None behind it. What it walks and
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
        spelling = self._reading(self.source.spelling_eos())
        fresh = self._is_fresh
        walks = mode == "exact" or (len(added) <= SHORT and not fresh)
        if walks and self._surely_fit(added):
            return await with_room((await walked(spelling, added))._reading(self.source))
        whole = self._text + added
        finder = TrunkFinder.of(self.source.vocab)
        if self._most is None:
            await finder.check_fits(len(self._anchor), whole, self.source.lm.max_context_tokens)
        trunk = await finder.found(whole, tail)
        length = len(self._anchor) + len(trunk.tokens) + len(trunk.rest_tokens)
        if walks:
            state = await walked(spelling, added)
        elif self._most is not None and length > self._most:
            state = await ending(spelling, whole, tail)
        elif trunk.tokens or fresh:
            state = await from_trunk(spelling, trunk)
        else:
            state = await walked(spelling, added)
        return await with_room(state._reading(self.source))

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
        return shortened(state)

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
                ``bytelm.generating.token_sampling``.

        Raises:
            MethodError: when ``"token"`` is wanted but not possible.
        """
        from bytelm.generating.token_sampling import sample

        begin = checked_bytes(context)
        pieces = sample(await self.prefill(begin), steps, draw or Draw(), method=method)
        return begin + b"".join([piece.data async for piece in pieces])

    def __repr__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)


def _drawn(shares: NDArray[np.floating], u: float) -> int:
    """The index that ``u`` in [0, 1) falls on when all shares lie side by side."""
    bounds = np.cumsum(shares, dtype=np.float64)
    return int(bounds.searchsorted(u * bounds[-1], side="right"))
