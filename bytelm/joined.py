"""Calls that several wait for: each is made once, and ends when nobody wants it any more.

Whoever is cancelled stops waiting, and takes nothing from the others. When the last one has
stopped, or nobody refers to it any more, the call is cancelled. This module must not know what is
called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Joined(Generic[T]):
    """A call under way, or its result: ``await`` it any number of times.

    Args:
        call: what is awaited; it begins at once.
    """

    __slots__ = ("_future", "_is_given_up", "_waiters")

    def __init__(self, call: Awaitable[T]) -> None:
        self._future = asyncio.ensure_future(call)
        self._future.add_done_callback(_forgive)
        self._waiters = 0
        self._is_given_up = False

    def __await__(self) -> Generator[object, None, T]:
        (result,) = yield from results([self]).__await__()
        return result

    @property
    def is_over(self) -> bool:
        """Whether it has a result, failed, or was given up."""
        return self._is_given_up or self._future.done()

    @property
    def has_failed(self) -> bool:
        """Whether nothing will come of it: whoever needs the result has to call again."""
        return self.is_over and (
            self._is_given_up or self._future.cancelled() or self._future.exception() is not None
        )

    @property
    def result(self) -> T | None:
        """What came of it; None while nothing did."""
        return self._future.result() if self.is_over and not self.has_failed else None

    def give_up(self) -> bool:
        """Ends the call if nobody waits for it; whether it did."""
        if self._waiters or self.is_over:
            return False
        self._is_given_up = True
        return self._future.cancel()

    def __del__(self) -> None:
        loop = self._future.get_loop()
        if not self.is_over and not loop.is_closed():
            # What is freed with others, in a cycle, may be so in any thread.
            loop.call_soon_threadsafe(self._future.cancel)


async def results(calls: Sequence[Joined[T]]) -> list[T]:
    """The results of all.

    If one of them fails, or this is cancelled, those that nobody else waits for have ended then.
    """
    futures = [call._future for call in calls]
    for call in calls:
        call._waiters += 1
    try:
        try:
            if len(futures) == 1:
                return [await asyncio.shield(futures[0])]
            together = asyncio.gather(*futures)
            together.add_done_callback(_forgive)
            return await asyncio.shield(together)
        finally:
            for call in calls:
                call._waiters -= 1
            ended = [call._future for call in calls if call.give_up()]
    except (Exception, asyncio.CancelledError):
        if ended:
            await asyncio.wait(ended)
        raise


def _forgive(future: asyncio.Future[Any]) -> None:
    """Nobody may ever wait for it: its error is of no interest."""
    if not future.cancelled():
        future.exception()
