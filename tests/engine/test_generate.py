import asyncio
import contextlib

import numpy as np
import pytest

from bytelm.errors import ContextTooLong, InputError


def prompt_of(engine, text: bytes) -> list[int]:
    return [*engine.vocab.initial_context, *engine.vocab.encode(text)]


async def collect(engine, prompt, max_tokens, **options) -> tuple[list[int], str | None]:
    tokens: list[int] = []
    reason = None
    async for chunk in engine.generate(prompt, max_tokens, **options):
        assert reason is None
        tokens += chunk.token_ids
        reason = chunk.finish_reason
    return tokens, reason


async def test_greedy_tokens_are_the_most_probable_ones(engine):
    prompt = prompt_of(engine, b"An apple a day keeps the")
    tokens, _ = await collect(engine, prompt, 8, temperature=0)
    for n, token in enumerate(tokens):
        row = await engine.next_token_logprobs(prompt + tokens[:n])
        assert row[token] >= row.max() - 1e-4


async def test_it_ends_after_max_tokens(engine):
    tokens, reason = await collect(engine, prompt_of(engine, b"Once"), 5)
    assert (len(tokens), reason) == (5, "length")


async def test_it_ends_after_a_stop_token_which_is_the_last(engine):
    prompt = prompt_of(engine, b"An apple a day keeps the")
    tokens, _ = await collect(engine, prompt, 8, temperature=0)
    stopped, reason = await collect(engine, prompt, 8, temperature=0, stop_token_ids=[tokens[3]])
    assert stopped == tokens[: tokens.index(tokens[3]) + 1]
    assert reason == "stop"


async def test_it_ends_at_the_models_limit(engine):
    tokens, reason = await collect(engine, [1] * 2045, 50)
    assert (len(tokens), reason) == (3, "length")


async def test_the_same_seed_draws_the_same_tokens(engine):
    prompt = prompt_of(engine, b"Once upon a time")
    first, _ = await collect(engine, prompt, 12, seed=11)
    again, _ = await collect(engine, prompt, 12, seed=11)
    other, _ = await collect(engine, prompt, 12, seed=12)
    assert first == again
    assert first != other


async def test_closing_the_iterator_ends_the_request(engine):
    stream = engine.generate(prompt_of(engine, b"Once upon a time"), 1000)
    async with contextlib.aclosing(stream):
        await anext(stream)
    assert engine._llm.get_num_unfinished_requests() == 0


async def test_evaluations_beside_a_generation_are_right(engine, reference):
    prompt = prompt_of(engine, b"The quick brown fox")
    generation = asyncio.create_task(collect(engine, prompt, 40))
    contexts = [prompt[:n] for n in range(1, len(prompt) + 1)] * 3
    rows = [await engine.next_token_logprobs(context) for context in contexts]
    assert len((await generation)[0]) == 40
    for context, row in zip(contexts, rows, strict=True):
        expected = await reference.next_token_logprobs(context)
        np.testing.assert_allclose(row, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ([1] * 2048, {}, ContextTooLong, "2048 tokens, the model takes 2047"),
        ([], {}, InputError, "no tokens"),
        ([1], {"max_tokens": 0}, InputError, "max_tokens is 0"),
        ([1], {"temperature": -1.0}, InputError, "temperature is -1"),
        ([1], {"temperature": 2.1}, InputError, "temperature is 2.1"),
        ([1], {"temperature": float("nan")}, InputError, "temperature is nan"),
        ([1], {"seed": -1}, InputError, "seed is -1"),
        ([1], {"seed": 1 << 64}, InputError, "seed is 18446744073709551616"),
    ],
)
async def test_bad_input_is_refused(engine, prompt, options, error, message):
    with pytest.raises(error, match=message):
        await collect(engine, prompt, **{"max_tokens": 1, **options})
