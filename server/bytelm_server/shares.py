"""The engine's places, shared fairly between those who want them.

A call may ask for hundreds of evaluations at a time, and another key's call for one: without shares
that one would stand behind the hundreds again and again. Must not know what the places are for.
"""

from asyncio import CancelledError, Future, get_running_loop
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager


class Shares:
    """Gives each of those who want places now as many, and what is left over to anybody.

    One who is alone takes all that he wants. With others he keeps to his share, as soon as places
    come free.

    Args:
        places: how many there are.
        callers: who has calls now, and how many: their shares are kept for them, even between two
            evaluations of theirs.
    """

    def __init__(self, places: int, callers: Mapping[str, int] | None = None) -> None:
        self._places = places
        self._callers: Mapping[str, int] = {} if callers is None else callers
        self._taken: Counter[str] = Counter()
        # Nobody in it has an empty queue.
        self._waiting: dict[str, deque[Future[None]]] = {}

    @asynccontextmanager
    async def place(self, who: str) -> AsyncIterator[None]:
        """One place, as soon as there is one."""
        if who not in self._waiting and self._may_enter(who):
            self._taken[who] += 1
        else:
            await self._wait(who)
        try:
            yield
        finally:
            self._give_back(who)

    def _may_enter(self, who: str) -> bool:
        active = len({who} | self._callers.keys() | self._taken.keys() | self._waiting.keys())
        if active == 1 or self._taken[who] < self._places // active:
            return True
        return self._taken.total() < self._places

    async def _wait(self, who: str) -> None:
        mine = get_running_loop().create_future()
        self._waiting.setdefault(who, deque()).append(mine)
        try:
            await mine
        except CancelledError:
            if mine.done() and not mine.cancelled():
                self._give_back(who)
            else:
                self._leave(who, mine)
            raise

    def _leave(self, who: str, one: Future[None]) -> None:
        queue = self._waiting.get(who)
        if queue is not None and one in queue:
            queue.remove(one)
            if not queue:
                del self._waiting[who]
            self._serve()

    def _give_back(self, who: str) -> None:
        self._taken[who] -= 1
        if not self._taken[who]:
            del self._taken[who]
        self._serve()

    def _serve(self) -> None:
        """Let those in who may come in now: who has the fewest places first."""
        while self._waiting:
            who = min(self._waiting, key=self._taken.__getitem__)
            if not self._may_enter(who):
                return
            queue = self._waiting.pop(who)
            one = queue.popleft()
            if queue:
                self._waiting[who] = queue
            if not one.done():  # else it has left, and is about to notice
                self._taken[who] += 1
                one.set_result(None)
