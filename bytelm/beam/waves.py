"""Waves: a text that is known need not be walked one evaluation after another.

The walk goes on over rows that were fetched. Where it misses one, what it will ask for from there
on is found out by a walk that guesses what is missing, and fetched together; then it goes on. Most
of what it asks for are the text's canonical tokens, which are fetched before all else::

    The capital of Fran      wave 1   The|  The| capital|  The| capital| of|     canonical
                             wave 2   The| cap|  The| capital| o|                what else weighs
                             wave 3   what the guesses missed

This is a schedule, not another algorithm: what the walk reports is what it would have reported,
since all that it reads are its own contexts' rows, whoever fetched them.

This module knows beams; it must not know how a token LM computes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from bytelm import pace
from bytelm.beam.prefill import USUAL
from bytelm.beam.read_ahead import is_idle
from bytelm.errors import BytelmError, VocabError
from bytelm.joined import Joined, results
from bytelm.models.byte_lm import Walk
from bytelm.models.logprobs import LazyByteProbs
from bytelm.models.ordered_rows import Answer
from bytelm.models.token_lm import AsyncTokenLM, OrderingTokenLM, answer_of
from bytelm.threads import by_length

if TYPE_CHECKING:
    from bytelm.beam.base import Beam
    from bytelm.beam.deferred import Path
    from bytelm.beam.rows import RowSource

T = TypeVar("T")
S = TypeVar("S", bound="Beam")

LONG = 16
"""So many bytes are worth it; fewer are walked as they are."""
MEMORY = 160 * 2**20
"""How many bytes the rows of one text take at most, unless so few rows take more."""
LEAST = 32
"""There is room for so many rows whatever they take."""
ALONE, BESIDE = 64, 16
"""So many evaluations of a walk are under way at most, alone and where others have some, too."""
BEHIND = 64
"""Rows of places so many bytes behind the walk are let go."""
TURN = 8
"""After so many bytes other tasks have their turn, whether or not there was something to fetch."""


class _Missing(Exception):
    """The walk asks for the evaluation of a context that was not fetched."""

    def __init__(self, context: Path) -> None:
        self.context = context


class _Fetched(OrderingTokenLM):
    """A token LM of the rows that were fetched; it has no others.

    Attributes:
        rows: the rows by context.
        places: how many bytes of the text the tokens of each are.
        unread: those that nobody asked for yet.
        read: how many were asked for, those that are gone included.
    """

    def __init__(self, lm: AsyncTokenLM) -> None:
        self.vocab = lm.vocab
        self.max_context_tokens = lm.max_context_tokens
        self.rows: dict[Path, Answer] = {}
        self.places: dict[Path, int] = {}
        self.unread: set[Path] = set()
        self.read = 0

    async def next_row(self, token_ids: Sequence[int]) -> Answer:
        """The row of a context that was fetched."""
        path = tuple(token_ids)
        if path not in self.rows:
            raise _Missing(path)
        if path in self.unread:
            self.unread.remove(path)
            self.read += 1
        return self.rows[path]


class _Guessing(OrderingTokenLM):
    """A token LM that guesses the rows that were not fetched, and notes whose they are.

    What follows a text hardly depends on how it was tokenized: where a row of the same text is
    known, the one fetched first is the guess, mostly the canonical one. Elsewhere, inside a word
    mostly, no token is likely, so that nothing is fetched that only a wrong guess would ask for.

    Args:
        fetched: the rows that are there.
        source: the reading of the vocabulary.
        anchor: how many tokens are before the text.
    """

    def __init__(self, fetched: _Fetched, source: RowSource, anchor: int) -> None:
        self.vocab = fetched.vocab
        self.max_context_tokens = fetched.max_context_tokens
        self.wanted: dict[Path, int] = {}
        self._rows = fetched.rows
        self._anchor = anchor
        self._sizes = source.vocab.sizes
        self._unlikely = source.ordered(source.stand_in.token_logprobs)
        self._alike = {fetched.places[path]: self._rows[path] for path in reversed(self._rows)}

    async def next_row(self, token_ids: Sequence[int]) -> Answer:
        """A row, or what is taken for it."""
        path = tuple(token_ids)
        row = self._rows.get(path)
        if row is not None:
            return row
        place = self.wanted.get(path)
        if place is None:
            place = self.wanted[path] = _bytes_of(path[self._anchor :], self._sizes)
        return self._alike.get(place, self._unlikely)


class KnownWalk(Walk[S]):
    """The walk of a beam through a text that is known.

    No more rows are fetched in vain than one for two bytes, and half as many as the walk asks for.

    Args:
        state: what is before the text.
        text: its bytes.
        reports: whether the walk is asked for what comes next at each byte; else it only moves.
        share: among how many walks like this the memory is shared.

    Attributes:
        waves: how many evaluations each wave had.
    """

    def __init__(self, state: S, text: bytes, *, reports: bool, share: int = 1) -> None:
        self.waves: list[int] = []
        self._lm = state.source.lm
        self._fetched = _Fetched(self._lm)
        super().__init__(state.on(self._fetched), text)
        self._reports = reports
        self._anchor = self._state._anchor
        self._known_to = self._forgot_at = 0
        self._spare = len(text) // 2
        self._most = max(LEAST, MEMORY // share // (4 * self._lm.vocab.size))

    @property
    def state(self) -> S:
        """Where it stands, on the model itself."""
        return self._state.on(self._lm)

    async def logp_next(self) -> LazyByteProbs:
        """See ``Walk``."""
        return await self._read(self._state.logp_next)

    async def advance(self) -> None:
        """See ``Walk``."""
        before, b = self._state.prune(), self._text[self._at]
        self._state = await self._read(lambda: before.advanced(b))
        self._at += 1
        await self._give_way(self._at)

    @staticmethod
    async def _give_way(at: int) -> None:
        if at % TURN == 0:
            await pace.turn()

    async def _read(self, ask: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await ask()
            except _Missing as missing:
                await self._wave(missing.context)

    async def _wave(self, missing: Path) -> None:
        """Fetches ``missing``, and with it what else will be asked for."""
        await pace.turn()
        self._let_go()
        room = max(self._most - len(self._fetched.rows), LEAST)
        is_new = self._known_to <= self._at < len(self._text)
        if is_new or self._state._anchor is not self._anchor:
            self._anchor = self._state._anchor
            wanted = await self._canonical(room // 2)
            self._spare += len(wanted)
            # The longest first: the others find in a cache what they begin with.
            await self._fetch(dict(list(wanted.items())[-1:]))
        else:
            wanted = await self._foreseen(room)
        tokens = missing[len(self._anchor) :]
        await self._fetch({missing: _bytes_of(tokens, self._state.source.vocab.sizes)} | wanted)
        await pace.turn()  # the rows of many texts come at once

    async def _canonical(self, most: int) -> dict[Path, int]:
        """The contexts of the canonical tokens behind the best candidate's, with their places."""
        state, vocab = self._state, self._state.source.vocab
        best = next(iter(state))
        rest = best.partial + self._text[self._at : self._at + most * USUAL]
        try:
            tokens = await by_length(len(rest), vocab.encode, rest)
        except VocabError:
            tokens = []
        contexts: dict[Path, int] = {}
        here = len(state._text)
        place, path = here - len(best.partial), best.tokens
        for token in tokens[:most]:
            if not state._fits(len(path) + 1):
                break
            place += vocab.sizes[token]
            path = (*path, token)
            contexts[path] = place
        # The text may end, and so may the last token, where no other begins.
        self._known_to = min(self._at + max(place - here, 1), len(self._text))
        return contexts

    async def _foreseen(self, room: int) -> dict[Path, int]:
        """What the walk will ask for, as far as guessing tells, with the places."""
        fetched, at = self._fetched, self._at
        lm = _Guessing(fetched, self._state.source, len(self._state._anchor))
        state = self._state.apart(lm)
        most = sure = 0
        with contextlib.suppress(BytelmError):
            while at <= self._known_to and (at == self._at or len(lm.wanted) < most):
                if self._reports:
                    await state.logp_next()
                if at < self._known_to:
                    state = await state.prune().advanced(self._text[at])
                if at == self._at:
                    # What is asked for here hardly depends on guesses.
                    sure = len(lm.wanted)
                    most = min(sure + self._spare + 3 * fetched.read // 2, room)
                at += 1
                await self._give_way(at)
        return dict(islice(lm.wanted.items(), max(sure, most)))

    async def _fetch(self, contexts: Mapping[Path, int]) -> None:
        """Evaluates together what was not evaluated yet."""
        fetched = self._fetched
        new = [path for path in contexts if path not in fetched.rows]
        if new:
            self.waves.append(len(new))
            turn = asyncio.Semaphore(ALONE if is_idle(self._lm) else BESIDE)
            asked = [Joined(self._evaluated(path, turn)) for path in new]
            fetched.rows.update(zip(new, await results(asked), strict=True))
            fetched.places.update((path, contexts[path]) for path in new)
            fetched.unread.update(new)
            self._spare -= len(new)

    async def _evaluated(self, path: Path, turn: asyncio.Semaphore) -> Answer:
        async with turn:
            return await answer_of(self._lm, path)

    def _let_go(self) -> None:
        """Forgets the rows of places behind the walk, once it has moved.

        Until then it may need again, together with others, what it asked for far back.
        """
        if self._at == self._forgot_at:
            return
        self._forgot_at = self._at
        fetched, least = self._fetched, len(self._state._text) - BEHIND
        for path in [path for path, place in fetched.places.items() if place < least]:
            del fetched.rows[path], fetched.places[path]
            fetched.unread.discard(path)


def _bytes_of(tokens: Path, sizes: Sequence[int]) -> int:
    """How many bytes tokens are."""
    return sum(map(sizes.__getitem__, tokens))
