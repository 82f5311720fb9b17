"""The command line as users meet it, as its own process, on a server."""

import os
import subprocess
import sys
from typing import Any


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bytelm_client", *arguments]


def bytelm(
    *arguments: str, input: bytes | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(*arguments),
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def output(*arguments: str, **more: Any) -> bytes:
    """What a command that succeeds writes."""
    done = bytelm(*arguments, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def one_line(done: subprocess.CompletedProcess[bytes], code: int) -> str:
    """The only line of a command that failed in order."""
    assert done.returncode == code, done.stderr
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("bytelm: error: ")
    return line
