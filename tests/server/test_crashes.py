"""What was acknowledged outlives the server's process, and nothing happens twice."""

import asyncio
import base64
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from bytelm.beam import ByteBeamState
from bytelm_server.stores.sqlite import SqliteStore
from tests.server.crashes import Crashes
from tests.server.processes import RealProcess, StubProcess

STUB_KILLS = 18
REAL_KILLS = 2


@pytest.fixture
def stub_process(tmp_path: Path) -> Any:
    stub = StubProcess(str(tmp_path / "sessions.sqlite"))
    yield stub
    stub.clean_up()


@pytest.mark.timeout(900)
async def test_no_byte_is_lost_or_taken_twice_when_the_server_is_killed(stub_process) -> None:
    crashes = Crashes(stub_process.url, stub_process.start, stub_process.end)
    await crashes.run(STUB_KILLS, seconds=0.3)
    assert sum(client.retries for client in crashes.clients) > 0


async def as_json(state: ByteBeamState) -> list[Any]:
    ps = (await state.logp_next()).ps
    return [None if p == -np.inf else float(p) for p in ps[:256]]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_session_goes_on_after_its_servers_end(stub_process, begun, number) -> None:
    """To the last bit, on StubLM; one evaluation for each candidate, when it is first used."""
    stub_process.start()
    async with httpx.AsyncClient(base_url=stub_process.url, timeout=60) as http:
        session = (await http.post("/v1/sessions", json={"context": "hello the"})).json()
        path = f"/v1/sessions/{session['id']}"
        await http.post(f"{path}/advance", json={"bytes": "n the"})
        key = {"Idempotency-Key": "last"}
        last = (await http.post(f"{path}/advance", json={"bytes": " a"}, headers=key)).json()
        token = (await http.post("/v1/sessions", json={"kind": "token", "context": "hello"})).json()
        short = (await http.post("/v1/sessions", json={"ttl": 0.5})).json()
    stub_process.end(number)
    await asyncio.sleep(0.5)
    stub_process.start()
    async with httpx.AsyncClient(base_url=stub_process.url, timeout=60) as http:
        assert len((await http.get("/v1/sessions")).json()["data"]) == 2
        before = (await http.get("/test/evaluations")).json()
        info = (await http.get(path)).json()
        assert (info["version"], info["length"]) == (3, 16)
        assert (await http.get("/test/evaluations")).json() == before
        assert (
            await http.post(f"{path}/advance", json={"bytes": " a"}, headers=key)
        ).json() == last
        state = await begun(b"hello the")
        for b in b"n the a":
            state = await (state.prune() << b)
        got = (await http.get(path, params={"candidates": True})).json()["candidates"]
        assert [(c["weight"], tuple(c["tokens"])) for c in got] == [
            (c.weight, c.tokens) for c in state
        ]
        assert (await http.get("/test/evaluations")).json() - before == len(state)
        answer = (await http.get(f"{path}/next")).json()["results"][0]
        assert answer["logprobs"] == await as_json(state)
        assert (await http.get(f"/v1/sessions/{token['id']}")).json()["length"] == token["length"]
        assert (await http.get(f"/v1/sessions/{short['id']}")).status_code == 410


def test_a_session_of_another_model_is_refused(stub_process) -> None:
    stub_process.start()
    session = httpx.post(f"{stub_process.url}/v1/sessions", json={"context": "hello"}).json()
    stub_process.end()
    stub_process.arguments.append("--other")
    stub_process.start()
    path = f"{stub_process.url}/v1/sessions/{session['id']}"
    answer = httpx.post(f"{path}/advance", json={"bytes": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "model_changed")
    assert httpx.get(path).json()["version"] == 1
    assert httpx.delete(path).status_code == 200


def test_a_stream_that_breaks_off_stands_at_a_version_that_was_told(stub_process) -> None:
    stub_process.start()
    http = httpx.Client(base_url=stub_process.url, timeout=60)
    http.post("/test/delay", params={"value": 0.02})
    session = http.post("/v1/sessions", json={"context": "hello"}).json()
    path = f"/v1/sessions/{session['id']}"
    seen = []

    def read() -> None:
        body = {"steps": 60, "stream": True}
        with http.stream("POST", f"{path}/greedy", json=body) as stream:
            for line in stream.iter_lines():
                if line:
                    seen.append(line)
                if len(seen) == 5:
                    stub_process.end()

    with pytest.raises(httpx.TransportError):
        read()
    stub_process.start()
    info = http.get(path).json()
    # Every event that arrived had been stored; some that were stored may not have arrived.
    assert info["version"] >= 1 + len(seen)
    assert info["length"] - 5 == info["version"] - 1

    def made(path: str, **body: Any) -> bytes:
        answer = http.post(path, json=body).json()
        return base64.b64decode(answer["results"][0]["bytes"]["base64"])

    whole = made("/v1/greedy", context="hello", steps=20)
    rest = made(f"{path}/greedy", steps=25 - info["length"])
    assert whole[info["length"] - 5 :] == rest
    http.close()


def test_a_store_in_use_is_refused_at_once(tmp_path: Path) -> None:
    """In one line, before the engine starts."""
    path = tmp_path / "sessions.sqlite"
    store = SqliteStore(path, 8)
    command = [sys.executable, "-m", "bytelm_client", "serve", "--port", "0"]
    ended = subprocess.run(
        [*command, "--session-store", str(path)], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("bytelm: error: another server keeps its sessions in ")
    assert store.path == path


@pytest.fixture
def real_process(tmp_path: Path) -> Any:
    real = RealProcess(tmp_path)
    yield real
    real.clean_up()


@pytest.mark.timeout(900)
async def test_no_byte_is_lost_or_taken_twice_on_the_real_engine(real_process) -> None:
    crashes = Crashes(real_process.url, real_process.start, real_process.end)
    await crashes.run(REAL_KILLS, seconds=2.0)
    assert sum(client.retries for client in crashes.clients) > 0
