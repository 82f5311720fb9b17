"""What commands say beside their output."""

import re

import pytest
import typer

from bytelm.errors import EngineDead, InputError
from bytelm_client.cli import console
from bytelm_client.errors import CannotConnect, CannotSend, ConnectionLost, api_error


def test_a_count_tells_rate_and_time_left_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    with console.Count("scoring", 40, "bytes", done=10) as count:
        count.add(5)
        count.add(25)
    first, second = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"scoring: 15 of 40 bytes, [\d.]+ bytes/s, \d+ s left", first)
    assert re.fullmatch(r"scoring: 40 of 40 bytes, [\d.]+ bytes/s, 0 s left", second)


def test_a_count_is_silent_between_its_lines(capfd: pytest.CaptureFixture[str]) -> None:
    with console.Count("scoring", 40, "bytes") as count:
        count.add(5)
    assert capfd.readouterr().err == ""


def status(code: int) -> Exception:
    return api_error(code, {"message": "no", "type": "t", "code": "c"})


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("a\nb"), 2),
        (EngineDead("gone"), 1),
        (CannotConnect("nobody"), 2),
        (CannotSend("nothing"), 2),
        (ConnectionLost("broken"), 1),
        (status(400), 2),
        (status(401), 2),
        (status(429), 1),
        (status(503), 1),
        (status(504), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_has_its_exit_code_and_one_line(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught, console.one_line_errors():
        raise error
    assert caught.value.exit_code == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (0 if code == 130 else 1)
    assert all(line.startswith("bytelm: error: ") for line in lines)


def test_a_package_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), console.one_line_errors():
        raise ModuleNotFoundError("no", name="vllm.engine")
    assert "vllm.engine is not installed: install bytelm[cpu]" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError), console.one_line_errors():
        raise ModuleNotFoundError("no", name="bytelm.nothing")
