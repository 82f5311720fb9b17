"""Known texts in waves: what they report is what the walk reports."""

import asyncio
from contextlib import aclosing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.beam import BeamParams, ByteBeamState, waves
from bytelm.beam.waves import KnownWalk
from bytelm.errors import ContextTooLong, EmptyBeam
from bytelm.generating.draws import Draw
from bytelm.generating.score import score_all
from bytelm.models.byte_lm import StatefulByteLM
from bytelm.models.ensemble import Ensemble
from bytelm.models.logprobs import EOS
from bytelm.models.testing import StubLM, merging_vocab

VOCAB = merging_vocab(
    [b"", b"", *[bytes([b]) for b in b"abc "], b"ab", b" a", b"bc", b"abc", b" ab", b"ca"],
    r" ?[a-z]+| +",
    eos_token_ids=[1],
)


LETTERS = merging_vocab(
    [b"", b"", *[bytes([b]) for b in b"abc"], b"ab", b"bc"], r"[a-z]+", eos_token_ids=[1]
)


async def initial(lm, **params) -> ByteBeamState:
    return await ByteBeamState.initial(lm, BeamParams(**params), initial_context=[0])


async def walked(state: ByteBeamState, text: bytes) -> tuple[list[np.ndarray], ByteBeamState]:
    reports = []
    for b in text:
        reports.append((await state.logp_next()).ps)
        state = await state.prune().advanced(b)
    return [*reports, (await state.logp_next()).ps], state


async def in_waves(
    state: ByteBeamState, text: bytes
) -> tuple[list[np.ndarray], ByteBeamState, KnownWalk]:
    walk = KnownWalk(state, text, reports=True)
    reports = []
    for _ in text:
        reports.append((await walk.logp_next()).ps)
        await walk.advance()
    return [*reports, (await walk.logp_next()).ps], walk.state, walk


@settings(max_examples=100)
@given(
    text=st.text("abc ", max_size=60).map(str.encode),
    before=st.sampled_from([b"", b"ab", b"abc ab"]),
    seed=st.integers(0, 99),
    k=st.sampled_from([1, 3, None]),
    threshold=st.sampled_from([0.0, 0.01, 0.1]),
    tokenizations=st.sampled_from(["all", "canonical"]),
    deferred=st.booleans(),
    most=st.sampled_from([None, 12]),
    memory=st.sampled_from([0, 2**20]),
)
async def test_waves_are_the_walk(
    text, before, seed, k, threshold, tokenizations, deferred, most, memory
):
    """Bit for bit, whatever was fetched too much, and however little memory there is."""
    if k is None or not deferred:
        text, threshold = text[:20], max(threshold, 0.01)
    lm = StubLM(VOCAB, seed, spread=3.0)
    params = {
        "K": k,
        "prune_threshold": threshold,
        "tokenizations": tokenizations if deferred else "all",
        "deferred": deferred,
        "max_context_length": most,
    }
    start = await (await initial(lm, **params)).prefill(before, mode="exact")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waves, "MEMORY", memory)
        patch.setattr(waves, "LONG", 10**9)
        want, want_state = await walked(start, text)
        have, have_state, _ = await in_waves(start, text)
    assert [ps.tolist() for ps in have] == [ps.tolist() for ps in want]
    assert [(c.tokens, c.partial, c.weight) for c in have_state] == [
        (c.tokens, c.partial, c.weight) for c in want_state
    ]
    assert have_state._deferred == want_state._deferred
    assert (await have_state.logp_next()).ps.tolist() == want[-1].tolist()
    assert have_state.source.lm is lm


class _Slow(StubLM):
    """A model of bytes, whatever the tokens: what follows depends on the last three.

    Counts how many evaluations are under way, and how often it is asked anew.
    """

    under_way = most = asked = 0

    def row(self, token_ids):
        text = b"".join(self.vocab.token_bytes[t] for t in token_ids)
        return self._row(text[-3:])

    async def next_token_logprobs(self, token_ids):
        if not self.under_way:
            self.asked += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            for _ in range(5):
                await asyncio.sleep(0)
            return await super().next_token_logprobs(token_ids)
        finally:
            self.under_way -= 1


