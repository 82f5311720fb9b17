"""What the byte layer costs on the host: bytelm and genlm-bytes on the same prebuilt rows.

Each library walks in its own process on one core (``host_walks``), genlm-bytes in its own venv;
the two take turns, and medians of the runs are shown. Writes ``results/bench_host.{json,md}``.

- *µs per evaluation handled*: from the request for a row until the beam can use it, timed alone
  on contexts of their own; in genlm-bytes, which batches it, as many at a time as there are states.
- *µs per byte without evaluations*: the rest of the walk, that is its time less its evaluations
  times the former, per byte.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bytelm import models
from tests.benchmarks import peers

ROWS = 64
STATES = {"bytelm": (1, 32, 256), "genlm": (1, 32)}
NAMES = {"bytelm": "bytelm", "genlm": "genlm-bytes"}

Figures = dict[str, dict[str, Any]]


def rows_file(kind: str, model: Path, folder: Path) -> Path:
    """The file of rows, made once: those of the model in real text, or pseudo-random ones."""
    file = folder / f"rows-{kind}-{model.name}.npy"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        making = file.with_suffix(".part.npy")
        if kind == "real":
            print("==> evaluating 64 contexts of real text (half a minute, once)", file=sys.stderr)
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


def measure(library: str, model: Path, rows: Path, core: int) -> Figures:
    """The figures of one library from a process of its own, by number of states."""
    python = Path(sys.executable) if library == "bytelm" else peers.python()
    states = map(str, STATES[library])
    module = ["-m", "tests.benchmarks.host_walks", library, str(model), str(rows)]
    command = [str(python), *module, "--core", str(core), "--states", *states]
    done = subprocess.run(
        command, cwd=peers.ROOT, env=peers.environment(), stdout=subprocess.PIPE, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"error: {library} failed: {' '.join(command)}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def summary(runs: dict[str, list[Figures]]) -> list[dict[str, Any]]:
    """A row per library and number of states: medians over the runs."""
    rows = []
    for library, figures in runs.items():
        for states in STATES[library]:
            measured = [run[str(states)] for run in figures]
            handling = [m["seconds_per_evaluation"] for m in measured]
            rest = [
                (m["seconds"] - m["evaluations"] * one) / m["bytes"]
                for m, one in zip(measured, handling, strict=True)
            ]
            rows.append(
                {
                    "library": NAMES[library],
                    "states": states,
                    "bytes_per_second": statistics.median(
                        m["bytes"] / m["seconds"] for m in measured
                    ),
                    "evaluations_per_byte": measured[0]["evaluations"] / measured[0]["bytes"],
                    "us_per_evaluation": 1e6 * statistics.median(handling),
                    "us_per_byte_without_evaluations": 1e6 * statistics.median(rest),
                }
            )
    return rows


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How many times genlm-bytes' bytes/s bytelm makes, by number of states."""
    speed = {(row["library"], row["states"]): row["bytes_per_second"] for row in rows}
    return {
        str(n): speed["bytelm", n] / speed["genlm-bytes", n]
        for n in STATES["bytelm"]
        if ("genlm-bytes", n) in speed
    }


def same_walks(runs: dict[str, list[Figures]]) -> dict[str, list[int]]:
    """By number of states: walks whose bytes are the same in both libraries, and all walks."""
    counted = {}
    for states in set(STATES["bytelm"]) & set(STATES["genlm"]):
        ours, theirs = (runs[library][0][str(states)]["texts"] for library in ("bytelm", "genlm"))
        same = sum(a == b for a, b in zip(ours, theirs, strict=True))
        counted[str(states)] = [same, len(ours)]
    return counted


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        "# The byte layer on the host",
        "",
        f"Greedy, K=5, threshold 0.05, the vocabulary of {report['model']}, {ROWS} prebuilt "
        f"{report['rows']} rows, one core ({report['processor']}), medians of {report['runs']} "
        "runs. Nothing derived from a row outlives its evaluation.",
        "",
        "| | states | bytes/s | evaluations per byte | µs per evaluation handled | "
        "µs per byte without evaluations | times genlm-bytes |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for row in report["medians"]:
        ratio = report["ratios"].get(str(row["states"])) if row["library"] == "bytelm" else None
        lines.append(
            f"| {row['library']} | {row['states']} | {row['bytes_per_second']:,.0f} | "
            f"{row['evaluations_per_byte']:.3f} | {row['us_per_evaluation']:,.0f} | "
            f"{row['us_per_byte_without_evaluations']:,.0f} | "
            f"{'' if ratio is None else f'{ratio:.1f}'} |"
        )
    same = ", ".join(f"{a} of {b} at {n}" for n, (a, b) in sorted(report["same"].items()))
    return "\n".join([*lines, "", f"Walks with the same bytes in both, by states: {same}.", ""])


def processor() -> str:
    """What this machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    """Measures both and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a model's folder or name; the default model otherwise")
    parser.add_argument("--rows", choices=["real", "random"], default="real")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--results", type=Path, default=peers.RESULTS)
    parser.add_argument("--torch-index", help="an index that has PyTorch's CPU builds")
    given = parser.parse_args()
    model = models.resolve(given.model, progress=lambda line: print(line, file=sys.stderr))
    peers.python(given.torch_index or None)
    rows = rows_file(given.rows, model, peers.folder().parent)
    core = max(os.sched_getaffinity(0))
    runs: dict[str, list[Figures]] = {"bytelm": [], "genlm": []}
    for number in range(given.runs):
        for library in runs:
            print(f"==> run {number + 1} of {given.runs}: {NAMES[library]}", file=sys.stderr)
            runs[library].append(measure(library, model, rows, core))
    medians = summary(runs)
    report = {
        "model": model.name,
        "rows": given.rows,
        "processor": processor(),
        "python": platform.python_version(),
        "genlm": peers.GENLM_BYTES,
        "runs": given.runs,
        "medians": medians,
        "ratios": ratios(medians),
        "same": same_walks(runs),
    }
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / "bench_host.json").write_text(json.dumps(report, indent=1) + "\n")
    (given.results / "bench_host.md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()
