"""What a client's call may do to the server: how long, and for how long somebody waits for it.

Every route that takes the model goes through :class:`Work`. Must not know what the work is.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Annotated, Any, Self, TypeVar

from fastapi import Depends, Request

from bytelm_server.backend import Backend
from bytelm_server.callers import Caller, Calling
from bytelm_server.disconnect import while_connected
from bytelm_server.streams import Events, EventStream

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
        self._deadline = asyncio.get_running_loop().time() + backend.settings.call_seconds

    async def result(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``.

        Raises:
            CallError: when too many calls wait, or the deadline passed.
            Unavailable: when there will be no turn.
            ClientGone: the client closed the connection; the work was cancelled.
        """
        try:
            return await self._before_the_end(self._in_turn(work))
        finally:
            work.close()  # if it never began

    async def stream(self, events: Events) -> EventStream:
        """The answer that carries events as they come; an error before the first is raised."""
        await self._before_the_end(self._held.enter_async_context(self._turn()))
        first = await self._before_the_end(_next(events))
        return EventStream(first, events, self._backend.deadlines, self._deadline)

    def _turn(self) -> AbstractAsyncContextManager[None]:
        return self._backend.admission.turn(self.caller.key_id)

    async def _in_turn(self, work: Coroutine[Any, Any, T]) -> T:
        async with self._turn():
            return await work

    async def _before_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        waited_for = while_connected(self._request, work)
        return await self._backend.deadlines.before(self._deadline, waited_for)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._held.aclose()


async def _next(events: Events) -> Any:
    return await anext(events, None)


async def _work(request: Request, backend: Served, caller: Calling) -> AsyncIterator[Work]:
    # Left when the answer is sent: a stream keeps its turn until then.
    async with Work(request, backend, caller) as work:
        yield work


Working = Annotated[Work, Depends(_work)]
"""A route's parameter: the call's work."""
