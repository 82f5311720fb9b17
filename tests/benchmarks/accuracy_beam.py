"""Accuracy against cost: what a beam that keeps less loses, and what it saves.

Each text is scored byte by byte by beams that sum over all or over canonical tokenizations, with
and without deferred mass and the canonical candidate, of several widths and thresholds. The
*excess* is how many bits per byte more than the reference one needs; the cost is how many
evaluations its algorithm asks for. ``python -m tests.benchmarks.accuracy_beam`` writes a table and
a plot for each text, and names the cheapest setting that loses next to nothing anywhere.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.errors import EmptyBeam
from bytelm.models.logprobs import SIZE
from tests.benchmarks import accuracy
from tests.benchmarks.accuracy import Bench, Progress
from tests.benchmarks.row_store import CountedLM
from tests.benchmarks.texts import Text, written


@dataclass(frozen=True)
class Setting:
    """What a beam keeps; see ``BeamParams``."""

    tokenizations: Literal["all", "canonical"]
    deferred: bool
    keep_canonical: bool
    K: int
    prune_threshold: float

    @property
    def mode(self) -> str:
        """All of it except for width and threshold."""
        named = {", deferred": self.deferred, ", canonical kept": self.keep_canonical}
        return self.tokenizations + "".join(name for name, is_so in named.items() if is_so)


REFERENCE = Setting("all", True, True, 16, 1e-4)
KINDS: list[tuple[Literal["all", "canonical"], bool, bool]] = [
    ("all", False, False),
    ("all", False, True),
    ("all", True, False),
    ("all", True, True),
    ("canonical", False, False),
    ("canonical", True, False),
]
WIDTHS, FULL_WIDTHS = (1, 3, 5, 10), (1, 2, 3, 5, 10, 16)
THRESHOLDS = (0.001, 0.003, 0.01, 0.05)
FULL_THRESHOLDS = (0.0, 0.001, 0.003, 0.01, 0.05, 0.1)
SAMPLE_BYTES, FULL_BYTES = 256, 1024
CLUSTER = 16
"""Bytes that are resampled together."""
APART = 32
"""Bytes between the places where whole distributions are compared."""
GOAL = 0.005
"""Excess bits per byte that a default may have on any text."""


@dataclass(frozen=True)
class Outcome:
    """What a setting gives over some texts.

    Attributes:
        evaluations: per byte.
        excess: bits per byte more than the reference, with a 95% interval, over the bytes that
            have any probability.
        impossible: how many bytes have none.
        worst: the most nats that a byte of those that have any is below the reference.
        variation: the largest total variation from the reference.
    """

    evaluations: float
    excess: tuple[float, float, float]
    impossible: int
    worst: float
    variation: float


def settings(full: bool) -> list[Setting]:
    """What is measured."""
    widths = FULL_WIDTHS if full else WIDTHS
    thresholds = FULL_THRESHOLDS if full else THRESHOLDS
    return [Setting(*kind, K, t) for kind, K, t in product(KINDS, widths, thresholds)]


async def measure(bench: Bench, progress: Progress, text: Text, setting: Setting) -> None:
    """Scores a text with one setting, into the journal."""
    lm = CountedLM(bench.lm)
    state: ByteBeamState | None = await ByteBeamState.initial(lm, BeamParams(**asdict(setting)))
    logprobs, rows = [], []
    lost = np.full(SIZE, -np.inf)
    for at, b in enumerate(text.data):
        try:
            ps = lost if state is None else (await state.logp_next()).ps
            state = None if state is None else await (state.prune() << b)
        except EmptyBeam:  # nothing is left of a beam that forgets what it drops
            ps, state = lost, None
        logprobs.append(float(ps[b]))
        if at % APART == APART - 1:
            rows.append(np.exp(ps).tolist())
        progress.advance()
    made: dict[str, Any] = {"logprobs": logprobs, "calls": lm.calls}
    if setting == REFERENCE:
        made["rows"] = rows
    elif wide := bench.journal.get(**key(text, REFERENCE)):
        pairs = zip(rows, wide["rows"], strict=True)
        made["variation"] = [float(np.abs(np.subtract(*pair)).sum() / 2) for pair in pairs]
    bench.journal.add(made, **key(text, setting))


def key(text: Text, setting: Setting) -> dict[str, Any]:
    """Names a measurement in the journal."""
    return {"beam": asdict(setting), "text": accuracy.digest(text)}


def outcome(bench: Bench, texts: list[Text], setting: Setting) -> Outcome:
    """A setting's measurements over texts."""
    calls, size, variation = 0, 0, 0.0
    groups: list[list[NDArray[np.float64]]] = []
    for text in texts:
        made = bench.journal.get(**key(text, setting))
        wide = bench.journal.get(**key(text, REFERENCE))
        excess = np.subtract(wide["logprobs"], made["logprobs"])
        groups.append(np.split(excess, range(CLUSTER, len(excess), CLUSTER)))
        variation = max(variation, *made.get("variation", [0.0]))
        calls += made["calls"]
        size += len(text.data)
    nats = np.concatenate([cluster for group in groups for cluster in group])
    bits = [[cluster[np.isfinite(cluster)] / math.log(2) for cluster in group] for group in groups]
    found = nats[np.isfinite(nats)]
    impossible = len(nats) - len(found)
    interval = accuracy.interval([[c for c in group if len(c)] for group in bits])
    return Outcome(calls / size, interval, impossible, float(found.max()), variation)


