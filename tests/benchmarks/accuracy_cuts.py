"""What a fast prefill costs and loses, on everyday lines and on texts that are hard to cut.

After three quarters of each everyday line, and after some 200 bytes of each hard text, the
distribution over the next byte is compared for each tail with that of the walk through all of it;
on everyday lines also with the reference, a walk that keeps nearly everything. ``python -m
tests.benchmarks.accuracy_cuts`` writes a table; evaluations are kept on disk, so that a killed run
goes on where it was.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.beam.prefill import TAIL, TrunkFinder
from tests.benchmarks import accuracy
from tests.benchmarks.accuracy import Bench, Progress
from tests.benchmarks.accuracy_beam import REFERENCE, Setting
from tests.benchmarks.accuracy_lines import default
from tests.benchmarks.lines import EVERYDAY, cut, hard
from tests.benchmarks.row_store import CountedLM

TAILS = (1, 2, 3, 4, 5, 6)
FAR, MOST = 0.05, 40
"""The goals: total variation from the walk and the reference, and evaluations, at most."""

Made = dict[str, Any]


def ways() -> dict[str, tuple[Setting, str, int]]:
    """The ways to a distribution: the beam, prefill and tail, by name."""
    own = default()
    fast = {f"tail {tail}": (own, "fast", tail) for tail in TAILS}
    return {"reference": (REFERENCE, "exact", TAIL), "walk": (own, "exact", TAIL), **fast}


async def measure(bench: Bench, progress: Progress, text: bytes, way: str) -> None:
    """The distribution over the byte after a text, and what it took, into the journal."""
    setting, mode, tail = ways()[way]
    lm = CountedLM(bench.lm)
    state = await ByteBeamState.initial(lm, BeamParams(**asdict(setting)))
    state = await state.prefill(text, mode, tail)
    ps = (await state.logp_next()).ps
    made = {"probs": np.exp(ps).tolist(), "evaluations": lm.calls}
    bench.journal.add(made, **key(text, way))
    progress.advance(len(text))


def key(text: bytes, way: str) -> dict[str, Any]:
    """Names a distribution in the journal."""
    setting, mode, tail = ways()[way]
    fast = tail if mode == "fast" else 0
    return {"cut": text.hex(), "beam": asdict(setting), "mode": mode, "tail": fast}


def probs(made: Made) -> NDArray[np.float64]:
    """A measurement's distribution."""
    return np.array(made["probs"])


def variation(one: Made, other: Made) -> float:
    """The total variation between two measurements."""
    return float(np.abs(probs(one) - probs(other)).sum() / 2)


def same_greedy(one: Made, other: Made) -> bool:
    """Whether two measurements have the same most probable byte."""
    return bool(probs(one).argmax() == probs(other).argmax())


def _summary(bench: Bench, name: str, texts: list[bytes], base: str) -> list[str]:
    """A row for each way to go through texts, compared with one of them."""
    rows = []
    right = [bench.journal.get(**key(text, base)) for text in texts]
    for way in list(ways())[1:]:
        if way == base:
            continue
        made = [bench.journal.get(**key(text, way)) for text in texts]
        pairs = list(zip(made, right, strict=True))
        evaluations = [one["evaluations"] for one in made]
        far = [variation(*pair) for pair in pairs]
        columns = [
            name,
            base,
            way,
            f"{np.mean(evaluations):.1f}",
            str(max(evaluations)),
            f"{np.mean(far):.4f}",
            f"{max(far):.3f}",
            str(sum(one > FAR for one in far)),
            str(sum(not same_greedy(*pair) for pair in pairs)),
        ]
        rows.append("| " + " | ".join(columns) + " |")
    return rows


def _detail(bench: Bench, name: str, text: bytes) -> str:
    """The row of one text at the default tail."""
    made, walk = (bench.journal.get(**key(text, way)) for way in (f"tail {TAIL}", "walk"))
    trunk = TrunkFinder.of(bench.lm.vocab).find(text)
    columns = [
        name,
        str(len(trunk.rest)),
        str(len(trunk.rest_tokens)),
        "yes" if trunk.is_certain else "no",
        str(made["evaluations"]),
        str(walk["evaluations"]),
        f"{variation(made, walk):.4f}",
        "yes" if same_greedy(made, walk) else "no",
    ]
    return "| " + " | ".join(columns) + " |"


def report(bench: Bench, folder: Path) -> None:
    """Writes the tables."""
    everyday, difficult, own = [cut(line) for line in EVERYDAY], hard(), default()
    lines = [
        "# Where a fast prefill cuts",
        "",
        f"Model {bench.model}, {own.mode}, K={own.K}, threshold {own.prune_threshold:g}: the "
        f"distribution over the next byte after three quarters of each of {len(everyday)} everyday "
        f"lines, and after some 200 bytes of each of {len(difficult)} hard texts. Total variation "
        f"(TV) from the walk through all of it, and from the reference ({REFERENCE.mode}), at "
        f"K={REFERENCE.K}, threshold {REFERENCE.prune_threshold:g}. Far: above {FAR:g}. "
        "Evaluations are those of the prefill and of the distribution; the goal is at most "
        f"{MOST}. The default tail is {TAIL}.",
        "",
        "| texts | compared with | | evaluations | most | TV | most | far | other greedy byte |",
        "| :-- | :-- | :-- | --: | --: | --: | --: | --: | --: |",
        *_summary(bench, "everyday", everyday, "reference"),
        *_summary(bench, "everyday", everyday, "walk"),
        *_summary(bench, "hard", list(difficult.values()), "walk"),
        "",
        "Each hard text at the default tail:",
        "",
        "| text | bytes walked | tokens | certain cut | evaluations | of the walk | TV "
        "| same greedy byte |",
        "| :-- | --: | --: | :-- | --: | --: | --: | :-- |",
        *(_detail(bench, name, text) for name, text in difficult.items()),
        "",
    ]
    accuracy.write(folder / "accuracy_cuts.md", "\n".join(lines))


async def main(options: Any) -> None:
    """The whole benchmark."""
    async with accuracy.opened(options, 0) as bench:
        everyday, difficult = [cut(line) for line in EVERYDAY], list(hard().values())
        wanted = [(text, way) for way in ways() for text in everyday]
        wanted += [(text, way) for way in list(ways())[1:] for text in difficult]
        missing = [one for one in wanted if bench.journal.get(**key(*one)) is None]
        progress = Progress("where a fast prefill cuts", lm=bench.lm)
        total = sum(len(text) for text, _ in wanted)
        progress.start(total, total - sum(len(text) for text, _ in missing))
        calls = [partial(measure, bench, progress, text, way) for text, way in missing]
        await accuracy.all_of(calls, options.concurrency)
        progress.finish()
        await asyncio.to_thread(report, bench, options.results)


if __name__ == "__main__":
    accuracy.run(main(accuracy.parser(__doc__ or "").parse_args()))
