"""The engine's processes are killed under load: every call is answered, and all goes on."""

import asyncio
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.server.test_serve_real import Served, kill, start

CLIENTS = 32
BACK_SECONDS = 300.0
PROVERB = {"context": "An apple a day keeps the ", "steps": 12}


class Load:
    """Clients that call until they are told to stop; each answer is counted by its status."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.stop = False

    async def client(self, number: int) -> None:
        context = f"{number} is a number, and "
        calls: list[tuple[str, dict[str, Any]]] = [
            ("/v1/greedy", {"context": context, "steps": 24}),
            ("/v1/greedy", {"context": context, "steps": 24, "stream": True}),
            ("/v1/sample", {"context": context, "steps": 64}),
            ("/v1/next_bytes", {"contexts": [context, context + "one"]}),
        ]
        turn = number
        while not self.stop:
            path, body = calls[turn % len(calls)]
            turn += 1
            try:
                answer = await self.http.post(path, json=body)
            except httpx.HTTPError as error:
                self.wrong.append(f"{path}: {error!r}")
                continue
            self.statuses[answer.status_code] += 1
            if answer.status_code == 503:
                if answer.json()["error"]["code"] not in ("dead", "starting"):
                    self.wrong.append(answer.text)
                await asyncio.sleep(0.5)
            elif answer.status_code != 200:
                self.wrong.append(answer.text)
            elif body.get("stream") and not answer.text.endswith("data: [DONE]\n\n"):
                self.wrong.append(answer.text[-100:])


async def status(http: httpx.AsyncClient) -> str:
    found: str = (await http.get("/health")).json()["status"]
    return found


def engine_processes(served: Served, name: str) -> list[psutil.Process]:
    return [p for p in served.members() if name in " ".join([p.name(), *p.cmdline()])]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["EngineCore", "Worker"])
async def test_every_call_is_answered_and_the_service_comes_back(served: Served, name: str) -> None:
    limits = httpx.Limits(max_connections=CLIENTS + 8)
    async with httpx.AsyncClient(base_url=served.url, timeout=600, limits=limits) as http:
        made = (await http.post("/v1/sessions", json={"context": "The capital of Fran"})).json()
        session = f"/v1/sessions/{made['id']}"
        before = (await http.post("/v1/greedy", json=PROVERB)).json()["results"]
        load = Load(http)
        clients = [asyncio.create_task(load.client(n)) for n in range(CLIENTS)]
        await asyncio.sleep(5)
        good_before = load.statuses[200]
        assert good_before
        victims = engine_processes(served, name)
        assert victims
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
        async with asyncio.timeout(BACK_SECONDS):
            while await status(http) == "ready":  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            while await status(http) != "ready":  # noqa: ASYNC110
                await asyncio.sleep(0.5)
        await asyncio.sleep(5)
        load.stop = True
        await asyncio.gather(*clients)
        assert not load.wrong
        assert load.statuses[503]
        assert load.statuses[200] > good_before
        assert (await http.post("/v1/greedy", json=PROVERB)).json()["results"] == before
        moved = await http.post(f"{session}/greedy", json={"steps": 2})
        assert moved.json()["results"][0]["bytes"]["text"] == "ce"
        assert not [v for v in victims if v.is_running() and v.status() != "zombie"]


@pytest.mark.timeout(600)
async def test_every_accepted_call_is_answered_when_the_server_stops(tmp_path: Path) -> None:
    served = start(tmp_path)
    try:
        served.wait_until_ready()
        limits = httpx.Limits(max_connections=CLIENTS + 8)
        async with httpx.AsyncClient(base_url=served.url, timeout=600, limits=limits) as http:
            calls = [
                asyncio.create_task(
                    http.post("/v1/greedy", json={"context": f"{n} and ", "steps": 200})
                )
                for n in range(CLIENTS)
            ]
            await asyncio.sleep(2)
            served.process.terminate()
            answers = await asyncio.gather(*calls)
        codes = Counter(
            "done" if answer.status_code == 200 else answer.json()["error"]["code"]
            for answer in answers
        )
        assert codes.total() == CLIENTS
        assert set(codes) <= {"done", "draining"}
        served.wait_until_gone()
        assert served.process.returncode == 0
    finally:
        kill(served)
