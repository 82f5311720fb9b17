"""The vocabulary as ranges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm.vocabulary.trie import ROOT, TokenTrie, sum_range

vocabularies = st.lists(st.binary(max_size=4), min_size=1, max_size=40).filter(any)


@given(vocabularies)
def test_a_node_is_the_range_of_the_tokens_that_begin_with_its_prefix(tokens):
    trie = TokenTrie(tokens)
    for node in range(len(trie)):
        prefix = trie.prefix(node)
        below = set(trie.order[trie.lo[node] : trie.hi[node]].tolist())
        assert below == {i for i, b in enumerate(tokens) if b and b.startswith(prefix)}
        assert set(trie.tokens_at(node).tolist()) == {
            i for i, b in enumerate(tokens) if b and b == prefix
        }
        assert trie.descend(prefix) == node


@given(vocabularies)
def test_children_are_consecutive_ranges_behind_the_tokens_that_end(tokens):
    trie = TokenTrie(tokens)
    for node in range(len(trie)):
        at = trie.end[node]
        for child in range(trie.first[node], trie.first[node + 1]):
            assert trie.lo[child] == at
            assert trie.child(node, trie.byte[child]) == child
            at = trie.hi[child]
        assert at == trie.hi[node]
    assert len({trie.prefix(node) for node in range(len(trie))}) == len(trie)


def test_ids_without_bytes_are_in_no_node():
    trie = TokenTrie([b"", b"a", b"", b"a"])
    assert trie.order.tolist() == [1, 3]
    assert trie.hi[ROOT] == 2


def test_a_byte_that_no_child_has_leads_nowhere():
    trie = TokenTrie([b"ab", b"c"])
    assert trie.child(ROOT, ord("b")) == -1
    assert trie.descend(b"ac") == -1


@pytest.mark.parametrize("scale", [1.0, 1e-10, 1e-20, 1e-30])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 63, 64, 65, 100, 3000, 50_000])
def test_sums_are_right_to_a_millionth_for_masses_down_to_1e_30(scale, length):
    random = np.random.default_rng(length)
    values = (random.random(length + 3) ** 8 * scale / length).astype(np.float32)
    want = math.fsum(values[3:].tolist())
    assert sum_range(values, 3, length + 3) == pytest.approx(want, rel=1e-6)


def test_a_vocabulary_of_150_000_tokens_is_well_formed():
    random = np.random.default_rng(0)
    tokens = [random.bytes(n) for n in random.integers(1, 12, size=150_000)]
    trie = TokenTrie(tokens)
    for i in random.integers(0, len(tokens), size=200):
        assert i in trie.tokens_at(trie.descend(tokens[i]))
