"""The side of ``bench`` that is bytelm in process: states over one engine."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.draws import Draw
from bytelm.errors import BytelmError
from bytelm.generation import Piece, generate
from bytelm.logprobs import LazyByteProbs
from bytelm.settings import EngineSettings
from bytelm.token_sampling import Method, sample
from bytelm.vllm.engine import VllmEngine
from bytelm_server.counting import CountingLM, counting
from tests.benchmarks.bench_cases import KV_BYTES, SEQS, Case, Figures, Track, run_side, timed

SETTINGS = EngineSettings(kv_cache_memory_bytes=KV_BYTES, max_num_seqs=SEQS)


class BytelmSide:
    """States of byte beams over one engine."""

    def __init__(self, engine: VllmEngine) -> None:
        self.engine = engine

    @classmethod
    async def start(cls, model: str) -> BytelmSide:
        """Start the engine."""
        return cls(await VllmEngine.start(model, SETTINGS))

    async def clear(self) -> None:
        """See ``Side``."""
        await self.engine.clear_cache()

    async def close(self) -> None:
        """See ``Side``."""
        await self.engine.close()

    async def measure(self, case: Case, prompts: list[bytes], repetition: int) -> Figures:
        """See ``Side``."""
        if case.call == "rounds":
            return await self._rounds(prompts, case.steps)
        if case.call == "leaks":
            return await self._leaks(prompts, case.steps)
        # What ends a text early would make the sessions' work uneven: nothing does, on any side.
        params = BeamParams(case.K, case.threshold, eos_byte_strings=())
        lms = [counting(self.engine) for _ in prompts]
        draws = [Draw() for _ in prompts]
        tracks = [Track() for _ in prompts]
        before: list[tuple[int, int]] = [(0, 0)] * len(prompts)

        async def session(i: int) -> None:
            state = await ByteBeamState.initial(lms[i], params)
            state = await state.prefill(prompts[i])
            if case.call == "prefill":
                # Prefilled means that the next byte's distribution is at hand.
                await state.logp_next()
            tracks[i].prefilled = time.perf_counter()
            before[i] = lms[i].usage.evaluations, lms[i].usage.tokens_computed
            if case.call in ("prefill", "next bytes"):
                await state.logp_next()
                tracks[i].arrive(1 if case.call == "next bytes" else len(prompts[i]))
                return
            async for piece in _pieces(state, case, draws[i]):
                tracks[i].arrive(len(piece.data))

        began = time.perf_counter()
        await asyncio.gather(*map(session, range(len(prompts))))
        return timed(began, tracks) | self._taken(prompts, lms, before)

    def _taken(
        self, prompts: list[bytes], lms: list[CountingLM], before: list[tuple[int, int]]
    ) -> Figures:
        """What all sessions took of the model.

        ``context_tokens`` is the least that the prompts take: each of their tokens once.
        """
        vocab = self.engine.vocab
        begin = len(vocab.initial_context)
        return {
            "evaluations": sum(lm.usage.evaluations for lm in lms),
            "tokens_computed": sum(lm.usage.tokens_computed for lm in lms),
            "tokens_cached": sum(lm.usage.tokens_cached for lm in lms),
            "prefill_evaluations": sum(evaluations for evaluations, _ in before),
            "prefill_tokens_computed": sum(computed for _, computed in before),
            "context_tokens": sum(begin + len(vocab.encode(prompt)) for prompt in prompts),
        }

    async def _rounds(self, prompts: list[bytes], rounds: int) -> Figures:
        """Rounds of evaluations, each of one more token: what native decoding does, from outside.

        The first round takes the prompts whole.
        """
        vocab = self.engine.vocab
        contexts = [[*vocab.initial_context, *vocab.encode(prompt)] for prompt in prompts]
        computed = self.engine.stats.tokens_computed
        began = time.perf_counter()
        for _ in range(rounds):
            rows = await asyncio.gather(*map(self.engine.next_token_logprobs, contexts))
            for context, row in zip(contexts, rows, strict=True):
                context.append(int(row.argmax()))
        return {
            "seconds": time.perf_counter() - began,
            "bytes": 0,
            "evaluations": rounds * len(prompts),
            "tokens_computed": self.engine.stats.tokens_computed - computed,
        }

    async def _leaks(self, prompts: list[bytes], evaluations: int) -> Figures:
        """Chains, forks and calls that are given up; then: what is left of all that?"""
        engine, draw = self.engine, random.Random(0)
        contexts = [[1, *engine.vocab.encode(prompt)] for prompt in prompts]
        tasks_before = len(asyncio.all_tasks())
        before = engine.stats.evaluations
        given_up = 0
        began = time.perf_counter()
        while engine.stats.evaluations - before < evaluations:
            calls = []
            for i, context in enumerate(contexts):
                if draw.random() < 0.1:
                    contexts[i] = list(draw.choice(contexts)[: draw.randrange(1, 200)])
                context.append(draw.randrange(100, 40_000))
                if len(context) > 200:
                    del context[20:]
                calls.append(asyncio.ensure_future(engine.next_token_logprobs(context)))
            for call in calls:
                if draw.random() < 0.05:
                    await asyncio.sleep(0.001)
                    given_up += call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        seconds = time.perf_counter() - began
        left = await self._left(tasks_before)
        return {
            "seconds": seconds,
            "bytes": 0,
            "evaluations": engine.stats.evaluations - before,
            "given_up": given_up,
            "left": left,
        }

    async def _left(self, tasks_before: int) -> Figures:
        """What is not given back, once everything has had time to end."""
        engine = self.engine
        for _ in range(100):
            stats = engine.stats
            left = {
                "slots": stats.slots - stats.slots_free,
                "evaluations": stats.in_flight,
                "requests": engine._llm.get_num_unfinished_requests(),
                "tasks": max(0, len(asyncio.all_tasks()) - tasks_before),
            }
            if not any(left.values()):
                break
            await asyncio.sleep(0.05)
        try:
            await engine.clear_cache()
        except BytelmError:
            return left | {"blocks": "some"}
        return left | {"blocks": 0}


def _pieces(state: ByteBeamState, case: Case, draw: Draw) -> AsyncIterator[Piece[Any]]:
    if case.call == "greedy":
        return generate(state, case.steps, LazyByteProbs.argmax)
    method: Method = "token" if case.call == "token sample" else "byte"
    return sample(state, case.steps, draw, method=method)


if __name__ == "__main__":
    run_side(BytelmSide.start)
