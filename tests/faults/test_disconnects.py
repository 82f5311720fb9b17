"""Clients that go away in the middle of a stream leave nothing behind."""

import asyncio
import re

import httpx
import psutil
import pytest

from tests.server.test_serve_real import Served

CLIENTS = 200
SETTLE_SECONDS = 60.0


async def counts(http: httpx.AsyncClient) -> dict[str, float]:
    """What the server has at this moment, of all that a call takes."""
    text = (await http.get("/metrics")).text
    names = [
        "bytelm_tasks",
        "bytelm_requests_in_progress",
        "bytelm_calls_running",
        "bytelm_calls_waiting",
        "bytelm_evaluations_in_flight",
        "bytelm_slots_free",
        "bytelm_sessions",
    ]
    found = {}
    for name in names:
        value = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        assert value is not None, name
        found[name] = float(value.group(1))
    return found


@pytest.mark.timeout(1800)
async def test_nothing_is_left_of_clients_that_have_gone(served: Served) -> None:
    limits = httpx.Limits(max_connections=CLIENTS + 8, max_keepalive_connections=0)
    process = psutil.Process(served.process.pid)
    async with httpx.AsyncClient(base_url=served.url, timeout=600, limits=limits) as http:
        made = [
            (await http.post("/v1/sessions", json={"context": "Once upon a time"})).json()["id"]
            for _ in range(CLIENTS // 4)
        ]
        before, files = await counts(http), process.num_fds()

        told: dict[str, int] = {}

        async def leave(number: int) -> None:
            """Begin to read a stream, and close it."""
            body = {"context": f"{number} times ", "steps": 500, "stream": True}
            path = ["/v1/greedy", "/v1/sample", "/v1/sample", ""][number % 4]
            if number % 4 == 2:
                body["method"] = "byte"
            if number % 4 == 3:
                session = made[number // 4]
                path = f"/v1/sessions/{session}/greedy"
                del body["context"]
            async with http.stream("POST", path, json=body) as answer:
                assert answer.status_code == 200
                async for line in answer.aiter_lines():
                    if line:
                        version = re.search(r'"version":(\d+)', line)
                        if version is not None:
                            told[session] = int(version.group(1))
                        break

        await asyncio.gather(*[leave(n) for n in range(CLIENTS)])
        async with asyncio.timeout(SETTLE_SECONDS):
            while (after := await counts(http)) != before:  # noqa: ASYNC110
                await asyncio.sleep(0.5)
        assert after == before
        assert process.num_fds() <= files + 2
        assert len(told) == len(made)
        found = {}
        for session, version in told.items():
            # What was on its way when the client left may have been stored; nothing after it.
            now = (await http.get(f"/v1/sessions/{session}")).json()["version"]
            assert now >= version
            found[session] = now
        await asyncio.sleep(2)
        for session, now in found.items():
            assert (await http.get(f"/v1/sessions/{session}")).json()["version"] == now
        quick = await http.post("/v1/greedy", json={"context": "An apple a day ", "steps": 4})
        assert quick.status_code == 200
