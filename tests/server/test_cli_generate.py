"""``bytelm greedy`` and ``bytelm sample`` on a real server: bytes, JSON lines, one-line errors."""

import base64
import json
import os
import pty
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from bytelm_client import Client, NotAllowed, messages
from bytelm_server.keys import KeyFile
from tests.server.commands import bytelm, command, one_line, output


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


def test_greedy_writes_the_bytes_and_nothing_else(url: str, client: Client) -> None:
    want = client.greedy("hello", 20).bytes
    assert output("greedy", "hello", "--steps", "20", "--url", url) == want


def test_the_address_may_come_from_the_environment(url: str, client: Client) -> None:
    want = client.greedy("hello", 9).bytes
    assert output("greedy", "hello", "--steps", "9", BYTELM_URL=url) == want


@pytest.mark.parametrize("arguments", [["-"], []])
def test_any_bytes_are_a_prompt_on_stdin(url: str, client: Client, arguments: list[str]) -> None:
    want = client.greedy(b"\xff\x00", 9).bytes
    made = output("greedy", *arguments, "--steps", "9", "--url", url, input=b"\xff\x00")
    assert made == want


def test_every_option_reaches_the_server(url: str, client: Client) -> None:
    want = client.sample(
        "hello",
        20,
        temperature=0.8,
        top_k=100,
        top_p=0.9,
        min_p=0.01,
        seed=5,
        method="byte",
        valid_utf8=True,
        stop=["q", "é"],
        logprobs=True,
        beam={"K": 3, "prune_threshold": 0.1},
        prefill="exact",
    )
    flags = "--steps 20 --temperature 0.8 --top-k 100 --top-p 0.9 --min-p 0.01 --seed 5 --K 3"
    more = "--method byte --valid-utf8 --stop q --stop é --logprobs --prune-threshold 0.1 --exact"
    made = json.loads(
        output("sample", "hello", *flags.split(), *more.split(), "--json", "--url", url)
    )
    assert base64.b64decode(made["base64"]) == want.bytes
    assert made["logprob"] == want.logprob
    assert made["finish_reason"] == want.finish_reason


def test_any_bytes_end_a_text(url: str, client: Client) -> None:
    whole = client.greedy("hello", 64).bytes
    stop = next(bytes([byte]) for byte in whole if byte > 127)
    made = output("greedy", "hello", "--steps", "64", "--stop", os.fsdecode(stop), "--url", url)
    assert made == whole[: whole.index(stop)]


def test_several_samples_are_lines(url: str, client: Client) -> None:
    drawn = ["sample", "hello", "--n", "3", "--seed", "1", "--valid-utf8", "--steps", "5"]
    want = client.sample("hello", 5, n=3, seed=1, valid_utf8=True)
    assert isinstance(want, list)
    assert output(*drawn, "--url", url) == b"".join(made.bytes + b"\n" for made in want)
    lines = output(*drawn, "--json", "--url", url).splitlines()
    assert [json.loads(line)["text"] for line in lines] == [made.text for made in want]
    assert [json.loads(line)["sample"] for line in lines] == [0, 1, 2]


def test_a_prompt_may_be_a_message(url: str, client: Client) -> None:
    want = client.greedy(messages([{"role": "user", "content": "hi"}]), 9).bytes
    assert output("greedy", "hi", "--chat", "--steps", "9", "--url", url) == want


