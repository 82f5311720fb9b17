"""What HTTP costs: durable sessions of the SDK against the same work in process.

32 sessions make 256 greedy bytes each, 64 in a call over HTTP, where every call's state is in the
store before it is answered. Both sides run one after the other in one run, on the same prompts and
settings, caches cleared before each repetition, after one warm-up on other prompts.
``make bench-http`` writes ``results/sessions_http.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bytelm import download as models
from bytelm_client import AsyncClient, Beam
from bytelm_client.results import Usage
from tests.benchmarks.bench_bytelm import BytelmSide
from tests.benchmarks.bench_cases import (
    SHORT,
    STEPS,
    THRESHOLD,
    Case,
    Figures,
    K,
    Side,
    measure_all,
    say,
)
from tests.benchmarks.bench_http import HttpSide

SESSIONS = 32
STEPS_PER_CALL = 64
GOAL = 0.9
RESULTS = Path(__file__).parent / "results"


class SessionsSide(HttpSide):
    """A server process and clients that each move one session on, call by call."""

    async def _session(self, client: AsyncClient, case: Case, prompt: bytes) -> tuple[int, Usage]:
        beam: Beam = {"K": case.K, "prune_threshold": case.threshold, "eos_tokens": []}
        made, total = 0, Usage(0, 0, 0, 0, 0)
        async with client.session(prompt, beam=beam) as session:
            while made < case.steps:
                one = await session.greedy(min(STEPS_PER_CALL, case.steps - made))
                made += len(one.bytes)
                total = _sum(total, one.usage)
        return made, total


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(
        one.bytes_in + other.bytes_in,
        one.bytes_out + other.bytes_out,
        one.evaluations + other.evaluations,
        (one.tokens_computed or 0) + (other.tokens_computed or 0),
        (one.tokens_cached or 0) + (other.tokens_cached or 0),
    )


async def measure(side: Side, case: Case) -> list[Figures]:
    """The repetitions of one side."""
    found: list[Figures] = []
    try:
        await measure_all(side, [case], lambda _, figures: found.extend(figures))
    finally:
        await side.close()
    return found


async def run(model: str, repetitions: int) -> dict[str, Any]:
    """Both sides, and how they compare."""
    began = time.strftime("%Y-%m-%d")
    case = Case("bytelm", "greedy", SESSIONS, SHORT, steps=STEPS, repetitions=repetitions)
    inside = await measure(await BytelmSide.start(model), case)
    outside = await measure(await SessionsSide.start(model), replace(case, side="http"))
    rates = [
        statistics.median(figures["bytes"] / figures["seconds"] for figures in side)
        for side in (inside, outside)
    ]
    ratio = rates[1] / rates[0]
    return {
        "date": began,
        "model": Path(model).name,
        "sessions": SESSIONS,
        "steps": STEPS,
        "steps_per_call": STEPS_PER_CALL,
        "in_process_bytes_per_second": rates[0],
        "http_bytes_per_second": rates[1],
        "ratio": ratio,
        "goal": GOAL,
        "met": ratio >= GOAL,
        "in_process": inside,
        "http": outside,
    }


def page(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = [
        f"| {name} | {found[f'{side}_bytes_per_second']:.0f} | "
        + ", ".join(f"{one['bytes'] / one['seconds']:.0f}" for one in found[side])
        + f" | {statistics.median(one['evaluations'] for one in found[side]):.0f} |"
        for side, name in (("in_process", "in process"), ("http", "over HTTP"))
    ]
    return "\n".join(
        [
            "# Durable sessions over HTTP",
            "",
            f"{found['sessions']} greedy continuations of {found['steps']} bytes at once, after "
            f"prompts of {SHORT} bytes; K={K}, threshold {THRESHOLD}, {found['model']}, "
            f"{found['date']}. `make bench-http`.",
            "In process: states over one engine, without sessions. Over HTTP: a session of the "
            f"client each, {found['steps_per_call']} steps a call, created and ended within the "
            "time; each call's state is in the server's SQLite store before it is answered. "
            "Server and clients share the machine.",
            "",
            "| | bytes/s, median | each repetition | evaluations |",
            "| --- | --: | --: | --: |",
            *rows,
            "",
            f"Ratio {found['ratio']:.3f}; the goal is {found['goal']}: "
            f"{'reached' if found['met'] else 'not reached'}.",
            "",
        ]
    )


def main() -> int:
    """Measures and writes the results; fails where the goal is missed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", help="a model's folder or name; the default model otherwise")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the results")
    given = parser.parse_args()
    figures = asyncio.run(run(str(models.resolve(given.model)), given.repetitions))
    (given.out / "sessions_http.json").write_text(json.dumps(figures, indent=1) + "\n")
    (given.out / "sessions_http.md").write_text(page(figures))
    say(
        f"{figures['http_bytes_per_second']:.1f} bytes/s over HTTP, "
        f"{figures['in_process_bytes_per_second']:.1f} in process: {figures['ratio']:.3f}"
    )
    return 0 if figures["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
