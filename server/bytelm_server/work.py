"""What a client's call may do to the server: how long, and for how long somebody waits for it.

Every route that takes the model goes through :class:`Work`. Must not know what the work is.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Annotated, Any, Self, TypeVar

from fastapi import Depends, Request

from bytelm import pace
from bytelm_server.admission import Turn
from bytelm_server.backend import Backend
from bytelm_server.callers import Caller, Calling
from bytelm_server.disconnect import while_connected
from bytelm_server.row_stream import Pieces, RowFormat, RowStream
from bytelm_server.streams import Event, Events, EventStream

T = TypeVar("T")


async def served(request: Request) -> Backend:
    """The backend of the application that a request came to."""
    backend: Backend = request.app.state.backend
    return backend


Served = Annotated[Backend, Depends(served)]
"""A route's parameter: the backend."""


class Work:
    """One call's work: it ends when it is done, or when nobody waits for it any more.

    It waits for its turn, and may take so long altogether.

    Attributes:
        caller: who makes the call.
    """

    def __init__(self, request: Request, backend: Backend, caller: Caller) -> None:
        self.caller = caller
        self._request = request
        self._backend = backend
        self._held = AsyncExitStack()
        self._turn: Turn | None = None
        self._first: asyncio.Task[Event | None] | None = None
        self._deadline = asyncio.get_running_loop().time() + backend.settings.call_seconds

    async def result(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``.

        Raises:
            CallError: when too many calls wait, or the deadline passed.
            Unavailable: when there will be no turn.
            ClientGone: the client closed the connection; the work was cancelled.
        """
        try:
            result = await self._in_time(while_connected(self._request, self._in_turn(work)))
        finally:
            work.close()  # if it never began
        await pace.turn()  # what follows is that it is written down
        return result

    async def stream(self, events: Events) -> EventStream:
        """The answer that carries events as they come.

        An error before the first is raised, unless that takes long: the answer then begins with a
        ping, and the error is an event.
        """
        patience = self._backend.settings.ping_seconds
        self._first = first = asyncio.create_task(self._in_time(self._begun(events)))
        await while_connected(self._request, asyncio.wait({first}, timeout=patience))
        if first.done():
            first.result()

        def following() -> Coroutine[Any, Any, Event | None]:
            return self._in_time(self._next(events))

        return EventStream(first, following, events, self._lend, patience)

    async def rows(self, pieces: Pieces, form: RowFormat, rows: int) -> RowStream:
        """The answer that carries so many rows as they come; an error before the first is raised.

        Where its reader does not read, it keeps its turn: rows of the model are held for it.
        """
        begun = self._in_time(self._begun(pieces))
        first = await while_connected(self._request, begun)
        assert first is not None
        return RowStream(first, lambda: self._in_time(_next(pieces)), pieces, form, rows)

    async def _begun(self, parts: AsyncGenerator[T, None]) -> T | None:
        self._turn = await self._held.enter_async_context(self._a_turn())
        return await anext(parts, None)

    async def _next(self, events: Events) -> Event | None:
        if self._turn is not None:
            await self._turn.take_back()
        return await anext(events, None)

    def _lend(self) -> None:
        if self._turn is not None:
            self._turn.lend()

    def _a_turn(self) -> AbstractAsyncContextManager[Turn]:
        return self._backend.admission.turn(self.caller.party)

    async def _in_turn(self, work: Coroutine[Any, Any, T]) -> T:
        async with self._a_turn():
            return await work

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        return await self._backend.deadlines.before(self._deadline, work)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._first is not None:
            self._first.cancel()
            await asyncio.gather(self._first, return_exceptions=True)
        await self._held.aclose()


async def _next(pieces: Pieces) -> bytes | None:
    return await anext(pieces, None)


async def _work(request: Request, backend: Served, caller: Calling) -> AsyncIterator[Work]:
    # Left when the answer is sent: a stream keeps its turn until then.
    async with Work(request, backend, caller) as work:
        yield work


Working = Annotated[Work, Depends(_work)]
"""A route's parameter: the call's work."""
