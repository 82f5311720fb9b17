"""What ``bench`` measures: its cases, how one is run, and how one is timed.

A case is measured by a *side*: bytelm in process, bytelm over HTTP, vLLM by itself (the limit), or
genlm-bytes. Every side measures the same prompts, and makes the same number of bytes after each.
This module runs in genlm-bytes' venv, too: it must not import bytelm.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

from tests.benchmarks.texts import excerpts

SideName = Literal["bytelm", "http", "native", "genlm"]
Call = Literal[
    "greedy",
    "token sample",
    "byte sample",
    "next bytes",
    "prefill",
    "rounds",
    "leaks",
    "score",
    "continuations",
    "choices",
]
SCORES = ("score", "continuations", "choices")
"""Calls that score known texts."""
Figures = dict[str, Any]
"""What one repetition of a case gives; ``seconds`` and ``bytes`` always."""

SHORT, LONG = 60, 2000
STEPS = 256
ROUNDS = 64
LEAK_EVALUATIONS = 10_000
K, THRESHOLD = 5, 0.05
GENLM_SECONDS = 120.0
KV_BYTES = 4 << 30
"""Of the KV cache, in both engines: enough for the largest case with all of its forks."""
SEQS = 128
WARM_UP_STEPS = 24
CONTINUATION = 24
"""Bytes of one of many continuations, and of a choice."""
CHOICES = 4
"""How many choices a question has."""


@dataclass(frozen=True)
class Case:
    """Something to measure.

    Attributes:
        side: who does it.
        call: what is done.
        sessions: how many prompts at a time.
        prompt: bytes of each.
        K: width of the beam.
        threshold: prune threshold of the beam.
        steps: bytes to make after each prompt; in rounds, evaluations or tokens.
        repetitions: how often it is measured.
        seconds: it is given up after so many, where the side can say how far it got.
        label: tells cases apart that differ in nothing else that their name shows.
    """

    side: SideName
    call: Call
    sessions: int
    prompt: int
    K: int = K
    threshold: float = THRESHOLD
    steps: int = STEPS
    repetitions: int = 3
    seconds: float | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """What is measured, whoever does it."""
        call = self.call.replace(" ", "-")
        return f"{call}-{self.sessions}x{self.prompt}" + (f"-{self.label}" if self.label else "")

    @property
    def key(self) -> str:
        """Side and name."""
        return f"{self.side}/{self.name}"

    @property
    def warm_up(self) -> Case:
        """A short case of the same kind."""
        steps = min(self.steps, WARM_UP_STEPS)
        return replace(self, prompt=min(self.prompt, SHORT), steps=steps, seconds=20.0)

    def prompts(self, is_warm_up: bool = False) -> list[bytes]:
        """The prompts, or those of the warm-up, which are others."""
        return excerpts(self.sessions, self.prompt, series=4 if is_warm_up else 0)


def main_cases(default_k: int | None, default_threshold: float) -> list[Case]:
    """The cases of ``make bench``, side by side.

    Args:
        default_k: the beam's width by default, for the row that is measured with it.
        default_threshold: its prune threshold.
    """
    default: dict[str, Any] = {
        "K": default_k or 10**6,
        "threshold": default_threshold,
        "label": "default",
    }
    once: dict[str, Any] = {"repetitions": 1, "seconds": GENLM_SECONDS}
    return [
        Case("bytelm", "rounds", 32, SHORT, steps=ROUNDS),
        Case("bytelm", "greedy", 32, SHORT),
        Case("bytelm", "greedy", 32, SHORT, **default),
        Case("bytelm", "token sample", 32, SHORT),
        Case("bytelm", "greedy", 32, LONG),
        Case("bytelm", "prefill", 1, LONG),
        Case("bytelm", "leaks", 32, SHORT, steps=LEAK_EVALUATIONS, repetitions=1),
        Case("native", "rounds", 32, SHORT, steps=ROUNDS),
        Case("native", "greedy", 32, SHORT),
        Case("native", "token sample", 32, SHORT),
        Case("native", "greedy", 32, LONG),
        Case("http", "greedy", 32, SHORT),
        Case("genlm", "greedy", 32, SHORT, **once),
        Case("genlm", "greedy", 32, SHORT, **once, **default),
        Case("genlm", "prefill", 1, LONG, **once),
        Case("genlm", "greedy", 32, LONG, **once),
    ]


def score_cases() -> list[Case]:
    """The cases of ``make bench-scores``: known texts in waves, walked, and by others.

    A case whose label ends with "walk" is the same work, one evaluation after another.
    """
    sizes: list[tuple[Call, int, int]] = [
        ("score", 1, LONG),
        ("score", 64, 400),
        ("continuations", 1000, CONTINUATION),
        ("choices", 200, 200),
    ]
    cases = [
        Case("bytelm", call, sessions, prompt, repetitions=1 if how else 3, label=label + how)
        for call, sessions, prompt in sizes
        for label in ("canonical", "all")
        for how in ("", "-walk")
    ]
    # As many bytes as some windows of them.
    cases += [Case("bytelm", "score", 10, LONG, label=label) for label in ("canonical", "all")]
    cases += [
        Case("bytelm", "prefill", 1, LONG, repetitions=1 if how else 3, label="exact" + how)
        for how in ("", "-walk")
    ]
    return [
        *cases,
        *(Case("native", "score", sessions, size) for sessions, size in ((1, LONG), (64, 400))),
        Case("genlm", "score", 1, LONG, repetitions=1, seconds=GENLM_SECONDS),
    ]


def peer_cases() -> list[Case]:
    """The cases of ``make bench-peers``: what genlm-bytes does not finish in time, finished."""
    return [
        Case("genlm", "prefill", 1, LONG, repetitions=1, label="whole"),
        Case("genlm", "greedy", 32, LONG, repetitions=1, label="whole"),
    ]


def all_cases() -> list[Case]:
    """The cases of ``make bench-all``: bytelm alone, in process and over HTTP."""
    calls: list[Call] = ["greedy", "byte sample", "token sample", "next bytes"]
    sizes = [*((n, SHORT) for n in (1, 8, 32, 128)), (1, LONG), (32, LONG)]
    sides: list[SideName] = ["bytelm", "http"]
    return [
        Case(side, call, sessions, prompt, repetitions=1)
        for side in sides
        for call in calls
        for sessions, prompt in sizes
    ]


@dataclass
class Track:
    """When a session got how far; seconds of the performance counter.

    Attributes:
        prefilled: when its prompt was known to the model.
        arrivals: how many bytes came when.
    """

    prefilled: float = 0.0
    arrivals: list[tuple[float, int]] = field(default_factory=list)

    def arrive(self, size: int) -> None:
        """So many bytes have come just now."""
        self.arrivals.append((time.perf_counter(), size))


def timed(began: float, tracks: list[Track]) -> Figures:
    """The figures of sessions that ran together.

    ``decode_seconds`` and ``decode_bytes`` count from when the last prompt was known to the model.
    """
    ended = max(at for track in tracks for at, _ in track.arrivals)
    prefilled = max(track.prefilled for track in tracks)
    arrivals = [arrival for track in tracks for arrival in track.arrivals]
    return {
        "seconds": ended - began,
        "bytes": sum(size for _, size in arrivals),
        "prefill_seconds": prefilled - began,
        "decode_seconds": ended - prefilled,
        "decode_bytes": sum(size for at, size in arrivals if at > prefilled),
    }


class Side(Protocol):
    """Who measures."""

    async def clear(self) -> None:
        """Empty all caches."""
        ...

    async def measure(self, case: Case, prompts: list[bytes], repetition: int) -> Figures:
        """One repetition."""
        ...

    async def close(self) -> None:
        """End what was started."""
        ...


Report = Callable[[Case, list[Figures]], None]


async def measure_all(side: Side, cases: list[Case], report: Report) -> None:
    """Measures cases one after the other: a warm-up, then every repetition on empty caches."""
    for case in cases:
        say(f"{case.key}: warming up")
        if case.call != "leaks":
            await side.clear()
            warm_up = case.warm_up
            await side.measure(warm_up, warm_up.prompts(is_warm_up=True), 0)
        figures = []
        for number in range(case.repetitions):
            await side.clear()
            figures.append(await side.measure(case, case.prompts(), number + 1))
            say(f"{case.key}, {number + 1} of {case.repetitions}: {_shown(case, figures[-1])}")
        report(case, figures)


def _shown(case: Case, figures: Figures) -> str:
    seconds = figures["seconds"]
    if case.call in ("rounds", "leaks"):
        made, unit = figures["evaluations"], "evaluations or tokens"
    else:
        made, unit = figures["bytes"], "bytes"
    return f"{made} {unit} in {seconds:.1f} s, {made / seconds:.1f}/s"


def run_side(start: Callable[[str], Awaitable[Side]]) -> None:
    """The main function of a side's process.

    Its argument is the model's folder; cases come as JSON on standard input; each is reported as a
    line of JSON on standard output as soon as it is measured.
    """
    # Whatever else prints must not come between.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    cases = [Case(**fields) for fields in json.load(sys.stdin)]

    def report(case: Case, figures: list[Figures]) -> None:
        print(json.dumps({"case": asdict(case), "figures": figures}), file=out, flush=True)

    async def main() -> None:
        side = await start(sys.argv[1])
        try:
            await measure_all(side, cases, report)
        finally:
            await side.close()

    asyncio.run(main())


def say(line: str) -> None:
    """A line for whoever waits."""
    print(f"    {line}", file=sys.stderr, flush=True)
