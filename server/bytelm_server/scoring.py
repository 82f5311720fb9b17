"""Scores as a call wants them, whatever state it starts from.

Must not know where the state comes from.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from bytelm import pace
from bytelm.beam import ByteBeamState
from bytelm.errors import ContextTooLong, InputError, VocabError
from bytelm.generating.score import Score, score_all
from bytelm.generating.spans import words
from bytelm.models.logprobs import LazyByteProbs
from bytelm.threads import by_length
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server import answers, requests
from bytelm_server.contexts import BytesIn
from bytelm_server.errors import FieldError, item_detail
from bytelm_server.limits import Limits

NATS_PER_BIT = math.log(2.0)
AT_ONCE = 4096
"""Values that are told in one pass of the event loop."""

Check = Callable[[bytes], Coroutine[Any, Any, None]]
"""Raises what is wrong with a continuation."""


class Wanted:
    """What a call wants to have scored, held against the limits.

    Args:
        call: the call.
        limits: what the server gives.

    Attributes:
        call: the call.
        texts: the continuations that are well-formed, by their places.
        spans: the spans of each that are to be told.
        length: how many bytes are scored.
        values: how many numbers the answer tells of parts of the texts.
        at_once: how many states are asked at the same time at most.

    Raises:
        LimitExceeded: it wants more.
    """

    def __init__(self, call: requests.Scored, limits: Limits) -> None:
        given = call.continuations
        limits.check_continuations(len(given))
        self.call = call
        self.texts = {i: item.data for i, item in enumerate(given) if isinstance(item, BytesIn)}
        self.length = sum(map(len, self.texts.values()))
        limits.check_scoring([self.length])
        self.spans: dict[int, Sequence[Sequence[int]]] = {}
        self.at_once = limits.settings.concurrency
        self.values = self.length if call.per_byte else 0
        if call.top is not None:
            self.values += call.top * (self.length + call.eos * len(self.texts))
        limits.check_values(self.values, "per_byte" if call.top is None else "top")

    @classmethod
    async def of(cls, call: requests.Scored, limits: Limits) -> Self:
        """The same, with the spans.

        Raises:
            FieldError: a span is not in its text.
        """
        wanted = cls(call, limits)
        await wanted._find_spans(limits)
        return wanted

    async def _find_spans(self, limits: Limits) -> None:
        given, count = self.call.spans, len(self.call.continuations)
        if given == "words":
            for i, text in self.texts.items():
                self.spans[i] = await by_length(len(text), words, text)
        elif given is not None:
            if len(given) != count:
                raise FieldError(
                    f"give a list of spans for each continuation, {count}, not {len(given)}",
                    "spans",
                )
            self.spans = {i: given[i] for i in self.texts}
        for i, spans in self.spans.items():
            for j, (_, end) in enumerate(spans):
                if end > len(self.texts[i]):
                    raise FieldError(
                        f"the span ends at byte {end}, the continuation has {len(self.texts[i])}",
                        f"spans[{i}][{j}]",
                    )
        limits.check_told(sum(end - start for some in self.spans.values() for start, end in some))
        self.values += sum(map(len, self.spans.values()))
        limits.check_values(self.values, "spans")


class Scoring:
    """Scores of what is wanted; a continuation that is at fault has its error instead.

    Args:
        wanted: what is wanted.

    Attributes:
        behind: the state behind the last continuation, where ``after`` was told to keep it.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._outcomes: dict[int, Score | InputError | ValidationError] = {
            i: item
            for i, item in enumerate(wanted.call.continuations)
            if isinstance(item, ValidationError)
        }
        self._best: dict[int, _Best] = {}
        self.behind: ByteBeamState | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a continuation left that a state is needed for."""
        return bool(self._open)

    async def refuse(self, check: Check) -> None:
        """Leave out the continuations that surely do not fit."""
        for i in self._open:
            try:
                await check(self._wanted.texts[i])
            except ContextTooLong as error:
                self._outcomes[i] = error
            except VocabError:
                pass  # a byte that cannot be spelled has no probability, that is all

    async def after(self, state: ByteBeamState, *, keep: bool = False) -> None:
        """Score after a state what was not refused.

        Args:
            state: the state.
            keep: keep the state behind.
        """
        turn = asyncio.Semaphore(self._wanted.at_once)

        async def one(i: int) -> None:
            async with turn:
                try:
                    await self._score(state, [i], keep)
                except InputError as error:
                    self._outcomes[i] = error

        left = self._open
        try:
            await self._score(state, left, keep)
        except InputError:
            # Something is wrong with one of them: each for itself, the others get their scores.
            try:
                async with asyncio.TaskGroup() as group:
                    for i in left:
                        group.create_task(one(i))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None

    async def _score(self, state: ByteBeamState, which: list[int], keep: bool) -> None:
        call = self._wanted.call
        if call.top is not None:
            for i in which:
                self._best[i] = _Best(len(self._wanted.texts[i]) + call.eos, call.top)

        def seen(place: int, q: LazyByteProbs) -> None:
            self._best[which[place]].note(q)

        async def onward(_: int, behind: ByteBeamState) -> None:
            self.behind = behind

        scores = await score_all(
            state,
            [self._wanted.texts[i] for i in which],
            eos=call.eos,
            concurrency=self._wanted.at_once,
            seen=None if call.top is None else seen,
            onward=onward if keep else None,
        )
        self._outcomes.update(zip(which, scores, strict=True))

    def check_the_first(self) -> None:
        """Raise what is wrong with the first continuation after the state, if anything is."""
        if isinstance(found := self._outcomes[0], InputError):
            raise found

    async def results(self, vocab: ByteVocab) -> list[answers.Score | answers.ItemError]:
        """What was found, in order."""
        return [await self._result(i, vocab) for i in range(len(self._wanted.call.continuations))]

    async def _result(self, i: int, vocab: ByteVocab) -> answers.Score | answers.ItemError:
        await pace.turn()
        found = self._outcomes[i]
        if not isinstance(found, Score):
            return answers.ItemError(index=i, error=item_detail(found, f"continuations[{i}]"))
        result = answers.Score(logprob=found.logprob, bits_per_byte=found.bits_per_byte)
        if self._wanted.call.per_byte:
            result["logprobs"] = found.logprobs.tolist()
        if i in self._best:
            result["top"] = await self._best[i].told()
        if i in self._wanted.spans:
            result["spans"] = await _spans(self._wanted.spans[i], self._wanted.texts[i], found)
        if found.eos is not None:
            result["eos"] = found.eos
        if (at := found.impossible_at) is not None:
            result["reason"] = why_impossible(self._wanted.texts[i], at, vocab)
        return result

    @property
    def _open(self) -> list[int]:
        return [i for i in self._wanted.texts if i not in self._outcomes]


class _Best:
    """The most probable bytes at each place of a text.

    Args:
        places: how many places there are.
        most: how many bytes to note at each.
    """

    def __init__(self, places: int, most: int) -> None:
        self._bytes = np.zeros((places, most), np.uint8)
        self._logprobs = np.zeros((places, most))
        self._noted = 0

    def note(self, q: LazyByteProbs) -> None:
        """The distribution at the next place."""
        best = most_probable(q.ps, self._bytes.shape[1])
        self._bytes[self._noted], self._logprobs[self._noted] = best, q.ps[best]
        self._noted += 1

    async def told(self) -> list[list[answers.TopByte] | None]:
        """As a result has it."""
        places: list[list[answers.TopByte] | None] = []
        step = AT_ONCE // self._bytes.shape[1]
        while len(places) < self._noted:
            await pace.turn()
            some = slice(len(places), min(len(places) + step, self._noted))
            places += [
                [answers.TopByte(byte=b, logprob=x) for b, x in zip(bs, xs, strict=True)]
                for bs, xs in zip(
                    self._bytes[some].tolist(), self._logprobs[some].tolist(), strict=True
                )
            ]
        return places + [None] * (len(self._bytes) - self._noted)


def most_probable(ps: NDArray[np.float64], n: int) -> NDArray[np.intp]:
    """The ``n`` most probable bytes of a distribution, best first."""
    return np.argsort(-ps[:256], kind="stable")[:n]


async def _spans(
    spans: Sequence[Sequence[int]], text: bytes, scored: Score
) -> list[answers.SpanScore]:
    told: list[answers.SpanScore] = []
    for at in range(0, len(spans), AT_ONCE):
        await pace.turn()
        for start, end in spans[at : at + AT_ONCE]:
            logprob = scored.of_span(start, end)
            told.append(
                answers.SpanScore(
                    start=start,
                    end=end,
                    bytes=answers.bytes_out(text[start:end]),
                    logprob=logprob,
                    bits=-logprob / NATS_PER_BIT + 0.0,
                )
            )
    return told


def why_impossible(text: bytes, at: int, vocab: ByteVocab) -> str:
    """Why the byte at a place has no probability, or, behind the last one, EOS."""
    if at == len(text):
        return "the text cannot end there"
    byte = f"byte {at} (0x{text[at]:02X})"
    if text[at] not in vocab.alphabet:
        return f"{byte} is in no token of the vocabulary: the model cannot spell it"
    return (
        f"{byte} has no probability after what comes before it: raise beam.K or lower "
        "beam.prune_threshold"
    )
