"""How the speed benchmark counts, extrapolates and judges, on figures made up here."""

import json

import pytest

from tests.benchmarks.bench import Journal
from tests.benchmarks.bench_cases import (
    Case,
    Track,
    all_cases,
    main_cases,
    measure_all,
    score_cases,
    timed,
)
from tests.benchmarks.bench_genlm import Clock, fit
from tests.benchmarks.bench_report import Report
from tests.benchmarks.texts import excerpts

GREEDY = Case("bytelm", "greedy", 2, 60)


def figures(size: int, seconds: float, **more):
    return {"bytes": size, "seconds": seconds, **more}


def verdicts(measured):
    """Whether each goal is met, by the figure's name."""
    return {row.figure: row.met for row in Report("main", "a model", measured).rows()}


def test_every_case_has_a_name_of_its_own():
    for cases in (main_cases(5, 0.01), all_cases(), score_cases()):
        assert len({case.key for case in cases}) == len(cases)


def test_prompts_are_whole_excerpts_and_those_of_the_warm_up_are_others():
    prompts = GREEDY.prompts()
    assert [len(prompt) for prompt in prompts] == [60, 60]
    assert not set(prompts) & set(GREEDY.prompts(is_warm_up=True))


@pytest.mark.parametrize(("count", "size"), [(128, 60), (32, 2000)])
def test_excerpts_differ_from_each_other(count, size):
    found = excerpts(count, size)
    assert len(set(found)) == count
    assert all(len(one) == size for one in found)


def test_rates_run_to_the_last_byte_and_decoding_from_the_last_prompt():
    slow = Track(prefilled=3.0, arrivals=[(4.0, 1), (6.0, 2)])
    quick = Track(prefilled=1.0, arrivals=[(2.0, 4), (5.0, 1)])
    assert timed(1.0, [slow, quick]) == {
        "seconds": 5.0,
        "bytes": 8,
        "prefill_seconds": 2.0,
        "decode_seconds": 3.0,
        "decode_bytes": 4,
    }


def test_the_fit_finds_both_parts():
    curve = [(n, 0.5 * n + 0.01 * n * n) for n in range(1, 40)]
    assert fit(curve) == pytest.approx((0.5, 0.01))


@pytest.mark.parametrize(("power", "expected"), [(0.5, (True, False)), (3.0, (False, True))])
def test_no_part_of_the_fit_is_negative(power, expected):
    a, b = fit([(n, n**power) for n in range(1, 40)])
    assert (a > 0, b > 0) == expected
    assert min(a, b) == 0


def test_the_clock_counts_bytes_of_each_session():
    clock = Clock(sessions=3, limit=None)
    for _ in range(7):
        clock.advance()
    assert clock.walked == 7
    assert [n for n, _ in clock.curve] == [1.0, 2.0]
    assert not clock.is_over
    assert Clock(sessions=1, limit=-1.0).is_over


async def test_each_repetition_begins_with_empty_caches_after_one_warm_up():
    done = []

    class Side:
        async def clear(self):
            done.append("clear")

        async def measure(self, case, prompts, repetition):
            done.append((len(prompts[0]), case.steps, repetition))
            return figures(1, 1.0)

        async def close(self):
            pass

    reports = []
    case = Case("bytelm", "greedy", 1, 2000, repetitions=2)
    await measure_all(Side(), [case], lambda *report: reports.append(report))
    assert done == ["clear", (60, 24, 0), "clear", (2000, 256, 1), "clear", (2000, 256, 2)]
    assert reports == [(case, [figures(1, 1.0)] * 2)]


def test_scores_are_judged_beside_their_walk():
    measured = {
        case: [figures(2000, 10.0 if case.label.endswith("walk") else 2.0, evaluations=1)]
        for case in score_cases()
    }
    report = Report("scores", "a model", measured)
    met = {row.figure: row.met for row in report.rows()}
    assert met["2,000 bytes against the walk: canonical tokenizations"] is False  # 5 of 8
    assert met["2,000 bytes against the walk: all tokenizations"] is True
    assert met["2,000 bytes, canonical, as long as vLLM's prompt_logprobs"] is True
    assert "5 ×" in report.table()


