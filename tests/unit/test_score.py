"""Scores against the chain of logp_next, and against exact prefix probabilities."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.errors import ByteError, ContextTooLong, InputError, Terminated
from bytelm.generating.score import score, score_all
from bytelm.models.ensemble import Ensemble
from bytelm.models.logprobs import EOS, LazyByteProbs
from bytelm.models.testing import BruteForce, StubLM
from bytelm.vocabulary.vocab import ByteVocab

VOCAB = ByteVocab.from_bytes(
    [b"", b"", b"a", b"b", b"c", b"ab", b"bc", b"abc", b"ca", b"ab"],
    bos_token_id=0,
    eos_token_ids=(1,),
)
slow = settings(max_examples=40)
texts = st.text("abc", max_size=5).map(str.encode)
beams = st.sampled_from([BeamParams(K=None), BeamParams(K=2, prune_threshold=0.05)])


async def after(context: bytes, params: BeamParams, lm: StubLM | None = None) -> ByteBeamState:
    state = await ByteBeamState.initial(lm or StubLM(VOCAB), params)
    return await state.prefill(context, mode="exact")


async def chain(state: ByteBeamState, text: bytes) -> tuple[list[float], float]:
    """Each byte's log-probability, and EOS's after them; all -inf from an impossible byte on."""
    logprobs: list[float] = []
    for b in text:
        logprobs.append((await state.logp_next())[b])
        if logprobs[-1] == -math.inf:
            return logprobs + [-math.inf] * (len(text) - len(logprobs)), -math.inf
        state = await (state.prune() << b)
    return logprobs, (await state.logp_next())[EOS]


@slow
@given(texts, texts, beams)
async def test_a_score_is_the_chain_of_logp_next(context, text, params):
    state = await after(context, params)
    logprobs, end = await chain(state, text)
    have = await score(state, text, eos=True)
    assert have.logprobs.tolist() == logprobs
    assert have.eos == end
    assert have.logprob == pytest.approx(sum(logprobs) + end)
    without = await score(state, text)
    assert without.eos is None
    assert without.logprob == pytest.approx(sum(logprobs))


@slow
@given(texts, texts)
async def test_with_an_unlimited_beam_a_score_is_the_exact_probability(context, text):
    state = await after(context, BeamParams(K=None))
    log_z = (await state.prefill(text, mode="exact")).logZ
    have = await score(state, text, eos=True)
    assert math.fsum(have.logprobs) == pytest.approx(log_z - state.logZ, abs=1e-6)
    brute = BruteForce(StubLM(VOCAB).row, VOCAB)
    want = brute.whole(context + text) / brute.prefix(context)
    assert math.exp(have.logprob) == pytest.approx(want, rel=1e-6)


@slow
@given(texts, texts, st.tuples(st.integers(0, 5), st.integers(0, 5)))
async def test_a_span_has_the_ratio_of_exact_probabilities(context, text, places):
    start, end = sorted(min(place, len(text)) for place in places)
    have = await score(await after(context, BeamParams(K=None)), text)
    brute = BruteForce(StubLM(VOCAB).row, VOCAB)
    want = brute.prefix(context + text[:end]) / brute.prefix(context + text[:start])
    assert math.exp(have.of_span(start, end)) == pytest.approx(want, rel=1e-6)


@slow
@given(texts, st.lists(texts, max_size=6), beams, st.booleans(), st.integers(1, 3))
async def test_several_scores_are_those_of_each_alone(context, several, params, eos, concurrency):
    """Equal ones, beginnings of one another and empty ones too."""
    state = await after(context, params)
    together = await score_all(state, several, eos=eos, concurrency=concurrency)
    assert len(together) == len(several)
    for text, have in zip(several, together, strict=True):
        alone = await score(await after(context, params), text, eos=eos)
        assert have.logprobs.tolist() == alone.logprobs.tolist()
        assert have.eos == alone.eos


class Known(Ensemble):
    """A byte LM that knows what comes, and cannot walk."""

    def __init__(self, asked: list[bytes]) -> None:
        self.asked = asked

    async def rows(self, bs):
        self.asked.append(bytes(bs))
        for place in range(len(bs) + 1):
            ps = np.full(258, -math.inf)
            ps[b"abc"[place]], ps[EOS] = -1.0 - place, -5.0
            yield LazyByteProbs(ps)


async def test_one_score_is_read_from_the_states_own_rows():
    asked: list[bytes] = []
    with_end = await score(Known(asked), b"ab", eos=True)
    assert (with_end.logprobs.tolist(), with_end.eos) == ([-1.0, -2.0], -5.0)
    assert (await score(Known(asked), b"ab")).logprobs.tolist() == [-1.0, -2.0]
    impossible = await score(Known(asked), b"acb", eos=True)
    assert impossible.logprobs.tolist() == [-1.0, -math.inf, -math.inf]
    assert impossible.eos == -math.inf
    assert (await score(Known(asked), b"")).logprob == 0
    # No row is asked for that nobody reads.
    assert asked == [b"ab", b"a", b"acb"]


async def test_common_beginnings_are_evaluated_once():
    lm = StubLM(VOCAB)
    state = await after(b"ab", BeamParams(K=None), lm)
    before = lm.evaluations
    await score(state, b"abcabc", eos=True)
    alone = lm.evaluations - before
    state = await after(b"ab", BeamParams(K=None), lm)
    before = lm.evaluations
    await score_all(state, [b"abcabc", b"abc", b"abcabc", b"", b"ab"], eos=True)
    assert lm.evaluations - before == alone


async def test_the_state_is_not_changed_by_scoring():
    state = await after(b"ab", BeamParams(K=3))
    before = (await state.logp_next()).ps.copy()
    await score_all(state, [b"abc", b"cab"])
    assert np.array_equal((await state.logp_next()).ps, before)


async def test_bits_per_byte_are_of_the_bytes_alone():
    state = await after(b"ab", BeamParams(K=3))
    have = await score(state, b"abc", eos=True)
    assert have.bits_per_byte == pytest.approx(-have.logprobs.sum() / math.log(2) / 3)


async def test_nothing_scores_zero():
    have = await score(await after(b"ab", BeamParams(K=3)), b"")
    assert (have.logprobs.tolist(), have.logprob, have.bits_per_byte) == ([], 0.0, 0.0)


async def test_eos_alone_can_be_scored():
    state = await after(b"ab", BeamParams(K=3))
    have = await score(state, b"", eos=True)
    assert have.logprob == have.eos == (await state.logp_next())[EOS]


async def test_from_an_impossible_byte_on_everything_is_impossible():
    state = await after(b"ab", BeamParams(K=3))
    impossible, possible = await score_all(state, [b"azbc", b"acbc"], eos=True)
    assert impossible.logprobs[0] == possible.logprobs[0] > -math.inf
    assert impossible.logprobs[1:].tolist() == [-math.inf] * 3
    assert impossible.eos == impossible.logprob == -math.inf
    assert impossible.bits_per_byte == math.inf
    assert possible.logprob > -math.inf


async def test_an_impossible_byte_ends_the_evaluations():
    lm = StubLM(VOCAB)
    state = await after(b"ab", BeamParams(K=3), lm)
    await state.logp_next()
    before = lm.evaluations
    await score(state, b"zabcabc")
    assert lm.evaluations == before


async def test_bytes_that_do_not_fit_into_the_model_are_refused():
    lm = StubLM(VOCAB, max_context_tokens=4)
    state = await after(b"ab", BeamParams(K=1), lm)
    with pytest.raises(ContextTooLong, match=r"the model is full after \d+ bytes"):
        await score(state, b"cbacbacbacba")


async def test_wrong_input_is_refused():
    state = await after(b"ab", BeamParams(K=3))
    with pytest.raises(ByteError, match="300"):
        await score(state, [97, 300])
    with pytest.raises(InputError, match="concurrency"):
        await score_all(state, [b"a"], concurrency=0)
    with pytest.raises(Terminated):
        await score(await (state << EOS), b"a")


@slow
@given(texts, st.lists(texts, min_size=1, max_size=5), beams, st.booleans())
async def test_what_a_score_was_read_from_is_told_and_gone_on_from(context, several, params, eos):
    state = await after(context, params)
    seen: list[list[float]] = [[] for _ in several]
    reached = {}

    async def onward(i, there):
        reached[i] = there.context, (await there.logp_next())[EOS]

    def see(i, q):
        at = len(seen[i])
        seen[i].append(q[several[i][at] if at < len(several[i]) else EOS])

    scores = await score_all(state, several, eos=eos, seen=see, onward=onward)
    for i, (text, have) in enumerate(zip(several, scores, strict=True)):
        wanted = [*have.logprobs, *([have.eos] if eos else [])]
        length = len(wanted) if have.logprob > -math.inf else len(seen[i])
        assert seen[i] == wanted[:length]
        if math.fsum(have.logprobs) == -math.inf:
            assert seen[i][-1] == -math.inf
            assert i not in reached
        else:
            assert reached[i] == (context + text, (await chain(state, text))[1])
