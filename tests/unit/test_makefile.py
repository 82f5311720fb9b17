"""What `make serve` does where everything is set up already."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """As a user runs it, even where these tests are run by make themselves."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", "DEVICE=cpu", *arguments],
        cwd=folder,
        env=outside | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree whose virtual environment runs this one's Python and commands."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(TOP / name, tmp_path)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, arguments in (("python", ""), ("bytelm", "-m bytelm_client ")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        program.chmod(0o755)
    (tmp_path / ".venv" / ".created").touch()
    return tmp_path


@pytest.fixture
def prepared(tree: Path) -> Path:
    """The same, with all installed."""
    variables = make(tree, "-pn", "help").stdout
    found = re.search(r"^KEY := (\d+)$", variables, re.MULTILINE)
    assert found is not None
    (tree / ".venv" / f".installed-cpu-{found.group(1)}").touch()
    return tree


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield int(sock.getsockname()[1])


def test_it_serves_and_installs_nothing(prepared: Path, taken: int) -> None:
    before = {path for path in prepared.rglob("*") if ".venv" in path.parts}
    done = make(prepared, "serve", f"PORT={taken}", "MODEL=./nowhere")
    assert done.returncode != 0
    first, *rest = done.stderr.splitlines()
    assert first.startswith(f"bytelm: error: port {taken} on 127.0.0.1 is in use: ")
    assert all(line.startswith("make: ***") for line in rest)
    assert done.stdout == ""
    assert {path for path in prepared.rglob("*") if ".venv" in path.parts} == before


def test_what_decides_the_installation_makes_it_anew(prepared: Path) -> None:
    plan = ["-n", "serve", "MODEL=./nowhere"]
    assert "pip_install" not in make(prepared, *plan).stdout
    with (prepared / "constraints.txt").open("a") as constraints:
        constraints.write("# another\n")
    assert "pip_install" in make(prepared, *plan).stdout


def test_variables_of_the_environment_do_not_count(prepared: Path) -> None:
    done = make(prepared, "-n", "serve", "MODEL=./nowhere", PORT="1", HOST="elsewhere")
    assert '--host "127.0.0.1" --port "8000"' in done.stdout
