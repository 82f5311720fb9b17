"""Adaptive healing: another tokenization of the context's end, with the right weight."""

import math

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from bytelm.beam import BeamParams, ByteBeamState, Candidate
from bytelm.errors import EmptyBeam
from bytelm.models.logprobs import EOS
from bytelm.models.testing import BruteForce, StubLM, assert_lower_bound, assert_normalised
from bytelm.vocabulary.vocab import ByteVocab

TOKENS = [b"", b"", b"a", b"b", b"c", b"ab", b"abc", b"bc"]
VOCAB = ByteVocab.from_bytes(TOKENS, bos_token_id=0, eos_token_ids=[1])
A, B, C, AB, ABC, BC = range(2, 8)


class OneWay(StubLM):
    """All but a millionth of the probability is on one token of each context."""

    def __init__(self, ways: dict[tuple[int, ...], int], vocab: ByteVocab = VOCAB) -> None:
        super().__init__(vocab)
        self.ways = ways

    def row(self, token_ids):
        probs = np.full(self.vocab.size, 1e-6)
        probs[self.ways.get(tuple(token_ids), A)] = 1.0
        return np.log(probs / probs.sum()).astype(np.float32)

    def log_p(self, *tokens: int) -> float:
        """Log-probability of tokens after BOS, with BOS itself never drawn."""
        total = 0.0
        for i, token in enumerate(tokens):
            row = np.exp(self.row((0, *tokens[:i])).astype(np.float64))
            total += np.log(row[token] / row[1:].sum())
        return total


async def narrow(lm, text: bytes, **changes) -> ByteBeamState:
    """The state after ``text`` in a beam of one candidate that keeps only what is likely."""
    params = BeamParams(**{"K": 1, "prune_threshold": 0.1, **changes})
    return await (await ByteBeamState.initial(lm, params)).prefill(text, mode="exact")


async def test_a_token_that_cannot_go_on_is_ended_earlier():
    """The beam holds ``abc`` only; after ``ab`` comes ``a``, which needs ``ab|a``."""
    lm = OneWay({(0,): ABC})
    state = await narrow(lm, b"ab")
    assert [c.tokens for c in state] == [(0,)]
    healed = await (state << ord("a"))
    assert [(c.tokens, c.partial) for c in healed] == [((0, AB), b"a")]
    want = lm.log_p(AB) + np.log(sum(np.exp(lm.log_p(AB, t) - lm.log_p(AB)) for t in (A, AB, ABC)))
    assert healed.logZ == pytest.approx(want, abs=1e-5)


class Spelled(OneWay):
    """``ab`` and ``bc`` are never tokens."""

    def row(self, token_ids):
        row = super().row(token_ids).copy()
        row[[AB, BC]] = -np.inf
        return row


async def test_taken_back_bytes_are_read_in_several_tokens():
    lm = Spelled({(0,): ABC})
    healed = await ((await narrow(lm, b"ab")) << ord("a"))
    assert [(c.tokens, c.partial) for c in healed] == [((0, A, B), b"a")]


@pytest.mark.parametrize("limit", ["heal_max_splits", "heal_max_backoff"])
async def test_healing_goes_no_further_than_allowed(limit):
    lm = Spelled({(0,): ABC})
    with pytest.raises(EmptyBeam):
        await (await narrow(lm, b"ab", **{limit: 0})).advanced(ord("a"))
    healed = await ((await narrow(lm, b"ab", **{limit: 1})) << ord("a"))
    assert [c.tokens for c in healed] == [(0, A, B)]


async def test_without_healing_an_empty_beam_is_an_error():
    state = await narrow(Spelled({(0,): ABC}), b"ab", heal=False)
    with pytest.raises(EmptyBeam, match="or allow heal"):
        await state.advanced(ord("a"))


async def test_a_shift_gives_an_empty_beam_that_says_why_when_it_is_used():
    """Code for genlm-bytes looks at the length."""
    state = await (await narrow(Spelled({(0,): ABC}), b"ab", heal=False) << ord("a"))
    assert (len(state), state.states, state.logZ, state.at_limit) == (0, [], -np.inf, False)
    assert state.context == b"ab"
    assert len(state.prune()) == len(await (state << ord("b"))) == 0
    for use in (state.logp_next(), state.prefill(b"a"), state.greedy(b"", 1)):
        with pytest.raises(EmptyBeam, match=r"b'ab' goes on with b'a'.*or allow heal"):
            await use
    with pytest.raises(EmptyBeam, match="or allow heal"):
        state.insert([0])


