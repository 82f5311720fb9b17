"""The byte beam against brute force over all tokenizations, and its laws."""

from dataclasses import replace
from pathlib import Path

import mistral_common
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.errors import BeamError, ByteError, EmptyBeam, Terminated
from bytelm.models.byte_lm import StatefulByteLM
from bytelm.models.logprobs import EOS
from bytelm.models.testing import (
    BruteForce,
    StubLM,
    assert_chain_rule,
    assert_exact,
    assert_immutable,
    assert_lower_bound,
    assert_normalised,
    assert_prune_keeps_one,
    assert_reproducible,
)
from bytelm.models.token_lm import AsyncTokenLM
from bytelm.vocabulary.vocab import ByteVocab

SENTENCEPIECE = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
ALPHABET = b"abc"
BOS, END = b"", b""


def toy_vocab(tokens: list[bytes], eos: int = 1) -> ByteVocab:
    """BOS, ``eos`` EOS ids, a special id, the single bytes, then ``tokens``."""
    singles = [bytes([b]) for b in ALPHABET]
    return ByteVocab.from_bytes(
        [BOS, *[END] * eos, b"", *singles, *tokens],
        bos_token_id=0,
        eos_token_ids=tuple(range(1, 1 + eos)),
    )


tokens = st.lists(st.text("abc", min_size=1, max_size=4).map(str.encode), min_size=1, max_size=8)
texts = st.text("abc", max_size=5).map(str.encode)
exact = BeamParams(K=None)
slow = settings(max_examples=40)


async def initial(lm: AsyncTokenLM, params: BeamParams = exact) -> ByteBeamState:
    return await ByteBeamState.initial(lm, params)


def log_z(state: StatefulByteLM) -> float:
    assert isinstance(state, ByteBeamState)
    assert state.logZ is not None
    return state.logZ


@slow
@given(tokens, texts, st.integers(0, 2), st.integers(0, 99))
async def test_unlimited_beam_equals_brute_force(extra, text, eos, seed):
    """With duplicates, special tokens, and no, one or two EOS ids."""
    lm = StubLM(toy_vocab(extra, eos), seed)
    state = await (await initial(lm)).prefill(text, mode="exact")
    await assert_exact(state, text, BruteForce(lm.row, lm.vocab))


@slow
@given(tokens, texts, st.integers(0, 99))
async def test_logz_is_the_prefix_probability(extra, text, seed):
    lm = StubLM(toy_vocab(extra), seed)
    state = await (await initial(lm)).prefill(text, mode="exact")
    want = BruteForce(lm.row, lm.vocab).prefix(text)
    assert np.exp(state.logZ) == pytest.approx(want, rel=1e-6)


@slow
@given(tokens, texts, st.integers(1, 4), st.sampled_from([0.0, 0.01, 0.1, 0.5]))
async def test_pruned_beam_is_normalised_and_bounded_by_brute_force(extra, text, k, threshold):
    lm = StubLM(toy_vocab(extra))
    state = await initial(lm, BeamParams(K=k, prune_threshold=threshold))
    want = BruteForce(lm.row, lm.vocab)
    for i, b in enumerate(text):
        await assert_normalised(state)
        assert_prune_keeps_one(state, len)
        state = await (state.prune() << b)
        assert_lower_bound(state.logZ, text[: i + 1], want)


@slow
@given(tokens, texts)
async def test_chain_rule(extra, text):
    await assert_chain_rule(await initial(StubLM(toy_vocab(extra))), text, log_z)


@slow
@given(tokens, texts)
async def test_a_state_never_changes(extra, text):
    state = await (await initial(StubLM(toy_vocab(extra)))).prefill(text, mode="exact")
    await assert_immutable(state, list(ALPHABET))


async def test_eos_after_the_text_has_the_probability_of_the_whole_text():
    lm = StubLM(toy_vocab([b"ab", b"abc", b"bc"], eos=2))
    want = BruteForce(lm.row, lm.vocab).whole(b"abc")
    state = await (await initial(lm)).prefill(b"abc", mode="exact")
    ended = await (state << EOS)
    assert ended.terminated
    assert np.exp(ended.logZ) == pytest.approx(want, rel=1e-6)


async def test_after_eos_a_state_is_terminated():
    ended = await ((await initial(StubLM(toy_vocab([b"ab"])))) << EOS)
    with pytest.raises(Terminated, match="EOS"):
        await ended.logp_next()
    with pytest.raises(Terminated):
        await (ended << ord("a"))


async def test_spelled_eos_tokens_end_texts_but_are_bytes_while_prefilling():
    """As in genlm-bytes: EOS given as bytes gathers at EOS, except inside a prefilled context."""
    vocab = ByteVocab.from_bytes([b"", b"a", b"b", b"ab", b"."], bos_token_id=0)
    lm = StubLM(vocab)
    params = BeamParams(K=None, eos_byte_strings=[b"."])
    state = await initial(lm, params)
    q = await state.logp_next()
    row = np.exp(lm.row([0]).astype(np.float64))
    assert q[EOS] == pytest.approx(np.log(row[4] / row[1:].sum()), abs=1e-5)
    assert q[ord(".")] == -np.inf
    prefilled = await state.prefill(b"a.b", mode="exact")
    plain = await (await initial(lm)).prefill(b"a.b", mode="exact")
    assert prefilled.logZ == pytest.approx(plain.logZ, abs=1e-9)
    assert (await prefilled.logp_next())[EOS] > -np.inf


