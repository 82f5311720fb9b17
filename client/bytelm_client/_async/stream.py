"""Bytes as they come."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

import httpx

from bytelm_client._base import request_id_of
from bytelm_client._calls import Call
from bytelm_client._events import BaseStream
from bytelm_client.errors import BytelmClientError

if TYPE_CHECKING:
    from bytelm_client._async.client import AsyncClient
    from bytelm_client._async.session import AsyncSession


class AsyncStream(BaseStream, AsyncIterator[bytes]):
    """Bytes as they come. The call is made when they are first asked for.

    >>> async for data in client.stream_greedy("An apple a day", 40):  # doctest: +SKIP
    ...     sys.stdout.buffer.write(data)

    Leave it early by ``aclose``, or by the end of an ``async with``: the server then ends its work,
    and a session that the stream moves asks where it stands.

    Args:
        client: makes the call.
        call: what is answered by a stream.
        session: the one that the stream moves.
    """

    def __init__(
        self, client: "AsyncClient", call: Call[None], session: "AsyncSession | None" = None
    ) -> None:
        super().__init__(None if session is None else session._calls.follower())
        self._client, self._call, self._session = client, call, session
        self._pieces = self._read()

    async def __anext__(self) -> bytes:
        if self._error is not None:
            raise self._error
        return await anext(self._pieces)

    async def _read(self) -> AsyncGenerator[bytes, None]:
        self._begun = True
        try:
            response = await self._client._respond(self._call, stream=True)
            self._request_id = request_id_of(response)
            try:
                if not self._call.expects(response):
                    self._client._read(self._call, response)
                async for line in response.aiter_lines():
                    if piece := self._take(line):
                        yield piece
            except (httpx.HTTPError, httpx.StreamError) as error:
                raise self._client._broken(error, len(self._data)) from error
            finally:
                await response.aclose()
            if not self._done:
                raise self._client._broken(None, len(self._data))
        except BaseException as error:
            self._ended_by(error)
            raise

    async def aclose(self) -> None:
        """End the stream, and what the server does for it."""
        await self._pieces.aclose()
        self._ended_by(None)
        if self._left and self._session is not None:
            self._left = False
            # How far the server went before it saw that nobody reads.
            with suppress(BytelmClientError):
                await self._client._send(self._session._calls.standing())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
