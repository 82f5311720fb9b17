"""Work that would keep the event loop: long texts to tokenize, large chats to render.

It runs in a few threads, a job at a time in each; tokenizers compute without Python's lock, Python
itself hands it over every few milliseconds. Nobody computes for a caller who has gone: a job that
has not begun never does, and one that asks ``go_on`` on its way ends there. Must not know the work.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar, TypeVarTuple

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

THREADS = 2
"""Each more takes Python's lock once more while the event loop waits for it."""

LONG = 512
"""Bytes of text that take a tokenizer about as long as it takes to ask a thread."""


class CallerGone(Exception):
    """Nobody waits for the job any more."""


_job = threading.local()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "bytelm-work")


async def in_thread(function: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
    """``function(*arguments)``, while other tasks go on."""
    gone = threading.Event()

    def job() -> T:
        _job.gone = gone
        try:
            return function(*arguments)
        finally:
            del _job.gone

    try:
        return await asyncio.get_running_loop().run_in_executor(_pool(), job)
    finally:
        gone.set()


async def by_length(length: int, function: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
    """The same for work on so many bytes of text: at once where that is as good as none."""
    if length < LONG:
        return function(*arguments)
    return await in_thread(function, *arguments)


def go_on() -> None:
    """Raises CallerGone in a thread whose caller has gone; elsewhere it does nothing."""
    gone: threading.Event | None = getattr(_job, "gone", None)
    if gone is not None and gone.is_set():
        raise CallerGone