async def test_several_ids_with_the_same_bytes_add_up_and_extend_one_by_one():
    vocab = ByteVocab.from_bytes([b"", b"a", b"a", b"b"], bos_token_id=0)
    lm = StubLM(vocab)
    state = await ((await initial(lm)) << ord("a"))
    assert len(state) == 1
    after = await (state << ord("b"))
    assert {c.tokens for c in after} == {(0, 1), (0, 2)}
    await assert_exact(after, b"ab", BruteForce(lm.row, vocab))


async def test_masses_below_float32_are_kept():
    """A byte of probability e^-150 can still be consumed, with the right weight."""

    class Sharp(StubLM):
        def row(self, token_ids):
            row = np.full(self.vocab.size, -150.0, np.float32)
            row[3] = 0.0
            return row

    lm = Sharp(ByteVocab.from_bytes([b"", b"ab", b"ac", b"b"], bos_token_id=0))
    state = await ((await initial(lm)) << ord("a"))
    assert state.logZ == pytest.approx(np.log(2) - 150, rel=1e-6)
    q = await state.logp_next()
    assert q[ord("b")] == pytest.approx(np.log(0.5), abs=1e-6)


async def test_prune_keeps_at_most_k_and_always_the_best():
    lm = StubLM(toy_vocab([b"ab", b"abc", b"bc", b"bca", b"ca"]))
    state = await (await initial(lm)).prefill(b"abcabc", mode="exact")
    assert len(state) > 4
    weights = [c.weight for c in state]
    assert weights == sorted(weights, reverse=True)
    pruned = await initial(lm, BeamParams(K=2))
    pruned = await pruned.prefill(b"abcab", mode="exact")
    assert len((await (pruned.prune() << ord("c"))).prune()) <= 2
    harsh = await (await initial(lm, BeamParams(K=None, prune_threshold=0.99))).prefill(b"abcabc")
    assert len(harsh.prune()) == 1


async def test_a_longer_prefill_is_a_prefill_in_parts():
    lm = StubLM(toy_vocab([b"ab", b"abc"]))
    state = await initial(lm)
    once = await state.prefill(b"abcab", mode="exact")
    twice = await (await state.prefill(b"ab", mode="exact")).prefill(b"cab", mode="exact")
    assert once.logZ == pytest.approx(twice.logZ, abs=1e-9)
    assert once.context == b"abcab"


async def test_greedy_takes_the_best_byte_each_time():
    lm = StubLM(toy_vocab([b"ab", b"bc", b"abc"]), seed=3)
    params = BeamParams(K=5, prune_threshold=0.01)
    text = await (await initial(lm, params)).greedy(b"ab", 6)
    state = await (await initial(lm, params)).prefill(b"ab")
    for b in text[2:]:
        assert (await state.logp_next()).argmax() == b
        state = await (state.prune() << b)
    if len(text) < 8:
        assert (await state.logp_next()).argmax() == EOS


async def test_sample_gives_the_draw_a_chart_of_probabilities():
    lm = StubLM(toy_vocab([b"ab"]))
    seen = []

    def draw(chart):
        seen.append(chart)
        return ord("a")

    assert await (await initial(lm)).sample(b"b", 2, draw=draw) == b"baa"
    assert set(seen[0]) == {*range(256), None, EOS}
    assert sum(seen[0].values()) == pytest.approx(1.0)
    assert seen[0][None] == 0.0


async def test_sample_stops_at_eos():
    lm = StubLM(toy_vocab([b"ab"]))
    assert await (await initial(lm)).sample(b"b", 5, draw=lambda chart: EOS) == b"b"


async def test_greedy_is_reproducible_whatever_else_runs():
    lm = StubLM(toy_vocab([b"ab", b"bc"]))

    async def generate():
        return await (await initial(lm, BeamParams(K=3))).greedy(b"ab", 8)

    await assert_reproducible(generate)


async def test_the_best_extension_is_evaluated_when_no_other_way_is_left():
    """Two ids split the only way on, so that neither is above the threshold."""
    vocab = ByteVocab.from_bytes([b"", b"a", b"a"], bos_token_id=0)
    for heal in (True, False):
        params = BeamParams(K=5, prune_threshold=0.5, heal=heal)
        text = await (await initial(StubLM(vocab), params)).greedy(b"a", 2)
        assert text == b"aaa"


async def test_equal_evaluations_of_a_state_are_made_once():
    lm = StubLM(toy_vocab([b"ab", b"bc"]))
    state = await (await initial(lm)).prefill(b"ab", mode="exact")
    await state.logp_next()
    before = lm.evaluations
    await state.logp_next()
    await (state << ord("a"))
    assert lm.evaluations == before


