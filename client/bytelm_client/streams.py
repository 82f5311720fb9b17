"""Bytes as they come: the server's events, read into the bytes that they carry.

Must not know which call the stream answers.
"""

import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Any, Self

import httpx

from bytelm_client.errors import BadAnswer, api_error_of
from bytelm_client.results import Continuation, Usage

Event = Mapping[str, Any]
"""One event of a stream, as the API has it."""


class BaseStream:
    """What is known of a stream so far.

    Args:
        told: called with every event.
    """

    def __init__(self, told: Callable[[Event], None] | None = None) -> None:
        self._told = told
        self._data = bytearray()
        self._last: Event | None = None
        self._done = False

    @property
    def received(self) -> bytes:
        """The bytes that came so far."""
        return bytes(self._data)

    @property
    def result(self) -> Continuation:
        """All of it, when the stream has ended.

        Raises:
            ValueError: before.
        """
        if self._last is None:
            raise ValueError("the stream has not ended: read it first")
        return Continuation(
            bytes=self.received,
            logprob=self._last.get("logprob"),
            finish_reason=self._last["finish_reason"],
            usage=Usage(**self._last["usage"]),
        )

    def _take(self, line: str) -> bytes:
        """The bytes that a line of the answer has.

        Raises:
            APIError: when it tells of one.
            BadAnswer: when it is no event.
        """
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            self._done = True
        if self._done or not line.startswith("data:"):
            return b""
        try:
            event = json.loads(data)
            if self._told is not None:
                self._told(event)
            if "error" in event:
                raise api_error_of(event["error"])
            if "finish_reason" in event:
                self._last = event
            piece = base64.b64decode(event["bytes"]["base64"])
        except (ValueError, LookupError, TypeError) as error:
            raise BadAnswer(f"an event of the stream is not understood: {line[:80]!r}") from error
        self._data += piece
        return piece


class Stream(BaseStream, Iterator[bytes]):
    """Bytes as they come. The call is made when they are first asked for.

    >>> for data in client.stream_greedy("An apple a day", 40):  # doctest: +SKIP
    ...     sys.stdout.buffer.write(data)

    Leave it early by ``close``, or by the end of a ``with``: the server then ends its work.

    Args:
        opened: makes the call; leaving it closes the connection.
        broken: the error for one of the connection.
        told: called with every event.
    """

    def __init__(
        self,
        opened: Callable[[], AbstractContextManager[httpx.Response]],
        broken: Callable[[Exception | None, int], Exception],
        told: Callable[[Event], None] | None = None,
    ) -> None:
        super().__init__(told)
        self._opened, self._broken = opened, broken
        self._pieces = self._read()

    def __next__(self) -> bytes:
        return next(self._pieces)

    def _read(self) -> Generator[bytes, None, None]:
        with self._opened() as response:
            try:
                for line in response.iter_lines():
                    if piece := self._take(line):
                        yield piece
            except httpx.HTTPError as error:
                raise self._broken(error, len(self._data)) from error
        if not self._done:
            raise self._broken(None, len(self._data))

    def close(self) -> None:
        """End the stream, and what the server does for it."""
        self._pieces.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncStream(BaseStream, AsyncIterator[bytes]):
    """The same, awaited: ``async for``, ``aclose``, ``async with``."""

    def __init__(
        self,
        opened: Callable[[], AbstractAsyncContextManager[httpx.Response]],
        broken: Callable[[Exception | None, int], Exception],
        told: Callable[[Event], None] | None = None,
    ) -> None:
        super().__init__(told)
        self._opened, self._broken = opened, broken
        self._pieces = self._read()

    async def __anext__(self) -> bytes:
        return await anext(self._pieces)

    async def _read(self) -> AsyncGenerator[bytes, None]:
        async with self._opened() as response:
            try:
                async for line in response.aiter_lines():
                    if piece := self._take(line):
                        yield piece
            except httpx.HTTPError as error:
                raise self._broken(error, len(self._data)) from error
        if not self._done:
            raise self._broken(None, len(self._data))

    async def aclose(self) -> None:
        """End the stream, and what the server does for it."""
        await self._pieces.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
