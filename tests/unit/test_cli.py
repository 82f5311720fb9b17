"""The command line as users meet it: as its own process."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version

import pytest

from bytelm.settings import EngineSettings, ServerSettings


def bytelm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bytelm_client", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "COLUMNS": "200", **environment},
    )


def one_line(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The only line of a command that failed in order."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def test_version() -> None:
    assert bytelm("--version").stdout == f"bytelm {version('bytelm')}\n"


def test_help_lists_the_commands() -> None:
    assert "serve" in bytelm("--help").stdout


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, bytelm_client.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numba', 'numpy', 'vllm', 'transformers', 'fastapi', 'httpx'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_every_setting_is_a_flag_with_an_explanation() -> None:
    text = bytelm("serve", "--help").stdout
    for settings in (ServerSettings, EngineSettings):
        for name, field in settings.model_fields.items():
            assert f"--{name.replace('_', '-')}" in text
            assert (field.description or "").split()[0] in text


def test_port_in_use_is_one_line(taken: int) -> None:
    line = one_line(bytelm("serve", "--port", str(taken)))
    assert f"port {taken}" in line
    assert "in use" in line


def test_the_port_can_come_from_the_environment(taken: int) -> None:
    assert "in use" in one_line(bytelm("serve", BYTELM_PORT=str(taken)))


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_are_refused_without_keys(host: str) -> None:
    assert "--allow-remote" in one_line(bytelm("serve", "--host", host, "--port", "0"))


def test_a_host_that_is_none() -> None:
    assert "not an address" in one_line(bytelm("serve", "--host", "no such host", "--port", "0"))


def test_a_model_that_does_not_exist_is_one_line() -> None:
    done = bytelm("serve", "--model", "/no/such/model", "--port", "0")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "bytelm: error: the model folder /no/such/model does not exist"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--max-K", "many"), ("--max-steps", "0"), ("--default-prune-threshold", "1")],
)
def test_a_wrong_setting_names_its_flag(flag: str, value: str) -> None:
    assert flag in one_line(bytelm("serve", flag, value, "--port", "0"))


def test_a_wrong_flag_is_no_traceback() -> None:
    done = bytelm("serve", "--colour", "red")
    assert done.returncode == 2
    assert "--colour" in done.stderr
    assert "Traceback" not in done.stderr
