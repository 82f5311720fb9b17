"""One event loop for many tasks that compute: each pass of it stays short.

Tasks that never wait for anything would all go on in every pass of the loop, and what comes from
outside would wait for all of them. Must not know what they compute.
"""

import asyncio
import time
from typing import ClassVar, Self
from weakref import WeakKeyDictionary

SLICE = 0.02
"""Seconds of one pass after which whoever else wants to compute waits for the next one."""


class Pace:
    """The pace of one event loop; see ``turn``."""

    _of: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, Self]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []
        self._began = 0.0

    @classmethod
    def here(cls) -> Self:
        """That of the running loop."""
        loop = asyncio.get_running_loop()
        pace = cls._of.get(loop)
        if pace is None:
            pace = cls._of[loop] = cls()
        return pace

    async def wait(self) -> None:
        """Returns in a later pass of the loop that has time left; in the order of asking."""
        loop = asyncio.get_running_loop()
        while True:
            if not self._waiting:
                loop.call_soon(self._pass)
            mine = loop.create_future()
            self._waiting.append(mine)
            await mine
            if time.perf_counter() - self._began < SLICE:
                return

    def _pass(self) -> None:
        self._began = time.perf_counter()
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)


async def turn() -> None:
    """To be awaited before something that takes a while to compute.

    Returns in a later pass of the event loop, one that has time left.
    """
    await Pace.here().wait()
