"""``bytelm score`` on a real server: bits of lines and words, whatever interrupts it."""

import csv
import io
import math
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bytelm.generating.spans import words
from bytelm_client import Client
from bytelm_client.cli.windows import Piece, Windows
from tests.server.commands import bytelm, command, one_line, output
from tests.server.test_cli_look import on_terminal, rows


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.mark.parametrize(
    ("size", "window", "stride"), [(1, 4, 2), (1000, 300, 150), (1000, 1000, 500), (2000, 300, 7)]
)
def test_pieces_cover_a_text_once_with_enough_before_them(
    size: int, window: int, stride: int
) -> None:
    found = list(Windows(window, stride, 256).pieces(size))
    assert [p.start for p in found] == [0, *(p.end for p in found[:-1])]
    assert found[-1].end == size
    for piece in found:
        assert piece.begin <= piece.start < piece.end <= piece.begin + window
        assert piece.begin % stride == 0
        assert piece.begin == 0 or piece.start - piece.begin >= window - stride


def test_limits_of_the_server_bound_a_window_and_what_one_call_scores() -> None:
    limits = {"context_tokens": 200, "context_bytes": 300, "total_steps": 90, "row_values": 50}
    assert Windows.of(limits, None, None) == Windows(300, 150, 50)
    assert Windows.of({"context_tokens": None}, None, None) == Windows(None, None)


def test_a_text_without_a_window_is_read_from_its_beginning() -> None:
    assert list(Windows(None, None, 256).pieces(300)) == [Piece(0, 0, 256), Piece(0, 256, 300)]


TEXT = "the ant\nhello there\n\nand an é".encode()