def needed(bench: Bench, text: Text) -> float:
    """Bits per byte of the reference."""
    logprobs = bench.journal.get(**key(text, REFERENCE))["logprobs"]
    return float(-np.mean(logprobs) / math.log(2))


async def main(options: Any) -> None:
    """The whole benchmark."""
    size = options.bytes or (FULL_BYTES if options.full else SAMPLE_BYTES)
    async with accuracy.opened(options, size) as bench:
        bench.texts += written(size)
        grid = settings(options.full)
        progress = Progress("accuracy against cost", bench.lm)
        whole = sum(len(text.data) for text in bench.texts)
        first: list[Callable[[], Awaitable[None]]] = []
        calls: list[Callable[[], Awaitable[None]]] = []
        found = 0
        for setting, text in product([REFERENCE, *grid], bench.texts):
            if bench.journal.get(**key(text, setting)) is None:
                wanted = first if setting == REFERENCE else calls
                wanted.append(partial(measure, bench, progress, text, setting))
            else:
                found += len(text.data)
        progress.start(whole * (len(grid) + 1), found)
        await accuracy.all_of(first, options.concurrency)
        await accuracy.all_of(calls, options.concurrency)
        progress.finish()
        await asyncio.to_thread(report, bench, grid, options.results)


Outcomes = dict[Setting, dict[str, Outcome]]


def cheapest(outcomes: Outcomes) -> Setting | None:
    """The setting of the fewest evaluations that loses next to nothing on any text."""
    good = [
        setting
        for setting, made in outcomes.items()
        if all(one.excess[0] < GOAL and not one.impossible for one in made.values())
    ]
    return min(good, key=lambda s: outcomes[s]["all"].evaluations, default=None)


def report(bench: Bench, grid: Sequence[Setting], folder: Path) -> None:
    """Writes table, figures and plot."""
    rows = {"all": bench.texts} | {text.name: [text] for text in bench.texts}
    outcomes = {
        setting: {name: outcome(bench, texts, setting) for name, texts in rows.items()}
        for setting in grid
    }
    names = [text.name for text in bench.texts]
    best = cheapest(outcomes)
    lines = [
        "# Accuracy against cost",
        "",
        f"Model {bench.model}. {accuracy.sources(bench.texts)}. Excess bits per byte relative to "
        f"{REFERENCE.mode}, K={REFERENCE.K}, threshold {REFERENCE.prune_threshold:g}, which needs "
        + ", ".join(f"{needed(bench, text):.3f} ({text.name})" for text in bench.texts)
        + f". In brackets a bootstrap 95% interval over runs of {CLUSTER} bytes. Evaluations are "
        "those that the algorithm asks for, when it gives the distribution before each byte and "
        "moves on. A beam that forgets what it drops may give a byte of the text no probability "
        "at all: such bytes are counted, and left out of the excess. Worst byte: the most nats "
        f"below the reference. TV: the largest total variation from it, every {APART} bytes.",
        "",
        f"The cheapest setting without such bytes whose excess is below {GOAL:g} on each text: "
        + (f"{best.mode}, K={best.K}, threshold {best.prune_threshold:g}." if best else "none."),
    ]
    for mode in dict.fromkeys(setting.mode for setting in grid):
        lines += [
            "",
            f"## {mode[0].upper()}{mode[1:]}",
            "",
            "| K | threshold | evaluations per byte | excess bits per byte | probability 0 "
            "| worst byte | TV | " + " | ".join(names) + " |",
            "| --: | --: | --: | :-- | --: | --: | --: | "
            + " | ".join("--:" for _ in names)
            + " |",
        ]
        for setting, made in outcomes.items():
            if setting.mode != mode:
                continue
            whole = made["all"]
            mean, low, high = whole.excess
            cells = [
                f"{made[name].excess[0]:+.4f} ({made[name].evaluations:.2f})" for name in names
            ]
            lines.append(
                f"| {setting.K} | {setting.prune_threshold:g} | {whole.evaluations:.2f} | "
                f"{mean:+.4f} [{low:+.4f}, {high:+.4f}] | {whole.impossible} | "
                f"{whole.worst:.2f} | {whole.variation:.3f} | " + " | ".join(cells) + " |"
            )
    lines += ["", "By text: excess, evaluations per byte in parentheses.", ""]
    lines += ["![Excess bits per byte against evaluations per byte](accuracy_beam.png)", ""]
    accuracy.write(folder / "accuracy_beam.md", "\n".join(lines))
    figures = {
        "model": bench.model,
        "texts": {text.name: [text.source, len(text.data)] for text in bench.texts},
        "settings": [
            asdict(setting) | {name: vars(value) for name, value in made.items()}
            for setting, made in outcomes.items()
        ],
    }
    accuracy.write(folder / "accuracy_beam.json", json.dumps(figures, indent=1) + "\n")
    plot(outcomes, folder / "accuracy_beam.png")


