"""The laws of a byte LM on the real engine, up to the rounding that batching brings (1e-4 nats)."""

import numpy as np
import pytest

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.models.byte_lm import StatefulByteLM
from bytelm.models.testing import (
    BruteForce,
    assert_chain_rule,
    assert_immutable,
    assert_lower_bound,
    assert_normalised,
    assert_prune_keeps_one,
)

ROUNDING = 1e-4
TEXTS = [b"The capital of Fran", b"import numpy as n", "北京是".encode(), b"caf\xc3", b" "]


def log_z(state: StatefulByteLM) -> float:
    assert isinstance(state, ByteBeamState)
    assert state.logZ is not None
    return state.logZ


@pytest.fixture
async def initial(engine) -> ByteBeamState:
    return await ByteBeamState.initial(engine, BeamParams(K=5, prune_threshold=0.01))


@pytest.fixture
async def unlimited(engine) -> ByteBeamState:
    return await ByteBeamState.initial(engine, BeamParams(K=None))


@pytest.mark.parametrize("text", TEXTS)
async def test_distributions_are_normalised_and_pruning_keeps_one(initial, text):
    state = await initial.prefill(text)
    await assert_normalised(state)
    assert_prune_keeps_one(state, len)


@pytest.mark.parametrize("text", TEXTS)
async def test_a_state_never_changes(initial, text):
    state = await initial.prefill(text)
    likely = [b for b in (await state.logp_next()).top(4) if isinstance(b, int) and b < 256]
    await assert_immutable(state, likely, ROUNDING)


@pytest.mark.parametrize("text", [b"Fran", b" the", "é!".encode()])
async def test_conditionals_add_up_to_the_probability_of_the_text(unlimited, text):
    await assert_chain_rule(unlimited, text, log_z, len(text) * ROUNDING)


@pytest.mark.parametrize("text", [b"Fr", b" t", "é".encode()])
async def test_an_unlimited_beam_is_brute_force_and_a_narrow_one_below_it(
    engine, unlimited, initial, text
):
    """Over all tokens that begin the text, with the rows of the engine."""
    vocab = engine.vocab
    starts = [(), *((i,) for i, data in enumerate(vocab.token_bytes) if data == text[:1])]
    contexts = [(*vocab.initial_context, *start) for start in starts]
    rows = {context: await engine.next_token_logprobs(context) for context in contexts}
    want = BruteForce(lambda context: rows[tuple(context)], vocab)
    exact = await unlimited.prefill(text, mode="exact")
    assert exact.logZ == pytest.approx(np.log(want.prefix(text)), abs=ROUNDING)
    narrow = await initial.prefill(text, mode="exact")
    assert_lower_bound(narrow.logZ, text, want, ROUNDING)
