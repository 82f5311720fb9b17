"""A process that holds one engine: what ``bench_engine`` gives jobs to.

``engine_walks.py bytelm|vllm MODEL``: jobs are lines of JSON on standard input, each answered with
one on standard output; the first says that it is ready. Its ``cpu`` are the seconds that each of
the engine's processes computed meanwhile. At the end of the input it ends.

This file runs on other revisions of bytelm, too, and beside none: it may ask for nothing that they
do not have, and is no part of a package.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import psutil

SEQS, KV_BYTES = 128, 256 << 20
K, THRESHOLD = 5, 0.05
PATIENCE = 10.0
"""Seconds that what was given up has to end before caches are cleared."""

Figures = dict[str, Any]


class Clock:
    """Seconds that have passed, and that each of the engine's processes has computed."""

    def __init__(self) -> None:
        found = psutil.Process().children(recursive=True)
        named = {" ".join(process.cmdline()): process for process in found}
        self._processes = {
            part: process
            for line, process in named.items()
            for part, mark in (("engine core", "EngineCore"), ("worker", "Worker"))
            if mark in line
        }
        self._begin = self._now()

    def _now(self) -> dict[str, float]:
        found = {"seconds": time.perf_counter(), "API process": time.process_time()}
        for part, process in self._processes.items():
            times = process.cpu_times()
            found[part] = times.user + times.system
        return found

    def figures(self) -> Figures:
        """Since it was made."""
        took = {part: now - self._begin[part] for part, now in self._now().items()}
        return {"seconds": took.pop("seconds"), "cpu": took}


def contexts_of(count: int, tokens: int) -> list[list[int]]:
    """Contexts of random tokens, the same on all sides."""
    random = np.random.default_rng((count, tokens))
    return [[1, *row] for row in random.integers(300, 40_000, (count, tokens - 1)).tolist()]


def found(name: str, *modules: str) -> Any:
    """Something of bytelm's, which other revisions have in other modules."""
    for module in modules:
        with contextlib.suppress(ImportError):
            return getattr(importlib.import_module(module), name)
    raise SystemExit(f"error: this revision has no {name}")


