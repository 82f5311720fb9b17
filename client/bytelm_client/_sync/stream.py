"""Made from ``_async/stream.py`` by ``client/unasync.py``: change that one."""

from collections.abc import Generator, Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

import httpx

from bytelm_client._base import request_id_of
from bytelm_client._calls import Call
from bytelm_client._events import BaseStream
from bytelm_client.errors import BytelmClientError

if TYPE_CHECKING:
    from bytelm_client._sync.client import Client
    from bytelm_client._sync.session import Session


class Stream(BaseStream, Iterator[bytes]):
    """Bytes as they come. The call is made when they are first asked for.

    >>> for data in client.stream_greedy("An apple a day", 40):  # doctest: +SKIP
    ...     sys.stdout.buffer.write(data)

    Leave it early by ``close``, or by the end of an ``with``: the server then ends its work,
    and a session that the stream moves asks where it stands.

    Args:
        client: makes the call.
        call: what is answered by a stream.
        session: the one that the stream moves.
    """

    def __init__(
        self, client: "Client", call: Call[None], session: "Session | None" = None
    ) -> None:
        super().__init__(None if session is None else session._calls.follower())
        self._client, self._call, self._session = client, call, session
        self._pieces = self._read()

    def __next__(self) -> bytes:
        if self._error is not None:
            raise self._error
        return next(self._pieces)

    def _read(self) -> Generator[bytes, None, None]:
        self._begun = True
        try:
            response = self._client._respond(self._call, stream=True)
            self._request_id = request_id_of(response)
            try:
                if not self._call.expects(response):
                    self._client._read(self._call, response)
                for line in response.iter_lines():
                    if piece := self._take(line):
                        yield piece
            except (httpx.HTTPError, httpx.StreamError) as error:
                raise self._client._broken(error, len(self._data)) from error
            finally:
                response.close()
            if not self._done:
                raise self._client._broken(None, len(self._data))
        except BaseException as error:
            self._ended_by(error)
            raise

    def close(self) -> None:
        """End the stream, and what the server does for it."""
        self._pieces.close()
        self._ended_by(None)
        if self._left and self._session is not None:
            self._left = False
            # How far the server went before it saw that nobody reads.
            with suppress(BytelmClientError):
                self._client._send(self._session._calls.standing())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
