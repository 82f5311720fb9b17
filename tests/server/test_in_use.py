"""Sessions in use: none expires, and whoever only looks waits for nobody."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.server.test_sessions import Session, code_of, events_of

TTL = 2.0
STAYS_DEAD = ("--again", "--set", "engine_restart_seconds=600")


@pytest.fixture(params=["memory", "sqlite"])
def http(start_stub, request, tmp_path) -> Iterator[httpx.Client]:
    """A server of the test's own, which works on one call at a time."""
    name = "memory" if request.param == "memory" else tmp_path / "sessions.sqlite"
    url = start_stub("--set", f"session_store={name}", "--set", "max_running_calls=1", *STAYS_DEAD)
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def create(http: httpx.Client, **body: Any) -> Session:
    return Session(http, http.post("/v1/sessions", json={"context": "hello", **body}).json())


def be_slow(http: httpx.Client, seconds: float = 0.15) -> None:
    http.post("/test/delay", params={"value": seconds})


@pytest.mark.parametrize("moves", [True, False])
def test_a_session_does_not_expire_under_a_call(http: httpx.Client, moves: bool) -> None:
    session = create(http, ttl=TTL)
    be_slow(http)
    began = time.time()
    answer = session("greedy", steps=64, advance=moves)
    ended = time.time()
    assert ended - began > 2 * TTL, "the call was too short to tell"
    assert answer["session"]["version"] == 1 + moves
    # From the end of the call on, nearly.
    assert answer["session"]["expires_at"] > ended + TTL / 2
    assert session.get()["length"] == 5 + 64 * moves
    time.sleep(TTL + 0.5)
    assert code_of(http.get(session.url), 410) == "session_expired"


def test_nor_under_a_stream(http: httpx.Client) -> None:
    session = create(http, ttl=TTL)
    be_slow(http)
    body = {"steps": 64, "stream": True, "advance": False}
    with http.stream("POST", f"{session.url}/greedy", json=body) as stream:
        assert len(events_of(stream.read().decode())) > 1
    assert session.get()["version"] == 1


def test_nor_under_calls_that_wait(http: httpx.Client) -> None:
    """For another call on the session, or for their turn on the server."""
    busy, waiting, batched = (create(http, ttl=ttl) for ttl in (60, TTL, TTL))
    be_slow(http)
    item = {"id": batched.info["id"], "call": "advance", "body": {"bytes": "a"}}
    with ThreadPoolExecutor() as threads:
        first = threads.submit(busy, "greedy", steps=64)
        time.sleep(0.2)
        assert (waiting.get()["version"], batched.get()["version"]) == (1, 1)
        later = [
            threads.submit(waiting, "greedy", steps=2),
            threads.submit(waiting, "greedy", steps=2),
            threads.submit(http.post, "/v1/sessions:batch", json={"calls": [item]}),
        ]
        time.sleep(TTL + 0.5)
        assert not first.done(), "the first call was too short to tell"
        listed = [one["id"] for one in http.get("/v1/sessions").json()["data"]]
        assert waiting.info["id"] in listed
        assert sorted(one.result()["session"]["version"] for one in later[:2]) == [2, 3]
        assert later[2].result().json()["results"][0]["version"] == 2


def test_whoever_looks_waits_for_nobody(http: httpx.Client) -> None:
    session = create(http)
    be_slow(http)
    with ThreadPoolExecutor() as threads:
        call = threads.submit(session, "greedy", steps=64)
        time.sleep(0.2)
        for _ in range(3):
            assert session.get()["version"] == 1
            assert len(http.get("/v1/sessions").json()["data"]) == 1
        assert not call.done()
        assert call.result()["session"] == session.get()


def test_whoever_looks_needs_no_engine(http: httpx.Client, until: Any) -> None:
    session = create(http)
    moved = session("advance", key="a", bytes="b")
    info = session.get()
    http.post("/test/die")
    until(lambda: http.get("/health").status_code == 503)
    assert session.get() == info
    assert http.get("/v1/sessions").json()["data"] == [info]
    # What was done is told, and what needs no model is done.
    assert session("advance", key="a", bytes="b") == moved
    assert code_of(session.post("advance", bytes="c"), 503) in ("dead", "starting")
    assert code_of(http.get(session.url, params={"candidates": True}), 503) in ("dead", "starting")
    assert http.delete(session.url).status_code == 200


def test_a_fork_has_what_its_parent_has_in_memory(http: httpx.Client) -> None:
    session = create(http)
    seen = session.next()
    before = http.get("/test/evaluations").json()
    fork = session.fork()
    assert fork.next() == seen
    fork("advance", bytes="a")
    assert session.next() == seen
    assert http.get("/test/evaluations").json() == before
