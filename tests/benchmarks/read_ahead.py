"""What reading ahead saves: a few sessions that walk on an engine that has nothing else to do.

Milliseconds, steps and evaluations per byte, with it and without, in turn, on the same prompts, for
one session and for a few at the same time. ``python -m tests.benchmarks.read_ahead`` takes some 5
minutes and writes ``results/read_ahead.md``.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bytelm import download as models
from bytelm.beam import BeamParams, ByteBeamState
from bytelm.generating.generation import collect, generate
from bytelm.models.logprobs import LazyByteProbs
from bytelm.models.token_lm import AsyncTokenLM, IdleTokenLM
from bytelm.settings import EngineSettings
from bytelm.vllm.engine import VllmEngine
from tests.benchmarks.peers import RESULTS
from tests.benchmarks.texts import excerpts

PROMPTS, PROMPT_BYTES, STEPS = 12, 60, 96
SESSIONS = (1, 2, 4)
BEAMS = ((5, 0.05), (5, 0.01))


class Waiting:
    """A token LM that counts how often its caller has to wait for it.

    Attributes:
        waits: how often, whatever the number of evaluations that it waited for.
    """

    def __init__(self, lm: AsyncTokenLM) -> None:
        self.lm = lm
        self.vocab = lm.vocab
        self.max_context_tokens = lm.max_context_tokens
        self.waits = 0
        self._under_way = 0

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The other's answer."""
        self.waits += not self._under_way
        self._under_way += 1
        try:
            return await self.lm.next_token_logprobs(token_ids)
        finally:
            self._under_way -= 1


class WaitingAhead(Waiting):
    """The same, which tells whether the other is idle."""

    @property
    def is_idle(self) -> bool:
        """As the other."""
        assert isinstance(self.lm, IdleTokenLM)
        return self.lm.is_idle


async def walk(lm: Waiting, params: BeamParams, prompt: bytes) -> tuple[bytes, float]:
    """A greedy text after a prompt, and the seconds that it took, prefill aside."""
    state = await (await ByteBeamState.initial(lm, params)).prefill(prompt)
    lm.waits = 0
    began = time.perf_counter()
    made = await collect(generate(state, STEPS, LazyByteProbs.argmax))
    return made.data, time.perf_counter() - began


async def compare(engine: VllmEngine, sessions: int, params: BeamParams) -> list[str]:
    """The two rows of one case."""
    prompts = excerpts(PROMPTS + sessions, PROMPT_BYTES)
    kinds = {"without": Waiting, "ahead": WaitingAhead}
    figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in kinds}
    texts: dict[str, list[bytes]] = {name: [] for name in kinds}
    for at in range(0, PROMPTS + 1, sessions):
        for name, kind in kinds.items():
            await engine.clear_cache()
            lms = [kind(engine) for _ in range(sessions)]
            before = engine.stats.evaluations
            some = zip(lms, prompts[at : at + sessions], strict=True)
            made = await asyncio.gather(*(walk(lm, params, prompt) for lm, prompt in some))
            count = sessions * STEPS
            ms = 1e3 * max(seconds for _, seconds in made) / STEPS
            waits = sum(lm.waits for lm in lms) / count
            figures[name].append((ms, waits, (engine.stats.evaluations - before) / count))
            texts[name] += [text for text, _ in made]
    same = sum(a == b for a, b in zip(*texts.values(), strict=True))
    rows = []
    for name, measured in figures.items():
        # The first one was the warm-up.
        ms, waits, evaluations = map(statistics.median, zip(*measured[1:], strict=True))
        rows.append(
            f"| {sessions} | {params.prune_threshold} | {name} | {ms:.1f} | {waits:.3f} "
            f"| {evaluations:.3f} | {same} of {len(texts[name])} |"
        )
    return rows


async def main() -> None:
    """Measure, print, write."""
    engine = await VllmEngine.start(str(models.resolve(None)), EngineSettings())
    lines = [
        "# Reading ahead",
        "",
        f"Greedy walks of {STEPS} bytes after {PROMPT_BYTES}, K=5, medians over the prompts; "
        "evaluations include those of the prefill. An engine that has more to do reads nothing "
        "ahead. `python -m tests.benchmarks.read_ahead`.",
        "",
        "| sessions | threshold | | ms per byte | waits per byte | evaluations per byte "
        "| same text |",
        "| --: | --: | --- | --: | --: | --: | --: |",
    ]
    try:
        for sessions in SESSIONS:
            for K, threshold in BEAMS:
                params = BeamParams(K, threshold, eos_byte_strings=())
                lines += await compare(engine, sessions, params)
                print("\n".join(lines[-2:]), flush=True)
    finally:
        await engine.close()
    (RESULTS / "read_ahead.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
