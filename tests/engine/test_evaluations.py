import asyncio
import contextlib
import random

import numpy as np
import pytest
from vllm.v1.engine.async_llm import AsyncLLM

from bytelm.beam.rows import RowSource
from bytelm.errors import ContextTooLong, InputError
from bytelm.models.token_lm import AsyncTokenLM
from bytelm.vllm.slots import SlotPool
from bytelm.vocabulary.trie import TokenTrie

TEXT = (
    "The capital of France is Paris. def area(r): return 3.14159 * r ** 2\n"
    "Wer reitet so spät durch Nacht und Wind? It was a bright cold day in April. "
) * 60


def contexts_of(lengths, vocab) -> list[list[int]]:
    ids = vocab.encode(TEXT.encode())
    bos = list(vocab.initial_context)
    contexts = [(bos + ids[7 * i :])[:length] for i, length in enumerate(lengths)]
    assert [len(context) for context in contexts] == list(lengths)
    return contexts


@pytest.fixture
def small_pool(engine, monkeypatch):
    """Only two slots, for a test that wants them to run out."""
    pool = SlotPool(2)
    monkeypatch.setattr(engine._evaluations, "pool", pool)
    return pool


async def quiet(engine) -> None:
    """Wait until the engine has settled all that was aborted."""
    while not engine._evaluations.is_settled:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def test_engine_and_reference_are_token_lms(engine, reference):
    assert isinstance(engine, AsyncTokenLM)
    assert isinstance(reference, AsyncTokenLM)


async def test_rows_equal_transformers(engine, reference):
    lengths = [1, 2, 3, 5, 8, 13, 21, 31, 32, 33, 47, 64, 65, 90, 128, 129, 200, 300, 400, 500]
    contexts = contexts_of(lengths, engine.vocab)
    rows = await asyncio.gather(*map(engine.next_token_logprobs, contexts))
    for context, row in zip(contexts, rows, strict=True):
        assert row.dtype == np.float32
        assert row.shape == (engine.vocab.size,)
        np.testing.assert_allclose(
            row, await reference.next_token_logprobs(context), atol=1e-3, rtol=0
        )
        assert abs(np.exp(row.astype(np.float64)).sum() - 1) < 1e-4


async def test_masses_are_those_of_the_row_in_its_order(engine):
    (context,) = contexts_of([50], engine.vocab)
    made = await engine.next_row(context)
    assert made.order is TokenTrie.of(engine.vocab).row_order
    probs = np.exp(made.values.astype(np.float64))
    masses = np.add.reduceat(probs, made.order.bounds[:-1])
    np.testing.assert_allclose(made.masses, masses, rtol=3e-6, atol=1e-30)
    again = await engine.next_token_logprobs(context)
    np.testing.assert_allclose(made.by_id(), again, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "reading", [{}, {"eos_tokens": [b"\n", b" the"]}, {"literal": True}], ids=repr
)
async def test_every_reading_is_that_of_the_row_by_id(engine, reading):
    (context,) = contexts_of([51], engine.vocab)
    source = RowSource(engine, **reading)
    made = await engine.next_row(context)
    have, want = source.read(made), source.read(made.by_id())
    np.testing.assert_allclose(have.root, want.root, rtol=3e-6, atol=1e-30)
    assert have.mass == pytest.approx(want.mass, rel=1e-6)


async def test_rows_that_somebody_has_stay_as_they_are(engine):
    """More of them than there are slots."""
    contexts = [[1, 300 + i] for i in range(engine.stats.slots + 40)]
    rows = await asyncio.gather(*map(engine.next_row, contexts))
    before = [row.by_id() for row in rows]
    await asyncio.gather(*(engine.next_row([1, 2000 + i]) for i in range(engine.stats.slots)))
    for row, values in zip(rows, before, strict=True):
        assert np.array_equal(row.by_id(), values)
        assert abs(row.masses.sum() - 1) < 1e-9
    assert engine.stats.slots_free == engine.stats.slots


async def test_the_prefix_cache_does_not_change_a_row(engine):
    (context,) = contexts_of([200], engine.vocab)
    first = await engine.next_token_logprobs(context)
    cached = engine.stats.tokens_cached
    again = await engine.next_token_logprobs(context)
    assert engine.stats.tokens_cached > cached
    np.testing.assert_allclose(first, again, atol=1e-4, rtol=0)


