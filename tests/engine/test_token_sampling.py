"""Sampling by tokens on the real engine: what is banned, and how the first bytes are drawn."""

import asyncio
from collections import Counter

import numpy as np
import pytest

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.errors import InputError
from bytelm.generating.draws import Draw
from bytelm.generating.generation import collect
from bytelm.generating.token_sampling import sample_tokens
from bytelm.models.logprobs import EOS
from bytelm.models.testing import assert_drawn_from
from bytelm.models.token_lm import GeneratingTokenLM, Usage
from bytelm.prompts.context import Context, Special, Text, begin

DRAWS = 400


async def generated(engine, ids, max_tokens, **options) -> list[int]:
    chunks = [chunk async for chunk in engine.generate(ids, max_tokens, **options)]
    return [token for chunk in chunks for token in chunk.token_ids]


async def first_bytes(state: ByteBeamState, seed: int) -> Counter[int]:
    """How often each byte came first, EOS counting as one."""
    parent = Draw(seed=seed)
    texts = [collect(sample_tokens(state, 1, parent.spawn(i))) for i in range(DRAWS)]
    made = await asyncio.gather(*texts)
    return Counter(one.data[0] if one.data else EOS for one in made)


async def probs_after(state: ByteBeamState) -> dict[int, float]:
    found = np.exp((await state.logp_next()).ps)
    return dict(enumerate(found.tolist()))


def test_the_engine_generates(engine):
    assert isinstance(engine, GeneratingTokenLM)


async def test_banned_tokens_are_never_sampled(engine):
    """Whatever else the batch holds: each request has its own ban, or none."""
    size = engine.vocab.size
    allowed = [np.arange(n, size, 1000) for n in range(10, 26)]
    bans = [np.setdiff1d(np.arange(size), ids) for ids in allowed]
    calls = [
        generated(engine, [1], 24, temperature=t, seed=n, banned_token_ids=ban)
        for n, ban in enumerate(bans)
        for t in (1.0, 2.0)
    ]
    free = [generated(engine, [1], 24, temperature=2.0, seed=n) for n in range(8)]
    rows = [engine.next_token_logprobs([1, 500 + n]) for n in range(8)]
    made, others, evaluated = await asyncio.gather(
        asyncio.gather(*calls), asyncio.gather(*free), asyncio.gather(*rows)
    )
    for n, tokens in enumerate(made):
        assert len(tokens) == 24
        assert set(tokens) <= set(allowed[n // 2].tolist())
    assert any(token not in ids for tokens in others for token in tokens for ids in allowed)
    assert all(np.isfinite(row).all() for row in evaluated)


async def test_what_is_left_is_sampled_by_its_probability(engine):
    """Right after a turn's end the model wants a special token and nothing else."""
    vocab = engine.vocab
    context = Context([Text(b"Hello"), Special.named("<|im_end|>", vocab), Text(b"\n")])
    state = await begin(engine, BeamParams(K=None), context, mode="exact")
    row = await engine.next_token_logprobs(context.tokens(vocab))
    assert np.exp(row[sorted(vocab.special_ids)]).sum() > 0.5
    assert_drawn_from(await first_bytes(state, seed=1), await probs_after(state))


@pytest.mark.parametrize("text", [b"", b"The weather is w", b"She said that th", b"one, two, "])
async def test_the_first_byte_is_drawn_from_its_distribution(engine, text):
    state = await ByteBeamState.initial(engine, BeamParams(K=20, prune_threshold=1e-4))
    state = await state.prefill(text)
    assert_drawn_from(await first_bytes(state, seed=2), await probs_after(state))


async def test_texts_are_bytes_without_special_tokens_cut_at_steps(engine):
    state = await ByteBeamState.initial(engine, BeamParams(K=5, prune_threshold=0.01))
    state = await state.prefill(b"Once upon a ti")
    draws = [Draw(seed=3).spawn(i) for i in range(16)]
    made = await asyncio.gather(*[collect(sample_tokens(state, 60, draw)) for draw in draws])
    assert all(len(one.data) == 60 for one in made if one.finish_reason == "steps")
    assert {one.finish_reason for one in made} <= {"steps", "eos"}
    assert not any(b"<|im_" in one.data for one in made)
    assert len({one.data for one in made}) == 16
    assert sum(one.data.startswith(b"me") for one in made) > 8
    assert engine._llm.get_num_unfinished_requests() == 0


async def test_what_a_generation_takes_is_counted(engine):
    usage = Usage()
    tokens = await generated(engine, [1, 700, 701], 9, usage=usage)
    assert len(tokens) == 9
    # The last token does not go through the model.
    assert usage.tokens_computed + usage.tokens_cached == 3 + 8
    assert usage.evaluations == 0


async def test_a_ban_on_an_id_that_does_not_exist_is_refused(engine):
    with pytest.raises(InputError, match="banned"):
        await generated(engine, [1], 1, banned_token_ids=[engine.vocab.size])
