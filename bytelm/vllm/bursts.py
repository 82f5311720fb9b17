"""Bursts: what many tasks ask for at the same time is sent together.

vLLM starts a step as soon as it has one request. Of 32 contexts that are evaluated in turn, each
waiting for its row before it asks for the next, one would be computed alone and the other 31 in
the step after it: twice the weights are read for the same rows. So what is asked for is held here
for a moment, until nobody asks for more, and sent as one burst. While a burst is under way, what is
asked for waits for the first answer to it, with which vLLM's step ends and most others go on, too::

    task A   ask ─┐            ┌─ row, ask ─┐            ┌─ row …
    task B   ask ─┼─ a burst ──┼─ row, ask ─┼─ a burst ──┼─ row …
    task C        │  = a step  │       ask ─┘  = a step  └─ row …
    task D        └────────────┼─ (asked meanwhile)

How all of a burst arrives at one moment is in ``burst_scheduler.py``. This module must not know
vLLM, nor what is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

QUIET_TURNS = 12
"""A burst is complete when the event loop went round so often without a new request: a row passes
through fewer tasks than that before whoever waits for it asks for the next one."""

LONGEST_GATHERING = 0.01
"""Seconds after which a burst is sent even though more and more is asked for: but not before all
that wait for an answer of the last one had their ``QUIET_TURNS``, however long these take, so that
whoever asked meanwhile is not sent ahead alone."""


class Burst:
    """What was sent together, until the first answer to it comes."""

    def __init__(self, on_answer: Callable[[], None]) -> None:
        self._on_answer: Callable[[], None] | None = on_answer

    def answered(self) -> None:
        """Take note of an answer, or that there will be none; only the first one counts."""
        if self._on_answer is not None:
            self._on_answer()
            self._on_answer = None


class Bursts(Generic[T]):
    """Gathers what is asked for, and sends it.

    Args:
        send: sends all of a burst; must not raise. Of what it is given, :meth:`Burst.answered` must
            be called for at least one, unless it returns False: nothing was sent.
        depth: how many bursts may be under way. With two, one can be computed while those who wait
            for the other prepare the next.

    Attributes:
        last: how much was in the burst that was sent last.
    """

    def __init__(self, send: Callable[[list[T], Burst], Awaitable[bool]], depth: int) -> None:
        self._send = send
        self._depth = depth
        self._wanted: list[T] = []
        self._under_way = 0
        self.last = 0
        self._changed = asyncio.Event()

    def put(self, item: T) -> None:
        """Have something sent with the next burst."""
        self._wanted.append(item)
        self._changed.set()

    def put_back(self, items: list[T]) -> None:
        """Have the last of a burst sent with the next one, before all else."""
        self._wanted[:0] = items
        self._changed.set()

    async def run(self) -> None:
        """Send bursts until cancelled."""
        while True:
            while not self._wanted or self._under_way >= self._depth:
                self._changed.clear()
                await self._changed.wait()
            await self._gather()
            items, self._wanted = self._wanted, []
            self.last = len(items)
            self._under_way += 1
            burst = Burst(self._ended)
            if not await self._send(items, burst):
                burst.answered()

    async def _gather(self) -> None:
        """Let everybody who is about to ask for something do so."""
        loop = asyncio.get_running_loop()
        end = loop.time() + LONGEST_GATHERING
        turns = quiet = 0
        while turns < QUIET_TURNS or (quiet < QUIET_TURNS and loop.time() < end):
            before = len(self._wanted)
            await asyncio.sleep(0)
            turns += 1
            quiet = quiet + 1 if len(self._wanted) == before else 0

    def _ended(self) -> None:
        self._under_way -= 1
        self._changed.set()
