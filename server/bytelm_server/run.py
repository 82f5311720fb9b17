"""One call at work: contexts in, texts out, counted and told as they come.

Must not know HTTP, nor what the call is.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from bytelm import pace
from bytelm.beam import BeamParams, ByteBeamState
from bytelm.errors import InputError
from bytelm.generating.generation import Generated, Piece, collect
from bytelm.prompts.context import begin
from bytelm_server import answers
from bytelm_server.contexts import Given
from bytelm_server.counting import counting, usage_of
from bytelm_server.errors import item_detail
from bytelm_server.streams import Channel, Events, Made, TextEvents

if TYPE_CHECKING:
    from bytelm_server.service import ByteService


class Telling(Protocol):
    """Makes events of one text."""

    def event(self, piece: Made) -> Mapping[str, Any] | None:
        """The event of the next piece; None where there is nothing to tell yet."""


TextOf = Callable[[int, int], Telling]
"""From the place of a context in the call, and of a sample among its own, to who tells of it."""


class Run:
    """One call at work.

    Attributes:
        lm: the model, as the call uses it.
        turn: taken while a text is worked on, so that a large call does not do all at once.
    """

    def __init__(
        self, service: "ByteService", params: BeamParams, prefill: str, cache_salt: str | None
    ) -> None:
        self.lm = counting(service.lm, cache_salt, service.shares)
        self.turn = asyncio.Semaphore(service.settings.concurrency)
        self._told: _Told | None = None
        self._service = service
        self._params = params
        self._prefill = prefill

    async def begun(self, given: Given, place: str) -> ByteBeamState:
        """The state after a context."""
        async with self.turn:
            await pace.turn()
            vocab = self.lm.vocab
            context = await given.context(vocab, self._service.chat_template, place)
            self._service.limits.check_context(context, self._prefill)
            state = await begin(self.lm, self._params, context, mode=self._prefill)
            self.lm.bytes_in += context.length
            return state

    def keep_at_most(self, tokens: int | None) -> None:
        """Let states keep only so many tokens, the last ones; None for the model's limit."""
        if tokens is not None:
            self._params = replace(self._params, max_context_length=tokens)

    def events(
        self, work: Coroutine[Any, Any, Any], results: int, text_of: TextOf = TextEvents
    ) -> Events:
        """What ``work`` generates in this run, so many texts, as it comes.

        Args:
            work: generates them, by ``generated``.
            results: how many there will be.
            text_of: tells of a text, by its context and sample.
        """
        self._told = _Told(self, results, text_of)
        return self._told.channel.of(work)

    async def generated(
        self, pieces: AsyncIterator[Piece[Any]], index: int, sample: int = 0
    ) -> Generated[Any]:
        """A continuation of a state: of which context, and which of its samples."""
        async with self.turn:
            await pace.turn()
            pieces = self._counted(pieces)
            if self._told is not None:
                pieces = self._told.passing(pieces, index, sample)
            return await collect(pieces)

    async def _counted(self, pieces: AsyncIterator[Piece[Any]]) -> AsyncIterator[Piece[Any]]:
        async for piece in pieces:
            self.lm.bytes_out += len(piece.data)
            yield piece

    async def failed(
        self,
        index: int,
        error: InputError | ValidationError,
        place: str,
        sample: int | None = None,
    ) -> answers.ItemError:
        """What stands in a result's place: of which item, and which of its samples."""
        result = answers.ItemError(index=index, error=item_detail(error, place))
        if sample is not None:
            result["sample"] = sample
        if self._told is not None:
            event = answers.ErrorEvent(index=index, sample=sample or 0, error=result["error"])
            await self._told.last_of_one(event)
        return result

    def answer(self, results: list[Any]) -> answers.Answer[Any]:
        """The answer's body."""
        return answers.Answer(results=results, usage=usage_of(self.lm))


class _Told:
    """What a stream tells of a run's texts while they grow.

    Args:
        run: the run.
        results: how many texts there will be; the last event of the last one has the usage.
        text_of: tells of each.
    """

    def __init__(self, run: Run, results: int, text_of: TextOf) -> None:
        self.channel = Channel()
        self._run = run
        self._left = results
        self._text_of = text_of

    async def passing(
        self, pieces: AsyncIterator[Piece[Any]], index: int, sample: int
    ) -> AsyncIterator[Piece[Any]]:
        """The pieces of one text, each of which has been told."""
        text = self._text_of(index, sample)
        async for piece in pieces:
            event = text.event(piece)
            if piece.finish_reason is not None:
                assert event is not None
                await self.last_of_one(event)
            elif event is not None:
                await self.channel.put(event)
            yield piece

    async def last_of_one(self, event: Mapping[str, Any]) -> None:
        """Tell the last event of one text."""
        self._left -= 1
        if not self._left:
            event = {**event, "usage": usage_of(self._run.lm)}
        await self.channel.put(event)
