"""No cheap request keeps others waiting: what the one event loop of a server has to do is bounded.

The deadline is the specification: 250 ms for ``/health`` at any moment, on two cores. It is
measured from a process of its own, against the machine as that process finds it at the same moment:
what the kernel says that the server waited for a core does not count, and where a piece of
computing takes twice its CPU time, because others want the cores as well, ``/health`` may take
twice as long. So a busy machine does not fail the test, and a server whose loop is kept, which on
any machine is longer than computing takes there, does.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
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


def late(found: list[tuple[float, float]]) -> list[str]:
    """The probes that took longer than they may, as messages."""
    told = []
    for i, (took, _) in enumerate(found):
        around = found[max(i - AROUND, 0) : i + AROUND + 1]
        slowness = max(slow for _, slow in around)
        if took > DEADLINE * max(slowness, 1.0):
            told.append(f"{took * 1000:.0f} ms, computing took {slowness:.1f} times as long")
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
    async with probed(busy) as found, httpx.AsyncClient(base_url=busy.url, timeout=120) as http:
        status = await send(http, HOSTILE[name], await sessions(http))
        await asyncio.sleep(0.3)  # what goes on behind the answer
    assert status < 500 or status == 504, status
    assert late(found) == []


async def test_while_all_of_them_run_health_is_answered_in_time(busy: Stub) -> None:
    limits = httpx.Limits(max_connections=40)
    async with httpx.AsyncClient(base_url=busy.url, timeout=300, limits=limits) as http:
        ids = await sessions(http)
        async with probed(busy) as found:
            statuses = await asyncio.gather(*[send(http, one, ids) for one in HOSTILE.values()])
        assert {status for status in statuses if status >= 500} <= {504}
        assert len(found) > 20
        assert late(found) == []
        answer = await http.post("/v1/greedy", json={"context": "hello", "steps": 2})
        assert answer.status_code == 200
