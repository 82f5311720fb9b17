"""Two replicas of Ray Serve are like one server."""

import asyncio
import base64
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from starlette.responses import PlainTextResponse

from bytelm.errors import InputError
from bytelm.settings import ServerSettings
from bytelm_server.keys import KeyFile
from tests.deploy.ray_cluster import HEADER, Cluster
from tests.server.crashes import CLIENTS, Crashes

DELAY = 0.05
"""Seconds that an evaluation takes, so that streams last."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Sockets' paths must be short.
    with tempfile.TemporaryDirectory(prefix="bytelm-ray-") as name:
        yield Path(name)


@contextmanager
def running(cluster: Cluster) -> Iterator[Cluster]:
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.end()


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    files = {"evaluations": str(folder / "evaluations"), "death": str(folder / "death")}
    engine = {**files, "delay": DELAY}
    with running(Cluster(folder, "tests.deploy.ray_stub:build", engine)) as made:
        yield made


@pytest.fixture
def http(cluster: Cluster) -> Iterator[httpx.Client]:
    with cluster.client() as client:
        yield client


def evaluations(cluster: Cluster) -> int:
    """All that were begun so far, in whatever replica."""
    return Path(cluster.engine["evaluations"]).stat().st_size


def by(answer: httpx.Response) -> str:
    """The replica that answered."""
    assert answer.status_code == 200, answer.text
    return answer.headers[HEADER]


def some_session(http: httpx.Client) -> str:
    made = http.post("/v1/sessions", json={"context": "hello "})
    assert made.status_code == 200, made.text
    return made.json()["id"]


def test_a_session_stays_at_its_replica_and_sessions_spread(http: httpx.Client) -> None:
    at: Counter[str] = Counter()
    for _ in range(40):
        path = f"/v1/sessions/{some_session(http)}"
        answers = [
            http.post(f"{path}/advance", json={"bytes": "a"}),
            http.get(f"{path}/next"),
            http.post(f"{path}/greedy", json={"steps": 1}),
            # What a client says of itself does not lead elsewhere.
            http.get(path, headers={"X-Session-Id": "another"}),
        ]
        (replica,) = set(map(by, answers))
        at[replica] += 1
    assert len(at) == 2
    assert min(at.values()) >= 5


def test_calls_without_a_session_spread(http: httpx.Client) -> None:
    at = Counter(by(http.get("/v1/models")) for _ in range(40))
    assert len(at) == 2
    assert min(at.values()) >= 5


def test_a_batch_of_sessions_of_both_replicas_is_answered_by_one(http: httpx.Client) -> None:
    sessions = [some_session(http) for _ in range(8)]
    calls = [{"id": one, "call": "advance", "body": {"bytes": "the"}} for one in sessions]
    by(http.post("/v1/sessions:batch", json={"calls": calls}))
    for session in sessions:
        now = http.get(f"/v1/sessions/{session}").json()
        assert (now["version"], now["length"]) == (2, 9)


def test_who_has_no_key_is_refused_and_metrics_are_hidden(cluster: Cluster) -> None:
    assert httpx.post(f"{cluster.url}/v1/sessions", json={}).status_code == 401
    assert httpx.get(f"{cluster.url}/metrics", headers=cluster.headers).status_code == 404
    assert httpx.get(f"{cluster.url}/health").json() == {"status": "ready"}


def test_a_stream_arrives_while_it_is_made(cluster: Cluster, http: httpx.Client) -> None:
    body: dict[str, Any] = {"context": "an apple", "steps": 24, "stream": True}
    with http.stream("POST", "/v1/greedy", json=body) as answer:
        assert answer.status_code == 200
        seen = []
        for line in answer.iter_lines():
            if line.startswith("data: {") and "bytes" in json.loads(line[6:]):
                seen.append(evaluations(cluster))
    # While the first bytes were here, the replica still had most of its work before it.
    assert len(seen) > 5
    assert seen[0] < seen[len(seen) // 2] < seen[-1]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "one answer"])
def test_a_client_that_goes_away_ends_its_work(
    cluster: Cluster, http: httpx.Client, stream: bool
) -> None:
    body: dict[str, Any] = {"context": "the other", "steps": 60, "stream": stream}
    before = evaluations(cluster)
    http.post("/v1/greedy", json=body | {"stream": False}).raise_for_status()
    whole = evaluations(cluster) - before

    before = evaluations(cluster)
    with cluster.client() as own:
        if stream:
            with own.stream("POST", "/v1/greedy", json=body) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                own.post("/v1/greedy", json=body, timeout=10 * DELAY)
    deadline = time.monotonic() + 60
    while True:
        now = evaluations(cluster)
        time.sleep(20 * DELAY)
        if evaluations(cluster) == now:
            break
        assert time.monotonic() < deadline, "the work goes on"
    assert now - before < whole / 2


def test_a_large_body_goes_through(http: httpx.Client) -> None:
    body = json.dumps({"context": "hello", "top": 1}) + " " * 300_000
    by(http.post("/v1/next_bytes", content=body, headers={"Content-Type": "application/json"}))


@pytest.mark.timeout(600)
async def test_sessions_of_a_killed_replica_go_on_at_the_other(cluster: Cluster) -> None:
    """Under load, with no acknowledged byte lost and none taken twice."""
    victim = cluster.replicas()[0]
    before = await asyncio.to_thread(cluster.seen)
    assert len(before) == 2

    own = {"Authorization": f"Bearer {cluster.new_key()}"}
    # Ray starts another one by itself.
    crashes = Crashes(cluster.url, lambda: None, victim.kill, headers=own)
    await crashes.run(kills=1, seconds=2)
    assert not victim.is_running()
    assert sum(client.version - 1 for client in crashes.clients) >= CLIENTS
    deadline = time.monotonic() + 120
    while len(now := await asyncio.to_thread(cluster.seen)) != 2:
        assert time.monotonic() < deadline, "Ray starts no other replica"
    assert len(before & now) == 1


@pytest.mark.timeout(600)
def test_replicas_whose_engines_die_are_replaced(cluster: Cluster, http: httpx.Client) -> None:
    session = some_session(http)
    before = cluster.seen()
    assert len(before) == 2
    Path(cluster.engine["death"]).touch()
    deadline = time.monotonic() + 240
    while len(now := cluster.seen()) != 2 or now & before:
        assert time.monotonic() < deadline, "Ray replaces no replica"
        time.sleep(0.5)
    made = http.post(f"/v1/sessions/{session}/advance", json={"bytes": "a"})
    assert by(made) in now
    assert made.json()["version"] == 2


@pytest.mark.timeout(900)
def test_replicas_come_and_go_with_the_queue_and_no_call_fails(cluster: Cluster) -> None:
    stopped = False

    def work() -> int:
        taken = 0
        with cluster.client() as own:
            while not stopped:
                path = f"/v1/sessions/{some_session(own)}/advance"
                for version in range(2, 40):
                    made = own.post(path, json={"bytes": "a"})
                    assert (made.status_code, made.json()["version"]) == (200, version), made.text
                    taken += 1
                    time.sleep(DELAY)
        return taken

    def ask(context: str) -> int:
        asked = 0
        with cluster.client() as own:
            while not stopped:
                by(own.post("/v1/greedy", json={"context": context, "steps": 20}))
                asked += 1
        return asked

    quick = {"upscale_delay_s": 1, "downscale_delay_s": 1, "look_back_period_s": 2}
    with ThreadPoolExecutor(64) as threads:
        running = [threads.submit(work) for _ in range(4)]
        try:
            sizes = {"min_replicas": 1, "initial_replicas": 1, "max_replicas": 2}
            cluster.deploy(sizes | quick | {"target_ongoing_requests": 16})
            cluster.wait_for(1)
            running += [threads.submit(ask, f"{i} apples") for i in range(48)]
            cluster.wait_for(2)
        finally:
            stopped = True
        assert all(thread.result() for thread in running)


def test_replicas_that_would_serve_everybody_or_share_nothing_are_refused(tmp_path: Path) -> None:
    from bytelm_server.on_ray.deployment import check

    keys_file = tmp_path / "keys.json"
    redis = "redis://somewhere:6379/0"
    with pytest.raises(InputError, match="there are no API keys"):
        check(ServerSettings(session_store=redis, keys_file=keys_file))
    check(ServerSettings(session_store=redis, keys_file=keys_file, allow_remote=True))
    KeyFile(keys_file).create("somebody")
    check(ServerSettings(session_store=redis, keys_file=keys_file))
    for store in ("memory", "sqlite", str(tmp_path / "sessions.sqlite")):
        with pytest.raises(InputError, match="cannot share"):
            check(ServerSettings(session_store=store, keys_file=keys_file))


async def test_a_replica_says_once_that_sessions_are_not_marked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from bytelm_server.on_ray.deployment import Named

    named = Named(PlainTextResponse("here"), "replica 1")
    transport = httpx.ASGITransport(app=named)
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as own:
        await own.get("/v1/models")
        await own.get("/v1/sessions/ses_1", headers={"x-session-id": "ses_1"})
        assert not caplog.records
        for _ in range(2):
            answer = await own.get("/v1/sessions/ses_1")
    assert answer.headers[HEADER] == "replica 1"
    (record,) = caplog.records
    assert "docker/ray/node" in record.message


@pytest.mark.timeout(900)
def test_a_real_engine_ends_with_its_replica_and_its_sessions_go_on() -> None:
    """docker/ray's own application, on a CPU."""
    with tempfile.TemporaryDirectory(prefix="bytelm-ray-") as name:
        engine = {"device": "cpu", "kv_cache_memory_bytes": 1 << 29}
        build = "bytelm_server.on_ray.deployment:build"
        with running(Cluster(Path(name), build, engine, count=1)) as cluster:
            _go_on_after_a_kill(cluster)


def _go_on_after_a_kill(cluster: Cluster) -> None:
    with cluster.client() as http:
        (before,) = cluster.seen()
        made = http.post("/v1/sessions", json={"context": "An apple a day keeps "}).json()
        path = f"/v1/sessions/{made['id']}"
        by(http.post(f"{path}/advance", json={"bytes": "the "}))
        (victim,) = cluster.replicas()
        engine = victim.children(recursive=True)
        assert engine
        victim.kill()
        psutil.wait_procs(engine, timeout=60)
        assert not [process for process in engine if process.is_running()]

        deadline = time.monotonic() + 300
        while not (now := cluster.seen()):
            assert time.monotonic() < deadline, "Ray starts no other replica"
            time.sleep(1)
        assert now != {before}
        body = {"steps": 12, "stream": True}
        text = b""
        with http.stream("POST", f"{path}/greedy", json=body) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    text += base64.b64decode(json.loads(line[6:])["bytes"]["base64"])
        assert text == b"doctor away."
        assert http.get(path).json()["length"] == len("An apple a day keeps the doctor away.")
