"""Rows: a model's answer as a byte LM needs it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.beam.rows import RowSource
from bytelm.beam.snapshot import Snapshot
from bytelm.errors import BeamError, VocabError
from bytelm.models.logprobs import EOS
from bytelm.models.testing import BruteForce, StubLM, assert_exact
from bytelm.vocabulary.vocab import ByteVocab

# BOS, two EOS, a special, and words; "ab" twice.
TOKENS = [b"", b"", b"", b"", b"a", b"b", b"ab", b"ab", b"c"]
VOCAB = ByteVocab.from_bytes(TOKENS, bos_token_id=0, eos_token_ids=[1, 2])


def logs(*probs: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probs)).astype(np.float32)


ROW = logs(0.1, 0.1, 0.05, 0.15, 0.2, 0.05, 0.1, 0.15, 0.1)


def source(**kwargs) -> RowSource:
    return RowSource(StubLM(VOCAB), **kwargs)


def test_special_tokens_leave_and_the_rest_is_renormalised():
    row = source().read(ROW)
    assert row.mass == pytest.approx(0.75)
    assert row.root[[ord("a"), ord("b"), ord("c"), EOS]] == pytest.approx(
        np.array([0.45, 0.05, 0.1, 0.15]) / 0.75
    )
    assert row.root.sum() == pytest.approx(1.0)


def test_given_eos_ids_replace_the_models_own():
    row = source(eos_tokens=[3]).read(ROW)
    assert row.root[EOS] == pytest.approx(0.15 / 0.75)


def test_eos_tokens_with_bytes_gather_at_eos_and_are_hidden():
    spelled = source(eos_tokens=[b"ab", 1])
    row = spelled.read(ROW)
    assert row.root[EOS] == pytest.approx(0.35 / 0.7)
    assert row.root[ord("a")] == pytest.approx(0.2 / 0.7)
    node = spelled.trie.descend(b"ab")
    assert row.log_mass(spelled.trie.lo[node], spelled.trie.hi[node]) == -np.inf
    assert spelled.has_spelled_eos


def test_while_prefilling_they_are_their_bytes_and_the_others_stay_eos():
    row = source(eos_tokens=[b"ab", 1]).spelling_eos().read(ROW)
    assert row.root[EOS] == pytest.approx(0.1 / 0.7)
    assert row.root[ord("a")] == pytest.approx(0.45 / 0.7)


def test_the_literal_reading_takes_every_id_as_its_text():
    from dataclasses import replace

    named = replace(VOCAB, token_text=("<s>", "</s>", "<end>", "<x>", "a", "b", "ab", "ab", "c"))
    row = RowSource(StubLM(named), literal=True).read(ROW)
    assert row.mass == pytest.approx(1.0)
    assert row.root[ord("<")] == pytest.approx(0.4)
    assert row.root[EOS] == 0.0


def test_masses_of_ranges_and_copies_of_them():
    reader = source()
    row = reader.read(ROW)
    node = reader.trie.descend(b"a")
    lo, hi = reader.trie.lo[node], reader.trie.hi[node]
    assert np.exp(row.log_mass(lo, hi)) == pytest.approx(0.45 / 0.75)
    piece, mass = row.piece(lo, hi)
    assert mass == pytest.approx(0.45)
    assert piece / mass == pytest.approx(np.array([0.2, 0.1, 0.15]) / 0.45)
    piece[:] = 0.0
    assert row.log_mass(lo, hi) > -np.inf


def test_ranges_far_below_float32_keep_their_proportions():
    logprobs = np.full(VOCAB.size, -300.0, np.float32)
    logprobs[VOCAB.eos_token_ids[0]] = 0.0
    logprobs[4] = -301.0
    reader = source()
    row = reader.read(logprobs)
    node = reader.trie.descend(b"a")
    lo, hi = reader.trie.lo[node], reader.trie.hi[node]
    assert np.log(row.root[ord("a")]) == pytest.approx(-300 + np.log(2 + np.exp(-1)))
    piece, mass = row.piece(lo, hi, row.root[ord("a")])
    assert piece / mass == pytest.approx(np.array([np.exp(-1), 1, 1]) / (2 + np.exp(-1)))


def test_what_is_far_below_float32_beside_what_is_not_keeps_its_proportions():
    logprobs = np.log(np.array([0.1, 0.1, 0.05, 0.15, 0.3, 0.05, 0.1, 0.1, 0.05])).astype(
        np.float32
    )
    logprobs[[6, 7]] = -100.0, -400.0
    reader = source()
    row = reader.read(logprobs)
    node = reader.trie.descend(b"a")
    lo, hi = reader.trie.lo[node], reader.trie.hi[node]
    piece, mass = row.piece(lo, hi, row.root[ord("a")])
    with np.errstate(divide="ignore"):
        have = np.log(piece / mass)
    assert have - have[0] == pytest.approx(
        np.array([logprobs[4], -100.0, -400.0]) - logprobs[4], abs=1e-5
    )


@settings(max_examples=60)
@given(st.integers(0, 500), st.text("abc", min_size=1, max_size=3).map(str.encode))
async def test_a_beam_is_exact_however_sharp_the_model(seed, text):
    vocab = ByteVocab.from_bytes(
        [b"", b"", b"a", b"b", b"c", b"ab", b"ac", b"bc", b"abc", b"acb"],
        bos_token_id=0,
        eos_token_ids=[1],
    )
    lm = StubLM(vocab, seed, spread=40.0)
    state = await ByteBeamState.initial(lm, BeamParams(K=None))
    state = await state.prefill(text, mode="exact")
    await assert_exact(state, text, BruteForce(lm.row, vocab))
    assert (await Snapshot.of(state).restored(lm, state.params)).logZ == state.logZ


def test_a_row_with_nothing_but_special_tokens_is_refused():
    with pytest.raises(VocabError, match="no bytes"):
        source().read(logs(0.5, 0, 0, 0.5, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("token", [b"zz", b"", 9, -1, "a", None])
def test_an_eos_token_that_is_not_there_is_refused(token):
    with pytest.raises(BeamError, match="EOS token"):
        source(eos_tokens=[token])


async def test_known_contexts_are_not_evaluated_again():
    lm = StubLM(VOCAB)
    known = RowSource(lm).knowing({(0,): lm.next_token_logprobs([0])})
    row = await known.evaluate((0,))
    assert np.array_equal(row.logprobs, lm.row([0]))
    await known.evaluate((0, 4))
    assert lm.evaluations == 2
