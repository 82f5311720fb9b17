"""Draws: exact filters, the right frequencies, and streams that can be repeated."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm.errors import DrawError, InputError
from bytelm.generating.draws import Draw, chooser, sample_dict
from bytelm.models.logprobs import EOS, EOT, SIZE, Chart, LazyByteProbs
from bytelm.models.testing import assert_drawn_from


def distribution(probs: dict[int, float]) -> LazyByteProbs:
    ps = np.full(SIZE, -np.inf)
    for b, p in probs.items():
        ps[b] = math.log(p)
    return LazyByteProbs(ps)


def spread(seed: int = 0, zeros: int = 0) -> LazyByteProbs:
    """A distribution over all symbols but EOT and ``zeros`` others."""
    random = np.random.default_rng(seed)
    ps = random.normal(scale=2.0, size=SIZE)
    ps[random.choice(256, zeros, replace=False)] = -np.inf
    ps[EOT] = -np.inf
    return LazyByteProbs(ps - np.log(np.exp(ps).sum()))


def plainly_filtered(
    probs: dict[int, float],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float,
) -> dict[int, float]:
    """The filters one after another, each written down as it is defined."""
    kept = {b: p ** (1 / temperature) for b, p in probs.items() if p > 0 and b != EOT}
    ranked = sorted(kept, key=lambda b: (-kept[b], b))[:top_k]
    if top_p is not None:
        total = sum(kept[b] for b in ranked)
        before, nucleus = 0.0, []
        for b in ranked:
            if before < top_p * total:
                nucleus.append(b)
            before += kept[b]
        ranked = nucleus
    ranked = [b for b in ranked if kept[b] >= min_p * kept[ranked[0]]]
    total = sum(kept[b] for b in ranked)
    return {b: kept[b] / total for b in ranked}


def assert_frequencies(counts: np.ndarray, probs: np.ndarray) -> None:
    """Pearson's chi-squared within six standard deviations; nothing impossible was drawn."""
    assert counts[probs == 0.0].sum() == 0
    want = probs * counts.sum()
    enough = want >= 5.0
    have = np.append(counts[enough], counts[~enough].sum())
    want = np.append(want[enough], want[~enough].sum())
    have, want = have[want > 0], want[want > 0]
    freedom = len(want) - 1
    assert freedom >= 2
    chi_squared = ((have - want) ** 2 / want).sum()
    assert chi_squared < freedom + 6 * math.sqrt(2 * freedom)


PARAMETERS = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7},
    {"top_k": 7},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
]


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("as_chart", [False, True])
def test_symbols_are_drawn_as_often_as_their_filtered_probabilities_say(parameters, as_chart):
    q = spread(zeros=40)
    draw = Draw(**parameters, seed=1)
    given_ = q.map_values(np.exp) if as_chart else q
    counts = np.bincount([draw(given_) for _ in range(4_000)], minlength=SIZE)
    assert_frequencies(counts, draw.probs(q))


@given(
    st.dictionaries(
        st.sampled_from([*range(12), 255, EOS]), st.floats(1e-6, 1.0), min_size=1, max_size=12
    ),
    st.floats(0.2, 5.0),
    st.one_of(st.none(), st.integers(1, 20)),
    st.one_of(st.none(), st.floats(0.01, 0.99)),
    st.floats(0.0, 0.99),
)
def test_filters_apply_in_the_documented_order(probs, temperature, top_k, top_p, min_p):
    total = sum(probs.values())
    probs = {b: p / total for b, p in probs.items()}
    have = Draw(temperature, top_k, top_p, min_p, seed=0).probs(distribution(probs))
    want = np.zeros(SIZE)
    for b, p in plainly_filtered(probs, temperature, top_k, top_p, min_p).items():
        want[b] = p
    # A sum within rounding of a filter's boundary may fall on either side of it.
    if np.count_nonzero(have) == np.count_nonzero(want):
        assert have == pytest.approx(want, abs=1e-9)
    else:
        near = [
            plainly_filtered(probs, temperature, top_k, p, m)
            for p in (top_p and top_p - 1e-9, top_p and top_p + 1e-9)
            for m in (min_p * (1 - 1e-9), min_p * (1 + 1e-9))
        ]
        assert np.count_nonzero(have) in {len(n) for n in near}


def test_top_p_is_taken_of_what_top_k_left():
    q = distribution({1: 0.4, 2: 0.3, 3: 0.3})
    kept = np.flatnonzero(Draw(top_k=2, top_p=0.5, seed=0).probs(q))
    assert kept.tolist() == [1]
    assert np.flatnonzero(Draw(top_p=0.5, seed=0).probs(q)).tolist() == [1, 2]


def test_temperature_comes_before_top_p():
    q = distribution({1: 0.6, 2: 0.4})
    assert np.count_nonzero(Draw(top_p=0.6, seed=0).probs(q)) == 1
    assert np.count_nonzero(Draw(temperature=100.0, top_p=0.6, seed=0).probs(q)) == 2


