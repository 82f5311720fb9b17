"""Deadlines of work: each call's own, and the server's end."""

import asyncio
from typing import NoReturn

import pytest
from fastapi import Request

from bytelm_server.deadlines import Deadlines
from bytelm_server.disconnect import while_connected
from bytelm_server.errors import DeadlinePassed, Unavailable
from bytelm_server.sessions.moves import finished

STOPPED = Unavailable("draining", "the server stopped before the call was done")


def soon() -> float:
    return asyncio.get_running_loop().time() + 60.0


async def test_work_that_is_done_in_time_gives_its_result() -> None:
    assert await Deadlines().before(soon(), asyncio.sleep(0, "done")) == "done"


async def test_work_is_cancelled_at_its_deadline() -> None:
    now = asyncio.get_running_loop().time()
    work = asyncio.ensure_future(asyncio.sleep(60.0))
    with pytest.raises(DeadlinePassed):
        await Deadlines().before(now, work)
    assert work.cancelled()


async def past_its_deadline(end: asyncio.Future[str], outcome: str | Exception) -> str:
    """What a call gets whose work is being written down when the deadline passes."""

    async def never() -> NoReturn:
        await asyncio.Event().wait()
        raise AssertionError

    async def write() -> str:
        return await end

    now = asyncio.get_running_loop().time()
    request = Request({"type": "http"}, never)
    call = Deadlines().before(now + 0.01, while_connected(request, finished(write())))
    answer = asyncio.create_task(call)
    await asyncio.sleep(0.05)
    assert not answer.done()
    if isinstance(outcome, Exception):
        end.set_exception(outcome)
    else:
        end.set_result(outcome)
    return await answer


async def test_what_has_happened_by_the_deadline_is_told_as_done() -> None:
    end = asyncio.get_running_loop().create_future()
    assert await past_its_deadline(end, "done") == "done"


async def test_what_has_failed_by_the_deadline_was_stopped() -> None:
    end = asyncio.get_running_loop().create_future()
    with pytest.raises(DeadlinePassed):
        await past_its_deadline(end, OSError("the disk is full"))


async def test_all_work_that_is_under_way_can_be_ended() -> None:
    deadlines = Deadlines()
    calls = [asyncio.ensure_future(deadlines.before(soon(), asyncio.sleep(60.0))) for _ in range(3)]
    await asyncio.sleep(0)
    deadlines.end(STOPPED)
    assert await asyncio.gather(*calls, return_exceptions=True) == [STOPPED] * 3


async def test_a_stream_whose_last_event_was_on_its_way_then_has_no_further_one() -> None:
    deadlines = Deadlines()
    deadlines.end(STOPPED)
    with pytest.raises(Unavailable) as caught:
        async with asyncio.timeout(10.0):
            await deadlines.before(soon(), asyncio.sleep(60.0))
    assert caught.value is STOPPED
