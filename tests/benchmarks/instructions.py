"""How many instructions a program executes, which the load of the machine does not move.

``perf stat`` counts them where the processor's counters can be read, callgrind everywhere else. One
counts from the program's start, the other from where the program says so, and neither stops before
its end: small counts are to be subtracted from larger ones.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

EVENT = "instructions:u"

VALGRIND_KNOWS = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
"""What numba compiles for: valgrind does not know the newest instructions of a processor."""


class Counted(NamedTuple):
    """What a program printed, and how many instructions it executed."""

    printed: str
    instructions: int


class Perf:
    """Counts by the processor's own counters."""

    name = f"perf stat -e {EVENT}"
    begin = ""
    environment: Mapping[str, str] = {}

    @staticmethod
    def works() -> bool:
        """Whether the counters can be read here."""
        try:
            Perf().run(["true"], os.environ)
        except (OSError, ValueError):
            return False
        return True

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> Counted:
        """The program's output and its instructions from the beginning."""
        with tempfile.NamedTemporaryFile(mode="r") as file:
            options = ["-x", ",", "-e", EVENT, "-o", file.name]
            printed = _output(["perf", "stat", *options, "--", *command], environment)
            return Counted(printed, read_perf(file.read()))


class Callgrind:
    """Counts in valgrind's simulation, from where the program runs ``begin``."""

    name = "callgrind"
    begin = "vgdb --pid={pid} instrumentation on"
    environment = VALGRIND_KNOWS

    @staticmethod
    def works() -> bool:
        """Whether valgrind is installed."""
        return shutil.which("valgrind") is not None

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> Counted:
        """The program's output and its instructions since it began to count."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "counts"
            options = ["-q", "--tool=callgrind", "--instr-atstart=no"]
            options.append(f"--callgrind-out-file={file}")
            printed = _output(["valgrind", *options, *command], environment)
            return Counted(printed, read_callgrind(file.read_text()))


def counter() -> Perf | Callgrind:
    """What counts on this machine.

    Raises:
        SystemExit: when nothing does.
    """
    if Perf.works():
        return Perf()
    if Callgrind.works():
        return Callgrind()
    raise SystemExit(
        "error: instructions are counted by perf, which cannot read this processor's counters, or "
        "by valgrind: sudo apt-get install valgrind"
    )


def read_perf(text: str) -> int:
    """The count in what ``perf stat -x ,`` writes; a ValueError where it could not count."""
    for line in text.splitlines():
        count, _, rest = line.partition(",")
        if EVENT in rest and count.isdigit():
            return int(count)
    raise ValueError("perf counted nothing")


def read_callgrind(text: str) -> int:
    """The count in a file of callgrind."""
    for line in text.splitlines():
        what, _, count = line.partition(":")
        if what == "totals":
            return int(count)
    raise ValueError("callgrind counted nothing")


def per_byte(small: tuple[int, int], large: tuple[int, int]) -> float:
    """Instructions per byte, without those that the number of bytes does not change.

    Args:
        small: bytes and instructions of a short walk.
        large: the same of a longer one.
    """
    if large[0] <= small[0]:
        raise ValueError(f"{large[0]} bytes are no longer walk than {small[0]}")
    return (large[1] - small[1]) / (large[0] - small[0])


def _output(command: Sequence[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    if done.returncode != 0:
        raise ValueError(f"{' '.join(command)} failed")
    return done.stdout