async def test_eos_can_be_healed_to():
    """``ab`` is inside ``abc``; EOS needs ``ab`` to have ended."""
    lm = OneWay({(0,): ABC, (0, AB): 1})
    state = await narrow(lm, b"ab")
    healed = await (state << EOS)
    assert healed.terminated
    assert healed.logZ == pytest.approx(lm.log_p(AB, 1), abs=1e-5)


async def test_a_healed_state_goes_on_as_one_that_was_never_narrow():
    lm = StubLM(VOCAB, spread=6.0, seed=1)
    for seed in range(20):
        lm = StubLM(VOCAB, spread=6.0, seed=seed)
        state = await narrow(lm, b"abcab", prune_threshold=0.4)
        after = await (state << ord("c"))
        q = await after.logp_next()
        assert np.exp(q.ps).sum() == pytest.approx(1.0)
        assert after.context == b"abcabc"


async def test_verbose_healing_tells_what_it_took_back(capsys):
    state = await narrow(Spelled({(0,): ABC}), b"ab", verbose=True)
    await (state << ord("a"))
    assert "[heal] took back 1 of b'ab'" in capsys.readouterr().out


def log_probability(lm: StubLM, candidate: Candidate) -> float:
    """Of one tokenization: its tokens, then any that begins with its partial token."""
    total = 0.0
    for n in range(1, len(candidate.tokens) + 1):
        row = np.exp(lm.row(candidate.tokens[:n]).astype(np.float64))
        spelled = np.array([bool(b) for b in lm.vocab.token_bytes])
        whole = row[spelled].sum() + row[list(lm.vocab.eos_token_ids)].sum()
        if n < len(candidate.tokens):
            mass = row[candidate.tokens[n]]
        else:
            begun = [b.startswith(candidate.partial) for b in lm.vocab.token_bytes]
            mass = row[spelled & np.array(begun)].sum()
        total += math.log(mass / whole)
    return total


@settings(max_examples=60)
@given(
    st.lists(st.text("ab", min_size=3, max_size=5).map(str.encode), min_size=2, max_size=8),
    st.text("ab", min_size=3, max_size=7).map(str.encode),
    st.integers(0, 99),
)
async def test_what_healing_finds_is_weighed_as_brute_force_does(extra, text, seed):
    """Narrow beams on random vocabularies, with duplicates: no weight is ever too high."""
    tokens = [b"", b"", b"a", b"b", *extra]
    lm = StubLM(ByteVocab.from_bytes(tokens, bos_token_id=0, eos_token_ids=[1]), seed, spread=4.0)
    want = BruteForce(lm.row, lm.vocab)
    params = {"K": 1, "prune_threshold": 0.3}
    state = await ByteBeamState.initial(lm, BeamParams(**params))
    unhealing = BeamParams(**params, heal=False)
    for i, b in enumerate(text):
        before = state.prune()
        state = await (before << b)
        before.params = unhealing
        if not len(await (before << b)):
            event("healed")
        assert state.context == text[: i + 1]
        for candidate in state:
            assert candidate.weight == pytest.approx(log_probability(lm, candidate), abs=1e-4)
        assert_lower_bound(state.logZ, text[: i + 1], want)
        await assert_normalised(state)


async def test_tokens_may_end_before_reading_gets_stuck():
    """After ``abc`` comes ``a``: neither ``abcb`` nor ``bcb`` can be, only ``a|b|c|a`` is left."""
    vocab = ByteVocab.from_bytes(
        [b"", b"", b"a", b"b", b"c", b"abcb", b"bcb"], bos_token_id=0, eos_token_ids=[1]
    )
    lm = OneWay({(0,): 5}, vocab)
    healed = await ((await narrow(lm, b"abc")) << ord("a"))
    assert [(c.tokens, c.partial) for c in healed] == [((0, 2, 3, 4), b"a")]
    with pytest.raises(EmptyBeam):
        await (await narrow(lm, b"abc", heal_max_splits=1)).advanced(ord("a"))
    healed = await ((await narrow(lm, b"abc", heal_max_splits=2)) << ord("a"))
    assert healed.context == b"abca"


