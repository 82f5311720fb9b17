"""Turns: how many, whose, and what becomes of those that wait."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from bytelm_server.admission import Admission, QueueFull
from bytelm_server.errors import Unavailable


class Calls:
    """Calls that take turns; each goes on until it is told to end."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.began: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, name: str) -> None:
        """A call named by its key and a number, such as ``a1``."""
        self.ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._call(name))
        await self.settle()

    async def _call(self, name: str) -> None:
        async with self.admission.turn(name[0]):
            self.began.append(name)
            await self.ends[name].wait()

    async def end(self, name: str) -> None:
        self.ends[name].set()
        await self.tasks[name]
        await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_so_many_run_and_the_others_wait() -> None:
    calls = Calls(Admission(2, 5))
    for name in ("a1", "a2", "a3", "a4"):
        await calls.begin(name)
    assert calls.began == ["a1", "a2"]
    assert calls.admission.waiting == 2
    await calls.end("a2")
    assert calls.began == ["a1", "a2", "a3"]
    await calls.end("a1")
    assert calls.began == ["a1", "a2", "a3", "a4"]
    assert calls.admission.waiting == 0
    for name in ("a3", "a4"):
        await calls.end(name)
    assert not calls.admission.running


async def test_one_too_many_is_refused_at_once_and_told_when_to_come_back() -> None:
    calls = Calls(Admission(1, 1))
    await calls.begin("a1")
    await calls.begin("a2")
    with pytest.raises(QueueFull) as refused:
        async with calls.admission.turn("b"):
            pass
    assert refused.value.retry_after is not None
    assert 1 <= refused.value.retry_after <= 60
    await calls.end("a1")
    await calls.begin("a3")
    assert calls.admission.waiting == 1


async def test_a_key_with_many_calls_does_not_keep_the_others_waiting() -> None:
    calls = Calls(Admission(2, 50))
    for i in range(8):
        await calls.begin(f"a{i}")
    for name in ("b0", "b1", "c0"):
        await calls.begin(name)
    for ends, begins in [("a0", "b0"), ("b0", "c0"), ("c0", "b1"), ("b1", "a2"), ("a1", "a3")]:
        await calls.end(ends)
        assert calls.began[-1] == begins


async def test_keys_that_have_as_many_take_turns() -> None:
    calls = Calls(Admission(1, 50))
    await calls.begin("c0")
    for i in range(3):
        await calls.begin(f"a{i}")
        await calls.begin(f"b{i}")
    for i in range(6):
        await calls.end(calls.began[-1])
        assert len(calls.began) == i + 2
    assert calls.began == ["c0", "a0", "b0", "a1", "b1", "a2", "b2"]


async def test_who_leaves_the_queue_gets_no_turn() -> None:
    calls = Calls(Admission(1, 5))
    for name in ("a1", "a2", "a3"):
        await calls.begin(name)
    calls.tasks["a2"].cancel()
    await calls.settle()
    assert calls.admission.waiting == 1
    await calls.end("a1")
    assert calls.began == ["a1", "a3"]


async def test_who_leaves_at_the_moment_of_its_turn_passes_it_on() -> None:
    calls = Calls(Admission(1, 5))
    async with calls.admission.turn("c"):
        await calls.begin("a1")
        await calls.begin("a2")
    calls.tasks["a1"].cancel()  # it has its turn, but did not run yet
    await calls.settle()
    assert calls.began == ["a2"]
    await calls.end("a2")
    assert not calls.admission.running


async def test_after_the_end_nobody_waits() -> None:
    calls = Calls(Admission(1, 5))
    for name in ("a1", "a2"):
        await calls.begin(name)
    calls.admission.close(Unavailable("draining", "the server stops"))
    with pytest.raises(Unavailable):
        await calls.tasks["a2"]
    async with AsyncExitStack() as stack:
        with pytest.raises(Unavailable):
            await stack.enter_async_context(calls.admission.turn("b"))
    await calls.end("a1")  # goes on to its end
