"""What bytelm costs on the host: the byte layer on prebuilt rows, then the whole engine.

The engine's part is ``bench_engine``. Of the byte layer: beside this version there are genlm-bytes
in its own venv, this version's beams that defer (and are canonical), and any other revision
(``--against``), from a checkout in a temporary folder that is removed at the end.
Each walks in a process of its own on one core (``host_walks``); in every run all take turns.
A ratio is the median of those of the runs. Writes ``results/bench_host.{json,md}``.

- *µs per evaluation handled*: from the request for a row until the beam can use it, timed alone
  on contexts of their own; in genlm-bytes, which batches it, as many at a time as there are states.
- *µs per byte without evaluations*: the rest of the walk, that is its time less its evaluations
  times the former, per byte.
- *instructions per byte*: a longer walk's less a shorter one's (``instructions``); not of
  genlm-bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bytelm import download as models
from tests.benchmarks import bench_engine, instructions, peers
from tests.benchmarks.instructions import Callgrind, Perf
from tests.benchmarks.revisions import checked_out

ROWS = 64
STATES, FEW = (1, 32, 256), (1, 32)
COUNTED_STEPS = {1: (50, 250), 32: (8, 28), 256: (4, 12)}
"""Of how many bytes a walk's instructions are counted, by number of states: few and more."""

Figures = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Side:
    """Something that walks.

    Attributes:
        name: what the results call it.
        walker: see ``host_walks``.
        tree: the tree whose bytelm it runs.
        states: how many it walks at a time.
    """

    name: str
    walker: str
    tree: Path = peers.ROOT
    states: tuple[int, ...] = STATES

    def command(self, what: str, model: Path, rows: Path, *more: str) -> list[str]:
        """Runs ``host_walks``."""
        python = str(peers.python()) if self.walker == "genlm" else sys.executable
        script = str(Path(__file__).with_name("host_walks.py"))
        return [python, script, what, self.walker, str(model), str(rows), *more]

    @property
    def environment(self) -> dict[str, str]:
        """With its own bytelm alone: not what lies beside the script or in the folder."""
        return peers.environment() | {"PYTHONPATH": str(self.tree), "PYTHONSAFEPATH": "1"}


OURS = Side("bytelm", "bytelm")


def sides(against: str | None, tree: Path | None) -> list[Side]:
    """All that take turns, this version first."""
    found = [OURS]
    if against is not None and tree is not None:
        found.append(Side(f"bytelm at {against}", "bytelm", tree))
    found.append(Side("bytelm, deferred", "deferred", states=FEW))
    found.append(Side("bytelm, deferred and canonical", "canonical", states=FEW))
    return [*found, Side("genlm-bytes", "genlm", states=FEW)]


def rows_file(kind: str, model: Path, folder: Path) -> Path:
    """The file of rows, made once: those of the model in real text, or pseudo-random ones."""
    file = folder / f"rows-{kind}-{model.name}.npy"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        making = file.with_suffix(".part.npy")
        if kind == "real":
            say("evaluating 64 contexts of real text (half a minute, once)")
            arguments = [str(model), str(making), "--count", str(ROWS)]
            if peers.run("tests.benchmarks.real_rows", *arguments) != 0:
                raise SystemExit("error: the rows could not be made")
        else:
            width = json.loads((model / "config.json").read_text())["vocab_size"]
            logits = np.random.default_rng(0).normal(scale=3.0, size=(ROWS, width))
            logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
            np.save(making, logits.astype(np.float32))
        making.replace(file)
    return file