async def test_a_candidate_at_the_longest_context_is_not_extended():
    lm = StubLM(toy_vocab([b"ab"]), max_context_tokens=2)
    state = await (await initial(lm)).prefill(b"a", mode="exact")
    q = await (await (state << ord("b"))).logp_next()
    assert q.ps[ord("a") : ord("c") + 1].max() > -np.inf
    state = await initial(lm)
    for b in b"abab":
        state = await (state << b)
    with pytest.raises(EmptyBeam, match="longest context"):
        await state.logp_next()


@pytest.mark.parametrize("b", [-1, 256, 258, "a", 1.0])
async def test_what_is_no_byte_is_refused(b):
    state = await initial(StubLM(toy_vocab([])))
    with pytest.raises(ByteError, match=str(b)):
        await (state << b)


async def test_an_empty_beam_names_the_byte_the_context_and_what_to_change():
    lm = StubLM(toy_vocab([b"ab"]), silent=[5])
    state = await (await initial(lm)).prefill(b"ab", mode="exact")
    with pytest.raises(EmptyBeam, match=r"b'ab' goes on with b'c'.*raise K"):
        await state.advanced(ord("c"))
    with pytest.raises(EmptyBeam, match=r"with b'z'.*no token that begins with this byte"):
        await state.advanced(ord("z"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"K": 0},
        {"K": 5, "prune_threshold": 1.0},
        {"K": 5, "prune_threshold": -0.1},
        {"K": 5, "prune_threshold": float("nan")},
        {"K": 5, "heal_max_splits": -1},
        {"K": 5, "special_tokens": "none"},
        {"K": 5, "eos_byte_strings": b"a"},
        {"K": 5, "eos_byte_strings": "a"},
    ],
)
def test_parameters_outside_their_range_are_refused(wrong):
    with pytest.raises(BeamError):
        BeamParams(**wrong)


async def test_an_eos_token_that_is_not_in_the_vocabulary_is_refused():
    with pytest.raises(BeamError, match="nope"):
        await initial(StubLM(toy_vocab([])), BeamParams(K=1, eos_byte_strings=[b"nope"]))


async def test_a_context_may_begin_with_any_token_where_there_is_neither_bos_nor_eos():
    vocab = ByteVocab.from_bytes([b"", *(bytes([b]) for b in ALPHABET), b"ab"])
    assert not vocab.has_initial_context
    state = await ByteBeamState.initial(StubLM(vocab, seed=0), exact, initial_context=[0])
    assert state.context == b""
    for mode in ("exact", "fast"):
        assert (await state.prefill(b"abcab", mode)).context == b"abcab"
    assert len(await state.greedy(b"ab", 3)) == 5


@pytest.mark.parametrize("name", ["K", "prune_threshold", "log_prune_threshold"])
def test_parameters_never_change(name):
    params = BeamParams(K=5, prune_threshold=0.01)
    with pytest.raises(AttributeError, match=f"cannot assign to field '{name}'"):
        setattr(params, name, 0.5)
    other = replace(params, prune_threshold=0.5)
    assert (other.K, other.log_prune_threshold) == (5, np.log(0.5))


async def test_repr_shows_weights_tokens_and_partial():
    state = await (await initial(StubLM(toy_vocab([b"ab"])))).prefill(b"ab")
    assert repr(state).startswith("Z: -")
    assert "<0>|a‖b" in repr(state)
    assert "<0>‖ab" in repr(state)
    assert "<table>" in state._repr_html_()


async def test_special_tokens_that_are_read_literally_are_no_text_where_they_begin_one():
    vocab = ByteVocab.from_bytes([b"<s>", b"</s>", b"a", b"b"], bos_token_id=0, eos_token_ids=[1])
    params = BeamParams(K=None, special_tokens="literal")
    state = await ByteBeamState.initial(StubLM(vocab), params)
    assert state.context == b""
    assert (await state.prefill(b"ab")).context == b"ab"
    behind = await ByteBeamState.initial(StubLM(vocab), params, initial_context=[0, 2, 1])
    assert (await behind.prefill(b"b")).context == b"ab"


@pytest.mark.parametrize("given", [None, [1]], ids=["default", "explicit"])
async def test_a_text_may_begin_with_what_the_tokenizer_puts_before_it(given):
    vocab = ByteVocab.from_file(SENTENCEPIECE)
    assert (vocab.prefix, vocab.initial_context) == (b" ", (1,))
    lm = StubLM(vocab, rows=8)
    state = await ByteBeamState.initial(lm, BeamParams(K=2), initial_context=given)
    for text in (b"the cat", b" the cat", b" "):
        for mode in ("fast", "exact"):
            read = await state.prefill(text, mode)
            assert read.context == text
            marked = read.insert([vocab.eos_token_ids[0]])
            tokens = next(iter(marked)).tokens
            assert vocab.decode(tokens) == b" " + text
