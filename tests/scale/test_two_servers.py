"""Two servers that share their sessions give what one server gives."""

import base64
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.scale.conftest import RedisServer
from tests.server.processes import RealProcess, StubProcess

TEXT = "an apple a day keeps the thing in the hello, then the other one "


@pytest.fixture
def stubs(redis: RedisServer) -> Iterator[list[StubProcess]]:
    servers = [StubProcess(redis.url), StubProcess(redis.url)]
    for server in servers:
        server.start()
    yield servers
    for server in servers:
        server.clean_up()


@pytest.fixture
def https(stubs: list[StubProcess]) -> Iterator[list[httpx.Client]]:
    clients = [httpx.Client(base_url=stub.url, timeout=60) for stub in stubs]
    yield clients
    for client in clients:
        client.close()


def post(http: httpx.Client, path: str, key: str | None = None, **body: Any) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    answer = http.post(path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def without_names(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without what tells two sessions at the same state apart, and what it took."""
    own = {k: v for k, v in answer.items() if k not in ("id", "expires_at", "n_calls", "usage")}
    if "session" in own:
        own["session"] = without_names(own["session"])
    return own


def test_an_alternating_session_is_like_one_that_stays(https: list[httpx.Client]) -> None:
    """To the last bit, on StubLM, whatever is called."""
    here = https[0]
    moving = post(here, "/v1/sessions", context="hello ")["id"]
    staying = post(here, "/v1/sessions", context="hello ")["id"]
    servers = cycle(https)
    for i in range(24):
        calls: list[tuple[str, dict[str, Any]]] = [
            ("advance", {"bytes": TEXT[i]}),
            ("greedy", {"steps": 3}),
            ("score", {"continuations": [" the"]}),
            ("prefill", {"bytes": TEXT[i : i + 5]}),
            ("sample", {"steps": 2, "seed": i}),
        ]
        call, body = calls[i % len(calls)]
        http = next(servers)
        moved = post(http, f"/v1/sessions/{moving}/{call}", **body)
        stayed = post(here, f"/v1/sessions/{staying}/{call}", **body)
        assert without_names(moved) == without_names(stayed)
        got = [
            http.get(f"/v1/sessions/{moving}/next").json()["results"],
            here.get(f"/v1/sessions/{staying}/next").json()["results"],
        ]
        assert got[0] == got[1]


def test_two_servers_never_both_advance_a_version(https: list[httpx.Client]) -> None:
    session = post(https[0], "/v1/sessions")["id"]
    letters = "abcdefghijklmnopqrstuvwx"

    def advance(place: int) -> Any:
        http = https[place % 2]
        return http.post(f"/v1/sessions/{session}/advance", json={"bytes": letters[place]})

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(advance, range(len(letters))))
    # One that others came before too often is refused, and changes nothing.
    taken = [
        (answer.json()["version"], letters[i])
        for i, answer in enumerate(answers)
        if answer.status_code == 200
    ]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert all(r.json()["error"]["code"] == "version_conflict" for r in refused)
    assert [version for version, _ in sorted(taken)] == list(range(2, 2 + len(taken)))
    assert len(taken) > 8
    twin = post(https[0], "/v1/sessions")["id"]
    for _, letter in sorted(taken):
        post(https[1], f"/v1/sessions/{twin}/advance", bytes=letter)
    got = [
        http.get(f"/v1/sessions/{one}/next").json()["results"]
        for http, one in zip(https, (session, twin), strict=True)
    ]
    assert got[0] == got[1]


def test_of_two_changes_of_a_version_one_wins(https: list[httpx.Client]) -> None:
    session = post(https[0], "/v1/sessions")["id"]
    for version in range(1, 9):

        def advance(http: httpx.Client, version: int = version) -> int:
            body = {"bytes": "a", "if_version": version}
            return http.post(f"/v1/sessions/{session}/advance", json=body).status_code

        with ThreadPoolExecutor(2) as threads:
            assert sorted(threads.map(advance, https)) == [200, 409]


def test_a_retry_at_the_other_server_answers_as_before(https: list[httpx.Client]) -> None:
    one, other = https
    made = post(one, "/v1/sessions", key="c", context="hello")
    assert post(other, "/v1/sessions", key="c", context="hello") == made
    path = f"/v1/sessions/{made['id']}"
    moved = post(one, f"{path}/advance", key="a", bytes="the")
    assert post(other, f"{path}/advance", key="a", bytes="the") == moved
    fork = post(one, f"{path}/fork", key="f")
    assert post(other, f"{path}/fork", key="f") == fork
    assert other.get(path).json()["version"] == 2


def test_a_session_lives_as_long_as_it_is_used_anywhere(https: list[httpx.Client]) -> None:
    one, other = https
    path = f"/v1/sessions/{post(one, '/v1/sessions', ttl=1.0)['id']}"
    for _ in range(8):
        time.sleep(0.3)
        assert other.get(path).status_code == 200
    assert one.get(path).status_code == 200
    time.sleep(1.1)
    assert [http.get(path).status_code for http in https] == [410, 410]


def test_a_session_does_not_expire_in_use_anywhere(https: list[httpx.Client]) -> None:
    """What works on one server is not ended by the other, and each call is made once by either."""
    one, other = https
    path = f"/v1/sessions/{post(one, '/v1/sessions', context='hello', ttl=2.0)['id']}"
    one.post("/test/delay", params={"value": 0.15})
    with ThreadPoolExecutor() as threads:
        call = threads.submit(post, one, f"{path}/greedy", key="g", steps=64)
        waiting = threads.submit(post, one, f"{path}/advance", key="a", bytes="b")
        time.sleep(3)
        assert not call.done(), "the call was too short to tell"
        assert other.get(path).json()["version"] == 1
        made, moved = call.result(), waiting.result()
    assert (made["session"]["version"], moved["version"]) == (2, 3)
    assert post(other, f"{path}/greedy", key="g", steps=64) == made
    assert post(other, f"{path}/advance", key="a", bytes="b") == moved
    body = {"calls": [{"id": path.split("/")[-1], "call": "advance", "body": {"bytes": "c"}}] * 2}
    headers = {"Idempotency-Key": "batch"}
    answers = [
        http.post("/v1/sessions:batch", json=body, headers=headers).json()
        for http in (one, other, one)
    ]
    assert answers[0] == answers[1] == answers[2]
    assert other.get(path).json()["version"] == 5


def test_sessions_of_a_killed_server_go_on_at_the_other(
    stubs: list[StubProcess], https: list[httpx.Client]
) -> None:
    sessions = [post(https[0], "/v1/sessions", context=f"{i}")["id"] for i in range(8)]
    for session in sessions:
        post(https[0], f"/v1/sessions/{session}/advance", bytes="the")
    stubs[0].end()
    for session in sessions:
        answer = post(https[1], f"/v1/sessions/{session}/advance", bytes="re")
        assert (answer["version"], answer["length"]) == (3, 6)
    listed = https[1].get("/v1/sessions").json()["data"]
    assert [one["id"] for one in listed] == sorted(sessions)


def test_a_store_that_is_away_is_told_and_comes_back(
    redis: RedisServer, https: list[httpx.Client]
) -> None:
    redis.end()
    answer = https[0].post("/v1/sessions", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unreachable")
    assert "retry-after" in answer.headers
    redis.start()
    assert post(https[0], "/v1/sessions")["version"] == 1


CLOSE = 1e-4
"""How far the same log-probabilities lie apart at most, where batching differs."""


@pytest.mark.timeout(900)
def test_two_real_servers_share_a_session(redis: RedisServer, tmp_path: Path) -> None:
    """Each engine on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    servers = []
    for i in range(2):
        folder = tmp_path / str(i)
        folder.mkdir()
        core = str(cores[i % len(cores)])
        servers.append(
            RealProcess(
                folder,
                *("--session-store", redis.url, "--omp-threads-bind", core),
                *("--kv-cache-memory-bytes", str(1 << 29)),
            )
        )
    try:
        for server in servers:
            server.start()
        with (
            httpx.Client(base_url=servers[0].url, timeout=120) as one,
            httpx.Client(base_url=servers[1].url, timeout=120) as other,
        ):
            beam: dict[str, Any] = {"K": 5, "prune_threshold": 0}
            start: dict[str, Any] = {"context": "The capital of Fran", "beam": beam}
            moving = post(one, "/v1/sessions", **start)["id"]
            staying = post(one, "/v1/sessions", **start)["id"]
            compared = 0
            for http, text in zip(cycle([other, one]), "ce is Paris, which", strict=False):
                post(http, f"/v1/sessions/{moving}/advance", bytes=text)
                post(one, f"/v1/sessions/{staying}/advance", bytes=text)
                beams = [
                    h.get(f"/v1/sessions/{s}", params={"candidates": True}).json()["candidates"]
                    for h, s in ((http, moving), (one, staying))
                ]
                if _is_undecided(beams[1], beam["K"]):
                    break
                assert set(map(_tokens, beams[0])) == set(map(_tokens, beams[1]))
                rows = [
                    h.get(f"/v1/sessions/{s}/next").json()["results"][0]
                    for h, s in ((http, moving), (one, staying))
                ]
                for a, b in zip(rows[0]["logprobs"], rows[1]["logprobs"], strict=True):
                    assert (a is None) == (b is None)
                    assert a is None or abs(a - b) < CLOSE
                compared += 1
            assert compared >= 5
    finally:
        for server in servers:
            server.clean_up()


def _tokens(candidate: dict[str, Any]) -> tuple[tuple[int, ...], bytes]:
    return tuple(candidate["tokens"]), base64.b64decode(candidate["partial"]["base64"])


def _is_undecided(candidates: list[dict[str, Any]], most: int) -> bool:
    """Whether pruning this beam is a matter of the last digits."""
    weights = sorted((c["weight"] for c in candidates), reverse=True)
    return len(weights) > most and weights[most - 1] - weights[most] < 10 * CLOSE
