"""Scoring: how likely given bytes are after a state.

The scores are the chain of ``logp_next`` with the state pruned before each byte, exactly what a
generation of the same bytes reports. A byte that the pruned state gives no probability scores -inf,
although healing might go on with it. This module must not know tokens, tries or beams.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from bytelm.errors import ContextTooLong, InputError
from bytelm.models.byte_lm import StatefulByteLM, Walk
from bytelm.models.logprobs import EOS, LazyByteProbs, checked_bytes

S = TypeVar("S", bound=StatefulByteLM)


@dataclass(frozen=True, eq=False)
class Score:
    """How likely a continuation is.

    Attributes:
        logprobs: float64 ``[bytes]``, natural logarithm of each byte's probability given all before
            it; from the first byte of probability 0 on, -inf.
        eos: log-probability of EOS after them; None unless asked for.
    """

    logprobs: NDArray[np.float64]
    eos: float | None = None

    @property
    def logprob(self) -> float:
        """Log-probability of the bytes, and of EOS where asked for; 0 of nothing."""
        return math.fsum(self.logprobs) + (self.eos or 0.0)

    @property
    def impossible_at(self) -> int | None:
        """The first byte of probability 0, or, with EOS alone impossible, their number; or None."""
        if len(self.logprobs) and self.logprobs[-1] == -math.inf:
            return int(np.isneginf(self.logprobs).argmax())
        return len(self.logprobs) if self.eos == -math.inf else None

    def of_span(self, start: int, end: int) -> float:
        """Log-probability of the bytes from ``start`` on and before ``end``, after all before."""
        return math.fsum(self.logprobs[start:end])

    @property
    def bits_per_byte(self) -> float:
        """The mean of the bytes' log-probabilities in bits, negated; 0 of no bytes, EOS aside."""
        if not len(self.logprobs):
            return 0.0
        return -math.fsum(self.logprobs) / (len(self.logprobs) * math.log(2.0))


async def score(
    state: StatefulByteLM, continuation: bytes | Iterable[int], *, eos: bool = False
) -> Score:
    """How likely ``continuation`` is after ``state``, which reads it in its own way (``rows``).

    Args:
        state: what comes before.
        continuation: the bytes to score.
        eos: score the end of the text after them, too.

    Raises:
        ByteError: when a value is not in 0..255.
        Terminated: when the state is at EOS.
        ContextTooLong: when the bytes do not fit into the model.
        EmptyBeam: when pruning took what a byte's probability came from, and healing fails.
    """
    text = checked_bytes(continuation)
    await state.check_room(text)
    logprobs, end = np.full(len(text), -math.inf), -math.inf
    if text or eos:
        async with aclosing(state.rows(text if eos else text[:-1])) as rows:
            place = 0
            async for q in rows:
                if place == len(text):
                    end = float(q.ps[EOS])
                    break
                logprobs[place] = q.ps[text[place]]
                if logprobs[place] == -math.inf:
                    break
                place += 1
    return Score(logprobs, end if eos else None)


async def score_all(
    state: S,
    continuations: Sequence[bytes],
    *,
    eos: bool = False,
    concurrency: int = 32,
    seen: Callable[[int, LazyByteProbs], None] | None = None,
    onward: Callable[[int, S], Coroutine[Any, Any, None]] | None = None,
) -> list[Score]:
    """How likely each of several continuations is after ``state``, concurrently.

    Continuations share the states of the bytes that they begin with in common.

    Args:
        state: what comes before.
        continuations: the bytes to score.
        eos: score the end of the text after each, too.
        concurrency: how many states are asked at the same time at most.
        seen: told of each distribution that a score was read from, in order: which continuation's.
        onward: what to do with the state behind a continuation, while others are still scored;
            not asked about one that has probability 0.

    Returns:
        A Score for each, in order.

    Raises:
        As ``score``; the first error ends all.
    """
    if concurrency < 1:
        raise InputError(f"concurrency must be at least 1, got {concurrency}")
    texts = [checked_bytes(continuation) for continuation in continuations]
    for text in texts:
        await state.check_room(text)
    scoring = _Scoring(texts, eos, concurrency, seen, onward)
    try:
        async with asyncio.TaskGroup() as group:
            await scoring.walk(group, state, range(len(continuations)), 0)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [
        Score(logprobs, float(end) if eos else None)
        for logprobs, end in zip(scoring.logprobs, scoring.ends, strict=True)
    ]