def test_a_goal_is_judged_by_medians():
    measured = {
        Case("bytelm", "rounds", 32, 60): [
            figures(0, seconds, evaluations=100) for seconds in (1.0, 1.2, 9.0)
        ],
        Case("native", "rounds", 32, 60): [figures(0, 1.0, evaluations=100)],
    }
    assert verdicts(measured) == {"evaluations/s in rounds of 32": False}
    measured[Case("native", "rounds", 32, 60)] = [figures(0, 1.1, evaluations=100)]
    assert verdicts(measured) == {"evaluations/s in rounds of 32": True}


def test_tokens_beyond_the_first_evaluation_leave_out_each_prompt_once():
    taken = {
        "evaluations": 32 * 11,
        "tokens_computed": 32 * (20 + 10),
        "context_tokens": 32 * 20,
        "prefill_evaluations": 32,
        "prefill_tokens_computed": 32 * 20,
        "decode_seconds": 1.0,
        "decode_bytes": 1,
    }
    case = Case("bytelm", "greedy", 32, 60)
    name = "tokens computed per evaluation beyond the first of a context"
    assert verdicts({case: [figures(32 * 256, 1.0, **taken)]})[name] is True
    taken["tokens_computed"] += 32
    assert verdicts({case: [figures(32 * 256, 1.0, **taken)]})[name] is False


def test_an_extrapolation_is_labelled():
    measured = {
        Case("bytelm", "greedy", 32, 2000): [
            figures(8192, 10.0, decode_seconds=9.0, decode_bytes=8192)
        ],
        Case("genlm", "greedy", 32, 2000): [
            figures(8192, 1000.0, extrapolated={"a": 1.0, "b": 0.0}, curve=[(1, 1.0)])
        ],
    }
    table = Report("main", "a model", measured).table()
    assert "| 100 × | yes | 819.2 bytes/s against 8.2 (extrapolated) |" in table


def test_what_was_measured_to_the_end_stands_beside_what_its_beginning_promises(tmp_path):
    curve = [(n, 0.5 * n + 0.001 * n * n) for n in range(1, 2001)]
    case = Case("genlm", "prefill", 1, 2000, label="whole")
    made = figures(2000, 5100.0, curve=curve)
    (row,) = Report("peers", "a model", {case: [made]}).rows()
    assert (row.value, row.met) == ("5,100 s", None)
    assert row.how.endswith("its first 120 s gives 5,000 s")
    Report("peers", "a model", {case: [made]}).write(tmp_path)
    assert (tmp_path / "bench_peers.png").stat().st_size > 1000


def test_whatever_is_left_behind_misses_the_goal():
    case = Case("bytelm", "leaks", 32, 60, steps=10_000)
    left = {"slots": 0, "evaluations": 0, "requests": 0, "tasks": 0, "blocks": 0}
    made = figures(0, 60.0, evaluations=10_000, given_up=10)
    assert list(verdicts({case: [made | {"left": left}]}).values()) == [True]
    assert list(verdicts({case: [made | {"left": left | {"slots": 1}}]}).values()) == [False]


def test_tables_and_plots_are_written(tmp_path):
    curve = [(1.0, 1.0), (2.0, 2.5)]
    fitted = {"extrapolated": {"a": 1.0, "b": 0.1}, "curve": curve}
    measured = {
        Case("bytelm", "greedy", 8, 60): [figures(2048, 4.0)],
        Case("genlm", "greedy", 8, 60): [figures(2048, 40.0, **fitted)],
    }
    Report("main", "a model", measured).write(tmp_path)
    Report("all", "a model", measured).write(tmp_path)
    written = json.loads((tmp_path / "bench.json").read_text())
    assert [case["key"] for case in written["cases"]] == ["bytelm/greedy-8x60", "genlm/greedy-8x60"]
    for name in ("bench", "bench_all"):
        assert f"({name}.png)" in (tmp_path / f"{name}.md").read_text()
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_a_journal_gives_back_what_was_measured_unless_it_begins_afresh(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path, tmp_path, afresh=False)
    journal.add(GREEDY, [figures(1, 1.0)])
    journal.close()
    with path.open("ab") as file:
        file.write(b'["half a li')
    resumed = Journal(path, tmp_path, afresh=False)
    assert resumed.get(GREEDY) == [figures(1, 1.0)]
    assert resumed.get(Case("bytelm", "greedy", 3, 60)) is None
    resumed.close()
    afresh = Journal(path, tmp_path, afresh=True)
    assert afresh.get(GREEDY) is None
    afresh.close()
