"""Accuracy against cost: what a narrow or pruned beam loses, and what it saves.

Each text is scored byte by byte by beams of several widths and thresholds. The *excess* is how
many bits per byte more than the widest, unpruned beam one needs; the cost is how many evaluations
its algorithm asks for. ``python -m tests.benchmarks.accuracy_beam`` writes a table and a plot.
"""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bytelm.beam import BeamParams, ByteBeamState
from tests.benchmarks import accuracy
from tests.benchmarks.accuracy import Bench, Progress
from tests.benchmarks.row_store import CountedLM
from tests.benchmarks.texts import Text

REFERENCE = (16, 0.0)
WIDTHS = (1, 3, 5, 10)
THRESHOLDS = (0.0, 0.001, 0.01, 0.05)
SETTINGS = [REFERENCE, *product(WIDTHS, THRESHOLDS)]
SAMPLE_BYTES, FULL_BYTES = 256, 1024
CLUSTER = 16
"""Bytes that are resampled together."""


@dataclass(frozen=True)
class Outcome:
    """What a setting gives over some texts.

    Attributes:
        evaluations: per byte.
        excess: bits per byte more than the reference, with a 95% interval, over the bytes that
            have any probability.
        impossible: how many bytes have none.
    """

    evaluations: float
    excess: tuple[float, float, float]
    impossible: int


async def measure(
    bench: Bench, progress: Progress, text: Text, width: int, threshold: float
) -> None:
    """Scores a text with one setting, into the journal."""
    lm = CountedLM(bench.lm)
    state = await ByteBeamState.initial(lm, BeamParams(K=width, prune_threshold=threshold))
    logprobs = []
    for b in text.data:
        q = await state.logp_next()
        logprobs.append(float(q.ps[b]))
        state = await (state.prune() << b)
        progress.advance()
    bench.journal.add({"logprobs": logprobs, "calls": lm.calls}, **key(text, width, threshold))


def key(text: Text, width: int, threshold: float) -> dict[str, Any]:
    """Names a measurement in the journal."""
    return {"beam": [width, threshold], "text": accuracy.digest(text)}


def outcome(bench: Bench, texts: list[Text], width: int, threshold: float) -> Outcome:
    """A setting's measurements over texts."""
    calls, size, impossible, groups = 0, 0, 0, []
    for text in texts:
        made = bench.journal.get(**key(text, width, threshold))
        wide = bench.journal.get(**key(text, *REFERENCE))
        excess: NDArray[np.float64] = np.subtract(wide["logprobs"], made["logprobs"]) / math.log(2)
        clusters = np.split(excess, range(CLUSTER, len(excess), CLUSTER))
        groups.append([cluster[np.isfinite(cluster)] for cluster in clusters])
        impossible += int(np.count_nonzero(~np.isfinite(excess)))
        calls += made["calls"]
        size += len(text.data)
    return Outcome(calls / size, accuracy.interval(groups), impossible)


def needed(bench: Bench, text: Text) -> float:
    """Bits per byte of the reference."""
    logprobs = bench.journal.get(**key(text, *REFERENCE))["logprobs"]
    return float(-np.mean(logprobs) / math.log(2))


async def main(options: Any) -> None:
    """The whole benchmark."""
    size = options.bytes or (FULL_BYTES if options.full else SAMPLE_BYTES)
    async with accuracy.opened(options, size) as bench:
        work = sum(len(text.data) for text in bench.texts) * len(SETTINGS)
        progress = Progress("accuracy against cost", bench.lm)
        calls, found = [], 0
        for setting, text in product(SETTINGS, bench.texts):
            if bench.journal.get(**key(text, *setting)) is None:
                calls.append(partial(measure, bench, progress, text, *setting))
            else:
                found += len(text.data)
        progress.start(work, found)
        await accuracy.all_of(calls, options.concurrency)
        progress.finish()
        await asyncio.to_thread(report, bench, options.results)


