"""Whose shared memory is whose: others on this machine have theirs."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

import psutil

from bytelm.vllm.slots import SHM


def mapped_by(processes: Iterable[psutil.Process]) -> set[Path]:
    """The files of shared memory that any of the processes has mapped."""
    found: set[Path] = set()
    for process in processes:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
            names = (line.partition("/")[2] for line in lines)
            found.update(Path(f"/{name}") for name in names if f"/{name}".startswith(f"{SHM}/"))
    return found


def left(files: Iterable[Path]) -> list[Path]:
    """Those that are still there."""
    return [path for path in files if path.exists()]
