"""Server processes for tests."""

import runpy
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

STUB_SERVER = Path(__file__).with_name("stub_server.py")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="session")
def start_stub() -> Iterator[Callable[..., str]]:
    """Starts servers over a StubLM, each its own process, and gives their addresses."""
    processes = []

    def start(*arguments: str) -> str:
        port = free_port()
        process = subprocess.Popen([sys.executable, str(STUB_SERVER), str(port), *arguments])
        processes.append(process)
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert process.poll() is None, "the server ended"
            try:
                httpx.get(f"{url}/health")
            except httpx.TransportError:
                time.sleep(0.1)
            else:
                return url
        raise TimeoutError("the server did not start")

    yield start
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(30)


@pytest.fixture(scope="session")
def url(start_stub: Callable[..., str]) -> str:
    """A server over a StubLM that all tests share."""
    return start_stub()


@pytest.fixture(scope="session")
def stub() -> dict[str, Any]:
    """The names of the stub server's file: what the server runs, to run here."""
    return runpy.run_path(str(STUB_SERVER))


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
