"""Whose turn it is: so many calls are worked on at a time, so many wait, the others are refused.

Turns are shared between callers so that nobody needs another's leave:

* A free turn goes to the waiting caller that has the fewest, and of those to the one that waits
  longest.
* A caller takes another turn only while it has fewer than three times as many as are free: alone it
  gets three quarters of them, and whoever comes next finds one free.
* Where the queue is full, the newest call of whoever has most in it makes room for one of a caller
  that has fewer.

Must not know what a call is, nor what makes a caller.
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
TIMES_THE_FREE = 3
"""A caller may have so many times as many turns as are free."""


class QueueFull(CallError):
    """So many calls wait already that no more can."""

    status, type, code = 429, "overloaded", "queue_full"


class Turn:
    """One call's turn, which it may lend to others while it waits for its own client."""

    def __init__(self, admission: "Admission", caller: str) -> None:
        self._admission = admission
        self._caller = caller
        self._is_lent = False

    def lend(self) -> None:
        """Let others have the turn until it is taken back."""
        if not self._is_lent:
            self._is_lent = True
            self._admission.lent += 1
            self._admission.give_back(self._caller)

    async def take_back(self) -> None:
        """Have the turn again, before the caller's calls that wait for their first.

        Raises:
            Unavailable: when no turn will come any more.
        """
        if self._is_lent:
            await self._admission.take_again(self._caller)
            self._admission.lent -= 1
            self._is_lent = False

    def end(self) -> None:
        """Give the turn back for good, lent or not."""
        if self._is_lent:
            self._admission.lent -= 1
        else:
            self._admission.give_back(self._caller)


class Admission:
    """Gives calls their turns.

    Args:
        at_a_time: how many calls are worked on.
        waiting: how many more may wait.

    Attributes:
        running: how many calls have their turn now, by caller.
        lent: how many calls have lent their turn.
    """

    def __init__(self, at_a_time: int, waiting: int) -> None:
        self.running: Counter[str] = Counter()
        self.lent = 0
        self._free = at_a_time
        self._at_a_time = at_a_time
        self._most_waiting = waiting
        # Callers in the order in which they began to wait; none has an empty queue, and none of
        # them may have a turn now.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._closed: Unavailable | None = None
        self._usual_seconds = 1.0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def waiting(self) -> int:
        """How many calls wait for their turn."""
        return sum(map(len, self._waiting.values()))

    @property
    def callers(self) -> int:
        """How many callers have calls that run or wait."""
        return len(self.running.keys() | self._waiting.keys())

    @asynccontextmanager
    async def turn(self, caller: str) -> AsyncIterator[Turn]:
        """One call's turn, as soon as there is one.

        Raises:
            QueueFull: when too many wait; at once, or to make room for another caller.
            Unavailable: when no turn will come any more.
        """
        await self._take(caller)
        turn, began = Turn(self, caller), time.monotonic()
        try:
            yield turn
        finally:
            self._usual_seconds += 0.1 * (time.monotonic() - began - self._usual_seconds)
            turn.end()

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

    async def take_again(self, caller: str) -> None:
        """A turn for a call that had one: there is a place in the queue for it, the first one."""
        if self._closed is not None:
            raise self._closed
        if self._may_begin(caller):
            self._give(caller)
        else:
            mine = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(caller, deque()).appendleft(mine)
            await self._in_queue(caller, mine)

    def give_back(self, caller: str) -> None:
        """A turn comes free."""
        self.running[caller] -= 1
        if not self.running[caller]:
            del self.running[caller]
        self._free += 1
        self._serve()
        if not self.running:
            self._idle.set()

    async def _take(self, caller: str) -> None:
        if self._closed is not None:
            raise self._closed
        if self._may_begin(caller):
            self._give(caller)
            return
        self._make_room(caller)
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(mine)
        await self._in_queue(caller, mine)

    def _may_begin(self, caller: str) -> bool:
        return caller not in self._waiting and self._may_have_another(caller)

    def _may_have_another(self, caller: str) -> bool:
        return self.running[caller] < TIMES_THE_FREE * self._free

    def _make_room(self, caller: str) -> None:
        """Raises QueueFull where there is none for this caller."""
        if self.waiting < self._most_waiting:
            return
        refused = QueueFull(
            f"{self._most_waiting} calls wait already: try again later",
            retry_after=self._retry_after(),
        )
        most = max(self._waiting, key=lambda one: len(self._waiting[one]), default=caller)
        if most == caller or len(self._waiting[most]) <= len(self._waiting.get(caller, ())) + 1:
            raise refused
        newest = self._waiting[most][-1]
        self._leave(most, newest)
        if not newest.done():
            newest.set_exception(refused)

    async def _in_queue(self, caller: str, mine: asyncio.Future[None]) -> None:
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled() and mine.exception() is None:
                self.give_back(caller)
            else:
                self._leave(caller, mine)
            raise

    def _leave(self, caller: str, one: asyncio.Future[None]) -> None:
        queue = self._waiting.get(caller)
        if queue is not None and one in queue:
            queue.remove(one)
            if not queue:
                del self._waiting[caller]

    def _serve(self) -> None:
        """Give free turns to those who wait and may have them."""
        while self._waiting:
            caller = min(self._waiting, key=self.running.__getitem__)
            if not self._may_have_another(caller):
                return
            # To the end of those that wait: the next turn of as many is another caller's.
            queue = self._waiting.pop(caller)
            one = queue.popleft()
            if queue:
                self._waiting[caller] = queue
            if not one.done():  # else it has left, and is about to notice
                self._give(caller)
                one.set_result(None)

    def _give(self, caller: str) -> None:
        self._free -= 1
        self.running[caller] += 1
        self._idle.clear()

    def _retry_after(self) -> int:
        seconds = self._usual_seconds * (self.waiting + 1) / self._at_a_time
        return max(1, min(LONGEST_RETRY, math.ceil(seconds)))
