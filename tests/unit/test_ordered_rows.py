"""Rows in the order of a trie, as an engine hands them out, and what is read of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.beam.rows import RowSource
from bytelm.beam.snapshot import Snapshot
from bytelm.errors import RowError
from bytelm.generating.score import score
from bytelm.models.ordered_rows import OrderedRow, RowOrder
from bytelm.models.testing import StubLM
from bytelm.models.token_lm import OrderingTokenLM, StatefulTokenizedLM
from bytelm.vocabulary.trie import TokenTrie
from bytelm.vocabulary.vocab import ByteVocab

# BOS, two EOS, a special, and words; "ab" twice.
TOKENS = [b"", b"", b"", b"", b"a", b"b", b"ab", b"ab", b"c", b"bc", b"abc"]
VOCAB = replace(
    ByteVocab.from_bytes(TOKENS, bos_token_id=0, eos_token_ids=[1, 2]),
    token_text=("<s>", "</s>", "<end>", "<x>", "a", "b", "ab", "ab", "c", "bc", "abc"),
)


def in_order(row, vocab=VOCAB) -> OrderedRow:
    """A row as a worker makes it, by a plain computation in float64."""
    order = TokenTrie.of(vocab).row_order
    values = row[order.ids]
    probs = np.exp(values.astype(np.float64))
    bounds = zip(order.bounds[:-1], order.bounds[1:], strict=True)
    return OrderedRow(order, values, np.array([math.fsum(probs[a:b]) for a, b in bounds]))


class Ordering(OrderingTokenLM):
    """A token LM of ordered rows alone, those of another."""

    def __init__(self, lm):
        self.lm = lm
        self.vocab, self.max_context_tokens = lm.vocab, lm.max_context_tokens

    async def next_row(self, token_ids):
        return in_order(await self.lm.next_token_logprobs(token_ids), self.vocab)


class ByOrderAlone(Ordering):
    """The same, of which nobody may ask a row by id."""

    async def next_token_logprobs(self, token_ids):
        raise AssertionError("a beam reads rows in their order")


def both():
    lm = StubLM(VOCAB, seed=3)
    return lm, ByOrderAlone(lm)


@given(st.lists(st.binary(max_size=3), min_size=1, max_size=40).filter(any))
def test_an_order_has_every_id_once_and_every_first_byte_in_one_range(tokens):
    order = TokenTrie(tokens).row_order
    assert sorted(order.ids) == list(range(len(tokens)))
    assert order.ids[order.places].tolist() == list(range(len(tokens)))
    assert (order.bounds[0], order.bounds[-1]) == (0, len(tokens))
    *ranges, last = [
        {tokens[i][:1] for i in order.ids[a:b]}
        for a, b in zip(order.bounds[:-1], order.bounds[1:], strict=True)
    ]
    assert ranges == [{b} for b in sorted({t[:1] for t in tokens if t})]
    assert last in (set(), {b""})
    assert order.ranges == len(ranges) + 1


def test_a_row_by_id_is_what_the_model_gave():
    row = StubLM(VOCAB).row([0])
    given_back = in_order(row).by_id()
    assert np.array_equal(given_back, row)
    with pytest.raises(ValueError, match="read-only"):
        given_back[0] = 0.0


READINGS = [
    {},
    {"eos_tokens": [3]},
    {"eos_tokens": []},
    {"eos_tokens": [b"ab", 1]},
    {"eos_tokens": [b"ab", b"abc", b"a", b"c"]},
    {"literal": True},
    {"literal": True, "eos_tokens": [b"</s>", b"b"]},
]


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("spelling", [False, True])
@pytest.mark.parametrize("more", [0.0, -200.0])
async def test_it_is_read_as_the_row_by_id_is(reading, spelling, more):
    source = RowSource(StubLM(VOCAB, seed=5), **reading)
    source = source.spelling_eos() if spelling else source
    by_id = source.lm.row([0, 4])
    by_id = by_id + np.float32(more) * (np.arange(VOCAB.size) != 8)
    want = source.read(by_id)
    have = source.read(in_order(by_id))
    assert have.mass == pytest.approx(want.mass, rel=1e-6)
    assert have.root == pytest.approx(want.root, rel=1e-6, abs=0.0)
    assert np.array_equal(have.logprobs, by_id)
    assert np.array_equal(have.probs, want.probs)
    trie = source.trie
    for node in range(len(trie)):
        lo, hi = trie.lo[node], trie.hi[node]
        assert have.log_mass(lo, hi) == pytest.approx(want.log_mass(lo, hi), abs=1e-6)
        if have.log_mass(lo, hi) > -math.inf:
            assert np.array_equal(have.piece(lo, hi)[0], want.piece(lo, hi)[0])
    for token in trie.order.tolist():
        assert have.log_prob(token) == pytest.approx(want.log_prob(token), abs=1e-6)


def test_a_row_in_its_order_is_read_where_it_is():
    """What is not asked for is not even looked at: here there is nothing."""
    row = in_order(StubLM(VOCAB).row([0]))
    ends = row.values[row.order.places[list(VOCAB.eos_token_ids)]]
    row.values = np.full(VOCAB.size, np.nan, np.float32)
    row.values[row.order.places[list(VOCAB.eos_token_ids)]] = ends
    source = RowSource(StubLM(VOCAB))
    read = source.read(row)
    assert read.made is row
    assert read.root == pytest.approx(source.read(StubLM(VOCAB).row([0])).root, rel=1e-6)


def test_a_reading_of_another_order_is_made_once():
    source = RowSource(StubLM(VOCAB), literal=True)
    order = TokenTrie.of(VOCAB).row_order
    assert source.trie.row_order.places_in(order) is source.trie.row_order.places_in(order)


@pytest.mark.parametrize("token", range(len(TOKENS)))
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("reading", READINGS)
def test_nan_and_inf_are_refused_whatever_the_token(token, value, reading):
    row = StubLM(VOCAB).row([0]).copy()
    row[token] = value
    with pytest.raises(RowError, match=f"the first for token {token}"):
        RowSource(StubLM(VOCAB), **reading).read(in_order(row))


@pytest.mark.parametrize(
    "params",
    [
        BeamParams(K=5, prune_threshold=0.05),
        BeamParams(K=3, deferred=True),
        BeamParams(K=3, eos_byte_strings=[b"ab"]),
        BeamParams(K=3, special_tokens="literal"),
    ],
)
async def test_nothing_else_is_asked_for(params):
    """Prefills, walks, known texts, healing, snapshots."""
    answers = []
    for lm in both():
        state = await ByteBeamState.initial(lm, params)
        state = await state.prefill(b"abcab" * 20)
        state = await state.prefill(b"ab")
        greedy = await state.greedy(b"", 20)
        scored = await score(state, b"abc" * 20)
        again = await Snapshot.of(state).restored(lm, params)
        ps = [(await one.logp_next()).ps for one in (state, again)]
        answers.append((greedy, scored.logprobs, *ps))
    for by_id, ordered in zip(*answers, strict=True):
        if isinstance(by_id, bytes):
            assert by_id == ordered
        else:
            np.testing.assert_allclose(by_id, ordered, atol=1e-5)


async def test_rows_by_id_are_there_for_who_asks():
    lm = StubLM(VOCAB)
    row = await StatefulTokenizedLM.initial(Ordering(lm)).logp_next()
    assert np.array_equal(row, lm.row([0]))


def test_orders_are_kept_apart_by_what_they_are():
    ids, bounds = np.array([1, 0, 2]), np.array([0, 2, 3])
    first, second = RowOrder(ids, bounds), RowOrder(ids[::-1].copy(), bounds)
    assert first.places_in(second).tolist() == [2, 1, 0]
    assert first.places_in(first).tolist() == [0, 1, 2]
