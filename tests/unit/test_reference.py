"""The beam in plain Python against brute force: what it is, loses and keeps."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.beam.params import BeamParams
from bytelm.beam.reference import ReferenceState
from bytelm.beam.reference_rows import Model
from bytelm.errors import EmptyBeam
from bytelm.models.logprobs import EOS
from bytelm.models.testing import BruteForce, StubLM
from bytelm.vocabulary.vocab import ByteVocab

slow = settings(max_examples=40, deadline=None)
texts = st.text("abc", max_size=5).map(str.encode)
tokens = st.lists(st.text("abc", min_size=1, max_size=4).map(str.encode), min_size=1, max_size=8)
thresholds = st.sampled_from([0.0, 0.01, 0.1, 0.5])


def toy(tokens: list[bytes], singles: bytes = b"abc", eos: int = 1) -> ByteVocab:
    """BOS, EOS ids, a special id, single bytes, then ``tokens``."""
    spelled = [bytes([b]) for b in singles]
    return ByteVocab.from_bytes(
        [b"", *[b""] * eos, b"", *spelled, *tokens],
        bos_token_id=0,
        eos_token_ids=tuple(range(1, 1 + eos)),
    )


def start(
    vocab: ByteVocab, params: BeamParams, seed: int = 0, spread: float = 2.0
) -> ReferenceState:
    return ReferenceState(Model(StubLM(vocab, seed, spread).row, vocab), params)


def walked(state: ReferenceState, text: bytes) -> ReferenceState:
    for b in text:
        state = state.prune() << b
    return state


def deferring(k: int | None, threshold: float) -> BeamParams:
    return BeamParams(K=k, prune_threshold=threshold, deferred=True, heal=False)


def all_reports(state: ReferenceState, length: int) -> float:
    """The sum over all texts of ``length`` bytes, and shorter ones that end, of their reports."""
    if length == 0:
        return 1.0
    p = np.exp(state.logp_next())
    total = p[EOS]
    for b in np.flatnonzero(p[:256]):
        total += p[b] * all_reports(state.prune() << int(b), length - 1)
    return total


@slow
@given(tokens, texts, st.integers(0, 2), st.integers(0, 99), st.booleans())
def test_equals_brute_force(extra, text, eos, seed, deferred):
    vocab = toy(extra, eos=eos)
    state = walked(start(vocab, BeamParams(K=None, deferred=deferred), seed), text)
    want = BruteForce(StubLM(vocab, seed).row, vocab)
    np.testing.assert_allclose(state.logp_next(), want.logp_next(text), atol=1e-9)
    assert state.log_z == pytest.approx(math.log(want.prefix(text)), abs=1e-9)


@slow
@given(tokens, texts, st.integers(1, 3), thresholds, st.booleans(), st.booleans())
def test_pruned_mass_is_a_lower_bound(extra, text, k, threshold, deferred, canonical):
    vocab = toy(extra)
    params = BeamParams(K=k, prune_threshold=threshold, deferred=deferred, keep_canonical=canonical)
    try:
        state = walked(start(vocab, params, spread=4.0), text)
    except EmptyBeam:
        assert not deferred
        return
    want = BruteForce(StubLM(vocab, spread=4.0).row, vocab)
    assert state.log_z <= math.log(want.prefix(text)) + 1e-9


@slow
@given(tokens, st.integers(1, 2), thresholds, st.integers(0, 99), st.booleans())
def test_reports_of_all_texts_sum_to_one(extra, k, threshold, seed, canonical):
    params = BeamParams(K=k, prune_threshold=threshold, deferred=True, keep_canonical=canonical)
    state = start(toy(extra), params, seed, spread=4.0)
    assert all_reports(state, 4) == pytest.approx(1.0, abs=1e-9)


@slow
@given(
    st.lists(st.text("abc", min_size=1, max_size=4).map(str.encode), min_size=1, max_size=8),
    st.text("abc", max_size=2).map(str.encode),
    st.integers(1, 2),
    thresholds,
)
def test_whatever_has_probability_can_be_consumed(extra, singles, k, threshold):
    """In vocabularies, too, in which not every byte is a token."""
    vocab = toy(extra, bytes(sorted(set(singles))))
    state = start(vocab, deferring(k, threshold), spread=4.0)
    assert all_reports(state, 4) == pytest.approx(1.0, abs=1e-9)


@slow
@given(tokens, texts, st.integers(1, 2), thresholds)
def test_no_byte_that_can_follow_has_probability_zero(extra, text, k, threshold):
    vocab = toy(extra)
    state = walked(start(vocab, deferring(k, threshold), spread=8.0), text)
    want = BruteForce(StubLM(vocab, spread=8.0).row, vocab).logp_next(text)
    have = state.logp_next()
    if state.items or state.rest > -math.inf or state._extensions(state.kept, False)[1]:
        assert np.isfinite(have[np.isfinite(want)]).all()


def test_a_byte_that_only_a_dropped_tokenization_has():
    """After "aa" all stands in "aaa"; "b" comes only behind the deferred "a"."""
    vocab = ByteVocab.from_bytes([b"", b"a", b"b", b"aaa"], bos_token_id=0)

    def row(ids):
        p = {0: [1e-9, 0.001, 0.001, 0.998]}.get(ids[-1], [1e-9, 0.5, 0.5, 1e-9])
        return np.log(np.array(p, np.float64) / sum(p)).astype(np.float32)

    want = BruteForce(row, vocab).logp_next(b"aa")
    dropping = walked(
        ReferenceState(Model(row, vocab), BeamParams(K=5, prune_threshold=0.01)), b"aa"
    )
    assert dropping.logp_next()[ord("b")] == -math.inf
    state = walked(ReferenceState(Model(row, vocab), deferring(5, 0.01)), b"aa")
    assert abs(state.logp_next()[ord("b")] - want[ord("b")]) < 2.0
    after = state.prune() << ord("b")
    assert after.log_z == pytest.approx(math.log(BruteForce(row, vocab).prefix(b"aab")), abs=1e-9)


def test_without_deferring_nothing_can_go_on_where_all_was_dropped():
    vocab = ByteVocab.from_bytes([b"", b"a", b"b", b"aaa"], bos_token_id=0)

    def row(ids):
        p = np.array([1e-9, 0.001, 0.001, 0.998] if ids[-1] == 0 else [1e-9, 0.5, 0.5, 1e-9])
        return np.log(p / p.sum()).astype(np.float32)

    state = walked(ReferenceState(Model(row, vocab), BeamParams(K=5, prune_threshold=0.01)), b"aa")
    with pytest.raises(EmptyBeam):
        _ = state.prune() << ord("b")


@slow
@given(tokens, texts, st.integers(1, 3), thresholds)
def test_a_report_is_a_function_of_its_prefix(extra, text, k, threshold):
    """Whether reports were asked for on the way makes no difference."""
    state = start(toy(extra), deferring(k, threshold), spread=4.0)
    asked = state
    for b in text:
        asked.logp_next()
        asked = asked.prune() << b
    np.testing.assert_array_equal(asked.logp_next(), walked(state, text).logp_next())
