"""bytelm's scores of known texts, for ``bench``: in waves, and as the walk that they stand for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from unittest import mock

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.generating.score import score_all
from bytelm.models.token_lm import AsyncTokenLM
from bytelm_server.counting import CountingLM
from tests.benchmarks.bench_cases import CHOICES, CONTINUATION, SEQS, Case, Figures
from tests.benchmarks.texts import excerpts
from tests.served import served_params


async def measure(lm: CountingLM, case: Case, prompts: list[bytes]) -> Figures:
    """One repetition of a case."""
    label = case.label
    params = served_params(tokenizations="canonical" if "canonical" in label else "all")
    with walked() if label.endswith("walk") else nullcontext():
        began = time.perf_counter()
        scored = await _work(lm, case, params, prompts)
        seconds = time.perf_counter() - began
    usage = lm.usage
    return {
        "seconds": seconds,
        "prefill_seconds": seconds,
        "bytes": scored,
        "evaluations": usage.evaluations,
        "tokens_computed": usage.tokens_computed,
        "tokens_cached": usage.tokens_cached,
    }


@contextmanager
def walked() -> Iterator[None]:
    """No text is long enough for waves meanwhile."""
    with (
        mock.patch("bytelm.beam.state.LONG", 1 << 60),
        mock.patch("bytelm.beam.prefilling.LONG", 1 << 60),
    ):
        yield


async def _work(lm: AsyncTokenLM, case: Case, params: BeamParams, prompts: list[bytes]) -> int:
    """Does it, and gives how many bytes were scored."""
    initial = await ByteBeamState.initial(lm, params)
    if case.call == "prefill":
        await initial.prefill(prompts[0], mode="exact")
        return len(prompts[0])
    if case.call == "score":
        texts = prompts
        await score_all(initial, texts, concurrency=SEQS)
    elif case.call == "continuations":
        texts = _pieces(case.sessions)
        state = await initial.prefill(excerpts(1, 60, series=2)[0])
        await score_all(state, texts, concurrency=SEQS)
    else:
        texts = _pieces(len(prompts) * CHOICES)
        turn = asyncio.Semaphore(SEQS)

        async def question(context: bytes, choices: Sequence[bytes]) -> None:
            async with turn:
                await score_all(await initial.prefill(context), choices)

        choices = [texts[i : i + CHOICES] for i in range(0, len(texts), CHOICES)]
        await asyncio.gather(*map(question, prompts, choices))
    return sum(map(len, texts))


def _pieces(count: int) -> list[bytes]:
    """So many short texts, which lie side by side in a long one."""
    text = excerpts(1, count * CONTINUATION, series=3)[0]
    return [text[at : at + CONTINUATION] for at in range(0, len(text), CONTINUATION)]
