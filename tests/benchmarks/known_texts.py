"""What known texts cost in waves, beside the walk of the same text on the same engine.

``python -m tests.benchmarks.known_texts`` scores texts of several kinds both ways in turn, and says
how far the scores are apart at the worst byte; ``--size`` and ``--runs`` make it longer. The prefix
cache is emptied before each. Writes ``results/known_texts.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.beam.waves import KnownWalk
from bytelm.download import resolve
from bytelm.models.byte_lm import Walk
from bytelm.settings import EngineSettings
from bytelm.vllm.engine import VllmEngine
from tests.benchmarks.accuracy_lines import default
from tests.benchmarks.row_store import CountedLM
from tests.benchmarks.texts import Text, texts, written

RESULTS = Path(__file__).with_name("results") / "known_texts.md"
HEAD = (
    "| text | bytes | tokenizations | waves | evaluations | the walk's | seconds | the walk's "
    "| times as fast | worst byte, nats apart |\n"
    "| --- | --: | --- | --: | --: | --: | --: | --: | --: | --: |\n"
)


class Way(NamedTuple):
    """One way through a text."""

    logprobs: list[float]
    seconds: float
    evaluations: int
    waves: int


async def through(engine: VllmEngine, params: BeamParams, text: bytes, in_waves: bool) -> Way:
    """Scores a text from the model's own beginning."""
    await engine.clear_cache()
    lm = CountedLM(engine)
    state = await ByteBeamState.initial(lm, params)
    walk = KnownWalk(state, text, reports=True) if in_waves else Walk(state, text)
    logprobs, began = [], time.perf_counter()
    for i, b in enumerate(text):
        logprobs.append(float((await walk.logp_next())[b]))
        if i + 1 < len(text):
            await walk.advance()
    seconds = time.perf_counter() - began
    return Way(logprobs, seconds, lm.calls, len(walk.waves) if isinstance(walk, KnownWalk) else 0)


async def row(
    engine: VllmEngine, text: Text, tokenizations: Literal["canonical", "all"], runs: int
) -> str:
    """A line of the table."""
    beam = BeamParams(**asdict(replace(default(), tokenizations=tokenizations)))
    ratios, ways = [], []
    for _ in range(runs):
        ways = [await through(engine, beam, text.data, in_waves) for in_waves in (True, False)]
        ratios.append(ways[1].seconds / ways[0].seconds)
    waves, walk = ways
    apart = float(np.abs(np.subtract(waves.logprobs, walk.logprobs)).max())
    return (
        f"| {text.name} | {len(text.data)} | {tokenizations} | {waves.waves} | {waves.evaluations} "
        f"| {walk.evaluations} | {waves.seconds:.1f} | {walk.seconds:.1f} "
        f"| {statistics.median(ratios):.1f} | {apart:.1e} |\n"
    )


async def main(size: int, runs: int) -> None:
    """Measures, prints and writes."""
    engine = await VllmEngine.start(resolve(), EngineSettings(max_num_seqs=128))
    page = (
        "# Known texts in waves, beside the walk\n\n"
        f"`python -m tests.benchmarks.known_texts --size {size} --runs {runs}` on "
        f"{platform.processor() or platform.machine()}; the default beam and that of canonical "
        "tokenizations alone; seconds of the last run, ratios the median of all.\n\n" + HEAD
    )
    print(page, end="", flush=True)
    try:
        for text in [*texts(size), *written(size)]:
            lines = [
                await row(engine, text, "canonical", runs),
                await row(engine, text, "all", runs),
            ]
            print(*lines, sep="", end="", flush=True)
            page += "".join(lines)
    finally:
        await engine.close()
    RESULTS.write_text(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2000, help="bytes of each text")
    parser.add_argument("--runs", type=int, default=3, help="turns of both ways")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.size, arguments.runs))
