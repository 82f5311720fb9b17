"""Files of prompts on a real server: whatever happens, nothing twice and nothing lost."""

import base64
import fcntl
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from bytelm_client import Client
from tests.server.commands import bytelm, command

PROMPTS = [
    "hello",
    {"context": {"base64": "/w=="}, "id": "bytes"},
    {"context": "the ", "steps": 3, "id": 7},
    *(f"prompt {i}" for i in range(37)),
]


def written(path: Path, prompts: list[Any]) -> Path:
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(url: str, source: Path, sink: Path, *more: str) -> subprocess.CompletedProcess[bytes]:
    files = ["--input", str(source), "--output", str(sink)]
    return bytelm("sample", *files, "--steps", "9", "--seed", "3", "--url", url, *more)


def errors(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    return done.stderr.decode().splitlines()


def test_every_prompt_has_its_results_in_the_order_of_the_input(url: str, tmp_path: Path) -> None:
    source, sink = written(tmp_path / "in", PROMPTS), tmp_path / "out"
    done = run(url, source, sink)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    found = rows(sink)
    assert [row["line"] for row in found] == list(range(1, 41))
    assert [row.get("id") for row in found[:4]] == [None, "bytes", 7, None]
    assert len(base64.b64decode(found[2]["results"][0]["bytes"]["base64"])) == 3
    assert len(base64.b64decode(found[3]["results"][0]["bytes"]["base64"])) == 9


def test_results_are_those_of_single_calls(url: str, tmp_path: Path) -> None:
    source, sink = written(tmp_path / "in", PROMPTS), tmp_path / "out"
    files = ["--input", str(source), "--output", str(sink), "--url", url]
    assert bytelm("greedy", *files, "--steps", "9", "--K", "3", "--stop", "q").returncode == 0
    client = Client(url)
    contexts: list[str | bytes] = ["hello", b"\xff"]
    for row, context in zip(rows(sink), contexts, strict=False):
        want = client.greedy(context, 9, beam={"K": 3}, stop="q")
        assert base64.b64decode(row["results"][0]["bytes"]["base64"]) == want.bytes


def test_equal_prompts_are_drawn_apart_and_a_seed_repeats_them(url: str, tmp_path: Path) -> None:
    source = written(tmp_path / "in", ["same"] * 5)
    for name in ("a", "b"):
        assert run(url, source, tmp_path / name, "--n", "2").returncode == 0
    first = [row["results"] for row in rows(tmp_path / "a")]
    assert first == [row["results"] for row in rows(tmp_path / "b")]
    assert len({json.dumps(results) for results in first}) == 5


def test_a_killed_run_goes_on_where_it_stopped(
    start_stub: Callable[..., str], tmp_path: Path
) -> None:
    url = start_stub()
    source, sink, whole = written(tmp_path / "in", PROMPTS), tmp_path / "out", tmp_path / "whole"
    assert run(url, source, whole).returncode == 0
    httpx.post(f"{url}/test/delay", params={"value": 0.02})
    arguments = ["sample", "--steps", "9", "--seed", "3", "--concurrency", "2", "--url", url]
    kills = 0
    for wanted in (5, 12, 20):
        with subprocess.Popen(
            command(*arguments, "--input", str(source), "--output", str(sink)),
            stderr=subprocess.DEVNULL,
        ) as process:
            while process.poll() is None:
                if sink.exists() and sink.read_bytes().count(b"\n") >= wanted:
                    process.kill()
                    kills += 1
                    break
                time.sleep(0.005)
    assert kills == 3
    # Half a line, as a full disk or a power cut leaves it.
    with sink.open("ab") as file:
        file.write(b'{"line": 40, "of": "')
    httpx.post(f"{url}/test/delay", params={"value": 0})
    done = run(url, source, sink)
    assert done.returncode == 0, done.stderr
    assert "prompts are done already" in errors(done)[0]
    assert rows(sink) == rows(whole)


def test_a_finished_run_does_nothing(url: str, tmp_path: Path) -> None:
    source, sink = written(tmp_path / "in", PROMPTS), tmp_path / "out"
    run(url, source, sink)
    before, made = sink.read_bytes(), httpx.get(f"{url}/test/evaluations").json()
    assert run(url, source, sink).returncode == 0
    assert httpx.get(f"{url}/test/evaluations").json() == made
    assert sink.read_bytes() == before


def test_bad_lines_are_told_by_number_and_the_others_done(url: str, tmp_path: Path) -> None:
    source, sink = tmp_path / "in", tmp_path / "out"
    bad = ['"good"', "{oops", '{"prompt": "a"}', "", '{"context": "a", "stps": 3}', "7"]
    source.write_text("\n".join([*bad, json.dumps("x" * 300), '"last"']) + "\n")
    done = run(url, source, sink)
    assert done.returncode == 1
    told = sorted(errors(done)[:-1])
    places = [line.split(", line ")[1] for line in told]
    assert places[0].startswith("2: not JSON: ")
    assert places[1].startswith("3: a prompt is a string, or an object with `context`")
    assert places[2].startswith("5: stps: unknown field")
    assert places[3].startswith("6: a prompt is")
    assert places[4].startswith("7: the context ")
    assert "5 of 7 prompts failed" in errors(done)[-1]
    assert [row["line"] for row in rows(sink)] == [1, 8]
    # Mended, they are the only ones that the next run does.
    source.write_text("\n".join(['"good"', *['"a"'] * 2, "", *['"a"'] * 3, '"last"']) + "\n")
    assert run(url, source, sink).returncode == 0
    assert [row["line"] for row in rows(sink)] == [1, 2, 3, 5, 6, 7, 8]


def test_a_line_that_neither_json_nor_utf8_has_is_told_by_number(url: str, tmp_path: Path) -> None:
    source, sink = tmp_path / "in", tmp_path / "out"
    bad = [
        r'"\ud800"',
        '{"context": "x", "temperature": NaN}',
        '{"context": "x", "temperature": 1e999}',
        r'{"context": "x", "id": "\udcff"}',
        "[" * 100_000,
    ]
    source.write_text("\n".join([*bad, '"good"']) + "\n")
    done = run(url, source, sink)
    assert done.returncode == 1
    told = errors(done)[:-1]
    assert sorted(line.split(", line ")[1][:12] for line in told) == [
        f"{number}: not JSON:" for number in range(1, 6)
    ]
    assert [row["line"] for row in rows(sink)] == [6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda source, sink: source.write_text('"other"\n"b"\n'), "results of another prompt"),
        (lambda source, sink: source.write_text('"a"\n'), "line 2, which"),
        (lambda source, sink: sink.write_text("something\n"), "line 1, is no result of bytelm"),
        (lambda source, sink: source.unlink(), "cannot be read: No such file"),
        (lambda source, sink: (sink.unlink(), sink.mkdir()), "cannot be written: Is a directory"),
    ],
)
def test_files_that_do_not_belong_together(
    url: str, tmp_path: Path, change: Callable[[Path, Path], Any], message: str
) -> None:
    source, sink = written(tmp_path / "in", ["a", "b"]), tmp_path / "out"
    assert run(url, source, sink).returncode == 0
    change(source, sink)
    done = run(url, source, sink)
    assert done.returncode == 2
    (line,) = errors(done)
    assert message in line


