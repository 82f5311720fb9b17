"""Work in threads, and that it ends with its caller."""

import asyncio
import threading

import pytest

from bytelm.threads import THREADS, CallerGone, go_on, in_thread


async def test_a_job_runs_in_a_thread_and_gives_its_result():
    assert await in_thread(lambda a, b: (a + b, threading.current_thread().name[:6]), 1, 2) == (
        3,
        "bytelm",
    )


async def test_a_jobs_error_is_raised():
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)


async def test_a_job_ends_when_its_caller_has_gone():
    began, ended = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        try:
            while True:
                go_on()
        except CallerGone:
            ended.set()
            raise

    call = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(began.wait, 60)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(ended.wait, 60)


async def test_a_job_that_has_not_begun_never_does():
    release, ran = threading.Event(), []
    others = [asyncio.create_task(in_thread(release.wait, 60)) for _ in range(THREADS)]
    call = asyncio.create_task(in_thread(ran.append, 1))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    release.set()
    await asyncio.gather(*others)
    await in_thread(lambda: None)
    assert ran == []


def test_elsewhere_there_is_no_caller_to_go():
    go_on()