def test_score_gives_bits_of_each_line_and_of_all(url: str, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(TEXT)
    *lines, total = rows(output("score", str(file), "--url", url))
    want = client.score("", TEXT, per_byte=True)
    assert want.logprobs is not None
    assert total["bits_per_byte"] == pytest.approx(want.bits_per_byte)
    assert (total["bytes"], total["impossible"]) == (len(TEXT), 0)
    assert [line["bytes"] for line in lines] == [8, 12, 1, 9]
    assert lines[1]["bits"] == pytest.approx(-want.logprobs[8:20].sum() / math.log(2))
    assert rows(output("score", "-", "--total", "--url", url, input=TEXT)) == [total]
    assert "bits/byte" in on_terminal("score", str(file), "--url", url)


def test_windows_give_each_byte_its_own_context(url: str, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(TEXT)
    flags = ["--window", "12", "--stride", "6", "--total"]
    (total,) = rows(output("score", str(file), *flags, "--url", url))
    bits = 0.0
    for piece in Windows(12, 6).pieces(len(TEXT)):
        before, text = TEXT[piece.begin : piece.start], TEXT[piece.start : piece.end]
        bits -= client.score(before, text).logprob / math.log(2)
    assert total["bits"] == pytest.approx(bits)


def test_a_file_longer_than_the_context_is_scored_to_its_end(url: str, tmp_path: Path) -> None:
    # 200 tokens fit, and no token of this text has more than one byte.
    file = tmp_path / "text"
    file.write_bytes(b"xyzzy" * 300)
    (total,) = rows(output("score", str(file), "--total", "--url", url))
    assert total["bytes"] == 1500
    assert total["bits"] > 1500


def test_no_byte_is_impossible_however_narrow_the_beam(url: str, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"hhething")
    done = bytelm("score", str(file), "--K", "1", "--prune-threshold", "0.9", "--url", url)
    total = rows(done.stdout)[-1]
    assert total["impossible"] == 0
    assert 0 < total["bits"] < 200


def test_a_byte_that_cannot_be_spelled_is_named(start_stub: Any, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"he\0h")
    done = bytelm("score", str(file), "--url", start_stub("--letters"))
    assert "byte 0x00 at offset 2" in one_line(done, 2)


def test_files_that_cannot_be_scored(url: str, tmp_path: Path) -> None:
    assert "cannot be read: No such file" in one_line(
        bytelm("score", str(tmp_path / "none"), "--url", url), 2
    )
    (tmp_path / "empty").touch()
    assert "is empty" in one_line(bytelm("score", str(tmp_path / "empty"), "--url", url), 2)
    file = tmp_path / "text"
    file.write_bytes(TEXT)
    flags = ["--window", "10", "--stride", "11"]
    assert "--stride is at most" in one_line(bytelm("score", str(file), *flags, "--url", url), 2)


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize(
    "line", [b"the " * 500, b"x" * 79, "漢字".encode() * 100, b"\x1b[2J\a" * 50]
)
def test_score_shows_every_number_however_long_a_line_is(
    url: str, tmp_path: Path, line: bytes, columns: int
) -> None:
    file = tmp_path / "text"
    file.write_bytes(line[:600] + b"\nhe\n")
    want = rows(output("score", str(file), "--url", url))
    text = on_terminal("score", str(file), "--url", url, columns=columns)
    table = text[text.index("line ") :].splitlines()
    for row, shown in zip(want, table[1:4], strict=True):
        numbers = [str(row["bytes"]), f"{row['bits']:.1f}", f"{row['bits_per_byte']:.3f}"]
        assert shown.split()[1:4] == numbers
    assert "…" in table[1]
    assert all(char.isprintable() for char in "".join(table[:4]))


# Words.

WORDY = b'the "ant", he\nsaid\r\n  \xc3\xa9\xff;\\ \xc3 end\n'


def read_csv(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


def test_each_word_has_its_surprisal(url: str, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(WORDY)
    done = bytelm("score", str(file), "--words", "--csv", "--url", url)
    assert done.returncode == 0
    table = read_csv(done.stdout)
    want = client.score("", WORDY, spans="words").spans
    assert want is not None
    assert list(table[0]) == ["word", "start", "end", "bits", "logprob"]
    assert [row["word"] for row in table] == [
        span.bytes.decode(errors="backslashreplace") for span in want
    ]
    assert [(int(row["start"]), int(row["end"])) for row in table] == words(WORDY)
    for row, span in zip(table, want, strict=True):
        assert float(row["logprob"]) == pytest.approx(span.logprob)
        assert float(row["bits"]) == pytest.approx(span.bits)
    assert done.stderr.startswith(f"all: {len(WORDY)} bytes, ".encode())
    again = bytelm("score", "-", "--words", "--csv", "--url", url, input=WORDY)
    assert (again.stdout, again.stderr) == (done.stdout, done.stderr)


def test_csv_has_no_nul(url: str) -> None:
    found = read_csv(output("score", "-", "--words", "--csv", "--url", url, input=b"a\0b \0"))
    assert [row["word"] for row in found] == ["a\\x00b", " \\x00"]


def test_words_as_json_have_their_bytes(url: str, client: Client) -> None:
    *found, total = rows(output("score", "-", "--words", "--url", url, input=WORDY))
    spans = client.score("", WORDY, spans="words").spans
    assert spans is not None
    for row, span in zip(found, spans, strict=True):
        assert (row["start"], row["end"]) == (span.start, span.end)
        assert row["bits"] == pytest.approx(span.bits)
        assert row["text"] is None or row["text"].encode() == span.bytes
    assert sum(row["bits"] for row in found) == pytest.approx(total["bits"])


def test_words_that_calls_cut_are_whole(url: str, tmp_path: Path) -> None:
    """Characters, too: here a call scores 12 bytes at most."""
    file, text = tmp_path / "text", "é北，京 ééééééééééééé\r\n\r\n好。the ants".encode()
    file.write_bytes(text)
    flags = ["--window", "12", "--stride", "1", "--url", url]
    found = read_csv(output("score", str(file), "--words", "--csv", *flags))
    assert [(int(row["start"]), int(row["end"])) for row in found] == words(text)
    *lines, _ = rows(output("score", str(file), *flags))
    assert [line["bytes"] for line in lines] == [len(x) for x in text.splitlines(keepends=True)]


def test_lines_and_all_of_a_file_as_csv(url: str, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(TEXT)
    *lines, total = rows(output("score", str(file), "--url", url))
    table = read_csv(output("score", str(file), "--csv", "--url", url))
    assert [{name: float(x) for name, x in row.items()} for row in table] == lines
    (row,) = read_csv(output("score", str(file), "--csv", "--total", "--url", url))
    assert {"total": True, **{name: float(x) for name, x in row.items()}} == total


def test_words_on_a_terminal(url: str, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"the ant\nhello\x1b[2J")
    shown = on_terminal("score", str(file), "--words", "--url", url)
    assert "⏎hello" in shown
    assert "\x1b[2J" not in shown
    csv_shown = on_terminal("score", str(file), "--words", "--csv", "--url", url)
    assert '"the",0,3,' in csv_shown


def test_a_file_called_csv_is_csv(url: str, tmp_path: Path) -> None:
    file, sink = tmp_path / "text", tmp_path / "words.csv"
    file.write_bytes(TEXT)
    assert output("score", str(file), "--words", "--output", str(sink), "--url", url) == b""
    assert sink.read_bytes() == output("score", str(file), "--words", "--csv", "--url", url)
    assert output("score", str(file), "--total", "--output", "-", "--url", url).startswith(b"{")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--words", "--total"], "--words and --total exclude each other"),
        (["--csv", "--json"], "--json and --csv exclude each other"),
    ],
)
def test_flags_that_exclude_each_other(
    url: str, tmp_path: Path, flags: list[str], message: str
) -> None:
    assert message in one_line(bytelm("score", str(tmp_path / "none"), *flags, "--url", url), 2)


def test_what_is_summed_over_can_be_told(url: str) -> None:
    done = bytelm("score", "-", "--tokenizations", "canonical", "--url", url, input=TEXT)
    # The stub's vocabulary has no canonical tokenizations.
    assert "canonical" in one_line(done, 2)
    flags = ["--tokenizations", "all", "--K", "3"]
    assert output("score", "-", *flags, "--url", url, input=TEXT)


# Long files.

LONG = b"".join(b"line %d of the ant: hello there\n" % i for i in range(24))
FLAGS = ["--window", "100", "--stride", "50", "--words"]


def flagged(url: str, file: Path, sink: Path, *more: str) -> list[str]:
    return ["score", str(file), "--output", str(sink), *FLAGS, *more, "--url", url]


def test_a_killed_run_goes_on_where_it_stopped(
    start_stub: Callable[..., str], tmp_path: Path
) -> None:
    url = start_stub()
    file, sink, whole = tmp_path / "text", tmp_path / "out.csv", tmp_path / "whole.csv"
    file.write_bytes(LONG)

    def evaluations() -> int:
        return int(httpx.get(f"{url}/test/evaluations").json())

    assert output(*flagged(url, file, whole)) == b""
    once = evaluations()
    httpx.post(f"{url}/test/delay", params={"value": 0.002})
    kept, kills = tmp_path / "out.csv.scores", 0
    for share in (0.1, 0.4, 0.7):
        with subprocess.Popen(
            command(*flagged(url, file, sink, "--concurrency", "2")), stderr=subprocess.DEVNULL
        ) as process:
            while process.poll() is None:
                if kept.exists() and kept.stat().st_size >= share * 8 * len(LONG) + 300:
                    process.kill()
                    kills += 1
                    break
                time.sleep(0.005)
    assert kills == 3
    # A part of a number, and of a row, as a full disk leaves them.
    with kept.open("ab") as file_:
        file_.write(b"123")
    with sink.open("ab") as file_:
        file_.write(b'"half')
    httpx.post(f"{url}/test/delay", params={"value": 0})
    done = bytelm(*flagged(url, file, sink))
    assert done.returncode == 0, done.stderr
    assert b"bytes are scored already" in done.stderr
    assert sink.read_bytes() == whole.read_bytes()
    # Each kill loses what was under way: at most four pieces of 50 bytes.
    assert evaluations() - once < 2 * once
    made = evaluations()
    assert bytelm(*flagged(url, file, sink)).returncode == 0
    assert evaluations() == made
    assert sink.read_bytes() == whole.read_bytes()
    # Another report of the same scores needs no evaluation either.
    assert bytelm(*flagged(url, file, sink, "--json")).returncode == 0
    assert evaluations() == made
    assert rows(sink.read_bytes())[-1]["bytes"] == len(LONG)


def test_a_run_that_is_interrupted_says_how_to_go_on(
    start_stub: Callable[..., str], tmp_path: Path
) -> None:
    url = start_stub()
    file, sink = tmp_path / "text", tmp_path / "out"
    file.write_bytes(LONG)
    httpx.post(f"{url}/test/delay", params={"value": 0.004})
    kept = tmp_path / "out.scores"
    with subprocess.Popen(command(*flagged(url, file, sink)), stderr=subprocess.PIPE) as process:
        while not (kept.exists() and kept.stat().st_size > 2000):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(2)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"bytes scored; the same command goes on from there" in told
    httpx.post(f"{url}/test/delay", params={"value": 0})
    assert output(*flagged(url, file, sink)) == b""
    assert rows(sink.read_bytes())[-1]["bytes"] == len(LONG)


def test_scores_of_something_else_are_not_gone_on_with(
    url: str, start_stub: Callable[..., str], tmp_path: Path
) -> None:
    file, sink = tmp_path / "text", tmp_path / "out"
    file.write_bytes(TEXT)
    assert output(*flagged(url, file, sink)) == b""
    before = sink.read_bytes()

    def refused(*arguments: str) -> str:
        line = one_line(bytelm(*arguments), 2)
        assert sink.read_bytes() == before
        return line

    assert "another window: choose another output, or remove both" in refused(
        *flagged(url, file, sink, "--stride", "20")
    )
    assert "another beam" in refused(*flagged(url, file, sink, "--K", "2"))
    assert "another model" in refused(*flagged(start_stub("--letters"), file, sink))
    other = tmp_path / "other"
    other.write_bytes(TEXT[:-1])
    assert "out.scores has scores of another file" in refused(*flagged(url, other, sink))
    scores = tmp_path / "out.scores"
    scores.write_bytes(b"my own notes\n")
    assert "has no scores of bytelm" in refused(*flagged(url, file, sink))
    assert scores.read_bytes() == b"my own notes\n"
    scores.unlink()
    assert "out is there already, without out.scores" in refused(*flagged(url, file, sink))


def test_an_output_that_is_the_input_is_refused(url: str, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(TEXT)
    assert "is the input, too" in one_line(bytelm(*flagged(url, file, file)), 2)
    assert file.read_bytes() == TEXT


def test_only_one_run_at_a_time_has_an_output(
    start_stub: Callable[..., str], tmp_path: Path
) -> None:
    url = start_stub()
    file, sink = tmp_path / "text", tmp_path / "out"
    file.write_bytes(LONG)
    httpx.post(f"{url}/test/delay", params={"value": 0.05})
    with subprocess.Popen(command(*flagged(url, file, sink)), stderr=subprocess.DEVNULL) as first:
        while not (tmp_path / "out.scores").exists() or not sink.exists():
            time.sleep(0.01)
        time.sleep(0.5)
        assert "another run is writing to" in one_line(bytelm(*flagged(url, file, sink)), 2)
        first.kill()


def test_an_output_that_is_a_pipe_gets_the_rows(url: str, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(TEXT)
    found = output("score", str(file), "--output", "/dev/stdout", "--words", "--url", url)
    assert found == output("score", str(file), "--words", "--url", url)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text"]