COLOURS = ["#9a9a9a", "#5c5c5c", "#1b6ca8", "#2a9d6f", "#e0a458", "#b8336a"]
MARKERS = ["o", "P", "s", "^", "D", "v"]


def plot(outcomes: Outcomes, path: Path) -> None:
    """Draws excess against evaluations, a panel for all texts and one for each.

    A line joins the widths of one mode and threshold; beams with bytes of probability 0 are hollow.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    names = list(next(iter(outcomes.values())))
    modes = list(dict.fromkeys(setting.mode for setting in outcomes))
    thresholds = list(dict.fromkeys(setting.prune_threshold for setting in outcomes))
    figure, axes = pyplot.subplots(
        2, (len(names) + 1) // 2, figsize=(15, 9), sharex=True, sharey=True, layout="constrained"
    )
    for panel, name in zip(axes.flat, names, strict=False):
        for (mode, colour), (threshold, marker) in product(
            zip(modes, COLOURS, strict=True), zip(thresholds, MARKERS, strict=False)
        ):
            made = [
                one[name]
                for setting, one in outcomes.items()
                if (setting.mode, setting.prune_threshold) == (mode, threshold)
            ]
            x, y = [one.evaluations for one in made], [one.excess[0] for one in made]
            panel.plot(x, y, "-", color=colour, linewidth=0.8, alpha=0.6)
            for one in made:
                fill = "none" if one.impossible else colour
                panel.plot(
                    *(one.evaluations, one.excess[0], marker),
                    color=colour,
                    markerfacecolor=fill,
                    markersize=5,
                )
        panel.axhline(GOAL, color="#c0392b", linewidth=0.8, linestyle=":")
        panel.axhline(0, color="#999999", linewidth=0.8)
        panel.set_title("all texts" if name == "all" else name)
        panel.grid(alpha=0.25)
        panel.set_xscale("log")
        panel.set_yscale("symlog", linthresh=GOAL)
    for panel in axes.flat[len(names) :]:
        panel.set_axis_off()
    ticks = [0.3, 0.5, 1, 2, 5, 10, 20]
    axes.flat[0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.flat[0].minorticks_off()
    handles = [Line2D([], [], color=c, label=m) for m, c in zip(modes, COLOURS, strict=True)]
    handles += [
        Line2D([], [], color="k", marker=m, linestyle="", label=f"threshold {t:g}")
        for t, m in zip(thresholds, MARKERS, strict=False)
    ]
    handles += [
        Line2D(
            *([], []),
            color="k",
            marker="o",
            markerfacecolor="none",
            linestyle="",
            label="has bytes of probability 0",
        ),
        Line2D([], [], color="#c0392b", linestyle=":", label=f"{GOAL:g} bits per byte"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=6)
    figure.supxlabel("evaluations per byte")
    figure.supylabel(f"excess bits per byte over {REFERENCE.mode}, K={REFERENCE.K}")
    figure.savefig(path, dpi=110)
    accuracy.say(f"wrote {path}")


if __name__ == "__main__":
    accuracy.run(main(accuracy.parser(__doc__ or "").parse_args()))
