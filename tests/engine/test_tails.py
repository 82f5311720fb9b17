"""The token-granular prefix cache, on the real engine."""

import asyncio
import random

import numpy as np
import pytest
import pytest_asyncio

from bytelm.errors import EngineError
from bytelm.settings import EngineSettings
from bytelm.vllm.engine import VllmEngine

BLOCK = 32
TEXT = (
    "The capital of France is Paris. def area(r): return 3.14159 * r ** 2\n"
    "Wer reitet so spät durch Nacht und Wind? It was a bright cold day in April. "
) * 20
TOKEN_BYTES = 30 * 2 * 3 * 64 * 4
"""What the default model's KV of one token takes in float32: layers, K and V, heads, width."""


def words(engine, count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(100, 40_000) for _ in range(count)]


async def computed(engine, contexts) -> int:
    """How many tokens the evaluation of these contexts, at once, takes."""
    before = engine.stats.tokens_computed
    await asyncio.gather(*map(engine.next_token_logprobs, contexts))
    return engine.stats.tokens_computed - before


async def test_a_context_that_goes_on_computes_its_new_tokens_only(engine):
    context = words(engine, 2 * BLOCK + 15, seed=1)
    assert await computed(engine, [context]) == len(context)
    for token in words(engine, BLOCK + 2, seed=2):
        context = [*context, token]
        assert await computed(engine, [context]) == 1


async def test_forks_compute_their_new_tokens_only(engine):
    context = words(engine, BLOCK + 20, seed=3)
    await computed(engine, [context])
    assert await computed(engine, [[*context, token] for token in range(100, 120)]) == 20
    # Inside the last block, and inside a full one.
    for at in (BLOCK + 7, 11):
        forks = [[*context[:at], token, token] for token in range(100, 110)]
        assert await computed(engine, forks) == 20


async def test_a_context_of_full_blocks_computes_one_token_when_it_comes_again(engine):
    context = words(engine, 2 * BLOCK, seed=4)
    await computed(engine, [context])
    assert await computed(engine, [context]) == 1


async def test_what_was_generated_natively_is_kept(engine):
    text = words(engine, 40, seed=5)
    async for chunk in engine.generate(text, 30, temperature=0.0):
        text = [*text, *chunk.token_ids]
    assert len(text) == 70
    assert await computed(engine, [text]) == 1


async def test_a_cleared_cache_has_nothing(engine):
    context = words(engine, BLOCK + 20, seed=8)
    await computed(engine, [context])
    await engine.clear_cache()
    assert await computed(engine, [context]) == len(context)


async def test_the_cache_is_not_cleared_below_a_running_call(engine):
    stream = engine.generate(words(engine, BLOCK + 20, seed=9), 1000)
    await anext(stream)
    with pytest.raises(EngineError, match="in use"):
        await engine.clear_cache()
    await stream.aclose()


async def test_generation_goes_on_from_a_tail(engine):
    context = words(engine, 50, seed=6)
    await computed(engine, [context])
    before = engine.stats.tokens_computed
    async for _ in engine.generate([*context, 100], 5):
        pass
    assert engine.stats.tokens_computed - before == 5


async def test_the_engine_counts_what_tails_do(engine):
    context = words(engine, 50, seed=7)
    before = engine.stats.tails
    await computed(engine, [context])
    await computed(engine, [[*context, 100]])
    after = engine.stats.tails
    assert after.misses - before.misses == 1
    assert after.hits - before.hits == 1
    assert after.tokens - before.tokens == 50 - BLOCK


# With memory for a few contexts only


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def small_engine(model_path):
    engine = await VllmEngine.start(
        model_path,
        EngineSettings(
            max_model_len=192,
            max_num_seqs=8,
            slots=12,
            block_size=BLOCK,
            kv_cache_memory_bytes=40 * BLOCK * TOKEN_BYTES,
        ),
    )
    yield engine
    await engine.close()


async def test_answers_are_right_whatever_happened_before(small_engine, reference):
    engine = small_engine
    draw = random.Random(0)
    # Pieces of text, since rounding alone changes the answers to arbitrary tokens too much.
    text = engine.vocab.encode(TEXT.encode())
    start = list(engine.vocab.initial_context)
    recent = [[*start, *text[:30]]]
    answers: list[tuple[list[int], np.ndarray]] = []
    cancelled = 0

    def piece(longest: int) -> list[int]:
        at = draw.randrange(len(text) - longest)
        return text[at : at + draw.randint(1, longest)]

    def next_context() -> list[int]:
        context = [*start, *piece(120)] if draw.random() < 0.05 else draw.choice(recent[-40:])
        if draw.random() < 0.3:
            context = context[: -draw.randint(1, 12)] or start
        context = [*context[:160], *piece(draw.choice([1, 1, 1, 3, 20]))]
        recent.append(context)
        return context

    async def answer(context: list[int], salt: str | None) -> None:
        answers.append((context, await engine.next_token_logprobs(context, cache_salt=salt)))

    async def generate(context: list[int]) -> None:
        async for chunk in engine.generate(context, draw.randint(1, 12), temperature=0.0):
            context = [*context, *chunk.token_ids]
        recent.append(context)

    while len(answers) < 400:
        calls = [
            answer(next_context(), "a" if draw.random() < 0.1 else None)
            for _ in range(draw.choice([1, 2, 5, 12]))
        ]
        if draw.random() < 0.2:
            calls.append(generate(next_context()))
        tasks = [asyncio.create_task(call) for call in calls]
        if draw.random() < 0.2:
            await asyncio.sleep(draw.choice([0, 0.01, 0.05]))
            cancelled += draw.choice(tasks).cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            assert task.cancelled() or task.exception() is None
    counts = engine.stats.tails
    assert counts.hits > 200
    assert counts.evictions > 50
    assert cancelled > 5

    # With a salt of its own, a context is computed from its beginning, and nothing is copied.
    fresh = await asyncio.gather(
        *(
            engine.next_token_logprobs(context, cache_salt=f"fresh {n}")
            for n, (context, _) in enumerate(answers)
        )
    )
    assert engine.stats.tails.hits == counts.hits
    for (_, row), expected in zip(answers, fresh, strict=True):
        np.testing.assert_allclose(row, expected, atol=1e-4, rtol=0)
    for context, row in answers[::20]:
        expected = await reference.next_token_logprobs(context)
        np.testing.assert_allclose(row, expected, atol=1e-3, rtol=0)
