"""What the whole engine takes of the host: the model's own time is taken out.

Beside this version: vLLM's own decoding of the same tiny model, and any other revision. Each side
holds an engine in processes of its own (``engine_walks``); case by case all take turns, after a
turn that does not count, and what is compared ran within seconds of each other. Part of
``bench_host``, which makes the command line; writes ``results/bench_engine.{json,md}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import peers
from tests.benchmarks.texts import excerpts
from tests.benchmarks.tiny_models import SHORT, Tiny

Figures = dict[str, Any]
Runs = dict[str, list[Figures]]
"""By the name of a side, what each turn gave."""

PARTS = ("API process", "engine core", "worker")
PLAIN = Tiny("the default vocabulary")
SHARP = Tiny("the same, sharpened", spread=8.0, speaks=SHORT)
WIDE = Tiny("128k ids", ids=128_256)
PATIENCE = 60.0
"""Seconds that a side has to end its engine."""


@dataclass(frozen=True)
class Case:
    """Something to measure.

    Attributes:
        model: of which kind.
        call: see ``engine_walks``.
        count: how many contexts or walks at a time.
        size: tokens of each context; bytes of the prompt of each walk.
        steps: rounds, or bytes that each walk makes.
    """

    model: Tiny
    call: str
    count: int
    size: int
    steps: int

    @property
    def name(self) -> str:
        """What is done."""
        unit = "bytes" if self.is_walk else "tokens"
        return f"{self.call}, {self.count} × {self.size} {unit}"

    @property
    def is_walk(self) -> bool:
        """Whether it makes bytes; else evaluations alone."""
        return self.call in ("greedy", "sample", "score")

    def job(self, side: Side, turn: int) -> Figures:
        """What a side is told to do in its turn."""
        steps = DECODED if side.kind == "vllm" else self.steps
        job = {"call": self.call, "count": self.count, "size": self.size, "steps": steps}
        if self.is_walk:
            prompts = [text.decode() for text in excerpts(self.count, self.size)]
            return job | {"prompts": prompts}
        return job | {"seed": turn}


DECODED = 64
"""Tokens that vLLM decodes for each context, where others make fewer rounds."""


def cases(model: Tiny) -> list[Case]:
    """What is measured of a kind of model."""
    walks = [Case(model, call, 128, 60, 64) for call in ("greedy", "sample", "score")]
    if model is SHARP:
        return walks
    rounds = [
        Case(model, "rounds", count, size, {1: 32, 32: 12, 128: 8}[count])
        for count in (1, 32, 128)
        for size in (60, 500, 2000)
    ]
    return [*rounds, Case(model, "read", 128, 60, 8), *walks]


@dataclass(frozen=True)
class Side:
    """Somebody who holds an engine.

    Attributes:
        name: what the results call it.
        kind: see ``engine_walks``.
        tree: the tree whose bytelm it runs.
    """

    name: str
    kind: str
    tree: Path = peers.ROOT

    def takes(self, case: Case) -> bool:
        """Whether it can do that."""
        return self.kind == "bytelm" or case.call == "rounds"


OURS = Side("bytelm", "bytelm")
VLLM = Side("vLLM's own decoding", "vllm")


def sides(against: str | None, tree: Path | None) -> list[Side]:
    """All that take turns, this version first."""
    found = [OURS]
    if against is not None and tree is not None:
        found.append(Side(f"bytelm at {against}", "bytelm", tree))
    return [*found, VLLM]


class Held:
    """A side's process, with its engine ready."""

    def __init__(self, side: Side, model: Path) -> None:
        self.side = side
        script = Path(__file__).with_name("engine_walks.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), side.kind, str(model)],
            env=peers.environment() | {"PYTHONPATH": str(side.tree), "PYTHONSAFEPATH": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self) -> Figures:
        """The next line that it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"error: {self.side.name} ended: what it said last is above")
        figures: Figures = json.loads(line)
        return figures

    def measure(self, job: Figures) -> Figures:
        """What it gives for a job."""
        assert self._process.stdin is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        """Ends it, and its engine with it."""
        with contextlib.suppress(OSError):
            self._process.communicate(timeout=PATIENCE)
        self._process.kill()


@contextlib.contextmanager
def held(taking_part: list[Side], model: Path) -> Iterator[list[Held]]:
    """All sides on one model, while they are measured."""
    with contextlib.ExitStack() as stack:
        found = []
        for side in taking_part:
            one = Held(side, model)
            stack.callback(one.close)
            one.answer()
            found.append(one)
        yield found


def measure(
    taking_part: list[Side], source: Path, runs: int, say: Callable[[str], None]
) -> Iterator[dict[Case, Runs]]:
    """All figures so far, each time that a kind of model is done.

    Args:
        taking_part: who is measured.
        source: the model that the tokenizer is of.
        runs: how many turns count.
        say: is told how far it is.
    """
    found: dict[Case, Runs] = {}
    with tempfile.TemporaryDirectory(prefix="bytelm-tiny-") as folder:
        for number, tiny in enumerate((PLAIN, SHARP, WIDE)):
            say(f"{tiny.name}: making a model, starting {len(taking_part)} engines")
            model = tiny.make(source, Path(folder) / str(number))
            with held(taking_part, model) as engines:
                for turn in range(runs + 1):
                    for case in cases(tiny):
                        of_case = found.setdefault(case, {})
                        for one in engines:
                            if one.side.takes(case):
                                figures = one.measure(case.job(one.side, turn))
                                if turn:  # the first one warms up
                                    of_case.setdefault(one.side.name, []).append(figures)
                    say(f"{tiny.name}: turn {turn} of {runs}")
            yield found


def rate(case: Case, figures: Figures) -> float:
    """Bytes per second of walks; evaluations or tokens per second of all else."""
    made: float = figures["bytes"] if case.is_walk else figures["evaluations"]
    return made / figures["seconds"]


def row(case: Case, name: str, runs: Runs) -> Figures:
    """Medians of one side; a ratio is the median of those of the turns."""
    mine = runs[name]
    evaluations = [one["evaluations"] for one in mine]
    found: Figures = {
        "model": case.model.name,
        "case": case.name,
        "side": name,
        "per_second": statistics.median(rate(case, one) for one in mine),
        "unit": "bytes/s" if case.is_walk else "evaluations/s",
        "evaluations_per_byte": (
            statistics.median(one["evaluations"] / one["bytes"] for one in mine)
            if case.is_walk
            else None
        ),
        "us_per_evaluation": {
            part: 1e6
            * statistics.median(
                one["cpu"].get(part, 0.0) / n for one, n in zip(mine, evaluations, strict=True)
            )
            for part in PARTS
        },
        "ratio": None,
    }
    if name != OURS.name:
        pairs = zip(runs[OURS.name], mine, strict=True)
        found["ratio"] = statistics.median(rate(case, a) / rate(case, b) for a, b in pairs)
    return found


def rows(measured: dict[Case, Runs]) -> list[Figures]:
    """A row for each case and side."""
    return [row(case, name, runs) for case, runs in measured.items() for name in runs]


def report(
    taking_part: list[Side], measured: dict[Case, Runs], runs: int, command: str, processor: str
) -> Figures:
    """All that is known, for the files of results."""
    return {
        "command": command,
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "sides": [side.name for side in taking_part],
        "runs": runs,
        "models": {tiny.name: asdict(tiny) for tiny in (PLAIN, SHARP, WIDE)},
        "rows": rows(measured),
    }


def table(report: Figures) -> str:
    """The report as Markdown."""
    lines = [
        "# The whole engine without the model's time",
        "",
        "A one-layer random model, so that what is left is the host's: bytelm's process (API "
        "process), vLLM's engine core, and its worker with what the model still takes. "
        f"{report['cores']} cores ({report['processor']}), which all three share.",
        "",
        f"{'; '.join(report['sides'])} take turns case by case, {report['runs']} times after one "
        "that does not count, with all their engines there all the time. Shown are medians; a "
        "ratio is the median of the turns' own.",
        "",
        f"Repeat it with `{report['command']}`.",
        "",
        "- *rounds*: evaluations of one new token each; beside them vLLM decodes greedily, counted "
        "from when each context has its first token, in tokens per second. *read*: the same rounds "
        "with what a beam reads of each row.",
        "- *greedy*, *sample* (by bytes), *score* (of the greedy texts): 64 bytes each behind "
        f"prompts of 60, K=5, threshold 0.05. The sharpened model speaks in tokens of {SHORT} "
        "bytes at most.",
        "- CPU time is that of all threads of a process. Engine core and worker wait for each "
        "other by polling, as vLLM has it: theirs is an upper bound of what they do.",
        "",
        "| model | case | side | /s | evaluations per byte | "
        + " | ".join(f"{part}, µs per evaluation" for part in PARTS)
        + " | bytelm's to it |",
        "| --- | --- | --- | --: | --: | --: | --: | --: | --: |",
    ]
    for one in report["rows"]:
        unit = "tokens/s" if one["side"] == VLLM.name else one["unit"]
        per_byte, ratio = one["evaluations_per_byte"], one["ratio"]
        cells = [
            one["model"],
            one["case"],
            one["side"],
            f"{one['per_second']:,.0f} {unit}",
            "" if per_byte is None else f"{per_byte:.3f}",
            *(f"{one['us_per_evaluation'][part]:,.0f}" for part in PARTS),
            "" if ratio is None else f"{ratio:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])
