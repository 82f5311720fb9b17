"""Server processes for tests."""

import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from bytelm.beam import ByteBeamState
from bytelm.prompts.context import Context, begin
from tests.served import served_params

STUB_SERVER = Path(__file__).with_name("stub_server.py")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Stub:
    """A server over a StubLM."""

    process: subprocess.Popen[bytes]
    url: str


@pytest.fixture(scope="session")
def run_stub() -> Iterator[Callable[..., Stub]]:
    """Starts servers over a StubLM, each its own process."""
    processes = []

    def start(*arguments: str, stderr: Any = None, script: Path = STUB_SERVER) -> Stub:
        process = subprocess.Popen(
            [sys.executable, str(script), "0", *arguments], stdout=subprocess.PIPE, stderr=stderr
        )
        processes.append(process)
        assert process.stdout is not None
        # It says where it is: a port that was free before may not be so any more.
        url = process.stdout.readline().decode().strip()
        assert url, "the server ended"
        while httpx.get(f"{url}/health", timeout=120).status_code == 503:
            if "--wait" in arguments:
                break
            assert process.poll() is None, "the server ended"
            time.sleep(0.05)
        return Stub(process, url)

    yield start
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            # How servers end has tests of its own; where this one hangs is printed.
            process.send_signal(signal.SIGUSR1)
            time.sleep(1)
            process.kill()


@pytest.fixture(scope="session")
def start_stub(run_stub: Callable[..., Stub]) -> Callable[..., str]:
    """Starts such servers and gives their addresses."""
    return lambda *arguments, **more: run_stub(*arguments, **more).url


@pytest.fixture(scope="session")
def url(start_stub: Callable[..., str]) -> str:
    """A server over a StubLM that all tests share."""
    return start_stub()


@pytest.fixture(scope="session")
def stub() -> dict[str, Any]:
    """The names of the stub server's file: what the server runs, to run here."""
    return runpy.run_path(str(STUB_SERVER))


@pytest.fixture
def lm(stub: dict[str, Any]) -> Any:
    """The model that the server has, to use directly."""
    return stub["SteeredLM"]()


@pytest.fixture
def begun(lm: Any) -> Callable[..., Coroutine[Any, Any, ByteBeamState]]:
    """The library's state after a context, with the server's defaults."""

    async def state_after(context: Context | bytes, mode: str = "fast", **params: Any) -> Any:
        if isinstance(context, bytes):
            context = Context.of(context)
        wanted = served_params(**params)
        return await begin(lm, wanted, context, mode=mode)

    return state_after


@pytest.fixture
def results(http: httpx.Client) -> Callable[..., list[Any]]:
    """Makes a call that succeeds and gives its results."""

    def call(path: str, **body: Any) -> list[Any]:
        answer = http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        found: list[Any] = answer.json()["results"]
        return found

    return call


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture
def own(start_stub: Callable[..., str]) -> Iterator[httpx.Client]:
    """A server of the test's own."""
    with httpx.Client(base_url=start_stub(), timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], bool]], None]:
    """Waits until a condition holds."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if condition():
                return
            time.sleep(0.1)
        raise TimeoutError

    return wait
