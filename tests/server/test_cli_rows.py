"""``bytelm rows`` on a real server: whole arrays, or none."""

import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from bytelm_client import Client
from bytelm_client.cli.windows import Windows
from tests.server.commands import bytelm, command, one_line, output

TEXT = "the ant\nhello there\n\nand an é\xff".encode()


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "text"
    file.write_bytes(TEXT)
    return file


@pytest.fixture
def array(tmp_path: Path) -> Path:
    return tmp_path / "rows.npy"


def flagged(url: str, file: Path | str, array: Path | str, *flags: str) -> list[str]:
    return ["rows", str(file), "--output", str(array), *flags, "--url", url]


def alone(array: Path) -> list[str]:
    """What is in the folder beside the text."""
    return sorted(path.name for path in array.parent.iterdir() if path.name != "text")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_array_is_what_the_client_reads(
    url: str, client: Client, file: Path, array: Path, dtype: Any
) -> None:
    flags = ["--dtype", dtype, "--K", "4", "--context", "he "]
    said = output(*flagged(url, file, array, *flags))
    assert said == b""
    have = np.load(array)
    want = client.rows("he ", TEXT, dtype=dtype, beam={"K": 4})
    assert have.dtype == want.dtype
    assert np.array_equal(have, want)
    assert alone(array) == ["rows.npy"]
    assert array.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_stdin_stdout_and_a_summary(url: str, client: Client, file: Path, array: Path) -> None:
    want = client.rows("", TEXT)
    for sink in ("-", "/dev/stdout"):
        told = output(*flagged(url, "-", sink), input=TEXT)
        assert np.array_equal(np.load(io.BytesIO(told)), want)
    said = output(*flagged(url, file, array, "--json"))
    assert json.loads(said) == {
        "output": str(array),
        "shape": [len(TEXT) + 1, 257],
        "dtype": "float32",
    }
    assert "exclude each other" in one_line(bytelm(*flagged(url, file, "-", "--json")), 2)


def test_windows_give_each_row_its_own_context(
    url: str, client: Client, file: Path, array: Path
) -> None:
    output(*flagged(url, file, array, "--window", "12", "--stride", "6", "--concurrency", "3"))
    want = []
    for piece in Windows(12, 6).pieces(len(TEXT)):
        before, text = TEXT[piece.begin : piece.start], TEXT[piece.start : piece.end]
        rows = client.rows(before, text)
        want += [rows[:-1]]
    assert np.array_equal(np.load(array), np.concatenate([*want, rows[-1:]]))


def test_a_window_of_more_tokens_than_the_model_takes_loses_its_beginning(
    url: str, file: Path, array: Path
) -> None:
    text = "é ü ".encode() * 150  # two tokens a byte fit; these have none in common
    file.write_bytes(text)
    output(*flagged(url, file, array, "--window", "600"))
    rows = np.load(array)
    assert rows.shape == (len(text) + 1, 257)
    np.testing.assert_allclose(np.exp(rows).sum(axis=1), 1, atol=1e-5)
    # As it is scored.
    *_, total = map(json.loads, output("score", str(file), "--url", url).splitlines())
    bits = -rows[np.arange(len(text)), list(text)].sum() / np.log(2)
    assert bits == pytest.approx(total["bits"], rel=0.2)


def test_what_fails_leaves_the_old_file_and_nothing_else(
    start_stub: Callable[..., str], url: str, file: Path, array: Path
) -> None:
    letters = start_stub("--letters")
    array.write_bytes(b"old")
    file.write_bytes(b"hello " * 30 + b"\0")
    wrong = {
        letters: "behind the first 150 bytes, byte 30 (0x00) is in no token",
        "http://127.0.0.1:1": "is the server running?",
    }
    for broken, why in wrong.items():
        done = bytelm(*flagged(broken, file, array, "--window", "100"))
        assert done.returncode == 2
        assert why in done.stderr.decode().splitlines()[-1]
        assert array.read_bytes() == b"old"
        assert alone(array) == ["rows.npy"]
    folder = array.with_name("nowhere") / "rows.npy"
    assert "cannot be written: No such file" in one_line(bytelm(*flagged(url, file, folder)), 2)
    assert "is the input, too" in one_line(bytelm(*flagged(url, file, file)), 2)
    assert file.read_bytes()[-1:] == b"\0"
    (file.with_name("empty")).touch()
    assert "is empty" in one_line(bytelm(*flagged(url, file.with_name("empty"), array)), 2)
    file.write_bytes(TEXT)
    output(*flagged(url, file, array))
    assert len(np.load(array)) == len(TEXT) + 1


def test_ctrl_c_leaves_no_file(start_stub: Callable[..., str], file: Path, array: Path) -> None:
    url = start_stub()
    httpx.post(f"{url}/test/delay", params={"value": 0.2})
    with subprocess.Popen(command(*flagged(url, file, array)), stderr=subprocess.PIPE) as process:
        while not alone(array):
            time.sleep(0.01)
        assert alone(array)[0].startswith(".rows.npy.")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert alone(array) == []


def test_a_link_is_followed(url: str, file: Path, array: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    array.symlink_to(folder / "there.npy")
    output(*flagged(url, file, array))
    assert array.is_symlink()
    assert len(np.load(folder / "there.npy")) == len(TEXT) + 1
    assert [path.name for path in folder.iterdir()] == ["there.npy"]


def test_rows_that_nobody_reads_end_the_command(url: str, file: Path) -> None:
    with subprocess.Popen(
        command(*flagged(url, file, "-")), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""