async def test_a_salt_keeps_cached_work_apart(engine):
    (context,) = contexts_of([150], engine.vocab)
    await engine.next_token_logprobs(context, cache_salt="one")
    cached = engine.stats.tokens_cached
    await engine.next_token_logprobs(context, cache_salt="another")
    assert engine.stats.tokens_cached == cached


async def test_tokens_are_counted_as_computed_or_cached(engine):
    before = engine.stats
    contexts = contexts_of([77, 78, 140], engine.vocab)
    for context in contexts:
        await engine.next_token_logprobs(context)
    after = engine.stats
    assert after.evaluations - before.evaluations == 3
    computed = after.tokens_computed - before.tokens_computed
    cached = after.tokens_cached - before.tokens_cached
    assert computed + cached == sum(map(len, contexts))


async def test_a_row_is_read_only(engine):
    row = await engine.next_token_logprobs(engine.vocab.initial_context)
    with pytest.raises(ValueError, match="read-only"):
        row[0] = 0


# Sharing. Their salts keep contexts from being answered out of the cache before anybody leaves.


async def sent(engine, context, callers: int, salt: str) -> list[asyncio.Task]:
    """Calls for one context, whose evaluation has just been sent."""
    before = engine.stats.evaluations
    calls = [
        asyncio.create_task(engine.next_token_logprobs(context, cache_salt=salt))
        for _ in range(callers)
    ]
    while engine.stats.evaluations == before:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return calls


async def test_equal_contexts_in_flight_share_one_evaluation(engine):
    (context,) = contexts_of([40], engine.vocab)
    before = engine.stats
    rows = await asyncio.gather(*(engine.next_token_logprobs(context) for _ in range(5)))
    assert engine.stats.evaluations - before.evaluations == 1
    assert engine.stats.shared - before.shared == 4
    for row in rows:
        np.testing.assert_array_equal(row, rows[0])


async def test_equal_contexts_of_different_salt_do_not_share(engine):
    (context,) = contexts_of([41], engine.vocab)
    before = engine.stats.evaluations
    await asyncio.gather(
        engine.next_token_logprobs(context, cache_salt="a"),
        engine.next_token_logprobs(context, cache_salt="b"),
    )
    assert engine.stats.evaluations - before == 2


async def test_an_evaluation_goes_on_while_somebody_waits(engine):
    (context,) = contexts_of([1000], engine.vocab)
    leaves, stays = await sent(engine, context, 2, "goes on")
    leaves.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaves
    assert (await stays).shape == (engine.vocab.size,)


async def test_an_evaluation_is_aborted_when_the_last_waiter_leaves(engine, monkeypatch):
    aborted = []
    abort = AsyncLLM.abort

    async def watched(self, request_id):
        aborted.append(request_id)
        await abort(self, request_id)

    monkeypatch.setattr(AsyncLLM, "abort", watched)
    (context,) = contexts_of([2000], engine.vocab)
    first, last = await sent(engine, context, 2, "aborted")
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert aborted == []
    last.cancel()
    await asyncio.gather(last, return_exceptions=True)
    await quiet(engine)
    assert len(aborted) == 1
    assert engine.stats.slots_free == engine.stats.slots


async def test_the_others_of_a_burst_go_on_when_one_is_given_up(engine, reference):
    contexts = contexts_of([900, 1000, 1100], engine.vocab)
    before = engine.stats.evaluations
    calls = [
        asyncio.create_task(engine.next_token_logprobs(context, cache_salt="others"))
        for context in contexts
    ]
    while engine.stats.evaluations < before + 3:  # noqa: ASYNC110
        await asyncio.sleep(0)
    calls[1].cancel()
    first, left, last = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(left, asyncio.CancelledError)
    for row, context in ((first, contexts[0]), (last, contexts[2])):
        expected = await reference.next_token_logprobs(context)
        np.testing.assert_allclose(row, expected, atol=1e-3, rtol=0)
    await quiet(engine)
    assert engine.stats.slots_free == engine.stats.slots


