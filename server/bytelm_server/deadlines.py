"""No work for longer than a call may take."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from bytelm_server.errors import DeadlinePassed

T = TypeVar("T")


async def before(deadline: float | None, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the event loop's clock shows ``deadline``.

    Raises:
        DeadlinePassed: after the work was cancelled.
    """
    try:
        async with asyncio.timeout_at(deadline) as limit:
            return await work
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlinePassed(
            "the call took longer than a call may here: ask for less at a time"
        ) from None
