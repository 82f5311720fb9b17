"""Ends the engine's processes when the process that started them is gone.

vLLM's engine core does not notice that its parent was killed: it would stay, with its workers and
their memory. :func:`install` is a ``vllm.general_plugins`` entry point, so vLLM calls it in the
engine core and in every worker. The owner names itself in the environment that they inherit
(:class:`bytelm.settings.Owner`); where nobody does, nothing happens.

This module must not import vLLM or torch: it runs first.
"""

import os
import signal
import threading
import time
from pathlib import Path

from bytelm.settings import Owner

POLL_SECONDS = 1.0


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
    """Watch the owner from a thread, if this process belongs to one and is not it."""
    owner = Owner()
    if owner.pid is None or owner.started is None or owner.pid == os.getpid():
        return
    threading.Thread(
        target=_watch, args=(owner.pid, owner.started), name="bytelm-watchdog", daemon=True
    ).start()


def _watch(pid: int, started: int) -> None:
    while is_alive(pid, started):
        time.sleep(POLL_SECONDS)
    # Not an orderly exit: handlers and native threads could keep the process alive.
    os.kill(os.getpid(), signal.SIGKILL)
