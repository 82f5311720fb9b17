"""What greedy takes: evaluations per byte of the default beam and of cheaper ones.

The prompts and lengths are those of ``make bench`` (32 of 60 bytes, 256 bytes after each, which EOS
does not end), so that the figures compare. ``python -m tests.benchmarks.greedy_cost`` writes
``results/greedy_cost.json``; ``bytelm size`` counts with the first.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

from bytelm import download as models
from bytelm.beam import BeamParams, ByteBeamState
from bytelm.vllm.engine import VllmEngine
from tests.benchmarks import accuracy
from tests.benchmarks.bench_cases import SHORT, STEPS
from tests.benchmarks.row_store import CountedLM
from tests.benchmarks.texts import excerpts
from tests.served import served_params

PROMPTS = 32
THRESHOLDS = (0.01, 0.05)


def beams() -> list[BeamParams]:
    """What is measured, the default first."""
    default = served_params(eos_byte_strings=())
    canonical = replace(default, tokenizations="canonical")
    own = [replace(default, prune_threshold=threshold) for threshold in THRESHOLDS]
    thresholds = (default.prune_threshold, *THRESHOLDS)
    return [default, *own, *(replace(canonical, prune_threshold=t) for t in thresholds)]


async def measure(engine: VllmEngine, params: BeamParams) -> dict[str, Any]:
    """Goes on with every prompt, greedily."""
    lm = CountedLM(engine)

    async def prefilled(prompt: bytes) -> ByteBeamState:
        return await (await ByteBeamState.initial(lm, params)).prefill(prompt)

    states = await asyncio.gather(*map(prefilled, excerpts(PROMPTS, SHORT)))
    prefill = lm.calls
    made = await asyncio.gather(*(state.greedy(b"", STEPS) for state in states))
    return {
        "K": params.K,
        "prune_threshold": params.prune_threshold,
        "tokenizations": params.tokenizations,
        "bytes": sum(map(len, made)),
        "evaluations": lm.calls,
        "of_prefill": prefill,
    }


async def main(options: Any) -> None:
    """The whole benchmark."""
    engine = await VllmEngine.start(models.resolve(options.model))
    try:
        found = [await measure(engine, params) for params in beams()]
    finally:
        await engine.close()
    content = json.dumps(found, indent=1) + "\n"
    await asyncio.to_thread(accuracy.write, options.results / "greedy_cost.json", content)


if __name__ == "__main__":
    accuracy.run(main(accuracy.parser(str(__doc__)).parse_args()))
