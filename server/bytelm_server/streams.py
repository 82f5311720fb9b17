"""Answers that come bit by bit, as server-sent events.

::

    data: {"index":0,"sample":0,"bytes":{"text":"doc","base64":"ZG9j"}}

    data: {"index":0,"sample":0,"bytes":{…},"logprob":null,"finish_reason":"steps","usage":{…}}

    data: [DONE]

An error on the way is an event, too; ``[DONE]`` comes last in any case. Where nothing happens for
a while, a comment (``: ping``) tells proxies that the stream lives. Must not know how the events
come about.
"""

import asyncio
import base64
import codecs
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Protocol

import orjson
from fastapi.sse import EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from bytelm_server.answers import BytesOut
from bytelm_server.errors import ErrorBody, detail_of

_log = logging.getLogger(__name__)

Event = Mapping[str, Any]
Events = AsyncGenerator[Event, None]
"""The events of a stream, in order; closing it ends the work."""

PATIENCE_SECONDS = 1.0
"""How long a stream keeps its turn while its reader does not read."""

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

# JSON escapes other ends of lines; some readers of lines, Python's among them, know these as well.
_ENDS_OF_LINES = [(c.encode(), f"\\u{ord(c):04x}".encode()) for c in "\x85\u2028\u2029"]


class Text:
    """Bytes that come in pieces, as the API writes them: incomplete characters wait in ``text``.

    The ``base64`` of all pieces together is all bytes, and ``text`` all text, unless it is null
    somewhere: then the bytes are not UTF-8.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._is_text = True

    def out(self, data: bytes, *, last: bool = False) -> BytesOut:
        """The next piece; ``last`` when there are no more."""
        text = None
        if self._is_text:
            try:
                text = self._decoder.decode(data, final=last)
            except UnicodeDecodeError:
                self._is_text = False
        return BytesOut(text=text, base64=base64.b64encode(data).decode("ascii"))


class Made(Protocol):
    """Some bytes of a text, or all of them."""

    @property
    def data(self) -> bytes:
        """The bytes."""

    @property
    def logprob(self) -> float | None:
        """Their log-probability, where it is known."""

    @property
    def finish_reason(self) -> str | None:
        """Why there are no more; None where there are."""


class TextEvents:
    """One text of a call as events: of which context, and which of its samples."""

    def __init__(self, index: int, sample: int) -> None:
        self._place = {"index": index, "sample": sample}
        self._text = Text()
        self._logprob = 0.0

    def event(self, piece: Made) -> dict[str, Any]:
        """The next piece."""
        last = piece.finish_reason is not None
        self._logprob += piece.logprob or 0.0
        event: dict[str, Any] = {**self._place, "bytes": self._text.out(piece.data, last=last)}
        if last:
            event["logprob"] = None if piece.logprob is None else self._logprob
            event["finish_reason"] = piece.finish_reason
        return event


def encoded(event: Mapping[str, Any]) -> bytes:
    """One event as it goes over the wire."""
    data = orjson.dumps(event, option=orjson.OPT_SERIALIZE_NUMPY)
    for end, escaped in _ENDS_OF_LINES:
        data = data.replace(end, escaped)
    return b"data: %b\n\n" % data


class EventStream(EventSourceResponse):
    """The answer that carries ``events``; a client that goes away ends the work.

    Args:
        first: the first event, which may still be on its way; None if there are no events.
        following: gives the event after the last one, None after the last of all.
        events: closed when the answer ends.
        lend: called when the reader does not read; ``following`` is not called until it does.
        ping_seconds: after so long without an event there is a ping.
    """

    def __init__(
        self,
        first: asyncio.Task[Event | None],
        following: Callable[[], Coroutine[Any, Any, Event | None]],
        events: Events,
        lend: Callable[[], None],
        ping_seconds: float,
    ) -> None:
        self._following = following
        self._events = events
        self._lend = lend
        self._ping_seconds = ping_seconds
        self._pieces = self._wire(first)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(self._pieces, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; whatever happens, no work for them goes on."""
        loop = asyncio.get_running_loop()

        async def lending(message: Message) -> None:
            timer = loop.call_later(PATIENCE_SECONDS, self._lend)
            try:
                await send(message)
            finally:
                timer.cancel()

        async with aclosing(self._events), aclosing(self._pieces):
            await super().__call__(scope, receive, lending)

    async def _wire(self, coming: asyncio.Task[Event | None]) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                while not (await asyncio.wait({coming}, timeout=self._ping_seconds))[0]:
                    yield PING
                if (event := coming.result()) is None:
                    break
                yield encoded(event)
                coming = asyncio.create_task(self._following())
        except Exception as error:
            detail = detail_of(error)
            if detail["code"] == "internal_error":
                _log.exception("a stream failed")
            yield encoded(ErrorBody(error=detail))
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        yield DONE


class Channel:
    """Events that several tasks make at the same time, in the order in which they come.

    A task that is ahead of the reader waits until its last event is taken.
    """

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue(maxsize=1)

    async def put(self, event: Mapping[str, Any]) -> None:
        """Give the reader an event."""
        await self._queue.put(event)

    async def of(self, work: Coroutine[Any, Any, Any]) -> Events:
        """The events that ``work`` puts here until it ends; its error is raised after them."""
        task = asyncio.create_task(work)
        try:
            while True:
                event = asyncio.ensure_future(self._queue.get())
                try:
                    await asyncio.wait({task, event}, return_when=asyncio.FIRST_COMPLETED)
                    if not event.done():
                        break
                    yield event.result()
                finally:
                    event.cancel()
            while not self._queue.empty():
                yield self._queue.get_nowait()
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
