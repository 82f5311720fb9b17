"""The resident memory of a process by what it is for, as far as the system can tell."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import psutil

KV_SHARE = 0.9
"""Of a KV cache's size, how much a mapping must have to hold it; vLLM rounds down to blocks."""

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)")


@dataclass(frozen=True)
class Resident:
    """Bytes that are resident.

    Attributes:
        heap: what malloc took from the heap's end.
        kv: the mapping that holds the KV cache, whose pages come when they are first written to.
        shared: the rows' slots.
        other: libraries, threads' stacks, large arrays.
    """

    heap: int = 0
    kv: int = 0
    shared: int = 0
    other: int = 0

    @property
    def own(self) -> int:
        """All but the KV cache."""
        return self.heap + self.shared + self.other


def resident(process: psutil.Process, kv_bytes: int | None = None) -> Resident:
    """Read it.

    Args:
        process: which.
        kv_bytes: the size of the KV cache, as it was set; None counts it as other.
    """
    found = {"heap": 0, "kv": 0, "shared": 0, "other": 0}
    kind = "other"
    for line in Path(f"/proc/{process.pid}/smaps").read_text().splitlines():
        if line.startswith("Rss:"):
            found[kind] += int(line.split()[1]) << 10
        elif mapping := _MAPPING.fullmatch(line):
            size, name = int(mapping[2], 16) - int(mapping[1], 16), mapping[3]
            if name == "[heap]":
                kind = "heap"
            elif name.startswith("/dev/shm/"):
                kind = "shared"
            elif not name and kv_bytes is not None and size >= KV_SHARE * kv_bytes:
                kind = "kv"
            else:
                kind = "other"
    return Resident(**found)
