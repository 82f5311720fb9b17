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

import numpy as np
from numpy.typing import NDArray

from bytelm.byte_lm import Walk
from bytelm.errors import BytelmError, VocabError
from bytelm.joined import Joined, results
from bytelm.logprobs import LazyByteProbs
from bytelm.read_ahead import is_idle
from bytelm.rows import TINY
from bytelm.stand_in import FLATNESS
from bytelm.threads import by_length
from bytelm.token_lm import AsyncTokenLM

if TYPE_CHECKING:
    from bytelm.beam.deferred import Path
    from bytelm.beam.state import ByteBeamState

T = TypeVar("T")
S = TypeVar("S", bound="ByteBeamState")

LONG = 16
"""So many bytes are worth it; fewer are walked as they are."""
MEMORY = 160 * 2**20
"""How many bytes the rows of one text take at most, unless so few rows take more."""
LEAST = 32
"""There is room for so many rows whatever they take."""
ALONE, BESIDE = 64, 16
"""So many evaluations of a walk are under way at most, alone and where others have some, too."""
TRUST = 128
"""So many rows are fetched at first because a guess asked for them."""
BEHIND = 64
"""Rows of places so many bytes behind the walk are let go."""
TURN = 32
"""After so many bytes of guessing other tasks have their turn."""


class _Missing(Exception):
    """The walk asks for the evaluation of a context that was not fetched."""

    def __init__(self, context: Path) -> None:
        self.context = context


class _Fetched:
    """A token LM of the rows that were fetched; it has no others."""

    def __init__(self, lm: AsyncTokenLM) -> None:
        self.lm = lm
        self.vocab = lm.vocab
        self.max_context_tokens = lm.max_context_tokens
        self.rows: dict[Path, NDArray[np.float32]] = {}
        self.places: dict[Path, int] = {}
        self.used: set[Path] = set()

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The row of a context that was fetched."""
        path = tuple(token_ids)
        if path not in self.rows:
            raise _Missing(path)
        self.used.add(path)
        return self.rows[path]


class _Guessing:
    """A token LM that guesses the rows that were not fetched, and notes whose they are.

    What follows a text hardly depends on how it was tokenized: where a row of the same text is
    known, it is the guess. Elsewhere, inside a word mostly, no token is likely, so that nothing
    is fetched that only a wrong guess would ask for.

    Args:
        fetched: the rows that are there.
        anchor: how many tokens are before the text.
    """

    def __init__(self, fetched: _Fetched, anchor: int) -> None:
        self.vocab = fetched.vocab
        self.max_context_tokens = fetched.max_context_tokens
        self.wanted: dict[Path, int] = {}
        self._rows = fetched.rows
        self._anchor = anchor
        self._sizes = list(map(len, self.vocab.token_bytes))
        self._alike = {fetched.places[path]: row for path, row in self._rows.items()}
        # By their rank, as in ``bytelm.stand_in``.
        weights = (np.array(self._sizes) > 0) / (np.arange(len(self._sizes)) + FLATNESS)
        self._unlikely = np.log(np.maximum(weights / weights.sum(), TINY)).astype(np.float32)

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """A row, or what is taken for it."""
        path = tuple(token_ids)
        row = self._rows.get(path)
        if row is not None:
            return row
        place = self.wanted.get(path)
        if place is None:
            place = self.wanted[path] = bytes_of(path[self._anchor :], self._sizes)
        return self._alike.get(place, self._unlikely)


class KnownWalk(Walk[S]):
    """The walk of a beam through a text that is known.

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
        self._sizes = list(map(len, self._lm.vocab.token_bytes))
        self._fetched = _Fetched(self._lm)
        super().__init__(state.on(self._fetched), text)
        self._reports = reports
        self._anchor = self._state._anchor
        self._known_to = self._forgot_at = 0
        self._trust = TRUST
        self._guessed: dict[Path, int] = {}
        row_bytes = 4 * self._lm.vocab.size
        self._most = max(LEAST, MEMORY // share // row_bytes)

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

    async def _read(self, ask: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await ask()
            except _Missing as missing:
                await self._wave(missing.context)

    async def _wave(self, missing: Path) -> None:
        """Fetches ``missing``, and with it what else will be asked for."""
        self._let_go()
        room = max(self._most - len(self._fetched.rows), LEAST)
        is_new = self._known_to <= self._at < len(self._text)
        if is_new or self._state._anchor is not self._anchor:
            self._anchor = self._state._anchor
            wanted = await self._canonical(room // 2)
            # The longest first: the others find in a cache what they begin with.
            await self._fetch(dict(list(wanted.items())[-1:]))
        else:
            wanted = self._guessed = await self._foreseen(min(room, self._trusted()))
        tokens = missing[len(self._anchor) :]
        await self._fetch({missing: bytes_of(tokens, self._sizes)} | wanted)

    def _trusted(self) -> int:
        """How many guesses to follow: more where the last were right, fewer where not."""
        here = len(self._state._text)
        passed = [path for path, place in self._guessed.items() if place < here]
        right = sum(path in self._fetched.used for path in passed)
        if passed:
            self._trust = max(1, 2 * self._trust if right > len(passed) / 2 else right)
        return self._trust

    async def _canonical(self, most: int) -> dict[Path, int]:
        """The contexts of the canonical tokens from here on, with their places."""
        state, vocab = self._state, self._state.source.vocab
        before = state._text
        longest = int(state.source.trie.depth.max())
        rest = self._text[self._at : self._at + most * longest]
        try:
            tokens = await by_length(len(before + rest), vocab.encode, before + rest)
        except VocabError:
            tokens = []
        contexts: dict[Path, int] = {}
        place, path = 0, state._anchor
        for token in tokens:
            if place >= len(before):
                contexts[path] = place
            if len(contexts) == most or not state._fits(len(path) + 1):
                break
            place += len(vocab.token_bytes[token])
            path = (*path, token)
        self._known_to = min(self._at + max(place - len(before), 1), len(self._text))
        return contexts

    async def _foreseen(self, most: int) -> dict[Path, int]:
        """What the walk will ask for, as far as guessing tells, with the places."""
        state, at = self._state, self._at
        lm = _Guessing(self._fetched, len(state._anchor))
        state = state.apart(lm)
        with contextlib.suppress(BytelmError):
            while at < self._known_to and len(lm.wanted) < most:
                if self._reports:
                    await state.logp_next()
                state = await state.prune().advanced(self._text[at])
                at += 1
                if at % TURN == 0:
                    await asyncio.sleep(0)
            if self._reports:
                await state.logp_next()
        return dict(islice(lm.wanted.items(), most))

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

    async def _evaluated(self, path: Path, turn: asyncio.Semaphore) -> NDArray[np.float32]:
        async with turn:
            return await self._lm.next_token_logprobs(path)

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
            fetched.used.discard(path)


def bytes_of(tokens: Path, sizes: Sequence[int]) -> int:
    """How many bytes tokens are."""
    return sum(map(sizes.__getitem__, tokens))
