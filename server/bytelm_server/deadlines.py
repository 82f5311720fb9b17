"""No work for longer than a call may take, nor for longer than the server has."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from bytelm_server.errors import DeadlinePassed, Unavailable

T = TypeVar("T")


class Deadlines:
    """The deadlines of all work that goes on, which may end together before."""

    def __init__(self) -> None:
        self._limits: set[asyncio.Timeout] = set()
        self._end: Unavailable | None = None

    async def before(self, deadline: float, work: Awaitable[T]) -> T:
        """The result of ``work``, cancelled when the event loop's clock shows ``deadline``.

        Raises:
            DeadlinePassed: after the work was cancelled.
            Unavailable: when all work was ended, after that.
        """
        if self._end is not None:
            # The next part of a stream, of which nothing was under way at the end.
            deadline = min(deadline, asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout_at(deadline) as limit:
                self._limits.add(limit)
                try:
                    return await work
                finally:
                    self._limits.discard(limit)
        except TimeoutError:
            if not limit.expired():
                raise
            if self._end is not None:
                raise self._end from None
            raise DeadlinePassed(
                "the call took longer than a call may here: ask for less at a time"
            ) from None

    def end(self, reason: Unavailable) -> None:
        """End all work now, and what would begin after it; it raises ``reason``."""
        self._end = reason
        now = asyncio.get_running_loop().time()
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(now)
