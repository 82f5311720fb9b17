"""Fast against exact prefill: what taking the trunk of a context as it is costs and saves.

At positions of each text the state after all bytes before is made by walking (exact) and from a
trunk with each tail (fast); then the distributions over the next few bytes are compared.
``python -m tests.benchmarks.accuracy_prefill`` writes a table.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.prefill import TrunkFinder
from bytelm.token_lm import AsyncTokenLM
from tests.benchmarks import accuracy
from tests.benchmarks.accuracy import Bench, Progress
from tests.benchmarks.row_store import CountedLM
from tests.benchmarks.texts import Text

PARAMS = BeamParams(K=5, prune_threshold=0.0)
TAILS = (1, 2, 3, 4, 5, 6)
SAMPLE_BYTES, FULL_BYTES = 256, 1024
SAMPLE_POSITIONS, FULL_POSITIONS = 30, 300
AHEAD = 4
"""How many next bytes are compared at a position."""
SHORTEST = 32
"""Bytes before the first position."""
GOAL = 0.0005
"""Excess bits per byte that a fast prefill may cost."""

Distributions = list[NDArray[np.float64]]


class Exact:
    """The walk through a text: at each position its distributions over the next bytes."""

    def __init__(self, text: Text, positions: list[int]) -> None:
        self.text = text
        self.positions = positions
        self._wanted = {p + ahead for p in positions for ahead in range(AHEAD)}
        loop = asyncio.get_running_loop()
        self._found: dict[int, asyncio.Future[NDArray[np.float64]]] = {
            at: loop.create_future() for at in self._wanted
        }

    async def walk(self, bench: Bench, progress: Progress) -> None:
        """Finds the distributions."""
        state = await ByteBeamState.initial(bench.lm, PARAMS)
        for at, b in enumerate(self.text.data):
            if at in self._wanted:
                self._found[at].set_result((await state.logp_next()).ps)
            state = await (state.prune() << b)
            progress.advance()

    async def count(self, bench: Bench, progress: Progress) -> None:
        """What the walk to each position evaluates, into the journal."""
        lm = CountedLM(bench.lm)
        state = await ByteBeamState.initial(lm, PARAMS)
        calls = []
        for begin, end in zip([0, *self.positions], self.positions, strict=False):
            state = await state.prefill(self.text.data[begin:end], mode="exact")
            calls.append(lm.calls)
            progress.advance(end - begin)
        bench.journal.add(calls, **exact_key(self.text, self.positions))

    async def at(self, position: int) -> Distributions:
        """The distributions over the bytes from ``position`` on."""
        return [await self._found[position + ahead] for ahead in range(AHEAD)]


async def measure(
    bench: Bench, progress: Progress, exact: Exact, position: int, tail: int, work: int
) -> None:
    """Compares fast prefill at a position with the walk, into the journal."""
    data = exact.text.data
    lm = CountedLM(bench.lm)
    state = await ByteBeamState.initial(lm, PARAMS)
    state = await state.prefill(data[:position], mode="fast", tail=tail)
    calls = lm.calls
    fast: Distributions = []
    for b in data[position : position + AHEAD]:
        fast.append((await state.logp_next()).ps)
        state = await (state.prune() << b)
    walked = await exact.at(position)
    made = {
        "calls": calls,
        "walked": walked_bytes(bench.lm, data[:position], tail),
        "exact": [float(ps[b]) for ps, b in zip(walked, data[position:], strict=False)],
        "fast": [float(ps[b]) for ps, b in zip(fast, data[position:], strict=False)],
        "kl": [divergence(p, q) for p, q in zip(walked, fast, strict=True)],
    }
    bench.journal.add(made, **fast_key(exact.text, position, tail))
    progress.advance(work)


def divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """KL(p‖q) in bits of two distributions given as natural logarithms."""
    some = p > -np.inf
    return float(np.sum(np.exp(p[some]) * (p[some] - q[some])) / math.log(2))


def walked_bytes(lm: AsyncTokenLM, context: bytes, tail: int) -> int:
    """How many bytes a fast prefill walks."""
    return len(TrunkFinder.of(lm.vocab).find(context, tail).rest)


def exact_key(text: Text, positions: list[int]) -> dict[str, Any]:
    """Names the walk's counts in the journal."""
    return {"prefill": "exact", "text": accuracy.digest(text), "positions": positions}


def fast_key(text: Text, position: int, tail: int) -> dict[str, Any]:
    """Names a comparison in the journal."""
    return {"prefill": tail, "text": accuracy.digest(text), "at": position, "ahead": AHEAD}


def chosen(text: Text, count: int) -> list[int]:
    """Positions of a text, drawn evenly: one from each of ``count`` parts of about equal size."""
    first, last = SHORTEST, len(text.data) - AHEAD + 1
    if last - first < count:
        raise SystemExit(f"error: {text.name} is too short for {count} positions: raise --bytes")
    random = np.random.default_rng(0)
    bounds = np.linspace(first, last, count + 1).astype(int)
    return [int(random.integers(lo, hi)) for lo, hi in pairwise(bounds)]


@dataclass(frozen=True)
class Outcome:
    """What a tail gives over some texts.

    Attributes:
        difference: mean absolute difference of the true byte's log-probability, in nats.
        divergence: mean KL(exact‖fast) in bits.
        excess: bits per byte more than exact, with a 95% interval.
        evaluations: for the prefill, per byte of context.
        walked: bytes behind the trunk, on average.
    """

    difference: float
    divergence: float
    excess: tuple[float, float, float]
    evaluations: float
    walked: float