class Bytelm:
    """bytelm's engine, of whichever revision is found first."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.source = found("RowSource", "bytelm.beam.rows", "bytelm.rows")(engine)
        self.texts: list[bytes] = []

    @classmethod
    async def start(cls, model: str) -> Bytelm:
        from bytelm.settings import EngineSettings
        from bytelm.vllm.engine import VllmEngine

        settings = EngineSettings(max_num_seqs=SEQS, kv_cache_memory_bytes=KV_BYTES)
        return cls(await VllmEngine.start(model, settings))

    async def close(self) -> None:
        await self.engine.close()

    async def rounds(self, job: Any) -> Figures:
        """Rounds of evaluations, each of one token more, which nobody has seen."""
        return await self._rounds(job, self.engine.next_token_logprobs)

    async def read(self, job: Any) -> Figures:
        """The same, and what a beam reads of each row."""
        return await self._rounds(job, lambda context: self.source.evaluate(tuple(context)))

    async def _rounds(self, job: Any, evaluate: Callable[[list[int]], Awaitable[Any]]) -> Figures:
        contexts = contexts_of(job["count"], job["size"])
        draw = np.random.default_rng(job["seed"])
        for number in range(job["steps"] + 1):
            if number == 1:  # all but the last token is known by then
                clock = Clock()
            tokens = draw.integers(300, 40_000, len(contexts)).tolist()
            for context, token in zip(contexts, tokens, strict=True):
                context.append(token)
            await asyncio.gather(*map(evaluate, contexts))
        return {"evaluations": job["steps"] * len(contexts), "bytes": 0} | clock.figures()

    async def greedy(self, job: Any) -> Figures:
        """Greedy walks; their texts are what ``score`` scores."""

        async def walk(state: Any, number: int) -> bytes:
            return bytes(await state.greedy(b"", job["steps"]))

        figures, self.texts = await self._walks(job, walk)
        return figures

    async def sample(self, job: Any) -> Figures:
        """Samples byte by byte."""
        from bytelm import Draw

        async def walk(state: Any, number: int) -> bytes:
            draw = Draw(seed=number)
            return bytes(await state.sample(b"", job["steps"], draw, method="byte"))

        return (await self._walks(job, walk))[0]

    async def score(self, job: Any) -> Figures:
        """Scores of the texts that the last greedy walks made."""
        score = found("score", "bytelm.generating.score", "bytelm.score")

        async def walk(state: Any, number: int) -> bytes:
            await score(state, self.texts[number])
            return self.texts[number]

        return (await self._walks(job, walk))[0]

    async def _walks(
        self, job: Any, walk: Callable[[Any, int], Awaitable[bytes]]
    ) -> tuple[Figures, list[bytes]]:
        from bytelm import BeamParams, ByteBeamState

        await self._clear()
        # Nothing ends a text before it is as long as it ought to be.
        params = BeamParams(K=K, prune_threshold=THRESHOLD, eos_byte_strings=[])
        initial = await ByteBeamState.initial(self.engine, params)
        prompts = [text.encode() for text in job["prompts"]]
        states = await asyncio.gather(*map(initial.prefill, prompts))
        before, clock = self.engine.stats.evaluations, Clock()
        texts = await asyncio.gather(*[walk(state, i) for i, state in enumerate(states)])
        figures = clock.figures()
        figures["evaluations"] = self.engine.stats.evaluations - before
        return figures | {"bytes": sum(map(len, texts))}, texts

    async def _clear(self) -> None:
        from bytelm.errors import EngineError

        end = time.monotonic() + PATIENCE
        while True:
            try:
                return await self.engine.clear_cache()
            except EngineError:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.05)


class Vllm:
    """vLLM by itself, with the settings that bytelm's engine has, too."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self._asked = 0

    @classmethod
    async def start(cls, model: str) -> Vllm:
        from tests.benchmarks import plain_vllm

        return cls(plain_vllm.start(model, SEQS, KV_BYTES))

    async def close(self) -> None:
        from tests.benchmarks import plain_vllm

        await plain_vllm.end(self.llm)

    async def rounds(self, job: Any) -> Figures:
        """Greedy decoding behind the same contexts, from when each of them has its first token."""
        self._left, self._made = job["count"], 0
        self._clock = Clock()
        contexts = contexts_of(job["count"], job["size"])
        await asyncio.gather(*[self._decode(context, job["steps"]) for context in contexts])
        return {"evaluations": self._made, "bytes": 0} | self._clock.figures()

    async def _decode(self, context: list[int], tokens: int) -> None:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=tokens,
            ignore_eos=True,
            temperature=0.0,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._asked += 1
        outputs = self.llm.generate(tokens_input(context), params, f"tokens-{self._asked}")
        is_first = True
        async with contextlib.aclosing(outputs):
            async for output in outputs:
                self._made += len(output.outputs[0].token_ids)
                if is_first:
                    is_first, self._left = False, self._left - 1
                    if not self._left:
                        self._clock, self._made = Clock(), 0


SIDES: dict[str, Any] = {"bytelm": Bytelm, "vllm": Vllm}


async def serve(side: str, model: str, say: Callable[[Any], None]) -> None:
    """Jobs one after the other until there are no more."""
    engine = await SIDES[side].start(model)
    try:
        say({"ready": True})
        while line := await asyncio.to_thread(sys.stdin.readline):
            job = json.loads(line)
            say(await getattr(engine, job["call"])(job))
    finally:
        await engine.close()


def main(side: str, model: str) -> None:
    # Whatever else prints must not come between.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    asyncio.run(serve(side, model, lambda value: print(json.dumps(value), file=out, flush=True)))
    # vLLM's destructors fail aloud at the interpreter's end.
    out.close()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
