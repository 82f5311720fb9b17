"""Places: as many for each, and what is left over for anybody."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from bytelm_server.shares import Shares


class Crowd:
    """Many who want places; each has its own until it is told to leave."""

    def __init__(self, places: int, **callers: int) -> None:
        self.shares = Shares(places, callers)
        self.inside: Counter[str] = Counter()
        self.leaving: dict[str, list[asyncio.Event]] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def come(self, who: str, count: int) -> None:
        for _ in range(count):
            self.tasks.append(asyncio.create_task(self._stay(who)))
        await self.settle()

    async def _stay(self, who: str) -> None:
        async with self.shares.place(who):
            event = asyncio.Event()
            self.leaving.setdefault(who, []).append(event)
            self.inside[who] += 1
            try:
                await event.wait()
            finally:
                self.inside[who] -= 1

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def leave(self, who: str, count: int = 1) -> None:
        for _ in range(count):
            self.leaving[who].pop(0).set()
            await self.settle()

    async def settle(self) -> None:
        for _ in range(4):
            await asyncio.sleep(0)


@pytest.fixture
async def crowd_of() -> AsyncIterator[Callable[..., Crowd]]:
    crowds: list[Crowd] = []

    def make(places: int, **callers: int) -> Crowd:
        crowds.append(Crowd(places, **callers))
        return crowds[-1]

    yield make
    for crowd in crowds:
        await crowd.end()


async def test_one_who_is_alone_takes_all_that_he_wants(crowd_of: Callable[..., Crowd]) -> None:
    crowd = crowd_of(4)
    await crowd.come("a", 10)
    assert crowd.inside == {"a": 10}


async def test_one_who_comes_later_does_not_wait_for_those_before(
    crowd_of: Callable[..., Crowd],
) -> None:
    crowd = crowd_of(4)
    await crowd.come("a", 10)
    await crowd.come("b", 3)
    assert crowd.inside["b"] == 2
    await crowd.come("c", 1)
    assert crowd.inside["c"] == 1


async def test_who_has_more_than_his_share_waits_until_there_are_places(
    crowd_of: Callable[..., Crowd],
) -> None:
    crowd = crowd_of(4)
    await crowd.come("a", 6)
    await crowd.come("b", 2)
    await crowd.come("a", 3)
    assert crowd.inside == {"a": 6, "b": 2}
    await crowd.leave("a", 4)
    assert crowd.inside == {"a": 2, "b": 2}
    await crowd.leave("a", 2)
    assert crowd.inside == {"a": 2, "b": 2}, "each one that leaves makes room for one of a's"
    await crowd.leave("b")
    assert crowd.inside == {"a": 3, "b": 1}, "what b does not want is a's"


async def test_who_has_a_call_is_not_kept_waiting_though_he_has_no_place_yet(
    crowd_of: Callable[..., Crowd],
) -> None:
    crowd = crowd_of(4, a=1, b=1)
    await crowd.come("a", 10)
    assert crowd.inside == {"a": 4}
    await crowd.come("b", 1)
    assert crowd.inside == {"a": 4, "b": 1}
    await crowd.leave("b")
    assert crowd.inside["a"] == 4, "b's next one must not stand behind all of a's"


async def test_when_the_others_have_gone_nobody_waits(crowd_of: Callable[..., Crowd]) -> None:
    crowd = crowd_of(2)
    await crowd.come("b", 1)
    await crowd.come("a", 5)
    assert crowd.inside == {"a": 1, "b": 1}
    await crowd.leave("b")
    assert crowd.inside["a"] == 5


async def test_even_with_more_who_want_them_than_places_each_comes_in_at_last(
    crowd_of: Callable[..., Crowd],
) -> None:
    crowd = crowd_of(2)
    for who in "abcde":
        await crowd.come(who, 1)
    assert crowd.inside.total() == 2
    for _ in range(5):
        await crowd.leave(next(who for who in crowd.inside if crowd.inside[who]))
    assert sorted(crowd.leaving) == list("abcde")


@pytest.mark.parametrize("at_the_moment", [False, True])
async def test_who_gives_up_leaves_its_place_to_the_next(
    crowd_of: Callable[..., Crowd], at_the_moment: bool
) -> None:
    crowd = crowd_of(1)
    await crowd.come("b", 1)
    await crowd.come("c", 1)
    await crowd.come("a", 1)
    assert crowd.inside == {"b": 1}
    if at_the_moment:
        crowd.leaving["b"].pop(0).set()
        await crowd.tasks[0]
    crowd.tasks[1].cancel()
    await crowd.settle()
    if not at_the_moment:
        await crowd.leave("b")
    assert crowd.inside["a"] == 1
    await crowd.leave("a")
    await crowd.come("b", 1)
    assert crowd.inside["b"] == 1
