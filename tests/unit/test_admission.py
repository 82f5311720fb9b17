"""Turns: how many, whose, and what becomes of those that wait."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from bytelm_server.admission import Admission, QueueFull, Turn
from bytelm_server.errors import Unavailable


class Calls:
    """Calls that take turns; each goes on until it is told to end."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.began: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.turns: dict[str, Turn] = {}

    async def begin(self, name: str) -> None:
        """A call named by its key and a number, such as ``a1``."""
        self.ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._call(name))
        await self.settle()

    async def _call(self, name: str) -> None:
        async with self.admission.turn(name[0]) as self.turns[name]:
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


async def test_a_caller_alone_leaves_turns_to_whoever_comes_next() -> None:
    calls = Calls(Admission(8, 50))
    for i in range(8):
        await calls.begin(f"a{i}")
    assert calls.began == [f"a{i}" for i in range(6)]
    for i in range(2):
        await calls.begin(f"b{i}")
    assert calls.began[6:] == ["b0", "b1"]
    await calls.begin("c0")
    await calls.end("a0")
    assert calls.began[8:] == ["c0"]


async def test_callers_who_all_want_more_get_as_many() -> None:
    calls = Calls(Admission(14, 100))
    for i in range(40):
        await calls.begin(f"a{i}")
    for i in range(40):
        await calls.begin(f"b{i}")
    for _ in range(20):
        first = next(name for name in calls.began if not calls.tasks[name].done())
        await calls.end(first)
    assert calls.admission.running == {"a": 6, "b": 6}


async def test_a_full_queue_has_room_for_whoever_has_less_in_it() -> None:
    calls = Calls(Admission(1, 4))
    for i in range(5):
        await calls.begin(f"a{i}")
    for name, refused in [("b0", "a4"), ("b1", "a3")]:
        await calls.begin(name)
        with pytest.raises(QueueFull):
            await calls.tasks[refused]
    assert calls.admission.waiting == 4
    for caller in "ab":
        with pytest.raises(QueueFull):
            await calls.admission.turn(caller).__aenter__()
    for i in range(5):
        await calls.end(calls.began[i])
    assert calls.began == ["a0", "a1", "b0", "a2", "b1"]


async def test_nobody_is_refused_for_a_caller_who_has_as_much() -> None:
    calls = Calls(Admission(1, 2))
    for name in ("a0", "b0", "c0"):
        await calls.begin(name)
    with pytest.raises(QueueFull):
        await calls.admission.turn("d").__aenter__()
    assert calls.admission.waiting == 2


async def test_a_turn_that_is_lent_is_anothers_until_it_is_taken_back() -> None:
    calls = Calls(Admission(1, 5))
    for name in ("a0", "a1", "a2"):
        await calls.begin(name)
    calls.turns["a0"].lend()
    calls.turns["a0"].lend()
    await calls.settle()
    assert calls.began == ["a0", "a1"]
    assert (calls.admission.running.total(), calls.admission.lent) == (1, 1)
    back = asyncio.create_task(calls.turns["a0"].take_back())
    await calls.settle()
    assert not back.done()
    await calls.end("a1")
    await back
    assert calls.began == ["a0", "a1"]
    await calls.end("a0")
    assert calls.began == ["a0", "a1", "a2"]
    await calls.end("a2")
    assert (calls.admission.running.total(), calls.admission.lent) == (0, 0)


async def test_a_call_that_ends_while_its_turn_is_lent_gives_back_nothing() -> None:
    calls = Calls(Admission(1, 5))
    for name in ("a0", "a1", "a2"):
        await calls.begin(name)
    calls.turns["a0"].lend()
    back = asyncio.create_task(calls.turns["a0"].take_back())
    await calls.settle()
    back.cancel()
    await calls.end("a0")
    assert calls.began == ["a0", "a1"]
    assert (calls.admission.running.total(), calls.admission.lent) == (1, 0)


async def test_a_lent_turn_has_a_place_in_a_full_queue_and_none_after_the_end() -> None:
    calls = Calls(Admission(1, 1))
    await calls.begin("a0")
    calls.turns["a0"].lend()
    for name in ("b0", "b1"):
        await calls.begin(name)
    back = asyncio.create_task(calls.turns["a0"].take_back())
    await calls.settle()
    assert not back.done()
    calls.admission.close(Unavailable("draining", "the server stops"))
    with pytest.raises(Unavailable):
        await back
    with pytest.raises(Unavailable):
        await calls.turns["a0"].take_back()


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
