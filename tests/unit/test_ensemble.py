"""Ensembles against brute force over all tokenizations of models with different vocabularies."""

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.errors import ByteError, EmptyBeam, InputError, Terminated
from bytelm.generating.draws import Draw
from bytelm.models.byte_lm import StatefulByteLM
from bytelm.models.ensemble import Ensemble, Mode
from bytelm.models.logprobs import EOS, LazyByteProbs
from bytelm.models.testing import (
    BruteForce,
    StubLM,
    assert_chain_rule,
    assert_immutable,
    assert_normalised,
    assert_reproducible,
)
from bytelm.vocabulary.vocab import ByteVocab

MODES: list[Mode] = ["mixture", "pool", "product"]
VOCABULARIES = [
    [b"a", b"b", b"c", b"ab", b"abc", b"ca"],
    [b"c", b"b", b"a", b"bc", b"cab", b"bb", b"ab"],
    [b"b", b"a", b"c"],
]
texts = st.text("abc", max_size=4).map(str.encode)
weights = st.lists(st.floats(0.01, 10), min_size=3, max_size=3)
slow = settings(max_examples=30)


def stub(tokens: Sequence[bytes], seed: int = 0) -> StubLM:
    vocab = ByteVocab.from_bytes([b"", b"", *tokens], bos_token_id=0, eos_token_ids=(1,))
    return StubLM(vocab, seed)


LMS = [stub(tokens, seed) for seed, tokens in enumerate(VOCABULARIES)]
TRUTHS = [BruteForce(lm.row, lm.vocab) for lm in LMS]


async def begun(lm: StubLM, k: int | None = None) -> ByteBeamState:
    return await ByteBeamState.initial(lm, BeamParams(K=k))


async def ensemble(
    mode: Mode = "mixture", shares: Sequence[float] | None = None, k: int | None = None
) -> Ensemble:
    return Ensemble([await begun(lm, k) for lm in LMS], shares, mode)


def texts_mixed(text, shares):
    """Probabilities of 256 bytes and EOS after a text, by those of whole texts."""
    total = np.zeros(258)
    for share, truth in zip(shares, TRUTHS, strict=True):
        for b in b"abc":
            total[b] += share * truth.prefix(text + bytes([b]))
        total[EOS] += share * truth.whole(text)
    return total / sum(s * truth.prefix(text) for s, truth in zip(shares, TRUTHS, strict=True))


def symbols_mixed(text, shares):
    shares = np.array(shares) / sum(shares)
    return sum(s * np.exp(t.logp_next(text)) for s, t in zip(shares, TRUTHS, strict=True))


def multiplied(text, shares):
    shares = np.array(shares) / sum(shares)
    factors = [np.exp(t.logp_next(text)) ** s for s, t in zip(shares, TRUTHS, strict=True)]
    product = np.prod(factors, axis=0)
    return product / product.sum()


TRUE: dict[Mode, Callable[[bytes, Sequence[float]], Any]] = {
    "mixture": texts_mixed,
    "pool": symbols_mixed,
    "product": multiplied,
}


@slow
@given(texts, weights, st.sampled_from(MODES), st.booleans())
async def test_the_distribution_is_brute_forces(text, shares, mode, in_one_go):
    state = await ensemble(mode, shares)
    if in_one_go:
        state = await state.prefill(text)
    else:
        for b in text:
            state = await (state << b)
    have = np.exp((await state.logp_next()).ps)
    assert have == pytest.approx(TRUE[mode](text, shares), abs=1e-6)
    assert state.context == text


@slow
@given(texts, weights)
async def test_the_weights_of_a_mixture_follow_the_likelihood(text, shares):
    state = await (await ensemble("mixture", shares)).prefill(text)
    for share, truth, weight in zip(shares, TRUTHS, state.log_weights, strict=True):
        assert weight == pytest.approx(math.log(share / sum(shares) * truth.prefix(text)), abs=1e-6)


