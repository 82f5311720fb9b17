"""No work for a client that has gone."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection; nobody is there to read an answer."""


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client closes the connection.

    The body must have been read. A caller that is cancelled cancels the work, and gets its result
    all the same if the work could not be stopped any more.

    Raises:
        ClientGone: after the work was cancelled.
    """
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task})
        if task.cancelled() or task.exception() is not None:
            raise
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
