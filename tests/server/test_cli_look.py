"""``bytelm next``, ``compare``, ``score`` and ``sessions`` on a real server."""

import base64
import fcntl
import json
import math
import os
import pty
import select
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bytelm_client import Client
from bytelm_client.cli.look import BAR, bar, share_text
from bytelm_client.cli.score import Piece, pieces
from tests.server.commands import bytelm, command, one_line, output


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


def on_terminal(*arguments: str, columns: int = 160) -> str:
    """What a command shows on a terminal."""
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    environment["TERM"] = "dumb"
    with subprocess.Popen(
        command(*arguments), stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    ) as process:
        os.close(terminal)
        seen = b""
        while select.select([screen], [], [], 60)[0]:
            try:
                seen += os.read(screen, 4096)
            except OSError:  # the other end is closed
                break
    os.close(screen)
    assert process.returncode == 0, seen
    return seen.decode().replace("\r\n", "\n")


# next


def test_next_gives_the_likeliest_bytes_and_the_candidates(url: str, client: Client) -> None:
    told = json.loads(output("next", "hello", "--top", "3", "--url", url))
    want = client.next_bytes("hello")
    assert [(bytes([b["byte"]]), b["logprob"]) for b in told["top"]] == want.top(3)
    assert told["eos"] == want.eos
    with client.session("hello") as session:
        found = session.candidates()
    assert [c["partial"]["text"] for c in told["candidates"]] == [c.partial.decode() for c in found]
    assert math.isclose(sum(c["share"] for c in told["candidates"]), 1)
    assert told["candidates"][0]["tokens"][0] == "<|im_start|>"


def test_next_draws_bars_on_a_terminal(url: str, client: Client) -> None:
    text = on_terminal("next", "the", "--top", "5", "--url", url)
    best, logprob = client.next_bytes("the").top(1)[0]
    line = next(line for line in text.splitlines() if "█" in line)
    assert "█" * BAR in line
    assert line.split()[-1] == f"{math.exp(logprob):.4f}"
    assert "‖" in text
    assert len(best) == 1


def test_next_shows_no_byte_that_cannot_come(start_stub: Any) -> None:
    """Of a vocabulary that cannot spell all bytes."""
    url = start_stub("--letters")
    beam = ["--K", "1"]
    with Client(url) as client:
        want = client.next_bytes("th", beam={"K": 1})
    possible = [b for b, logprob in want.top(256) if logprob > -math.inf]
    assert 0 < len(possible) < 256
    told = json.loads(output("next", "th", "--top", "256", *beam, "--url", url))
    assert [bytes([b["byte"]]) for b in told["top"]] == possible
    text = on_terminal("next", "th", "--top", "256", *beam, "--url", url)
    chart = text.split("\n\n")[0].splitlines()[1:]
    assert len(chart) == len(possible) + (want.eos > -math.inf)


def test_next_shows_the_end_of_a_long_prompt(url: str) -> None:
    text = on_terminal("next", "q" * 100 + "the", "--url", url, columns=80)
    beam = [line.split()[1] for line in text.splitlines() if "‖" in line]
    assert all(tokens.startswith("…|q|q") for tokens in beam)
    assert beam


def test_next_leaves_no_session_behind(url: str, client: Client) -> None:
    before = {info.id for info in client.sessions()}
    output("next", "hello", "--url", url)
    output("compare", "hello", "--url", url)
    assert {info.id for info in client.sessions()} == before


@pytest.mark.parametrize(
    ("share", "text"), [(1, "1.0000"), (0.00012, "0.0001"), (3.4e-7, "3e-07"), (0, "0.0000")]
)
def test_what_is_above_zero_does_not_look_like_zero(share: float, text: str) -> None:
    assert share_text(share) == text


def test_bars_are_as_long_as_what_they_show() -> None:
    assert bar(1.0) == "█" * BAR
    assert bar(0.0) == ""
    assert bar(0.5) == "█" * (BAR // 2)
    assert bar(1 / (8 * BAR)) == "▏"


# compare


def test_compare_gives_both_texts(url: str, client: Client) -> None:
    told = json.loads(output("compare", "he", "--steps", "9", "--url", url))
    assert base64.b64decode(told["byte_level"]["base64"]) == client.greedy("he", 9).bytes
    with client.session("he", kind="token") as session:
        made = session.greedy(9)
    assert base64.b64decode(told["token_level"]["base64"]) == made.bytes[:9]
    assert told["prompt"]["tokens"] == ["<|im_start|>", "he"]
    assert told["same"] == (made.bytes[:9] == client.greedy("he", 9).bytes)


def test_compare_puts_them_below_each_other_on_a_terminal(url: str) -> None:
    text = on_terminal("compare", "he", "--steps", "9", "--url", url)
    lines = text.splitlines()
    assert lines[0].startswith("the prompt's tokens  <|im_start|>|he")
    assert lines[1].startswith("token by token       he")
    assert lines[2].startswith("byte by byte         he")


# score


@pytest.mark.parametrize(
    ("size", "window", "stride"), [(1, 4, 2), (1000, 300, 150), (1000, 1000, 500), (2000, 300, 7)]
)
def test_pieces_cover_a_text_once_with_enough_before_them(
    size: int, window: int, stride: int
) -> None:
    found = list(pieces(size, window, stride))
    assert [p.start for p in found] == [0, *(p.end for p in found[:-1])]
    assert found[-1].end == size
    for piece in found:
        assert piece.begin <= piece.start < piece.end <= piece.begin + window
        assert piece.begin % stride == 0
        assert piece.begin == 0 or piece.start - piece.begin >= window - stride


def test_a_text_without_a_window_is_read_from_its_beginning() -> None:
    assert list(pieces(300, None, None)) == [Piece(0, 0, 256), Piece(0, 256, 300)]


TEXT = "the ant\nhello there\n\nand an é".encode()


def rows(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


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
    for piece in pieces(len(TEXT), 12, 6):
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


# sessions


def test_sessions_are_listed_shown_and_ended(url: str, client: Client) -> None:
    one, other = client.session("hello"), client.session([266, 104], kind="token")
    listed = {row["id"]: row for row in rows(output("sessions", "list", "--url", url))}
    assert listed[one.id]["length"] == 5
    assert listed[other.id]["kind"] == "token"
    assert one.id in on_terminal("sessions", "list", "--url", url)
    (found,) = rows(output("sessions", "show", one.id, "--url", url))
    assert len(found["candidates"]) == len(one.candidates())
    assert "‖" in on_terminal("sessions", "show", one.id, "--url", url)
    assert output("sessions", "delete", one.id, "--url", url) == b""
    line = one_line(bytelm("sessions", "show", one.id, "--url", url), 2)
    assert "there is no session" in line
    assert "or give --all" in one_line(bytelm("sessions", "delete", "--url", url), 2)


def test_all_sessions_can_be_ended(start_stub: Any) -> None:
    url = start_stub()
    with Client(url) as client:
        for _ in range(45):
            client.session()
        done = bytelm("sessions", "delete", "--all", "--url", url)
        assert done.stderr == b"ended 45 sessions\n"
        assert list(client.sessions()) == []


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


def test_a_sessions_id_is_whole_on_a_narrow_terminal(url: str, client: Client) -> None:
    with client.session("hello") as session:
        for columns in (60, 80):
            text = on_terminal("sessions", "list", "--url", url, columns=columns)
            assert session.id in text
            assert all(len(line) <= 80 for line in text.splitlines())
