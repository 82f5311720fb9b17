"""Rows as they are made of logits, on CPU tensors, against plain computations in float64."""

import numpy as np
import pytest
import torch

from bytelm.beam.rows import RowSource
from bytelm.models.ordered_rows import OrderedRow, RowOrder
from bytelm.models.testing import StubLM
from bytelm.vllm.row_maker import RowMaker
from bytelm.vocabulary.trie import TokenTrie
from bytelm.vocabulary.vocab import ByteVocab


def order_of(width: int, ranges: int, seed: int = 0) -> RowOrder:
    """Any order; one of the ranges has half of the ids, as what begins with a space has."""
    draw = np.random.default_rng(seed)
    cuts = draw.choice(np.arange(1, width // 2), ranges - 2, replace=False)
    bounds = np.array([0, *sorted(cuts), width // 2, width])
    return RowOrder(draw.permutation(width), bounds)


def made(logits: torch.Tensor, order: RowOrder, most: int | None = None) -> list[OrderedRow]:
    maker = RowMaker(
        torch.from_numpy(order.ids), torch.from_numpy(order.bounds), most or len(logits)
    )
    before = logits.clone()
    values = torch.full((len(logits), len(order.ids) + 3), 7.0)
    masses = torch.full((len(logits), order.ranges + 2), 7.0, dtype=torch.float64)
    maker.make(logits, values[:, 1:-2], masses[:, 1:-1])
    torch.testing.assert_close(logits, before, rtol=0, atol=0, equal_nan=True)
    # Where the slots have something else, it is left alone.
    assert {*values[:, 0].tolist(), *values[:, -2:].ravel().tolist()} == {7.0}
    assert {*masses[:, 0].tolist(), *masses[:, -1].tolist()} == {7.0}
    pairs = zip(values[:, 1:-2].numpy(), masses[:, 1:-1].numpy(), strict=True)
    return [OrderedRow(order, *pair) for pair in pairs]


def assert_made(row: OrderedRow, logits: torch.Tensor) -> None:
    """Log-probabilities as good as float32 can hold, and masses to 1e-6 as good as these."""
    order = row.order
    expected = torch.log_softmax(logits.double(), -1).numpy()[order.ids]
    np.testing.assert_allclose(row.values, expected, rtol=2e-7, atol=1e-6)
    pairs = zip(order.bounds[:-1], order.bounds[1:], strict=True)
    masses = np.array([np.exp(expected[a:b]).sum() for a, b in pairs])
    told = masses > 1e-30
    error = np.abs(row.masses[told] / masses[told] - 1)
    assert (error < 1e-6 - 2.0**-24 * np.log(masses[told])).all()
    assert (row.masses[~told] < 1.1e-30).all()
    assert row.masses.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("spread", [0.0, 2.0, 8.0, 40.0])
@pytest.mark.parametrize(("width", "ranges"), [(12, 3), (1000, 90), (50_000, 258), (131_072, 258)])
def test_masses_are_right_to_a_millionth(width, ranges, spread):
    logits = torch.randn(3, width, generator=torch.Generator().manual_seed(width)) * spread + 5
    for row, of in zip(made(logits, order_of(width, ranges)), logits, strict=True):
        assert_made(row, of)


def test_a_running_sum_of_float32_would_not_be():
    """Why they are summed in float64."""
    width = 131_072
    logits = torch.randn(1, width, generator=torch.Generator().manual_seed(0)) * 2
    probs = torch.softmax(logits[0].double(), -1)
    bounds = torch.tensor([0, width // 2, width])
    running = torch.segment_reduce(probs.float(), "sum", offsets=bounds)
    assert abs(running[1] / probs[width // 2 :].sum() - 1) > 1e-6


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_rows_are_made_alike_whatever_is_beside_them(rows):
    order = order_of(300, 20)
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(1)) * 4
    alone = made(logits[:1], order, most=5)[0]
    beside = made(logits[:rows], order, most=5)
    np.testing.assert_array_equal(beside[0].values, alone.values)
    np.testing.assert_array_equal(beside[0].masses, alone.masses)
    for row, of in zip(beside, logits, strict=False):
        assert_made(row, of)


def test_what_cannot_be_has_no_mass():
    order = order_of(64, 6)
    logits = torch.randn(1, 64, generator=torch.Generator().manual_seed(2))
    never = order.ids[order.bounds[2] : order.bounds[3]]
    logits[0, never] = -torch.inf
    (row,) = made(logits, order)
    assert row.masses[2] == 0.0
    assert np.isneginf(row.by_id()[never]).all()
    assert_made(row, logits[0])


def test_an_empty_range_has_no_mass():
    order = RowOrder(np.array([2, 0, 1]), np.array([0, 2, 3, 3]))
    (row,) = made(torch.tensor([[0.0, 1.0, 2.0]]), order)
    assert row.masses[2] == 0.0
    assert row.masses.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("token", [0, 5, 11])
def test_what_is_no_logit_spoils_its_row_alone(token, value):
    order = order_of(12, 4)
    logits = torch.randn(2, 12, generator=torch.Generator().manual_seed(3))
    logits[0, token] = value
    spoilt, sound = made(logits, order)
    assert np.isnan(spoilt.masses).all()
    assert np.isnan(spoilt.values).any()
    assert_made(sound, logits[1])


def test_a_row_without_any_probability_is_nan():
    (row,) = made(torch.full((1, 12), -torch.inf), order_of(12, 4))
    assert np.isnan(row.masses).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats_are_normalised_in_float32(dtype):
    logits = torch.randn(2, 200, generator=torch.Generator().manual_seed(4)).to(dtype) * 3
    for row, of in zip(made(logits, order_of(200, 9)), logits, strict=True):
        assert_made(row, of)


@pytest.mark.parametrize("reading", [{}, {"eos_tokens": [b"ab", 1]}, {"literal": True}])
@pytest.mark.parametrize("far", [0.0, -90.0, -400.0])
def test_a_reader_finds_in_it_what_it_finds_in_the_row_by_id(reading, far):
    tokens = [b"", b"", b"", b"a", b"b", b"ab", b"ab", b"abc", b" a", b" b", b" ba"]
    vocab = ByteVocab.from_bytes(tokens, bos_token_id=0, eos_token_ids=[1])
    source = RowSource(StubLM(vocab), **reading)
    logits = torch.randn(1, vocab.size, generator=torch.Generator().manual_seed(5)) * 3
    logits[0, [3, 5, 6, 7]] += far
    (row,) = made(logits, TokenTrie.of(vocab).row_order)
    have = source.read(row)
    want = source.read(torch.log_softmax(logits[0].double(), -1).float().numpy())
    np.testing.assert_allclose(have.root, want.root, rtol=1e-6 + 2e-7 * abs(far), atol=0.0)
    assert have.mass == pytest.approx(want.mass, rel=1e-6)
    for node in range(1, len(source.trie)):
        lo, hi = source.trie.lo[node], source.trie.hi[node]
        assert have.log_mass(lo, hi) == pytest.approx(want.log_mass(lo, hi), rel=2e-7, abs=1e-6)
