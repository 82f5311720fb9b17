"""Distributions over the next byte, as arrays and as Charts."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm.errors import ByteError
from bytelm.models.logprobs import EOS, EOT, Chart, LazyByteProbs, checked_bytes, escape


@pytest.fixture
def probs() -> LazyByteProbs:
    ps = np.full(258, -np.inf)
    ps[[ord("d"), ord("b"), EOS]] = np.log([0.5, 0.3, 0.2])
    return LazyByteProbs(ps)


def test_entries_are_reached_by_byte_eot_and_eos(probs):
    assert probs[ord("d")] == pytest.approx(np.log(0.5))
    assert probs[EOS] == pytest.approx(np.log(0.2))
    assert probs[None] == probs.ps[EOT] == -np.inf


@pytest.mark.parametrize("wrong", [256, 258, -1, "d"])
def test_other_entries_are_refused(probs, wrong):
    with pytest.raises(ByteError, match=str(wrong)):
        probs[wrong]


def test_an_array_of_another_size_is_refused():
    with pytest.raises(ByteError, match="258"):
        LazyByteProbs(np.zeros(257))


def test_materialize_keys_all_entries(probs):
    chart = probs.materialize()
    assert set(chart) == {*range(256), None, EOS}
    assert chart[ord("b")] == pytest.approx(np.log(0.3))


def test_pretty_is_keyed_for_reading(probs):
    assert list(probs.pretty().top(3)) == [b"d", b"b", "EOS"]
    assert "EOT" in probs.pretty()


def test_top_and_argmax_agree(probs):
    assert probs.argmax() == ord("d") == next(iter(probs.top(1)))


def test_map_values_makes_probabilities(probs):
    chart = probs.map_values(np.exp)
    assert chart.sum() == pytest.approx(1.0)
    assert chart.zero == 0.0


def test_equal_entries_have_the_smallest_byte_first():
    assert LazyByteProbs(np.zeros(258)).argmax() == 0


charts = st.dictionaries(st.sampled_from("abcd"), st.integers(-5, 5)).map(lambda d: Chart(0, d))


@given(charts, charts)
def test_a_sum_of_charts_adds_key_by_key(one, two):
    total = one + two
    assert all(total[k] == one[k] + two[k] for k in "abcd")
    assert all((one * two)[k] == one[k] * two[k] for k in "abcd")


@given(charts)
def test_orders_and_extremes_of_a_chart(chart):
    values = list(chart.sort_descending().values())
    assert values == sorted(chart.values(), reverse=True)
    assert list(chart.sort()) == sorted(chart)
    if chart:
        assert chart[chart.argmax()] == chart.max() == values[0]
        assert chart[chart.argmin()] == chart.min() == values[-1]
        assert list(chart.top(2).values()) == values[:2]


def test_a_chart_can_be_projected_normalised_filtered_and_compared():
    chart = Chart(0, {"a": 1, "b": 3, "c": 0})
    assert chart.project(lambda k: k in "ab") == {True: 4, False: 0}
    assert chart.normalize()["b"] == 0.75
    assert Chart(0).normalize() == {}
    assert chart.trim() == {"a": 1, "b": 3}
    assert chart.metric({"a": 1, "b": 5, "c": 0}) == 2
    chart.assert_equal({"a": 1, "b": 3})
    with pytest.raises(AssertionError, match="'b'"):
        chart.assert_equal({"a": 1, "b": 4})


def test_charts_print_without_their_default():
    chart = Chart(0, {"a": 1, "b": 3, "c": 0})
    assert repr(chart) == "{'a': 1, 'b': 3}"
    assert str(chart) == "Chart {\n  'b': 3,\n  'a': 1,\n}"
    assert "<td><pre>&#x27;b&#x27;</pre></td>" in chart._repr_html_()


def test_escape_shows_spaces_and_unprintable_bytes():
    assert escape(b" a\n\xff") == "␣a\\n\\xff"


@given(st.binary())
def test_byte_values_are_checked_and_kept(data):
    assert (
        checked_bytes(data) == checked_bytes(list(data)) == checked_bytes(bytearray(data)) == data
    )


@pytest.mark.parametrize("wrong", [[256], [-1], ["a"], [None]])
def test_values_that_are_no_bytes_are_refused(wrong):
    with pytest.raises(ByteError):
        checked_bytes(wrong)


def test_a_distribution_may_be_a_list() -> None:
    ps: Any = [0.1] * 256 + [0.2, 0.3]
    chart = LazyByteProbs(ps, log_space=False).materialize()
    assert (chart[0], chart[None], chart[EOS]) == (0.1, 0.2, 0.3)


def test_a_charts_values_are_shown_as_wanted() -> None:
    chart: Any = Chart(0, {"a": 1, "b": 2, "c": 0})
    text = chart.__str__(style_value=lambda k, v: f"{k}={v}")
    assert text == "Chart {\n  'b': b=2,\n  'a': a=1,\n}"


def test_differences_may_be_printed_instead(capsys: pytest.CaptureFixture[str]) -> None:
    Chart(0, {"a": 1}).assert_equal({"a": 2}, throw=False, verbose=True)
    assert "{'a': (1, 2)}" in capsys.readouterr().out