def test_a_terminal_shows_the_whole_text(url: str, client: Client) -> None:
    want = client.sample("hello", 9, seed=2, valid_utf8=True).text
    screen, terminal = pty.openpty()
    arguments = ["sample", "hello", "--steps", "9", "--seed", "2", "--valid-utf8", "--url", url]
    with subprocess.Popen(
        command(*arguments), stdin=terminal, stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        shown = b""
        while select.select([screen], [], [], 60)[0]:
            try:
                shown += os.read(screen, 4096)
            except OSError:  # the other end is closed
                break
    os.close(screen)
    assert process.returncode == 0
    assert ("hello" + want).encode() in shown.replace(b"\r\n", b"\n")
    assert b"bytes/s" in shown


def test_on_a_terminal_an_error_has_a_line_of_its_own() -> None:
    screen, terminal = pty.openpty()
    arguments = ["greedy", "a prompt", "--url", "http://127.0.0.1:9"]
    with subprocess.Popen(
        command(*arguments), stdin=terminal, stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        shown = b""
        while select.select([screen], [], [], 60)[0]:
            try:
                shown += os.read(screen, 4096)
            except OSError:  # the other end is closed
                break
    os.close(screen)
    assert process.returncode == 2
    assert b"\nbytelm: error: no answer" in b"\n" + shown.replace(b"\r\n", b"\n")
    assert b"a prompt" not in shown


def test_wrong_addresses(url: str) -> None:
    assert "is the server running" in one_line(
        bytelm("greedy", "a", "--url", "http://127.0.0.1:9"), 2
    )
    line = one_line(bytelm("greedy", "a", "--url", "127.0.0.1:8000"), 2)
    assert "'127.0.0.1:8000' is no address" in line
    assert "http://127.0.0.1:8000" in line
    for wrong in ("nonsense", "ftp://127.0.0.1", "http://", "http://[::1", "file:///x"):
        assert "no address of a server" in one_line(bytelm("greedy", "a", "--url", wrong), 2)
    line = one_line(bytelm("greedy", "a", "--url", f"{url}/nowhere"), 2)
    assert "there is nothing at /nowhere/v1/greedy" in line


def test_a_server_that_is_starting(start_stub: Callable[..., str]) -> None:
    line = one_line(bytelm("greedy", "a", "--url", start_stub("--wait")), 1)
    assert "still starting" in line


def test_what_the_server_refuses(url: str) -> None:
    assert "steps can be at most 64" in one_line(
        bytelm("greedy", "a", "--steps", "65", "--url", url), 2
    )
    assert "--K is a number or none" in one_line(bytelm("greedy", "a", "--K", "x", "--url", url), 2)


def test_a_server_that_dies_in_the_middle(start_stub: Callable[..., str]) -> None:
    url = start_stub()
    httpx.post(f"{url}/test/delay", params={"value": 0.1})
    with subprocess.Popen(
        command("greedy", "hello", "--steps", "64", "--url", url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        httpx.post(f"{url}/test/crash")
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = errors.decode().splitlines()
    assert line.startswith("bytelm: error: ")
    assert "broke after" in line
    assert len(rest) < 63


def test_ctrl_c_is_clean(start_stub: Callable[..., str]) -> None:
    url = start_stub()
    httpx.post(f"{url}/test/delay", params={"value": 0.1})
    with subprocess.Popen(
        command("greedy", "hello", "--steps", "64", "--url", url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, b"")


def test_a_reader_that_leaves_is_no_error(start_stub: Callable[..., str]) -> None:
    url = start_stub()
    httpx.post(f"{url}/test/delay", params={"value": 0.05})
    with subprocess.Popen(
        command("greedy", "hello", "--steps", "64", "--url", url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        errors: list[bytes] = []
        reading = threading.Thread(target=lambda: errors.append(process.stderr.read()))  # type: ignore[union-attr]
        reading.start()
        assert process.wait(60) == 141
        reading.join()
    assert errors == [b""]


def test_a_server_with_keys(start_stub: Callable[..., str], tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    _, secret = keys.create("Alice")
    url = start_stub("--set", f"keys_file={keys.path}")
    made = output("greedy", "hello", "--steps", "3", "--url", url, BYTELM_API_KEY=secret)
    assert len(made) == 3
    assert output("greedy", "hello", "--steps", "3", "--url", url, "--api-key", secret) == made
    assert "key" in one_line(bytelm("greedy", "hello", "--url", url), 2)
    wrong = one_line(bytelm("greedy", "hello", "--url", url, "--api-key", "wrong"), 2)
    assert "key" in wrong
    other = one_line(bytelm("greedy", "hello", "--url", url, "--api-key", "schlüssel"), 2)
    assert "the API key has characters that no key has" in other
    with pytest.raises(NotAllowed) as caught:
        Client(url, api_key="wrong").greedy("hello", 3)
    assert (caught.value.status, caught.value.code) == (401, "unknown_key")