async def likely_text(size: int) -> bytes:
    """What the model itself would write."""
    state = await initial(_Slow(VOCAB, silent=[1]), K=3, prune_threshold=0.01)
    return await state.sample(b"", size, Draw(seed=1), method="byte")


@pytest.mark.parametrize("tokenizations", ["all", "canonical"])
async def test_a_few_waves_take_the_place_of_many_evaluations(tokenizations):
    text = await likely_text(400)
    params = {"K": 3, "prune_threshold": 0.01, "tokenizations": tokenizations, "deferred": True}
    lm, plain = _Slow(VOCAB), _Slow(VOCAB)
    lm.is_idle = True
    _, _, walk = await in_waves(await initial(lm, **params), text)
    await walked(await initial(plain, **params), text)
    assert sum(walk.waves) == lm.evaluations
    assert lm.asked < plain.asked / 10
    assert lm.evaluations < 2 * plain.evaluations


@pytest.mark.parametrize(("is_idle", "most"), [(True, waves.ALONE), (False, waves.BESIDE)])
async def test_others_evaluations_wait_behind_few(is_idle, most):
    lm = _Slow(VOCAB)
    lm.is_idle = is_idle
    await in_waves(await initial(lm, K=3, prune_threshold=0.01), await likely_text(400))
    assert lm.most == most


async def test_an_exact_prefill_comes_in_waves():
    text = await likely_text(200)
    lm, plain = _Slow(VOCAB), _Slow(VOCAB)
    lm.is_idle = True
    params = {"K": 3, "prune_threshold": 0.01}
    have = await (await initial(lm, **params)).prefill(text, mode="exact")
    want = await initial(plain, **params)
    for b in text:
        want = await want.prune().advanced(b)
    assert have.logZ == want.logZ
    assert lm.asked < plain.asked / 4


async def test_a_cancelled_walk_leaves_no_evaluation_under_way():
    lm = _Slow(VOCAB)
    state = await initial(lm, K=3, prune_threshold=0.01)
    task = asyncio.ensure_future(in_waves(state, b"abc ab cab bca " * 10))
    while lm.most < 10:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert lm.under_way == 0


async def test_the_end_of_a_text_is_reported_too():
    lm = StubLM(VOCAB)
    state = await initial(lm, K=3)
    walk = KnownWalk(state, b"abcab" * 4, reports=True)
    for _ in range(20):
        await walk.advance()
    assert (await walk.logp_next())[EOS] == (await walk.state.logp_next())[EOS] > -np.inf


@pytest.mark.parametrize("text", [b"", b"ab", b"abc ab cab bca " * 3])
async def test_rows_are_those_of_the_walk(text):
    state = await initial(StubLM(VOCAB), K=3, prune_threshold=0.01, deferred=True)
    want, _ = await walked(state, text)
    have = [q.ps.tolist() async for q in state.rows(text)]
    assert have == [ps.tolist() for ps in want]


async def read(state: StatefulByteLM, text: bytes) -> tuple[list[list[float]], Exception | None]:
    """The rows of a text, and what ended them."""
    rows = []
    try:
        async for q in state.rows(text):
            rows.append(q.ps.tolist())
    except (EmptyBeam, ContextTooLong) as error:
        return rows, error
    return rows, None


@pytest.mark.parametrize("mode", ["mixture", "pool", "product"])
@pytest.mark.parametrize("other_has", [VOCAB, LETTERS])
async def test_rows_of_an_ensemble_are_those_of_its_walk(mode, other_has):
    """Whether or not one of the models cannot spell the text and is out on the way."""
    lms = [StubLM(VOCAB, 1), StubLM(other_has, 2)]
    states = [await initial(lm, K=3, deferred=True) for lm in lms]
    state = Ensemble(states, [0.3, 0.7], mode)
    text = b"abc ab cab bca abc"
    if other_has is LETTERS and mode == "product":
        with pytest.raises(EmptyBeam):
            await walked(state, text)
        have, error = await read(state, text)
        assert isinstance(error, EmptyBeam)
        want = (await walked(state, text[:3]))[0]
    else:
        want, _ = await walked(state, text)
        have, _ = await read(state, text)
    assert have == [ps.tolist() for ps in want]


