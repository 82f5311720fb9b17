"""What a client's call may do to the server: how long, and for how long somebody waits for it.

Every route that takes the model goes through :class:`Work`. Must not know what the work is.
"""

from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

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

    Attributes:
        caller: who makes the call.
    """

    def __init__(self, request: Request, caller: Caller) -> None:
        self.caller = caller
        self._request = request

    async def result(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``.

        Raises:
            ClientGone: the client closed the connection; the work was cancelled.
        """
        return await while_connected(self._request, work)

    async def stream(self, events: Events) -> EventStream:
        """The answer that carries events as they come; an error before the first is raised."""
        first = await while_connected(self._request, _next(events))
        return EventStream(first, events)


async def _next(events: Events) -> Any:
    return await anext(events, None)


async def _work(request: Request, caller: Calling) -> Work:
    return Work(request, caller)


Working = Annotated[Work, Depends(_work)]
"""A route's parameter: the call's work."""
