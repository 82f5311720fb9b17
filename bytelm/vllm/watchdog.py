"""Ends the engine's processes when the process that started them is gone.

vLLM's engine core does not notice that its parent was killed: it would stay, with its workers and
their memory. :func:`install` is a ``vllm.general_plugins`` entry point, so vLLM calls it in the
engine core and in every worker. The owner names itself in the environment that they inherit
(:class:`bytelm.settings.Owner`); where nobody does, nothing happens.

vLLM loads plugins only after the engine core has shaken hands with its owner, for which it waits
minutes. So that an owner killed before that is noticed too, ``spawned.py`` installs it in every
process that is spawned. Where that is not run, :class:`Watched` rides on vLLM's configuration,
which a process unpickles before anything else.

This module must not import vLLM or torch: it runs first.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bytelm.settings import Owner

POLL_SECONDS = 1.0
THREAD = "bytelm-watchdog"


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if it is dead or a zombie.

    A pid and its start time name a process for good: pids alone are used again.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses, which may hold anything.
    fields = stat.rpartition(")")[2].split()
    state, started = fields[0], int(fields[19])
    return None if state in "ZX" else started


def is_alive(pid: int, started: int) -> bool:
    """Whether this very process, not a later one with the same pid, runs."""
    return start_time(pid) == started


def install() -> None:
    """Watch the owner from a thread, if this process belongs to one and is not it; once."""
    owner = Owner()
    if owner.pid is None or owner.started is None or owner.pid == os.getpid():
        return
    if any(thread.name == THREAD for thread in threading.enumerate()):
        return
    threading.Thread(
        target=_watch, args=(owner.pid, owner.started), name=THREAD, daemon=True
    ).start()


class Watched:
    """A base of values whose arrival in another process installs the watchdog there."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Rebuild the value by :func:`_arrived`."""
        return _arrived, (type(self), vars(self))


def _watch(pid: int, started: int) -> None:
    while is_alive(pid, started):
        time.sleep(POLL_SECONDS)
    # Not an orderly exit: handlers and native threads could keep the process alive.
    os.kill(os.getpid(), signal.SIGKILL)


def _arrived(kind: type[Watched], fields: dict[str, Any]) -> Watched:
    install()
    return kind(**fields)