def test_of_equals_the_smallest_symbols_are_kept():
    q = distribution(dict.fromkeys([EOS, 9, 5, 7], 0.25))
    assert np.flatnonzero(Draw(top_k=2, seed=0).probs(q)).tolist() == [5, 7]
    assert Draw(temperature=0.0)(q) == 5


def test_temperature_zero_takes_the_most_likely_symbol():
    for seed in range(20):
        q = spread(seed)
        assert Draw(temperature=0.0)(q) == Draw(temperature=1e-300)(q) == q.argmax()


def test_eot_is_never_drawn():
    ps = np.full(SIZE, -np.inf)
    ps[[EOT, 3]] = math.log(0.999), math.log(0.001)
    assert {Draw(seed=s)(LazyByteProbs(ps)) for s in range(50)} == {3}
    assert Draw(top_k=1, seed=0)({None: 0.9, 3: 0.1}) == 3


def test_eos_is_drawn_like_a_byte():
    assert Draw(seed=0)(distribution({EOS: 1.0})) == EOS
    assert Draw(seed=0)({EOS: 1.0}) == EOS


def test_array_and_chart_of_a_distribution_draw_the_same():
    array, chart, shares = (Draw(0.9, 50, 0.95, 0.01, seed=4) for _ in range(3))
    for seed in range(50):
        q = spread(seed, zeros=100)
        probs = LazyByteProbs(np.exp(q.ps), log_space=False)
        assert array(q) == chart(q.map_values(np.exp)) == shares(probs)


def test_the_same_seed_draws_the_same_whatever_else_draws():
    q = spread()
    one = Draw(seed=7)
    alone = [one(q) for _ in range(50)]
    again, other = Draw(seed=7), Draw(seed=8)
    mixed = []
    for _ in range(50):
        mixed.append(again(q))
        other(q)
        np.random.random()
    assert alone == mixed
    assert alone != [other(q) for _ in range(50)]


def test_each_draw_takes_one_number_of_the_stream():
    """So the filters of earlier draws do not shift later ones."""
    q, point = spread(), distribution({1: 1.0})
    straight, detour = Draw(seed=3), Draw(seed=3)
    straight(q)
    detour(point)
    assert [straight(q) for _ in range(20)] == [detour(q) for _ in range(20)]


def test_spawned_streams_are_repeatable_and_differ():
    q, parent = spread(), Draw(top_k=200, seed=5)
    texts = {}
    for key in [(0,), (1,), (0, 1), (1, 0)]:
        stream = parent.spawn(*key)
        texts[key] = tuple(stream(q) for _ in range(30))
        parent(q)
        stream = parent.spawn(*key)
        assert texts[key] == tuple(stream(q) for _ in range(30))
        assert stream.top_k == 200
    assert len(set(texts.values())) == 4


def test_without_a_seed_streams_differ_but_the_one_taken_can_be_repeated():
    q = spread()
    first, second = Draw(), Draw()
    texts = [[draw(q) for _ in range(30)] for draw in (first, second)]
    assert texts[0] != texts[1]
    again = Draw(seed=first.seed)
    assert [again(q) for _ in range(30)] == texts[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"seed": -1},
    ],
)
def test_parameters_outside_their_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(DrawError, match=name):
        Draw(**wrong)
    assert issubclass(DrawError, InputError)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_to_draw_is_refused(temperature):
    with pytest.raises(DrawError, match="no byte nor EOS"):
        Draw(temperature)(LazyByteProbs(np.full(SIZE, -np.inf)))
    with pytest.raises(DrawError):
        sample_dict({1: 0.0})


def test_any_function_of_a_chart_is_a_draw():
    q = spread()
    seen: list[Chart] = []

    def last(chart):
        seen.append(chart)
        return max(b for b in chart if b is not None)

    assert chooser(last)(q) == EOS
    assert seen[0][97] == pytest.approx(math.exp(q[97]))
    assert seen[0][None] == 0.0


def test_sample_dict_draws_in_proportion():
    random = np.random.default_rng(0)
    probs = {None: 0.0, "a": 3.0, "b": 1.0, "c": 4.0}
    drawn = [sample_dict(probs, random) for _ in range(4_000)]
    counts = np.array([drawn.count(key) for key in probs])
    assert_frequencies(counts, np.array(list(probs.values())) / 8.0)


def test_any_outcomes_are_drawn_like_bytes():
    logps = np.log(np.array([0.1, 0.2, 0.7], np.float32))
    drawn = [Draw(top_k=2, seed=seed).among(logps) for seed in range(2000)]
    assert_drawn_from(Counter(drawn), {1: 2 / 9, 2: 7 / 9})
    with pytest.raises(DrawError):
        Draw().among(np.full(3, -np.inf, np.float32))