class _Scoring(Generic[S]):
    """Walks the tree that the continuations form; each branch has a task.

    Attributes:
        continuations: what is scored.
        logprobs: of the bytes of each, filled in on the way.
        ends: of EOS after each.
    """

    def __init__(
        self,
        continuations: Sequence[bytes],
        eos: bool,
        concurrency: int,
        seen: Callable[[int, LazyByteProbs], None] | None,
        onward: Callable[[int, S], Coroutine[Any, Any, None]] | None,
    ) -> None:
        self.continuations = continuations
        self.logprobs = [np.full(len(c), -math.inf) for c in continuations]
        self.ends = np.full(len(continuations), -math.inf)
        self._eos = eos
        self._seen = seen
        self._onward = onward
        self._turn = asyncio.Semaphore(concurrency)
        self._share = min(concurrency, len(continuations))

    async def walk(
        self, group: asyncio.TaskGroup, state: S, which: Sequence[int], depth: int
    ) -> None:
        """Scores continuations that agree in their first ``depth`` bytes, which ``state`` has.

        It goes on with the longest of them; what begins otherwise branches off.
        """
        longest = max((self.continuations[i] for i in which), key=len, default=b"")
        walk = state.through(longest[depth:], self._share)
        while which := self._going_on(group, walk, which, depth):
            async with self._turn:
                if walk.at_limit:
                    raise ContextTooLong(
                        f"the model is full after {depth} bytes of the continuation: shorten it, "
                        "or the context"
                    )
                branches = self._read(await walk.logp_next(), which, depth)
            which = branches.pop(longest[depth], []) if depth < len(longest) else []
            depth += 1
            for other, some in branches.items():
                group.create_task(self._enter(group, walk.state.prune(), other, some, depth))
            if which:
                async with self._turn:
                    await walk.advance()

    async def _enter(
        self,
        group: asyncio.TaskGroup,
        state: S,
        b: int,
        which: Sequence[int],
        depth: int,
    ) -> None:
        async with self._turn:
            state = await state.advanced(b)
        await self.walk(group, state, which, depth)

    def _going_on(
        self, group: asyncio.TaskGroup, walk: Walk[S], which: Sequence[int], depth: int
    ) -> list[int]:
        """Those that need the distribution here; of the others some end."""
        if self._onward is not None:
            for i in which:
                if depth == len(self.continuations[i]):
                    group.create_task(self._onward(i, walk.state))
        return [i for i in which if self._wants(i, depth)]

    def _read(self, q: LazyByteProbs, which: Sequence[int], depth: int) -> dict[int, list[int]]:
        """Notes the next log-probability of each; those that need one after it, by their byte."""
        branches: dict[int, list[int]] = {}
        for i in which:
            if self._seen is not None:
                self._seen(i, q)
            if depth == len(self.continuations[i]):
                self.ends[i] = q.ps[EOS]
                continue
            b = self.continuations[i][depth]
            self.logprobs[i][depth] = q.ps[b]
            if q.ps[b] > -math.inf and (self._onward or self._wants(i, depth + 1)):
                branches.setdefault(b, []).append(i)
        return branches

    def _wants(self, i: int, depth: int) -> bool:
        """Whether a distribution after ``depth`` bytes of a continuation is needed."""
        length = len(self.continuations[i])
        return depth < length or (self._eos and depth == length)