async def test_a_new_call_does_not_join_an_aborted_evaluation(engine, reference):
    (context,) = contexts_of([600], engine.vocab)
    (left,) = await sent(engine, context, 1, "anew")
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    row = await engine.next_token_logprobs(context, cache_salt="anew")
    expected = await reference.next_token_logprobs(context)
    np.testing.assert_allclose(row, expected, atol=1e-3, rtol=0)


# Slots


async def test_callers_wait_when_slots_run_out(engine, small_pool):
    contexts = contexts_of(range(20, 32), engine.vocab)
    alone = [await engine.next_token_logprobs(c, cache_salt="alone") for c in contexts]
    calls = [asyncio.create_task(engine.next_token_logprobs(c)) for c in contexts]
    while len(small_pool):  # noqa: ASYNC110
        await asyncio.sleep(0)
    for row, expected in zip(await asyncio.gather(*calls), alone, strict=True):
        np.testing.assert_allclose(row, expected, atol=1e-4, rtol=0)
    assert len(small_pool) == 2


async def test_one_who_leaves_while_waiting_for_a_slot_sends_nothing(engine, small_pool):
    contexts = contexts_of([300, 301, 302], engine.vocab)
    before = engine.stats.evaluations
    calls = [asyncio.create_task(engine.next_token_logprobs(c)) for c in contexts]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    calls[2].cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await quiet(engine)
    assert engine.stats.evaluations - before == 2
    assert len(small_pool) == 2


@pytest.mark.parametrize("slots", [96, 7])
async def test_cancelling_half_of_500_mixes_no_rows_and_loses_no_slot(
    engine, reference, monkeypatch, slots
):
    pool = SlotPool(slots)
    monkeypatch.setattr(engine._evaluations, "pool", pool)
    choose = random.Random(slots)
    distinct = contexts_of([choose.randrange(1, 60) for _ in range(25)], engine.vocab)
    expected = [await reference.next_token_logprobs(context) for context in distinct]

    async def call(which: int):
        await asyncio.sleep(choose.random() * 3)
        # The salts keep most of them from sharing one evaluation.
        return await engine.next_token_logprobs(
            distinct[which], cache_salt=str(choose.randrange(8))
        )

    which = [choose.randrange(len(distinct)) for _ in range(500)]
    calls = [asyncio.create_task(call(w)) for w in which]

    async def cancel(task: asyncio.Task) -> None:
        await asyncio.sleep(choose.random() * 4)
        task.cancel()

    cancelling = [asyncio.create_task(cancel(t)) for t in choose.sample(calls, 250)]
    survivors = 0
    for task, w in zip(calls, which, strict=True):
        with contextlib.suppress(asyncio.CancelledError):
            row = await task
            np.testing.assert_allclose(row, expected[w], atol=1e-3, rtol=0)
            survivors += 1
    await asyncio.gather(*cancelling)
    await quiet(engine)
    assert survivors >= 250
    assert len(pool) == slots
    assert sorted([await pool.acquire() for _ in range(slots)]) == list(range(slots))


# Bad input


async def test_a_context_over_the_limit_is_refused_before_anything_is_sent(engine):
    before = engine.stats.evaluations
    with pytest.raises(ContextTooLong, match="2048 tokens, the model takes 2047"):
        await engine.next_token_logprobs([1] * 2048)
    assert engine.stats.evaluations == before


async def test_the_longest_context_is_evaluated(engine):
    assert engine.max_context_tokens == 2047
    row = await engine.next_token_logprobs([1] * 2047)
    assert abs(np.exp(row.astype(np.float64)).sum() - 1) < 1e-4


@pytest.mark.parametrize("wrong", [-1, 49152, 1 << 40])
async def test_ids_that_the_model_does_not_have_are_refused(engine, wrong):
    with pytest.raises(InputError, match=f"{wrong} is outside 0..49151"):
        await engine.next_token_logprobs([1, wrong, 2])


async def test_an_empty_context_is_refused(engine):
    with pytest.raises(InputError, match="no tokens"):
        await engine.next_token_logprobs([])


async def test_numpy_ids_are_ids(engine):
    row = await engine.next_token_logprobs(np.array([1, 504, 5]))
    np.testing.assert_array_equal(row, await engine.next_token_logprobs([1, 504, 5]))
