"""How much of bodies is taken in: of one, of all that calls hold, and for how long it may take."""

import asyncio
from collections import Counter

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bytelm_server.callers import Caller
from bytelm_server.errors import CallError

RETRY_SECONDS = 5


class BodiesFull(CallError):
    """Calls that run or wait hold so much already that no more is taken in."""

    status, type, code = 429, "overloaded", "queue_full"


class Room:
    """The bodies of all calls that run or wait: what they have together, and each key of it.

    A key may hold as much as is free besides: alone half of all, and however much it takes, others
    find as much again as is left.

    Args:
        size: bytes of all.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._held: Counter[str] = Counter()

    def take(self, key: str, size: int) -> None:
        """Hold so many bytes more; BodiesFull when there is no room."""
        if self._held[key] + size > self._free - size:
            raise BodiesFull(
                "the bodies of your calls that run or wait are as large as they may be together: "
                "wait for answers, or try again later",
                retry_after=RETRY_SECONDS,
            )
        self._free -= size
        self._held[key] += size

    def give_back(self, key: str, size: int) -> None:
        """Hold so many bytes less."""
        self._free += size
        self._held[key] -= size
        if not self._held[key]:
            del self._held[key]


class BodyLimit:
    """ASGI middleware that refuses bodies that are too large or come too slowly.

    Args:
        app: where calls go.
        limit: the most bytes of a body, announced or streamed.
        room: the most bytes of bodies that calls hold together, to their end.
        seconds: how long a body may take.
    """

    def __init__(self, app: ASGIApp, limit: int, room: int, seconds: float) -> None:
        self.app = app
        self.limit = limit
        self.seconds = seconds
        self._room = Room(room)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, counting what it reads."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        caller: Caller = scope["state"]["caller"]
        announced = Headers(scope=scope).get("content-length", "")
        seen = 0
        deadline: float | None = asyncio.get_running_loop().time() + self.seconds

        async def counted() -> Message:
            nonlocal seen, deadline
            if announced.isdecimal() and int(announced) > self.limit:
                raise self._too_large()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408, f"the body did not come within {self.seconds:g} seconds"
                ) from None
            if not message.get("more_body"):
                deadline = None  # what comes now is that the client leaves
            size = len(message.get("body", b""))
            if seen + size > self.limit:
                raise self._too_large()
            if size:
                self._room.take(caller.key_id, size)
                seen += size
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            if seen:
                self._room.give_back(caller.key_id, seen)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body has more than {self.limit} bytes")