@pytest.mark.parametrize(
    "foreign", [b'"precious"', b"7", b'{"context": "a"}', b'{"line":1', b'{"of": "0", "line": 2}']
)
def test_what_is_not_of_bytelm_is_not_cut_off(url: str, tmp_path: Path, foreign: bytes) -> None:
    source, sink = written(tmp_path / "in", ["a"]), tmp_path / "out"
    for before in (foreign, b'{"line": 1, "of": "0"}\n' + foreign):
        sink.write_bytes(before)
        done = run(url, source, sink)
        assert done.returncode == 2
        assert "is no result of bytelm: choose another output" in errors(done)[0]
        assert sink.read_bytes() == before


@pytest.mark.parametrize("half", [b"{", b'{"line": ', b'{"line": 2, "of": "', None])
def test_half_a_result_is_cut_off(url: str, tmp_path: Path, half: bytes | None) -> None:
    source, sink = written(tmp_path / "in", ["a", "b"]), tmp_path / "out"
    assert run(url, source, sink).returncode == 0
    whole = sink.read_bytes()
    first, second = whole.splitlines(keepends=True)
    sink.write_bytes(first + (second[:-1] if half is None else half))
    assert run(url, source, sink).returncode == 0
    assert sink.read_bytes() == whole


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("link", [False, True])
def test_the_input_is_no_output(url: str, tmp_path: Path, end: str, link: bool) -> None:
    source, sink = tmp_path / "in", tmp_path / "out"
    source.write_text(f'"precious"{end}')
    if link:
        sink.hardlink_to(source)
    done = run(url, source, sink if link else source)
    assert done.returncode == 2
    assert "is the input, too" in errors(done)[0]
    assert source.read_text() == f'"precious"{end}'


def test_prompts_may_come_through_a_pipe(url: str, tmp_path: Path) -> None:
    source, sink = written(tmp_path / "in", PROMPTS), tmp_path / "out"
    assert run(url, source, tmp_path / "want").returncode == 0
    files = ["--input", "/dev/stdin", "--output", str(sink), "--steps", "9", "--seed", "3"]
    for _ in range(2):
        done = bytelm("sample", *files, "--url", url, input=source.read_bytes())
        assert done.returncode == 0, done.stderr
        assert sink.read_bytes() == (tmp_path / "want").read_bytes()


def test_results_may_go_into_a_pipe(url: str, tmp_path: Path) -> None:
    source = written(tmp_path / "in", PROMPTS)
    assert run(url, source, tmp_path / "want").returncode == 0
    done = run(url, source, Path("/dev/stdout"))
    assert (done.returncode, done.stderr) == (0, b"")
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(made, key=lambda row: row["line"]) == rows(tmp_path / "want")


