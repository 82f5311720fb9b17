"""Which requests are sent together, and when."""

import asyncio
import time

import pytest_asyncio

from bytelm.vllm.bursts import LONGEST_GATHERING, Burst, Bursts


class Wire:
    """Notes what is sent."""

    def __init__(self) -> None:
        self.sent: list[list[str]] = []
        self.bursts: list[Burst] = []
        self.works = True

    async def send(self, items, burst) -> bool:
        self.sent.append(items)
        self.bursts.append(burst)
        return self.works


@pytest_asyncio.fixture
async def started():
    """Makes Bursts that run, and what they send over."""
    tasks = []

    def start(depth: int):
        wire = Wire()
        bursts = Bursts(wire.send, depth)
        tasks.append(asyncio.create_task(bursts.run()))
        return bursts, wire

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def turns(count: int = 100) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_is_asked_for_at_one_moment_is_one_burst(started):
    bursts, wire = started(1)
    for item in "abc":
        bursts.put(item)
    await turns()
    assert wire.sent == [["a", "b", "c"]]


async def test_whoever_needs_some_turns_more_is_waited_for(started, monkeypatch):
    monkeypatch.setattr("bytelm.vllm.bursts.LONGEST_GATHERING", 60.0)
    bursts, wire = started(1)

    async def late(item: str, after: int) -> None:
        await turns(after)
        bursts.put(item)

    await asyncio.gather(*(late(str(n), n) for n in range(0, 40, 5)))
    await turns()
    assert wire.sent == [[str(n) for n in range(0, 40, 5)]]


async def test_who_is_answered_and_takes_long_is_waited_for_by_who_asked_meanwhile(started):
    bursts, wire = started(1)
    bursts.put("answered")
    await turns()
    bursts.put("meanwhile")
    await turns()

    async def ask_again(item: str) -> None:
        await turns(5)
        time.sleep(LONGEST_GATHERING / 2)  # noqa: ASYNC251 (its walk holds the loop up)
        await turns(2)
        bursts.put(item)

    wire.bursts[0].answered()
    await asyncio.gather(*(ask_again(item) for item in "abcd"))
    await turns()
    assert wire.sent == [["answered"], ["meanwhile", *"abcd"]]


async def test_an_endless_stream_of_requests_is_cut(started):
    bursts, wire = started(1)
    async with asyncio.timeout(5):
        while not wire.sent:
            bursts.put("more")
            await asyncio.sleep(0)
    assert len(wire.sent[0]) > 1


async def test_the_next_burst_waits_for_the_first_answer_to_the_one_under_way(started):
    bursts, wire = started(1)
    bursts.put("a")
    await turns()
    bursts.put("b")
    await turns()
    bursts.put("c")
    await turns()
    assert wire.sent == [["a"]]
    wire.bursts[0].answered()
    await turns()
    assert wire.sent == [["a"], ["b", "c"]]


async def test_only_the_first_answer_to_a_burst_counts(started):
    bursts, wire = started(1)
    for item in "ab":
        bursts.put(item)
        await turns()
        wire.bursts[0].answered()
        wire.bursts[0].answered()
    await turns()
    assert wire.sent == [["a"], ["b"]]
    bursts.put("c")
    await turns()
    assert wire.sent == [["a"], ["b"]]


async def test_as_many_bursts_as_the_depth_allows_are_under_way(started):
    bursts, wire = started(2)
    for item in "abc":
        bursts.put(item)
        await turns()
    assert wire.sent == [["a"], ["b"]]
    wire.bursts[1].answered()
    await turns()
    assert wire.sent == [["a"], ["b"], ["c"]]


async def test_a_burst_of_which_nothing_was_sent_is_over(started):
    bursts, wire = started(1)
    wire.works = False
    for item in "ab":
        bursts.put(item)
        await turns()
    assert wire.sent == [["a"], ["b"]]
