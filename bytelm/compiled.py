"""numba's ``njit``, whose machine code is kept on disk wherever there is a place for it.

numba keeps it beside the source or in the user's home; where it can write to neither, importing
fails. Then it goes into bytelm's cache directory, or else nowhere: each process compiles anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba

from bytelm.settings import Paths


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator that compiles a function at its first call, and lets other threads run.

    Args:
        options: numba's, such as ``fastmath``.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        def njit(cache: bool) -> Any:
            return numba.njit(cache=cache, nogil=True, **options)(function)

        try:
            return njit(cache=True)
        except RuntimeError:  # no place that numba knows
            with _place():
                try:
                    return njit(cache=True)
                except RuntimeError:
                    return njit(cache=False)

    return decorate


@contextmanager
def _place() -> Iterator[None]:
    """Numba keeps code in bytelm's cache directory meanwhile."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(Paths().cache_dir.absolute() / "numba")
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before
