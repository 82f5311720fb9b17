"""Fast against exact prefill: what taking the trunk of a context as it is costs and saves.

At positions of each text the state after all bytes before is made by walking (exact) and from a
trunk with each tail (fast); then the distributions over the next few bytes are compared. Both are
also compared with the walk of a much wider beam, since exact prefill has errors of its own: what
its beam keeps of the distant past is missing where it matters. ``python -m
tests.benchmarks.accuracy_prefill`` writes a table; after ``accuracy_beam`` it takes less time.
"""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.beam.prefill import TrunkFinder
from bytelm.models.token_lm import AsyncTokenLM
from tests.benchmarks import accuracy
from tests.benchmarks.accuracy import Bench, Progress
from tests.benchmarks.row_store import CountedLM
from tests.benchmarks.texts import Text

PARAMS = BeamParams(K=5, prune_threshold=0.0)
WIDE = BeamParams(K=16, prune_threshold=0.0)
TAILS = (1, 2, 3, 4, 5, 6)
SAMPLE_BYTES, FULL_BYTES = 256, 1024
SAMPLE_POSITIONS, FULL_POSITIONS = 30, 300
AHEAD = 4
"""How many next bytes are compared at a position."""
SHORTEST = 32
"""Bytes before the first position."""
LEAST = 1e-30
"""What a probability of 0 counts as in a divergence: beams give it to bytes that hardly occur."""
GOAL = 0.0005
"""Excess bits per byte that a fast prefill may cost."""

Distributions = list[NDArray[np.float64]]
Places = list[tuple[Text, list[int]]]


class Walk:
    """The walk through a text: at each position its distributions over the next bytes."""

    def __init__(self, text: Text, positions: list[int], params: BeamParams) -> None:
        self.text = text
        self.positions = positions
        self._params = params
        self._wanted = {p + ahead for p in positions for ahead in range(AHEAD)}
        loop = asyncio.get_running_loop()
        self._found: dict[int, asyncio.Future[NDArray[np.float64]]] = {
            at: loop.create_future() for at in self._wanted
        }

    async def walk(self, bench: Bench, progress: Progress) -> None:
        """Finds the distributions."""
        state = await ByteBeamState.initial(bench.lm, self._params)
        for at, b in enumerate(self.text.data):
            if at in self._wanted:
                self._found[at].set_result((await state.logp_next()).ps)
            state = await (state.prune() << b)
            progress.advance()

    async def count(self, bench: Bench, progress: Progress) -> None:
        """What the walk to each position evaluates, into the journal."""
        lm = CountedLM(bench.lm)
        state = await ByteBeamState.initial(lm, self._params)
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
    bench: Bench, progress: Progress, walks: tuple[Walk, Walk], position: int, tail: int, work: int
) -> None:
    """Compares fast prefill at a position with the exact and the wide walk, into the journal."""
    text = walks[0].text
    context, coming = text.data[:position], text.data[position : position + AHEAD]
    lm = CountedLM(bench.lm)
    state = await ByteBeamState.initial(lm, PARAMS)
    state = await state.prefill(context, mode="fast", tail=tail)
    calls = lm.calls
    fast: Distributions = []
    for b in coming:
        fast.append((await state.logp_next()).ps)
        state = await (state.prune() << b)
    exact, wide = [await walk.at(position) for walk in walks]
    made = {
        "calls": calls,
        "walked": walked_bytes(bench.lm, context, tail),
        "fast": logprobs(fast, coming),
        "exact": logprobs(exact, coming),
        "wide": logprobs(wide, coming),
        "exact_fast": list(map(divergence, exact, fast)),
        "wide_fast": list(map(divergence, wide, fast)),
        "wide_exact": list(map(divergence, wide, exact)),
    }
    bench.journal.add(made, **fast_key(text, position, tail))
    progress.advance(work)


def logprobs(distributions: Distributions, coming: bytes) -> list[float]:
    """Those of the bytes that do come."""
    return [float(ps[b]) for ps, b in zip(distributions, coming, strict=True)]


def divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """KL(p‖q) in bits of two distributions given as natural logarithms, q at least LEAST."""
    some = p > -np.inf
    least = np.maximum(q[some], math.log(LEAST))
    return float(np.sum(np.exp(p[some]) * (p[some] - least)) / math.log(2))


def walked_bytes(lm: AsyncTokenLM, context: bytes, tail: int) -> int:
    """How many bytes a fast prefill walks."""
    return len(TrunkFinder.of(lm.vocab).find(context, tail).rest)


def exact_key(text: Text, positions: list[int]) -> dict[str, Any]:
    """Names the walk's counts in the journal."""
    return {"prefill": "exact", "text": accuracy.digest(text), "positions": positions}


def fast_key(text: Text, position: int, tail: int) -> dict[str, Any]:
    """Names a comparison in the journal."""
    return {
        "tail": tail,
        "text": accuracy.digest(text),
        "at": position,
        "ahead": AHEAD,
        "least": LEAST,
    }


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
        wide_divergence: mean KL(wide‖fast) in bits.
        wide_excess: bits per byte more than the wide beam, with a 95% interval.
        evaluations: for the prefill, per byte of context.
        walked: bytes behind the trunk, on average.
    """

    difference: float
    divergence: float
    excess: tuple[float, float, float]
    wide_divergence: float
    wide_excess: tuple[float, float, float]
    evaluations: float
    walked: float


def outcomes(bench: Bench, places: Places) -> dict[str, Outcome]:
    """What exact prefill and each tail give over positions of texts."""
    size = sum(sum(positions) for _, positions in places)
    found: dict[str, Outcome] = {}
    for tail in TAILS:
        made = [
            [bench.journal.get(**fast_key(text, p, tail)) for p in positions]
            for text, positions in places
        ]
        calls = sum(one["calls"] for here in made for one in here)
        walked = float(np.mean([one["walked"] for here in made for one in here]))
        if not found:
            counts = [sum(bench.journal.get(**exact_key(*place))) for place in places]
            mean = size / sum(len(positions) for _, positions in places)
            found["exact"] = _outcome(made, "exact", sum(counts) / size, mean)
        found[str(tail)] = _outcome(made, "fast", calls / size, walked)
    return found


def _outcome(made: list[list[Any]], kind: str, evaluations: float, walked: float) -> Outcome:
    """The outcome of measurements, a list for each text; ``kind`` is compared."""
    every = [one for here in made for one in here]

    def excess(over: str) -> tuple[float, float, float]:
        groups = [
            [np.subtract(one[over], one[kind]) / math.log(2) for one in here] for here in made
        ]
        return accuracy.interval(groups)

    exact = kind == "exact"
    return Outcome(
        float(np.mean([np.abs(np.subtract(one["exact"], one[kind])) for one in every])),
        0.0 if exact else float(np.mean([one["exact_fast"] for one in every])),
        excess("exact"),
        float(np.mean([one[f"wide_{kind}"] for one in every])),
        excess("wide"),
        evaluations,
        walked,
    )


async def main(options: Any) -> None:
    """The whole benchmark."""
    size = options.bytes or (FULL_BYTES if options.full else SAMPLE_BYTES)
    count = options.positions or (FULL_POSITIONS if options.full else SAMPLE_POSITIONS)
    async with accuracy.opened(options, size) as bench:
        places = {text.name: (text, chosen(text, count)) for text in bench.texts}
        await compare(bench, list(places.values()), options.concurrency)
        await asyncio.to_thread(report, bench, places, options.results)


async def compare(bench: Bench, places: Places, concurrency: int) -> None:
    """Makes the measurements that are missing."""
    walks, comparisons, work, found = [], [], 0, 0
    progress = Progress("fast against exact prefill", lm=bench.lm)
    for text, positions in places:
        both = Walk(text, positions, PARAMS), Walk(text, positions, WIDE)
        work += positions[-1]
        if bench.journal.get(**exact_key(text, positions)) is None:
            walks.append(partial(both[0].count, bench, progress))
        else:
            found += positions[-1]
        missing = 0
        for p, tail in product(positions, TAILS):
            rest = walked_bytes(bench.lm, text.data[:p], tail) + AHEAD
            work += rest
            if bench.journal.get(**fast_key(text, p, tail)) is None:
                comparisons.append(partial(measure, bench, progress, both, p, tail, rest))
                missing += 1
            else:
                found += rest
        work += 2 * len(text.data)
        if missing:
            walks += [partial(walk.walk, bench, progress) for walk in both]
        else:
            found += 2 * len(text.data)
    progress.start(work, found)
    # Comparisons wait for walks, which must not wait for their turn.
    await accuracy.all_of(walks + comparisons, concurrency + len(walks))
    progress.finish()


def report(bench: Bench, places: dict[str, tuple[Text, list[int]]], folder: Path) -> None:
    """Writes table and figures."""
    rows = {"all": list(places.values())} | {name: [place] for name, place in places.items()}
    found = {name: outcomes(bench, some) for name, some in rows.items()}
    count = len(next(iter(places.values()))[1])
    lines = [
        "# Fast against exact prefill",
        "",
        f"Model {bench.model}, K={PARAMS.K}, threshold {PARAMS.prune_threshold:g}. "
        f"{accuracy.sources(bench.texts)}. At {count} positions of each text, with all bytes "
        f"before as context, the distributions over the next {AHEAD} bytes are compared. "
        "Difference: of the true byte's log-probability, absolute, in nats. Excess: bits per byte "
        "that fast needs more than exact, with a bootstrap 95% interval over positions; the goal "
        f"is at most {GOAL:g}. The same over K={WIDE.K}: relative to the walk of that beam, of "
        f"which exact prefill at K={PARAMS.K} falls short, too. "
        f"In KL a probability of 0 counts as {LEAST:g}. Evaluations are those that the "
        "prefill asks for, per byte of context.",
        "",
        "| text | tail | mean difference | mean KL (bits) | excess bits per byte "
        f"| KL from K={WIDE.K} (bits) | excess over K={WIDE.K} "
        "| evaluations per byte | bytes walked |",
        "| :-- | --: | --: | --: | :-- | --: | :-- | --: | --: |",
    ]
    for name, made in found.items():
        for tail, one in made.items():
            lines.append(
                f"| {name} | {tail} | {one.difference:.5f} | {one.divergence:.6f} "
                f"| {_range(one.excess)} | {one.wide_divergence:.6f} | {_range(one.wide_excess)} "
                f"| {one.evaluations:.2f} | {one.walked:.0f} |"
            )
    accuracy.write(folder / "accuracy_prefill.md", "\n".join([*lines, ""]))
    figures = {
        "model": bench.model,
        "K": PARAMS.K,
        "threshold": PARAMS.prune_threshold,
        "ahead": AHEAD,
        "texts": {text.name: [text.source, len(text.data)] for text in bench.texts},
        "positions": {name: positions for name, (_, positions) in places.items()},
        "wide_K": WIDE.K,
        "tails": {
            name: {tail: vars(one) for tail, one in made.items()} for name, made in found.items()
        },
    }
    accuracy.write(folder / "accuracy_prefill.json", json.dumps(figures, indent=1) + "\n")


def _range(excess: tuple[float, float, float]) -> str:
    mean, low, high = excess
    return f"{mean:+.5f} [{low:+.5f}, {high:+.5f}]"


if __name__ == "__main__":
    parser = accuracy.parser(__doc__ or "")
    parser.add_argument(
        "--positions",
        type=int,
        help=f"of each text ({SAMPLE_POSITIONS}, in the full run {FULL_POSITIONS})",
    )
    accuracy.run(main(parser.parse_args()))