def report(bench: Bench, folder: Path) -> None:
    """Writes table, figures and plot."""
    rows = {"all": bench.texts} | {text.name: [text] for text in bench.texts}
    outcomes = {
        setting: {name: outcome(bench, texts, *setting) for name, texts in rows.items()}
        for setting in SETTINGS
    }
    lines = [
        "# Accuracy against cost",
        "",
        f"Model {bench.model}. {accuracy.sources(bench.texts)}. Excess bits per byte relative to "
        f"K={REFERENCE[0]}, threshold 0, which needs "
        + ", ".join(f"{needed(bench, text):.3f} ({text.name})" for text in bench.texts)
        + f". In brackets a bootstrap 95% interval over runs of {CLUSTER} bytes. Evaluations are "
        "those that the algorithm asks for, when it gives the distribution before each byte and "
        "moves on. A pruned beam may give a byte of the text no probability at all: such bytes "
        "are counted, and left out of the excess.",
        "",
        "| K | threshold | evaluations per byte | excess bits per byte | bytes of probability 0 | "
        + " | ".join(text.name for text in bench.texts)
        + " |",
        "| --: | --: | --: | :-- | --: | " + " | ".join("--:" for _ in bench.texts) + " |",
    ]
    for (width, threshold), made in outcomes.items():
        mean, low, high = made["all"].excess
        cells = [
            f"{made[text.name].excess[0]:+.4f} ({made[text.name].evaluations:.1f})"
            for text in bench.texts
        ]
        lines.append(
            f"| {width} | {threshold:g} | {made['all'].evaluations:.2f} | "
            f"{mean:+.4f} [{low:+.4f}, {high:+.4f}] | {made['all'].impossible} | "
            + " | ".join(cells)
            + " |"
        )
    lines += ["", "By text: excess, evaluations per byte in parentheses.", ""]
    lines += ["![Excess bits per byte against evaluations per byte](accuracy_beam.png)", ""]
    accuracy.write(folder / "accuracy_beam.md", "\n".join(lines))
    figures = {
        "model": bench.model,
        "texts": {text.name: [text.source, len(text.data)] for text in bench.texts},
        "settings": [
            {"K": width, "threshold": threshold}
            | {name: vars(value) for name, value in made.items()}
            for (width, threshold), made in outcomes.items()
        ],
    }
    accuracy.write(folder / "accuracy_beam.json", json.dumps(figures, indent=1) + "\n")
    plot(outcomes, folder / "accuracy_beam.png")


def plot(outcomes: dict[tuple[int, float], dict[str, Outcome]], path: Path) -> None:
    """Draws excess against evaluations, a panel for all texts and one for each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    names = list(outcomes[REFERENCE])
    figure, axes = pyplot.subplots(
        2, (len(names) + 1) // 2, figsize=(11, 8), sharex=True, sharey=True, layout="constrained"
    )
    colours = ["#1b6ca8", "#2a9d6f", "#d98a1f", "#b8336a"]
    for panel, name in zip(axes.flat, names, strict=True):
        for colour, threshold in zip(colours, THRESHOLDS, strict=True):
            made = [outcomes[width, threshold][name] for width in WIDTHS]
            x = [one.evaluations for one in made]
            y = [one.excess[0] for one in made]
            panel.plot(x, y, "o-", color=colour, markersize=4, label=f"threshold {threshold:g}")
            if name == "all":
                low, high = np.array([one.excess[1:] for one in made]).T
                reach = np.array([y - low, high - y])
                panel.errorbar(x, y, yerr=reach, fmt="none", color=colour, alpha=0.35)
            zero = [(one.evaluations, one.excess[0]) for one in made if one.impossible]
            if zero:
                panel.plot(*zip(*zero, strict=True), "x", color=colour, markersize=11)
        for width in WIDTHS:
            one = outcomes[width, 0.0][name]
            panel.annotate(
                f"K={width}",
                (one.evaluations, one.excess[0]),
                xytext=(4, 5),
                textcoords="offset points",
                fontsize=8,
                color=colours[0],
            )
        panel.axhline(0, color="#999999", linewidth=0.8)
        if name == "all":
            panel.plot(
                [], [], "x", color="#555555", markersize=8, label="has bytes of probability 0"
            )
            figure.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=5)
        panel.set_title("all texts" if name == "all" else name)
        panel.grid(alpha=0.25)
        panel.set_xscale("log")
        panel.set_yscale("symlog", linthresh=1e-3)
        panel.margins(x=0.1, y=0.1)
    ticks = [0.3, 0.5, 1, 2, 5, 10, 20]
    axes.flat[0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.flat[0].xaxis.set_minor_locator(ticker.NullLocator())
    figure.supxlabel("evaluations per byte")
    figure.supylabel(f"excess bits per byte over K={REFERENCE[0]}, threshold 0")
    figure.savefig(path, dpi=110)
    accuracy.say(f"wrote {path}")


if __name__ == "__main__":
    accuracy.run(main(accuracy.parser(__doc__ or "").parse_args()))
