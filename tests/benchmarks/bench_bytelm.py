"""The side of ``bench`` that is bytelm in process: states over one engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.generating.draws import Draw
from bytelm.generating.generation import Piece, generate
from bytelm.generating.token_sampling import Method, sample
from bytelm.models.logprobs import LazyByteProbs
from bytelm.settings import EngineSettings
from bytelm.vllm.engine import VllmEngine
from bytelm_server.counting import CountingLM, counting
from tests.benchmarks import bench_scores, leaks
from tests.benchmarks.bench_cases import (
    KV_BYTES,
    SCORES,
    SEQS,
    Case,
    Figures,
    Track,
    run_side,
    timed,
)
from tests.served import served_params

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
        vocab = self.engine.vocab
        if case.call in SCORES or case.label.startswith("exact"):
            return await bench_scores.measure(counting(self.engine), case, prompts)
        if case.call == "rounds":
            return await self._rounds(prompts, case.steps)
        if case.call == "leaks":
            contexts = [[*vocab.initial_context, *vocab.encode(prompt)] for prompt in prompts]
            tasks = leaks.standing(self.engine)
            began = time.perf_counter()
            worked = await leaks.work(self.engine, contexts, case.steps)
            return (
                worked
                | {"bytes": 0, "seconds": time.perf_counter() - began}
                | {"left": await leaks.left(self.engine, tasks)}
            )
        # What ends a text early would make the sessions' work uneven: nothing does, on any side.
        own = BeamParams(case.K, case.threshold, eos_byte_strings=())
        params = served_params(eos_byte_strings=()) if case.label == "default" else own
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


def _pieces(state: ByteBeamState, case: Case, draw: Draw) -> AsyncIterator[Piece[Any]]:
    if case.call == "greedy":
        return generate(state, case.steps, LazyByteProbs.argmax)
    method: Method = "token" if case.call == "token sample" else "byte"
    return sample(state, case.steps, draw, method=method)


if __name__ == "__main__":
    run_side(BytelmSide.start)
