"""``bytelm next``, ``compare`` and ``sessions`` on a real server."""

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
from typing import Any

import pytest

from bytelm_client import Client
from bytelm_client.cli.look import BAR, bar, share_text
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


# sessions


def rows(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


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


def test_a_sessions_id_is_whole_on_a_narrow_terminal(url: str, client: Client) -> None:
    with client.session("hello") as session:
        for columns in (60, 80):
            text = on_terminal("sessions", "list", "--url", url, columns=columns)
            assert session.id in text
            assert all(len(line) <= 80 for line in text.splitlines())