@pytest.mark.parametrize("others", [[], [b"<enz"]])
async def test_a_prefill_may_have_left_the_inside_of_an_eos_token(others):
    """``<end>`` ends the text; while prefilling it counts as its bytes, and its beginning, too."""
    tokens = [b"", b"", b"a", b"<", b"e", b"z", b"<end>", *others]
    vocab = ByteVocab.from_bytes(tokens, bos_token_id=0, eos_token_ids=[1])
    lm = OneWay({(0, A): 6}, vocab)
    params = BeamParams(1, 0.1, eos_byte_strings=[b"<end>"])
    state = await (await ByteBeamState.initial(lm, params)).prefill(b"a<e", mode="exact")
    assert [(c.tokens, c.partial) for c in state] == [((0, A), b"<e")]
    healed = await (state << ord("z"))
    assert [(c.tokens, c.partial) for c in healed] == [((0, A, 3, 4), b"z")]
    assert healed.logZ == pytest.approx(lm.log_p(A, 3, 4, 5), abs=1e-5)
    await assert_normalised(healed)


class Counting(OneWay):
    """Counts evaluations."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.calls = 0

    async def next_token_logprobs(self, token_ids):
        self.calls += 1
        return await super().next_token_logprobs(token_ids)


def long_token(length: int) -> ByteVocab:
    """``a`` and ``b``, and a token of many ``a`` before a ``c``, which no other token has."""
    tokens = [b"", b"", b"a", b"b", b"a" * length + b"c"]
    return ByteVocab.from_bytes(tokens, bos_token_id=0, eos_token_ids=[1])


@pytest.mark.parametrize("length", [40, 600])
async def test_healing_evaluates_no_place_of_a_partial_token_twice(length):
    lm = Counting({(0,): 4}, long_token(length))
    state = await narrow(lm, b"a" * length)
    lm.calls = 0
    healed = await (state << ord("b"))
    assert [(c.tokens, c.partial) for c in healed] == [((0, *[2] * length), b"b")]
    assert lm.calls == length + 1


@pytest.mark.parametrize("length", [1, 40, 600])
@pytest.mark.parametrize("b", [ord("x"), ord("c")])
async def test_what_the_vocabulary_cannot_spell_costs_no_evaluation(length, b):
    """No token begins with either; ``c`` may follow one ``a`` more alone."""
    lm = Counting({(0,): 4}, long_token(length + 1))
    state = await narrow(lm, b"a" * length)
    lm.calls = 0
    with pytest.raises(EmptyBeam, match="no token that begins with this byte"):
        await state.advanced(b)
    assert lm.calls == 0


class Dead(Counting):
    """No token but the first has any probability after ``a``."""

    def row(self, token_ids):
        row = super().row(token_ids).copy()
        if len(token_ids) > 1:
            row[2:] = -np.inf
            row[1] = 0.0
        return row


async def test_healing_is_bounded_where_the_model_gives_no_probability():
    tokens = [b"", b"", b"a", b"b", b"aa", b"aaa", b"a" * 30 + b"c"]
    vocab = ByteVocab.from_bytes(tokens, bos_token_id=0, eos_token_ids=[1])
    lm = Dead({(0,): 6}, vocab)
    state = await narrow(lm, b"a" * 30)
    lm.calls = 0
    with pytest.raises(EmptyBeam):
        await state.advanced(ord("b"))
    assert lm.calls <= 2 * 31


async def test_a_limit_on_splits_costs_nothing_where_it_is_too_low():
    lm = Counting({(0,): 4}, long_token(40))
    state = await narrow(lm, b"a" * 40, heal_max_splits=38)
    lm.calls = 0
    with pytest.raises(EmptyBeam):
        await state.advanced(ord("b"))
    assert lm.calls == 0
    state = await narrow(lm, b"a" * 40, heal_max_splits=39)
    assert (await (state << ord("b"))).context == b"a" * 40 + b"b"