@pytest.mark.parametrize("mode", ["pool", "product"])
async def test_other_weights_stay(mode):
    state = await ensemble(mode, [1, 2, 5])
    assert np.exp((await state.prefill(b"abca")).log_weights) == pytest.approx([0.125, 0.25, 0.625])


async def test_what_a_model_read_before_is_its_own_and_does_not_count():
    prompts = [b"ab", b"c", b""]
    states = [await (await begun(lm)).prefill(p) for lm, p in zip(LMS, prompts, strict=True)]
    state = Ensemble(states, [1, 2, 3])
    have = np.exp((await state.logp_next()).ps)
    want = sum(
        share / 6 * np.exp(truth.logp_next(prompt))
        for share, truth, prompt in zip([1, 2, 3], TRUTHS, prompts, strict=True)
    )
    assert have == pytest.approx(want, abs=1e-6)
    assert (await (state << ord("b"))).context == b"b"


async def test_the_same_model_may_be_there_twice():
    one = await begun(LMS[0])
    for mode in MODES:
        have = (await Ensemble([one, one], [3, 1], mode).logp_next()).ps
        assert have == pytest.approx((await one.logp_next()).ps, abs=1e-9)


async def test_an_ensemble_may_be_a_model_of_another():
    inner = await ensemble("pool")
    outer = Ensemble([inner, await begun(LMS[0])], mode="mixture")
    state = await outer.prefill(b"ab")
    await assert_normalised(state)


@pytest.mark.parametrize("mode", MODES)
async def test_laws(mode):
    state = await (await ensemble(mode)).prefill(b"ca")
    await assert_normalised(state)
    await assert_immutable(state, b"abc")
    await assert_reproducible(lambda: state.sample(b"b", 8, Draw(seed=4)))


async def test_the_conditionals_of_a_mixture_sum_to_its_likelihood():
    def log_z(state: StatefulByteLM) -> float:
        assert isinstance(state, Ensemble)
        return float(np.logaddexp.reduce(state.log_weights))

    await assert_chain_rule(await ensemble("mixture", [1, 2, 3]), b"abcab", log_z)


@pytest.mark.parametrize("mode", MODES)
async def test_the_end_of_the_text_is_a_symbol_like_any_other(mode):
    state = await (await (await ensemble(mode)).prefill(b"ab")).__lshift__(EOS)
    assert (state.terminated, state.context) == (True, b"ab")
    assert all(s.terminated for s in state.states)
    with pytest.raises(Terminated):
        await state.logp_next()
    with pytest.raises(Terminated):
        await (state << 97)
    if mode == "mixture":
        want = [math.log(truth.whole(b"ab") / 3) for truth in TRUTHS]
        assert state.log_weights == pytest.approx(want, abs=1e-6)


async def test_greedy_takes_what_is_likeliest_together():
    made = await (await ensemble("product", [1, 1, 2])).greedy(b"a", 4)
    text = b"a"
    while len(text) < len(made):
        best = int(np.argmax(multiplied(text, [1, 1, 2])))
        text += bytes([best])
    assert made == text


@pytest.mark.parametrize("mode", MODES)
async def test_a_pruned_walk_goes_on_from_pruned_states(mode):
    state = await (await ensemble(mode, k=1)).prefill(b"abc")
    pruned = state.prune()
    assert [len(s) for s in pruned.states] == [1, 1, 1]
    assert [len(s) for s in state.states] != [1, 1, 1]
    assert pruned.context == b"abc"


async def test_the_weights_of_a_walk_follow_what_it_read_not_what_pruning_left():
    state = await (await ensemble(k=1)).prefill(b"ab")
    told = [(await s.logp_next())[ord("c")] for s in state.states]
    after = await (state.prune() << ord("c"))
    assert after.log_weights == pytest.approx(state.log_weights + told)