async def in_two_ways(mode):
    """An ensemble whose models read in waves, one whose models do not, and their models."""
    members = [(_Slow(VOCAB), _Slow(VOCAB, 1)) for _ in range(2)]
    for lm in members[0]:
        lm.is_idle = True
    params = {"K": 3, "prune_threshold": 0.01, "deferred": True}
    made = [Ensemble([await initial(lm, **params) for lm in lms], mode=mode) for lms in members]
    return *made, *members


async def test_the_models_of_an_ensemble_read_in_waves():
    quick, plain, lms, others = await in_two_ways("mixture")
    text = await likely_text(200)
    have = [q.ps.tolist() async for q in quick.rows(text)]
    want, _ = await walked(plain, text)
    assert have == [ps.tolist() for ps in want]
    for lm, other in zip(lms, others, strict=True):
        assert lm.asked < other.asked / 4


@pytest.mark.parametrize("mode", ["mixture", "pool", "product"])
async def test_scores_of_an_ensemble_come_in_waves(mode):
    quick, plain, lms, others = await in_two_ways(mode)
    text = await likely_text(200)
    texts = [text, text[:90] + b"cab", b"abc", text[:90] + b" a" + text[90:]]
    have = await score_all(quick, texts, eos=True)
    for one, score in zip(texts, have, strict=True):
        want, _ = await walked(plain, one)
        assert score.logprobs.tolist() == [ps[b] for ps, b in zip(want, one, strict=False)]
        assert score.eos == want[-1][EOS]
    for lm, other in zip(lms, others, strict=True):
        assert lm.asked < other.asked / 4


@pytest.mark.parametrize("other_has", [VOCAB, LETTERS])
async def test_a_mixture_is_prefilled_in_waves(other_has):
    """And so it is when one of the models is out on the way."""
    text = b"abc ab cab bca " * 6
    states = [await initial(StubLM(has, i), K=3) for i, has in enumerate((VOCAB, other_has))]
    have = await Ensemble(states).prefill(text)
    want = (await walked(Ensemble(states), text))[1]
    assert have.context == want.context == text
    assert have.log_weights.tolist() == want.log_weights.tolist()
    assert [one is None for one in have.states] == [one is None for one in want.states]
    assert (await have.logp_next()).ps.tolist() == (await want.logp_next()).ps.tolist()
    after = [await (state.prune() << b) for state in (have, want) for b in b"a"]
    assert after[0].log_weights.tolist() == after[1].log_weights.tolist()


async def test_rows_of_an_ensemble_that_are_left_end_all_evaluations():
    lms = [_Slow(VOCAB), _Slow(VOCAB, 1)]
    state = Ensemble([await initial(lm, K=3, prune_threshold=0.01) for lm in lms])

    async def read():
        async with aclosing(state.rows(b"abc ab cab bca " * 10)) as rows:
            async for _ in rows:
                pass

    task = asyncio.ensure_future(read())
    while max(lm.most for lm in lms) < 10:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [lm.under_way for lm in lms] == [0, 0]


async def test_rows_end_where_the_model_is_full():
    lm = StubLM(VOCAB, max_context_tokens=20)
    state = await initial(lm, K=3, prune_threshold=0.01)
    text = b"abc ab cab bca " * 10
    have, error = await read(state, text)
    assert isinstance(error, ContextTooLong)
    assert f"is full after {len(have)} bytes" in str(error)
    assert 20 < len(have) < len(text)
    assert have == [ps.tolist() for ps in (await walked(state, text[: len(have) - 1]))[0]]


async def test_others_have_their_turn_while_nothing_is_fetched():
    """Where a wave fetched all that hundreds of bytes ask for."""
    lm = _Slow(VOCAB)
    params = {"K": 3, "prune_threshold": 0.01, "tokenizations": "canonical", "deferred": True}
    text = await likely_text(400)
    walk = (await initial(lm, **params)).through(text)
    turns = longest = 0

    async def other():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(other())
    for _ in text:
        before = turns
        await walk.logp_next()
        await walk.advance()
        longest = 0 if turns > before else longest + 1
        assert longest < waves.TURN
    task.cancel()