def measure(side: Side, model: Path, rows: Path) -> Figures:
    """The figures of one side from a process of its own, by number of states."""
    core = str(max(os.sched_getaffinity(0)))
    more = ["--core", core, "--states", *map(str, side.states)]
    command = side.command("time", model, rows, *more)
    done = subprocess.run(command, env=side.environment, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: {side.name} failed: {shlex.join(command)}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def count(side: Side, model: Path, rows: Path, counter: Perf | Callgrind) -> dict[str, float]:
    """Instructions per byte, by number of states."""
    environment = side.environment | dict(counter.environment) | {"PYTHONHASHSEED": "0"}
    found = {}
    for states in side.states:

        def command(steps: int, begin: str, states: int = states) -> list[str]:
            more = ["--states", str(states), "--steps", str(steps), "--begin", begin]
            return side.command("count", model, rows, *more)

        if states == side.states[0]:
            # Compiles what is to be counted.
            subprocess.run(command(1, ""), env=environment, stdout=subprocess.PIPE, check=True)
        commands = [command(steps, counter.begin) for steps in COUNTED_STEPS[states]]
        with ThreadPoolExecutor(len(commands)) as pool:
            counted = list(pool.map(counter.run, commands, [environment] * len(commands)))
        sizes = [json.loads(one.printed.splitlines()[-1])["bytes"] for one in counted]
        small, large = zip(sizes, [one.instructions for one in counted], strict=True)
        found[str(states)] = instructions.per_byte(small, large)
    return found


def summary(runs: dict[str, list[Figures]]) -> list[dict[str, Any]]:
    """A row per side and number of states: medians over the runs."""
    rows = []
    for name, figures in runs.items():
        for states in figures[0]:
            measured = [run[states] for run in figures]
            handling = [m["seconds_per_evaluation"] for m in measured]
            rest = [
                (m["seconds"] - m["evaluations"] * one) / m["bytes"]
                for m, one in zip(measured, handling, strict=True)
            ]
            rows.append(
                {
                    "library": name,
                    "states": int(states),
                    "bytes_per_second": statistics.median(map(_speed, measured)),
                    "evaluations_per_byte": measured[0]["evaluations"] / measured[0]["bytes"],
                    "us_per_evaluation": 1e6 * statistics.median(handling),
                    "us_per_byte_without_evaluations": 1e6 * statistics.median(rest),
                }
            )
    return rows


def _speed(figures: dict[str, Any]) -> float:
    speed: float = figures["bytes"] / figures["seconds"]
    return speed


def ratios(runs: dict[str, list[Figures]]) -> dict[str, dict[str, float]]:
    """How many times another side's bytes/s this version makes, by side and number of states.

    The median over the runs, each compared with what ran in its turn.
    """
    found: dict[str, dict[str, float]] = {}
    for name, figures in runs.items():
        if name != OURS.name:
            found[name] = {
                states: statistics.median(
                    _speed(ours[states]) / _speed(theirs[states])
                    for ours, theirs in zip(runs[OURS.name], figures, strict=True)
                )
                for states in figures[0]
            }
    return found


def same_walks(runs: dict[str, list[Figures]]) -> dict[str, dict[str, list[int]]]:
    """By side and number of states: walks whose bytes are this version's, and all walks."""
    found: dict[str, dict[str, list[int]]] = {}
    for name, figures in runs.items():
        if name != OURS.name:
            found[name] = {}
            for states, theirs in figures[0].items():
                ours = runs[OURS.name][0][states]["texts"]
                same = sum(a == b for a, b in zip(ours, theirs["texts"], strict=True))
                found[name][states] = [same, len(ours)]
    return found


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    beside = "; ".join(dict.fromkeys(row["library"] for row in report["medians"]))
    lines = [
        "# The byte layer on the host",
        "",
        f"Greedy, K=5, threshold 0.05, special tokens read literally, the vocabulary of "
        f"{report['model']}, {ROWS} prebuilt {report['rows']} rows, one core "
        f"({report['processor']}). Nothing derived from a row outlives its evaluation.",
        "",
        f"Run in turn, {report['runs']} times, each in a process of its own: {beside}. Shown are "
        "medians; a ratio is the median of the runs' own. Instructions are counted once, by "
        f"{report['counter']}; those of a short walk are subtracted from those of a longer one."
        if report["counter"]
        else "No instructions were counted.",
        "",
        f"Repeat it with `{report['command']}`.",
        "",
        "| | states | bytes/s | evaluations per byte | µs per evaluation handled | "
        "µs per byte without evaluations | instructions per byte | "
        "bytelm's bytes/s to it | its instructions to bytelm's |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    counts = report["instructions_per_byte"]
    for row in report["medians"]:
        name, states = row["library"], str(row["states"])
        ratio = report["ratios"].get(name, {}).get(states)
        counted = counts.get(name, {}).get(states)
        ours = counts.get(OURS.name, {}).get(states)
        times = counted / ours if counted and ours and name != OURS.name else None
        cells = [
            name,
            states,
            f"{row['bytes_per_second']:,.0f}",
            f"{row['evaluations_per_byte']:.3f}",
            f"{row['us_per_evaluation']:,.0f}",
            f"{row['us_per_byte_without_evaluations']:,.0f}",
            "" if counted is None else f"{counted:,.0f}",
            "" if ratio is None else f"{ratio:.2f}",
            "" if times is None else f"{times:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Walks with the same bytes as this version's:", ""]
    for name, counted in report["same"].items():
        same = ", ".join(f"{a} of {b} at {n}" for n, (a, b) in counted.items())
        lines.append(f"- {name}: {same}")
    return "\n".join([*lines, ""])


def processor() -> str:
    """What this machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def say(line: str) -> None:
    """Progress."""
    print(f"==> {line}", file=sys.stderr, flush=True)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a model's folder or name; the default model otherwise")
    parser.add_argument("--rows", choices=["real", "random"], default="real")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", choices=["rows", "engine"], help="one of the two parts")
    parser.add_argument("--against", help="a git revision to measure beside this version")
    parser.add_argument("--results", type=Path, default=peers.RESULTS)
    parser.add_argument("--torch-index", help="an index that has PyTorch's CPU builds")
    found = parser.parse_args(given)
    if found.runs < 1:
        parser.error("--runs must be at least 1")
    found.against = found.against or None
    return found


def command(given: argparse.Namespace) -> str:
    """What repeats this run."""
    against = f" AGAINST={given.against}" if given.against else ""
    return f"make bench-host{against}" + (f" ONLY={given.only}" if given.only else "")


def run_engine(given: argparse.Namespace, tree: Path | None) -> Iterator[dict[str, Any]]:
    """Measures the whole engine; what is known so far, each time that a model is done."""
    model = models.resolve(given.model, progress=say)
    taking_part = bench_engine.sides(given.against, tree)
    for measured in bench_engine.measure(taking_part, model, given.runs, say):
        yield bench_engine.report(taking_part, measured, given.runs, command(given), processor())


def run(given: argparse.Namespace, tree: Path | None) -> dict[str, Any]:
    """Measures all sides."""
    counter = instructions.counter()
    model = models.resolve(given.model, progress=say)
    if not (model / "tokenizer.json").is_file():
        raise SystemExit(f"error: {model} has no tokenizer.json, which this benchmark reads")
    peers.python(given.torch_index or None)
    rows = rows_file(given.rows, model, peers.folder().parent)
    taking_part = sides(given.against, tree)
    runs: dict[str, list[Figures]] = {side.name: [] for side in taking_part}
    for number in range(given.runs):
        for side in taking_part:
            say(f"run {number + 1} of {given.runs}: {side.name}")
            runs[side.name].append(measure(side, model, rows))
    counts = {}
    for side in taking_part:
        if side.walker != "genlm":
            say(f"counting instructions by {counter.name}: {side.name} (2 to 4 minutes)")
            counts[side.name] = count(side, model, rows, counter)
    return {
        "command": command(given),
        "model": model.name,
        "rows": given.rows,
        "processor": processor(),
        "python": platform.python_version(),
        "genlm": peers.GENLM_BYTES,
        "runs": given.runs,
        "counter": counter.name,
        "medians": summary(runs),
        "ratios": ratios(runs),
        "same": same_walks(runs),
        "instructions_per_byte": counts,
    }


def main() -> None:
    """Measures and writes the results."""
    given = arguments()
    # What is checked out is removed then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if given.against is None:
        tree: Any = contextlib.nullcontext()
    else:
        tree = checked_out(peers.ROOT, given.against)
    written = ""
    try:
        with tree as folder:
            if given.only != "engine":
                report = run(given, folder)
                write(given.results / "bench_host", report, table(report))
                print(table(report))
                written = "more "
            if given.only != "rows":
                for report in run_engine(given, folder):
                    write(given.results / "bench_engine", report, bench_engine.table(report))
                    written = "more "
                print(bench_engine.table(report))
    except KeyboardInterrupt:
        raise SystemExit(f"\ninterrupted; nothing {written}was written") from None


def write(path: Path, report: dict[str, Any], page: str) -> None:
    """A part's results, beside those of others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(page)


if __name__ == "__main__":
    main()
