"""Whose turn it is: so many calls are worked on at a time, so many wait, the others are refused.

Turns are shared fairly between keys: a free one goes to the waiting key that has the fewest, and of
those to the one that waits longest, so that a key with a thousand calls does not keep another's
first call waiting for more than a turn. Must not know what a call is.
"""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bytelm_server.errors import CallError, Unavailable

LONGEST_RETRY = 60
"""Seconds that a refused caller is asked to wait, at most."""


class QueueFull(CallError):
    """So many calls wait already that no more can."""

    status, type, code = 429, "overloaded", "queue_full"


class Admission:
    """Gives calls their turns.

    Args:
        at_a_time: how many calls are worked on.
        waiting: how many more may wait.

    Attributes:
        running: how many calls have their turn now, by key.
    """

    def __init__(self, at_a_time: int, waiting: int) -> None:
        self.running: Counter[str] = Counter()
        self._free = at_a_time
        self._at_a_time = at_a_time
        self._most_waiting = waiting
        # Keys in the order in which they began to wait; none has an empty queue.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._closed: Unavailable | None = None
        self._usual_seconds = 1.0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def waiting(self) -> int:
        """How many calls wait for their turn."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[None]:
        """One call's turn, as soon as there is one.

        Raises:
            QueueFull: at once, when too many wait.
            Unavailable: when no turn will come any more.
        """
        await self._take(key)
        began = time.monotonic()
        try:
            yield
        finally:
            self._usual_seconds += 0.1 * (time.monotonic() - began - self._usual_seconds)
            self._give_back(key)

    def close(self, reason: Unavailable) -> None:
        """No call gets a turn any more; those that wait raise ``reason``."""
        self._closed = reason
        for queue in self._waiting.values():
            for one in queue:
                if not one.done():
                    one.set_exception(reason)
        self._waiting.clear()

    async def idle(self) -> None:
        """Returns when no call has a turn."""
        await self._idle.wait()

    async def _take(self, key: str) -> None:
        if self._closed is not None:
            raise self._closed
        if self._free and not self._waiting:
            self._give(key)
            return
        if self.waiting >= self._most_waiting:
            raise QueueFull(
                f"{self._most_waiting} calls wait already: try again later",
                retry_after=self._retry_after(),
            )
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled() and mine.exception() is None:
                self._give_back(key)
            else:
                self._leave(key, mine)
            raise

    def _leave(self, key: str, one: asyncio.Future[None]) -> None:
        queue = self._waiting.get(key)
        if queue is not None and one in queue:
            queue.remove(one)
            if not queue:
                del self._waiting[key]

    def _give_back(self, key: str) -> None:
        self.running[key] -= 1
        if not self.running[key]:
            del self.running[key]
        self._free += 1
        while self._free and self._waiting:
            key = min(self._waiting, key=self.running.__getitem__)
            # To the end of those that wait: the next turn of as many is another key's.
            queue = self._waiting.pop(key)
            one = queue.popleft()
            if queue:
                self._waiting[key] = queue
            if not one.done():  # else it has left, and is about to notice
                self._give(key)
                one.set_result(None)
        if not self.running:
            self._idle.set()

    def _give(self, key: str) -> None:
        self._free -= 1
        self.running[key] += 1
        self._idle.clear()

    def _retry_after(self) -> int:
        seconds = self._usual_seconds * (self.waiting + 1) / self._at_a_time
        return max(1, min(LONGEST_RETRY, math.ceil(seconds)))