def outcome(bench: Bench, places: Iterable[tuple[Text, list[int]]], tail: int) -> Outcome:
    """The measurements of a tail over positions of texts."""
    groups, made, size = [], [], 0
    for text, positions in places:
        here = [bench.journal.get(**fast_key(text, p, tail)) for p in positions]
        groups.append([np.subtract(one["exact"], one["fast"]) / math.log(2) for one in here])
        made += here
        size += sum(positions)
    nats = np.array([np.subtract(one["exact"], one["fast"]) for one in made])
    return Outcome(
        float(np.abs(nats).mean()),
        float(np.mean([one["kl"] for one in made])),
        accuracy.interval(groups),
        sum(one["calls"] for one in made) / size,
        float(np.mean([one["walked"] for one in made])),
    )


async def main(options: Any) -> None:
    """The whole benchmark."""
    size = options.bytes or (FULL_BYTES if options.full else SAMPLE_BYTES)
    count = options.positions or (FULL_POSITIONS if options.full else SAMPLE_POSITIONS)
    async with accuracy.opened(options, size) as bench:
        places = {text.name: (text, chosen(text, count)) for text in bench.texts}
        await compare(bench, list(places.values()), options.concurrency)
        await asyncio.to_thread(report, bench, places, options.results)


async def compare(bench: Bench, places: list[tuple[Text, list[int]]], concurrency: int) -> None:
    """Makes the measurements that are missing."""
    walks, comparisons, work, found = [], [], 0, 0
    progress = Progress("fast against exact prefill", lm=bench.lm)
    for text, positions in places:
        exact = Exact(text, positions)
        work += positions[-1]
        if bench.journal.get(**exact_key(text, positions)) is None:
            walks.append(partial(exact.count, bench, progress))
        else:
            found += positions[-1]
        missing = 0
        for p, tail in product(positions, TAILS):
            rest = walked_bytes(bench.lm, text.data[:p], tail) + AHEAD
            work += rest
            if bench.journal.get(**fast_key(text, p, tail)) is None:
                comparisons.append(partial(measure, bench, progress, exact, p, tail, rest))
                missing += 1
            else:
                found += rest
        work += len(text.data)
        if missing:
            walks.append(partial(exact.walk, bench, progress))
        else:
            found += len(text.data)
    progress.start(work, found)
    # Comparisons wait for walks, which must not wait for their turn.
    await accuracy.all_of(walks + comparisons, concurrency + len(walks))
    progress.finish()


def report(bench: Bench, places: dict[str, tuple[Text, list[int]]], folder: Path) -> None:
    """Writes table and figures."""
    rows = {"all": list(places.values())} | {name: [place] for name, place in places.items()}
    calls = {
        name: sum(sum(bench.journal.get(**exact_key(*place))) for place in some)
        / sum(sum(positions) for _, positions in some)
        for name, some in rows.items()
    }
    outcomes = {
        name: {tail: outcome(bench, some, tail) for tail in TAILS} for name, some in rows.items()
    }
    count = len(next(iter(places.values()))[1])
    lines = [
        "# Fast against exact prefill",
        "",
        f"Model {bench.model}, K={PARAMS.K}, threshold {PARAMS.prune_threshold:g}. "
        f"{accuracy.sources(bench.texts)}. At {count} positions of each text, with all bytes "
        f"before as context, the distributions over the next {AHEAD} bytes are compared. "
        "Difference: of the true byte's log-probability, absolute, in nats. Excess: bits per byte "
        "that fast needs more than exact, with a bootstrap 95% interval over positions; the goal "
        f"is at most {GOAL:g}. Evaluations are those that the prefill asks for, per byte of "
        "context.",
        "",
        "| text | tail | mean difference | mean KL (bits) | excess bits per byte "
        "| evaluations per byte | bytes walked |",
        "| :-- | --: | --: | --: | :-- | --: | --: |",
    ]
    for name, made in outcomes.items():
        mean_length = float(np.mean([p for _, positions in rows[name] for p in positions]))
        lines.append(f"| {name} | exact | 0 | 0 | 0 | {calls[name]:.2f} | {mean_length:.0f} |")
        for tail, one in made.items():
            mean, low, high = one.excess
            lines.append(
                f"| {name} | {tail} | {one.difference:.5f} | {one.divergence:.6f} "
                f"| {mean:+.5f} [{low:+.5f}, {high:+.5f}] | {one.evaluations:.2f} "
                f"| {one.walked:.0f} |"
            )
    accuracy.write(folder / "accuracy_prefill.md", "\n".join([*lines, ""]))
    figures = {
        "model": bench.model,
        "K": PARAMS.K,
        "threshold": PARAMS.prune_threshold,
        "ahead": AHEAD,
        "texts": {text.name: [text.source, len(text.data)] for text in bench.texts},
        "positions": {name: positions for name, (_, positions) in places.items()},
        "exact_evaluations": calls,
        "tails": {
            name: {tail: vars(one) for tail, one in made.items()} for name, made in outcomes.items()
        },
    }
    accuracy.write(folder / "accuracy_prefill.json", json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    parser = accuracy.parser(__doc__ or "")
    parser.add_argument(
        "--positions",
        type=int,
        help=f"of each text ({SAMPLE_POSITIONS}, in the full run {FULL_POSITIONS})",
    )
    accuracy.run(main(parser.parse_args()))
