"""No cheap request keeps others waiting: what the one event loop of a server has to do is bounded.

The deadline is the specification: 250 ms for ``/health`` at any moment, on two cores. It is
measured from a process of its own, against the machine as that process finds it at the same moment:
what the kernel says that the server waited for a core does not count, and where a piece of
computing takes twice its CPU time, because others want the cores as well, ``/health`` may take
twice as long. What is late even so while the machine was busy is tried again: a request that keeps
the loop keeps it each time. So a busy machine does not fail the test, and a server whose loop is
kept, which on any machine is longer than computing takes there, does.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import Stub
from tests.server.hostile import HOSTILE, Request

HERE = Path(__file__).parent
DEADLINE = 0.25
AROUND = 10
"""Probes before and behind one that tell how busy the machine is."""
BUSY, TRIES = 1.25, 3
"""How many times its CPU time computing takes on a busy machine, and how often one is tried."""


@pytest.fixture(scope="module")
def busy(run_stub: Callable[..., Stub]) -> Stub:
    """A server over a real vocabulary."""
    return run_stub("call_seconds=4", "body_seconds=20", script=HERE / "busy_server.py")


@asynccontextmanager
async def probed(server: Stub) -> AsyncIterator[list[tuple[float, float]]]:
    """Probes a server meanwhile; what it found is there at the end: latencies, slowness."""
    where = [str(httpx.URL(server.url).port), str(server.process.pid)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "loop_probe.py"), *where, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        await process.stdout.readline()
        found: list[tuple[float, float]] = []
        yield found
        assert process.returncode is None, "the server did not answer /health"
        process.terminate()
        async for line in process.stdout:
            if line.endswith(b"\n"):
                took, slowness = line.split()
                found.append((float(took), float(slowness)))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def assert_in_time(server: Stub, load: Callable[[], Awaitable[None]], least: int = 0) -> None:
    """``/health`` is answered in time, always, while the load runs."""
    for left in reversed(range(TRIES)):
        async with probed(server) as found:
            await load()
        assert len(found) > least
        told = late(found)
        if not left or not any(slowness > BUSY for _, slowness in told):
            break
    assert not told, [f"{took * 1000:.0f} ms, computing {slow:.1f} times" for took, slow in told]


def late(found: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The probes that took longer than they may, with the most that computing took around them."""
    told = []
    for i, (took, _) in enumerate(found):
        around = found[max(i - AROUND, 0) : i + AROUND + 1]
        slowness = max(slow for _, slow in around)
        if took > DEADLINE * max(slowness, 1.0):
            told.append((took, slowness))
    return told


async def sessions(http: httpx.AsyncClient) -> dict[str, str]:
    made = {}
    for kind in ("byte", "token"):
        answer = await http.post("/v1/sessions", json={"kind": kind, "context": "hello " * 500})
        made[kind] = answer.json()["id"]
    return made


async def send(http: httpx.AsyncClient, request: Request, ids: dict[str, str]) -> int:
    """Makes one request as it stands; the answer's status."""
    body, path = request.body, request.path
    for kind, session_id in ids.items():
        body = body.replace(f"{{{kind}}}".encode(), session_id.encode())
        path = path.replace(f"{{{kind}}}", session_id)
    headers = {"accept": request.accept}
    if request.method == "POST":
        headers["content-type"] = "application/json"
    answer = await http.request(request.method, path, content=body, headers=headers)
    return answer.status_code


@pytest.mark.parametrize("name", HOSTILE)
async def test_one_hostile_request_keeps_nobody_waiting(busy: Stub, name: str) -> None:
    async def load() -> None:
        async with httpx.AsyncClient(base_url=busy.url, timeout=120) as http:
            status = await send(http, HOSTILE[name], await sessions(http))
            await asyncio.sleep(0.3)  # what goes on behind the answer
        assert status < 500 or status == 504, status

    await assert_in_time(busy, load)


async def test_while_all_of_them_run_health_is_answered_in_time(busy: Stub) -> None:
    async def load() -> None:
        limits = httpx.Limits(max_connections=40)
        async with httpx.AsyncClient(base_url=busy.url, timeout=300, limits=limits) as http:
            ids = await sessions(http)
            statuses = await asyncio.gather(*[send(http, one, ids) for one in HOSTILE.values()])
        assert {status for status in statuses if status >= 500} <= {504}

    await assert_in_time(busy, load, least=20)
    async with httpx.AsyncClient(base_url=busy.url, timeout=60) as http:
        answer = await http.post("/v1/greedy", json={"context": "hello", "steps": 2})
        assert answer.status_code == 200