class Knows(StatefulByteLM):
    """A byte LM of one letter, again and again; nothing else can follow."""

    def __init__(self, letter: int, heals: bool = False, limit: bool = False) -> None:
        self.letter, self.heals, self.limit = letter, heals, limit
        self.cleaned = False

    async def __lshift__(self, b: int) -> "Knows":
        if b != self.letter and not self.heals:
            raise EmptyBeam(f"{b} cannot follow")
        return self

    def prune(self) -> "Knows":
        return self

    async def logp_next(self) -> LazyByteProbs:
        ps = np.full(258, -np.inf)
        ps[self.letter] = 0.0
        return LazyByteProbs(ps)

    async def prefill(self, bs) -> "Knows":
        state = self
        for b in bs:
            state = await (state << b)
        return state

    @property
    def context(self) -> bytes:
        return b""

    @property
    def at_limit(self) -> bool:
        return self.limit

    async def cleanup(self) -> None:
        self.cleaned = True


A, B = ord("a"), ord("b")


@pytest.mark.parametrize("mode", ["mixture", "pool"])
async def test_a_model_that_is_surprised_is_out(mode):
    state = await (Ensemble([Knows(A), Knows(B)], [1, 3], mode) << A)
    assert state.states[1] is None
    assert state.log_weights[1] == -math.inf
    assert (await state.logp_next()).argmax() == A
    assert (await state.logp_next())[A] == pytest.approx(0.0)
    assert "(1.0000) Knows" in repr(state)
    assert "(0.0000) out" in repr(state)
    await (await (state << A)).cleanup()


@pytest.mark.parametrize("mode", MODES)
async def test_what_no_model_can_go_on_with_is_an_error(mode):
    state = Ensemble([Knows(A), Knows(A)], mode=mode)
    with pytest.raises(EmptyBeam):
        await (state << B)
    with pytest.raises(EmptyBeam):
        await state.prefill(b"ab")


async def test_a_product_wants_all_models():
    state = Ensemble([Knows(A), Knows(B)], mode="product")
    with pytest.raises(EmptyBeam, match="agree on no next byte"):
        await state.logp_next()
    with pytest.raises(EmptyBeam):
        await (state << A)


async def test_what_surprises_a_whole_mixture_leaves_those_that_heal_their_weights() -> None:
    state = Ensemble([Knows(A), Knows(A, heals=True), Knows(A, heals=True)], [2, 1, 1])
    after = await (state << B)
    assert after.states[0] is None
    assert np.exp(after.log_weights) == pytest.approx([0, 0.25, 0.25])


async def test_one_full_model_ends_a_generation():
    state = Ensemble([Knows(A), Knows(A, limit=True)])
    assert state.at_limit
    assert await state.greedy(b"a", 5) == b"a"
    assert await Ensemble([Knows(A), Knows(A)]).greedy(b"a", 5) == b"aaaaaa"


async def test_cleanup_reaches_all_models():
    models = [Knows(A), Knows(B)]
    await Ensemble(models).cleanup()
    assert [m.cleaned for m in models] == [True, True]


async def test_all_models_are_asked_at_once():
    waiting, both = 0, asyncio.Event()

    class Waits(Knows):
        async def logp_next(self) -> LazyByteProbs:
            nonlocal waiting
            waiting += 1
            if waiting == 2:
                both.set()
            await both.wait()
            return await super().logp_next()

    state = Ensemble([Waits(A), Waits(A)])
    await state.logp_next()
    await state.logp_next()
    assert waiting == 2


@pytest.mark.parametrize(
    ("shares", "mode", "message"),
    [
        ([1], "pool", "2 models, but 1 weights"),
        ([1, 0], "pool", "positive"),
        ([1, math.nan], "pool", "positive"),
        (None, "sum", "mode is"),
    ],
)
def test_wrong_arguments(shares, mode, message) -> None:
    with pytest.raises(InputError, match=message):
        Ensemble([Knows(A), Knows(B)], shares, mode)


async def test_no_models_and_no_bytes():
    with pytest.raises(InputError, match="at least one"):
        Ensemble([])
    with pytest.raises(ByteError):
        await (Ensemble([Knows(A)]) << 256)
