"""Sessions that are being made; what is waited for needs none of this."""

import warnings
from collections.abc import Awaitable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bytelm_client._async.session import AsyncSession
from bytelm_client._calls import Call
from bytelm_client.results import SessionInfo

if TYPE_CHECKING:
    from bytelm_client._async.client import AsyncClient


HOW = "session = await client.session(…), or async with client.session(…) as session"


class Opening(Awaitable[AsyncSession]):
    """A session that is being made: await it, or enter it by ``async with``."""

    def __init__(self, client: "AsyncClient", call: Call[SessionInfo]) -> None:
        self._client, self._call = client, call
        self._session: AsyncSession | None = None
        self._awaited = False

    def __await__(self) -> Generator[Any, None, AsyncSession]:
        return self._open().__await__()

    def __getattr__(self, name: str) -> Any:
        if hasattr(AsyncSession, name):
            raise AttributeError(f"no {name} yet: the session is still to be awaited ({HOW})")
        raise AttributeError(f"a session that is to be awaited ({HOW}) has no {name!r}")

    def __del__(self) -> None:
        # As Python does for coroutines.
        if not self.__dict__.get("_awaited", True):
            warnings.warn(f"a session was never awaited ({HOW})", RuntimeWarning, stacklevel=2)

    async def _open(self) -> AsyncSession:
        self._awaited = True
        return AsyncSession(self._client, await self._client._send(self._call))

    async def __aenter__(self) -> AsyncSession:
        self._session = await self._open()
        return self._session

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.__aexit__(kind, error, traceback)
