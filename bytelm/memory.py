"""Keeps memory that was freed, for arrays of the size of a vocabulary.

By default glibc returns a block of some 100 KiB to the system as soon as it is freed. The next one
like it comes page by page, zeroed: for a row of log-probabilities that takes ten times as long as
to copy it. Every evaluation makes and drops a few such arrays, so their memory is worth keeping.

This module knows nothing of what is in them.
"""

import contextlib
import ctypes
from functools import cache

MMAP_THRESHOLD = 32 << 20
"""Bytes from which on a block comes from the system by itself; the most that glibc takes."""
TRIM_THRESHOLD = 256 << 20
"""Bytes of free memory at the heap's end that are kept."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def give_back() -> None:
    """Return what is free to the system, where the C library can (glibc can).

    For when much was let go of that will not be needed again at once; it takes some milliseconds.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


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