def test_a_reader_of_results_that_leaves_is_no_error(
    start_stub: Callable[..., str], tmp_path: Path
) -> None:
    url = start_stub()
    httpx.post(f"{url}/test/delay", params={"value": 0.05})
    source = written(tmp_path / "in", PROMPTS)
    files = ["--input", str(source), "--output", "/dev/stdout", "--concurrency", "1"]
    with subprocess.Popen(
        command("sample", *files, "--url", url), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""


def test_results_may_go_nowhere(url: str, tmp_path: Path) -> None:
    done = run(url, written(tmp_path / "in", PROMPTS), Path("/dev/null"))
    assert (done.returncode, done.stderr) == (0, b"")


def test_results_that_cannot_be_put_in_order_stay(url: str, tmp_path: Path) -> None:
    source, sink = written(tmp_path / "in", ["a", "b"]), tmp_path / "out"
    assert run(url, source, sink).returncode == 0
    first, second = sink.read_bytes().splitlines(keepends=True)
    sink.write_bytes(second + first)
    (tmp_path / ".out.sorted").mkdir()
    done = run(url, source, sink)
    assert done.returncode == 2
    assert "out is whole, but not in order" in errors(done)[-1]
    assert sink.read_bytes() == second + first


def test_other_options_are_another_run(url: str, tmp_path: Path) -> None:
    source, sink = written(tmp_path / "in", ["a", "b"]), tmp_path / "out"
    assert run(url, source, sink).returncode == 0
    done = run(url, source, sink, "--temperature", "0.5")
    assert done.returncode == 2
    assert "other options" in errors(done)[0]


def is_locked(file: Path) -> bool:
    """Whether somebody holds the lock of a file that may not be there yet."""
    if not file.exists():
        return False
    with file.open() as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_only_one_run_writes_to_a_file(start_stub: Callable[..., str], tmp_path: Path) -> None:
    url = start_stub()
    httpx.post(f"{url}/test/delay", params={"value": 0.5})
    source, sink = written(tmp_path / "in", PROMPTS), tmp_path / "out"
    arguments = command("sample", "--input", str(source), "--output", str(sink), "--url", url)
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as process:
        while not is_locked(sink):
            assert process.poll() is None
            time.sleep(0.01)
        done = run(url, source, sink)
        process.kill()
    assert done.returncode == 2
    assert "another run is writing" in errors(done)[0]


def test_a_server_that_dies_keeps_what_is_done(
    start_stub: Callable[..., str], url: str, tmp_path: Path
) -> None:
    mortal = start_stub()
    httpx.post(f"{mortal}/test/delay", params={"value": 0.02})
    source, sink = written(tmp_path / "in", PROMPTS), tmp_path / "out"
    arguments = ["--steps", "9", "--seed", "3", "--concurrency", "2", "--url", mortal]
    with subprocess.Popen(
        command("sample", *arguments, "--input", str(source), "--output", str(sink)),
        stderr=subprocess.PIPE,
    ) as process:
        while not sink.exists() or sink.read_bytes().count(b"\n") < 5:
            assert process.poll() is None
            time.sleep(0.01)
        httpx.post(f"{mortal}/test/crash")
        _, told = process.communicate(timeout=60)
    assert process.returncode in (1, 2)
    assert "goes on from there" in told.decode().splitlines()[-2]
    assert told.decode().splitlines()[-1].startswith("bytelm: error: ")
    assert len(rows(sink)) >= 5
    assert run(url, source, sink).returncode == 0
    assert [row["line"] for row in rows(sink)] == list(range(1, 41))


def test_input_and_output_go_together(url: str, tmp_path: Path) -> None:
    source = written(tmp_path / "in", ["a"])
    done = bytelm("sample", "--input", str(source), "--url", url)
    assert (done.returncode, errors(done)) == (
        2,
        ["bytelm: error: --input and --output go together"],
    )
    done = bytelm("sample", "a", "--input", str(source), "--output", "x", "--url", url)
    assert done.returncode == 2
    assert "not both" in errors(done)[0]


def test_a_dash_is_stdin_and_stdout(url: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    call = ["sample", "--steps", "9", "--seed", "3", "--url", url]
    source, sink = written(tmp_path / "in", PROMPTS[:5]), tmp_path / "out"
    assert run(url, source, sink).returncode == 0
    done = bytelm(*call, "--input", "-", "--output", "-", input=source.read_bytes())
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(found, key=lambda row: row["line"]) == rows(sink)
    assert not (tmp_path / "-").exists()
    again = bytelm(*call, "--input", "-", "--output", str(sink), input=source.read_bytes())
    assert "5 of 5 prompts are done already" in again.stderr.decode()
    wrong = bytelm(*call, "--input", "-", "--output", "-", input=b"{}\n")
    assert wrong.returncode == 1
    assert "error: stdin, line 1: " in wrong.stderr.decode()


def test_results_that_cannot_be_written_end_the_run(url: str) -> None:
    call = ["greedy", "--input", "-", "--output", "-", "--url", url]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command(*call), input=b'"the"\n', stdout=full, stderr=subprocess.PIPE, timeout=120
        )
    (line,) = done.stderr.decode().splitlines()
    assert (done.returncode, line) == (
        2,
        "bytelm: error: stdout cannot be written: No space left on device",
    )
