"""How the benchmark of the host counts, compares and tidies up, on figures made up here."""

import subprocess

import pytest

from tests.benchmarks import bench_host
from tests.benchmarks.bench_host import OURS, arguments, ratios, same_walks, sides, summary, table
from tests.benchmarks.instructions import Perf, per_byte, read_callgrind, read_perf
from tests.benchmarks.revisions import checked_out


def figures(seconds, texts=("aa", "bb")):
    """Of one run at one number of states."""
    one = {"bytes": 100, "seconds": seconds, "evaluations": 40, "seconds_per_evaluation": 0.01}
    return {"1": {**one, "texts": list(texts)}}


def git(folder, *command):
    done = subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", *command],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """Two revisions of a file: ``old`` is a tag of the first."""
    git(tmp_path, "init", "-q")
    for text in ("old", "new"):
        (tmp_path / "file").write_text(text)
        git(tmp_path, "add", "file")
        git(tmp_path, "commit", "-qm", text)
        git(tmp_path, "tag", text)
    return tmp_path


def worktrees(repository):
    return git(repository, "worktree", "list").count("\n") + 1


def test_another_revision_is_there_for_a_while(repository):
    with checked_out(repository, "old") as tree:
        assert (tree / "file").read_text() == "old"
        assert (repository / "file").read_text() == "new"
        assert worktrees(repository) == 2
        (tree / "__pycache__").mkdir()
        (tree / "file").write_text("changed")
    assert not tree.parent.exists()
    assert worktrees(repository) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_another_revision_is_removed_whatever_happens(repository, error):
    with pytest.raises(error), checked_out(repository, "old") as tree:
        raise error
    assert not tree.parent.exists()
    assert worktrees(repository) == 1


@pytest.mark.parametrize("revision", ["none", "", "--help"])
def test_a_revision_that_git_does_not_know_is_named(repository, revision):
    with pytest.raises(SystemExit, match="knows no revision"), checked_out(repository, revision):
        pass
    assert worktrees(repository) == 1


def test_without_another_revision_none_is_measured():
    # An empty one is what the Makefile's variable gives.
    assert arguments([]).against is None
    assert arguments(["--against", ""]).against is None
    assert not [side for side in sides(None, None) if " at " in side.name]


def test_another_revision_walks_with_its_own_code_beside_this_version(tmp_path):
    first, second, *_ = sides("236c398", tmp_path)
    assert first == OURS
    assert second.name == "bytelm at 236c398"
    assert second.environment["PYTHONPATH"] == str(tmp_path)
    assert second.command("time", tmp_path, tmp_path) == first.command("time", tmp_path, tmp_path)


def test_as_many_medians_as_runs_are_needed(capsys):
    assert arguments([]).runs >= 5
    with pytest.raises(SystemExit):
        arguments(["--runs", "0"])
    assert "at least 1" in capsys.readouterr().err


def test_a_ratio_is_the_median_of_those_of_the_runs():
    # The machine slowed down by ten in the last run, and by three in the one before.
    runs = {
        "bytelm": [figures(1.0), figures(3.0), figures(10.0)],
        "genlm-bytes": [figures(2.0), figures(9.0), figures(40.0)],
    }
    assert ratios(runs) == {"genlm-bytes": {"1": pytest.approx(3.0)}}


def test_a_row_has_medians():
    (row,) = summary({"bytelm": [figures(1.0), figures(2.0), figures(9.0)]})
    assert row["bytes_per_second"] == 50
    assert row["evaluations_per_byte"] == 0.4
    assert row["us_per_byte_without_evaluations"] == pytest.approx(16_000)


def test_walks_are_counted_that_are_the_same():
    runs = {"bytelm": [figures(1.0)], "other": [figures(1.0, ("aa", "xx"))]}
    assert same_walks(runs) == {"other": {"1": [1, 2]}}


def test_what_does_not_grow_with_the_bytes_drops_out():
    def executed(size):
        return size, 8_000_000_000 + 250 * size

    assert per_byte(executed(10), executed(50)) == 250
    with pytest.raises(ValueError, match="no longer walk"):
        per_byte(executed(50), executed(50))


def test_counts_are_read():
    written = "# started on Mon\n\n12345,,instructions:u,991,100.00,,\n"
    assert read_perf(written) == 12345
    assert read_callgrind("events: Ir\nsummary: 7\n\nfn=(0) x\n1 2\n\ntotals: 678\n") == 678


@pytest.mark.parametrize("text", ["", "<not supported>,,instructions:u,0,100.00,,\n"])
def test_no_count_is_an_error(text):
    with pytest.raises(ValueError, match="counted nothing"):
        read_perf(text)
    with pytest.raises(ValueError, match="counted nothing"):
        read_callgrind(text)


def test_perf_does_not_work_where_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not Perf.works()


def test_the_page_says_what_was_run_beside_what_and_how():
    runs = {"bytelm": [figures(1.0)], "bytelm at abc": [figures(4.0)]}
    report = {
        "command": "make bench-host AGAINST=abc",
        "model": "a model",
        "rows": "real",
        "processor": "a processor",
        "runs": 1,
        "counter": "callgrind",
        "medians": summary(runs),
        "ratios": ratios(runs),
        "same": same_walks(runs),
        "instructions_per_byte": {"bytelm": {"1": 100.0}, "bytelm at abc": {"1": 800.0}},
    }
    page = table(report)
    for part in ("bytelm; bytelm at abc", "`make bench-host AGAINST=abc`", "a processor"):
        assert part in page
    assert "| 800 | 4.00 | 8.00 |" in page
    assert "- bytelm at abc: 2 of 2 at 1" in page


def test_an_interrupt_says_that_nothing_was_written(monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_host, "run", interrupted)
    monkeypatch.setattr("sys.argv", ["bench_host", "--results", str(tmp_path)])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit, match="nothing was written"):
        bench_host.main()
    assert not list(tmp_path.iterdir())
