"""Lets clients from PyPI call a server: on a model made for tests, then on a real one.

They are in a venv of their own, which pytest runs in; nothing of it touches the project's.
``python -m tests.clients`` says what each gave, by name and version.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bytelm import download as models
from bytelm.settings import Paths
from bytelm_server.keys import KeyFile
from tests.benchmarks import peers
from tests.own_venv import own_python, say

TESTS = Path(__file__).parent
STUB_SERVER = TESTS.parent / "server" / "stub_server.py"
CLIENTS = [
    "openai==3.57.0",
    "lm-eval[api]==0.4.13",
    "litellm==1.110.2",
    "langchain-openai==1.7.4",
    "llm==0.36",
]
REQUIREMENTS = [
    *CLIENTS,
    # What runs the tests.
    "pytest==9.2.0",
    "pytest-asyncio==1.5.0",
    "pytest-timeout==2.4.0",
]


def folder() -> Path:
    """Where the venv is, and what clients keep."""
    return Paths().cache_dir.absolute() / "clients"


def python() -> Path:
    """The venv's Python, with everything installed."""
    return own_python(folder(), "clients", [REQUIREMENTS], REQUIREMENTS)


@contextmanager
def stub(*flags: str) -> Iterator[str]:
    """A server over the tests' own model, by its address."""
    command = [sys.executable, str(STUB_SERVER), "0", *flags]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().decode().strip()
        finally:
            process.terminate()


def tried(url: str, key: str, close: float, arguments: list[str]) -> int:
    """Runs the tests in the venv against a server; their exit status.

    Args:
        url: where it is.
        key: the key that it wants.
        close: how far apart log-probabilities of equal calls may be there.
        arguments: more for pytest.
    """
    command = [str(python()), "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", str(TESTS)]
    command.append(f"--confcutdir={TESTS}")  # what other tests share needs packages of the project
    variables = os.environ | {
        "BYTELM_CLIENTS_URL": url,
        "BYTELM_CLIENTS_CLOSE": str(close),
        # Where each of them looks for a key.
        "OPENAI_API_KEY": key,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HF_HOME": str(folder() / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    return subprocess.run(
        [*command, *arguments], cwd=TESTS.parents[1], env=variables, stdin=subprocess.DEVNULL
    ).returncode


def main() -> int:
    """Runs all clients against both servers."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", help="a model's folder or name; the default model otherwise")
    parser.add_argument("--stub-only", action="store_true", help="leave the real model out")
    given, arguments = parser.parse_known_args()
    python()
    with TemporaryDirectory() as temporary:
        keys = Path(temporary) / "keys.json"
        _, key = KeyFile(keys).create("clients")
        say("calling a server on a model made for tests")
        with stub("--set", f"keys_file={keys}") as url:
            failed = tried(url, key, 1e-9, arguments)
        if given.stub_only:
            return failed
        model = str(models.resolve(given.model, progress=say))
        say("calling a server on a real model")
        flags = ["--keys-file", str(keys), "--server-log-level", "WARNING"]
        with peers.served(model, *flags) as url:
            return max(failed, tried(url, key, 1e-3, arguments))


if __name__ == "__main__":
    sys.exit(main())
