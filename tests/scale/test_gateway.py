"""Several servers behind the compose file's gateway are like one."""

import asyncio
import json
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]

from tests.scale.gateway import DOCKER, Scale
from tests.server.crashes import Crashes


@pytest.fixture
def scale(tmp_path: Path) -> Iterator[Scale]:
    made = Scale(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.end()


@pytest.fixture
def http(scale: Scale) -> Iterator[httpx.Client]:
    with scale.client() as client:
        yield client


def by(answer: httpx.Response) -> str:
    """The server that answered."""
    assert answer.status_code == 200, answer.text
    return answer.headers["x-bytelm-server"]


def some_session(http: httpx.Client, server: str | None = None) -> str:
    """A session, whose calls a certain server gets."""
    while True:
        made = http.post("/v1/sessions", json={"context": "hello "})
        assert made.status_code == 200, made.text
        session = made.json()["id"]
        if server is None or by(http.get(f"/v1/sessions/{session}")) == server:
            return session


def test_a_session_stays_at_its_server_and_sessions_spread(http: httpx.Client) -> None:
    at: Counter[str] = Counter()
    for _ in range(40):
        path = f"/v1/sessions/{some_session(http)}"
        answers = [
            http.post(f"{path}/advance", json={"bytes": "a"}),
            http.get(f"{path}/next"),
            http.post(f"{path}/greedy", json={"steps": 1}),
            http.get(path),
        ]
        (server,) = set(map(by, answers))
        at[server] += 1
    assert len(at) == 2
    assert min(at.values()) >= 5


def test_a_batch_of_sessions_of_both_servers_is_answered_by_one(http: httpx.Client) -> None:
    sessions = [some_session(http) for _ in range(8)]
    calls = [{"id": one, "call": "advance", "body": {"bytes": "the"}} for one in sessions]
    answer = http.post("/v1/sessions:batch", json={"calls": calls})
    assert answer.status_code == 200, answer.text
    for session in sessions:
        now = http.get(f"/v1/sessions/{session}").json()
        assert (now["version"], now["length"]) == (2, 9)


def test_the_gateway_refuses_who_has_no_key_and_hides_metrics(scale: Scale) -> None:
    assert httpx.post(f"{scale.url}/v1/sessions", json={}).status_code == 401
    assert httpx.get(f"{scale.url}/metrics", headers=scale.headers).status_code == 404
    assert httpx.get(f"{scale.url}/health").json() == {"status": "ready"}


def test_the_gateway_is_well_while_it_has_a_server(scale: Scale) -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    _, *asks, script = compose["services"]["gateway"]["healthcheck"]["test"]
    address = scale.url.removeprefix("http://").replace(":", "/")
    command = [*asks, script.replace("127.0.0.1/8080", address)]
    assert subprocess.run(command, timeout=60).returncode == 0
    for replica in scale.replicas:
        replica.end()
    # It looks every second, and believes what it sees twice.
    deadline = time.monotonic() + 60
    while subprocess.run(command, timeout=60).returncode == 0:
        assert time.monotonic() < deadline, "the gateway takes dead servers for living ones"
        time.sleep(0.2)


async def test_sessions_of_a_killed_server_go_on_at_the_other(scale: Scale) -> None:
    """Under load, with no acknowledged byte lost and none taken twice."""
    killed: list[int] = []

    def kill() -> None:
        scale.replicas[0].end()
        killed.append(1)

    # The other one goes on alone: nothing is started again.
    crashes = Crashes(scale.url, lambda: None, kill, headers=scale.headers)
    await crashes.run(kills=1, seconds=2)
    assert killed
    assert await asyncio.to_thread(scale.seen) != set()
    assert len(scale.seen()) == 1


def test_one_server_after_the_other_is_replaced_and_nobody_notices(
    scale: Scale, http: httpx.Client
) -> None:
    """Each call that may be sent again is answered at the first try."""
    sessions = [some_session(http) for _ in range(16)]
    stopped = False
    taken: Counter[str] = Counter()

    def work(worker: int) -> None:
        draws = random.Random(worker)
        with scale.client() as own:
            while not stopped:
                session = draws.choice(sessions[worker::4])
                key = {"Idempotency-Key": f"{worker}-{taken[session]}"}
                path = f"/v1/sessions/{session}/advance"
                answer = own.post(path, json={"bytes": "a"}, headers=key)
                assert answer.status_code == 200, (answer.status_code, answer.text)
                taken[session] += 1
                assert answer.json()["version"] == taken[session] + 1

    with ThreadPoolExecutor(4) as threads:
        working = [threads.submit(work, i) for i in range(4)]
        try:
            for replica in scale.replicas:
                replica.end(signal.SIGTERM)
                scale.wait_for(1)
                replica.start()
                scale.wait_for(2)
        finally:
            stopped = True
        for worker in working:
            worker.result()
    assert sum(taken.values()) > 16


def test_a_server_that_is_added_gets_calls(scale: Scale) -> None:
    both = list(scale.names["replica"])
    scale.names["replica"] = both[:1]
    scale.wait_for(1)
    scale.names["replica"] = both
    scale.wait_for(2)


def test_a_stream_arrives_while_it_is_made(scale: Scale, http: httpx.Client) -> None:
    for replica in scale.replicas:
        steer = f"{replica.url}/test/delay"
        httpx.post(steer, params={"value": 0.2}, headers=scale.headers).raise_for_status()

    def evaluations() -> int:
        found = [
            httpx.get(f"{replica.url}/test/evaluations", headers=scale.headers).json()
            for replica in scale.replicas
        ]
        return sum(found)

    body: dict[str, Any] = {"context": "an apple", "steps": 24, "stream": True}
    with http.stream("POST", "/v1/greedy", json=body) as answer:
        assert answer.status_code == 200
        seen = []
        for line in answer.iter_lines():
            if line.startswith("data: {") and "bytes" in json.loads(line[6:]):
                seen.append(evaluations())
    # While the first bytes were here, the server still had most of its work before it.
    assert len(seen) > 5
    assert seen[0] < seen[len(seen) // 2] < seen[-1]
