"""Keeps memory that was freed, for arrays of the size of a vocabulary.

By default glibc returns a block of some 100 KiB to the system as soon as it is freed. The next one
like it comes page by page, zeroed: for a row of log-probabilities that takes ten times as long as
to copy it. Every evaluation makes and drops a few such arrays, so their memory is worth keeping.

What is kept is not always of use again: long-lived objects come to lie in its middle, and the next
large array is put elsewhere. A process whose arrays differ in size from step to step has to give
back now and then (:func:`give_back_regularly`), or it grows.

This module knows nothing of what is in them.
"""

import contextlib
import ctypes
import threading
import time
from functools import cache

MMAP_THRESHOLD = 32 << 20
"""Bytes from which on a block comes from the system by itself; the most that glibc takes."""
TRIM_THRESHOLD = 256 << 20
"""Bytes of free memory at the heap's end that are kept."""
GIVE_BACK_SECONDS = 30.0
THREAD = "bytelm-memory"

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def give_back() -> None:
    """Return what is free to the system, where the C library can (glibc can).

    For when much was let go of that will not be needed again at once; it takes some milliseconds.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def give_back_regularly(seconds: float = GIVE_BACK_SECONDS) -> None:
    """Have a thread :func:`give_back` every so many seconds, for the process's whole life; once."""
    if not any(thread.name == THREAD for thread in threading.enumerate()):
        threading.Thread(target=_give_back, args=(seconds,), name=THREAD, daemon=True).start()


def _give_back(seconds: float) -> None:
    while True:
        time.sleep(seconds)
        give_back()


@cache
def keep_freed() -> bool:
    """Make this process keep what it frees; once, and for its whole life.

    Returns:
        Whether its C library can be told so (glibc can).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD)
    )
