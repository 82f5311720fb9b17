"""Changes happen once, however often a call is sent and whatever breaks in between."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from bytelm_client import AsyncClient, Client
from tests.server.proxy import proxy_to
from tests.server.test_sessions import Session, code_of


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def url(start_stub, request, tmp_path_factory) -> str:
    """A server for each store."""
    name = request.param
    if name == "sqlite":
        name = tmp_path_factory.mktemp("store") / "sessions.sqlite"
    address: str = start_stub("--set", f"session_store={name}")
    return address


@pytest.fixture
def create(http: httpx.Client) -> Callable[..., Session]:
    def make(**body: Any) -> Session:
        return Session(http, http.post("/v1/sessions", json=body).json())

    return make


@pytest.fixture
def batch(http: httpx.Client) -> Callable[..., Any]:
    def make(*calls: dict[str, Any], key: str | None = None) -> list[Any]:
        headers = {} if key is None else {"Idempotency-Key": key}
        answer = http.post("/v1/sessions:batch", json={"calls": calls}, headers=headers)
        assert answer.status_code == 200, answer.text
        results: list[Any] = answer.json()["results"]
        return results

    return make


def item(session: Session, call: str, key: str | None = None, **body: Any) -> dict[str, Any]:
    named = {} if key is None else {"idempotency_key": key}
    return {"id": session.info["id"], "call": call, "body": body, **named}


# Keys of single calls.


@pytest.mark.parametrize("kind", ["byte", "token"])
def test_no_key_is_forgotten_for_another(create, kind: str) -> None:
    session = create(kind=kind, context="hello")
    calls: list[tuple[str, dict[str, Any]]] = [
        ("advance", {"bytes": "a"}),
        ("prefill", {"bytes": "bc"}),
        ("greedy", {"steps": 2}),
        ("sample", {"steps": 2}),
        ("fork", {"advance": {"bytes": "a"}}),
        ("fork", {}),
    ]
    first = [session(call, key=f"k{i}", **body) for i, (call, body) in enumerate(calls)]
    for i in (3, 0, 5, 2, 1, 4):
        call, body = calls[i]
        assert session(call, key=f"k{i}", **body) == first[i]
        other = "prefill" if call == "advance" else "advance"
        conflict = session.post(other, key=f"k{i}", bytes="a")
        assert code_of(conflict, 409) == "idempotency_conflict"
        assert conflict.json()["error"]["param"] == "Idempotency-Key"
    assert session.get()["version"] == 5


def test_so_many_keys_at_the_same_time_are_kept(create) -> None:
    session = create(context="hello")

    def send(n: int) -> Any:
        return session("advance", key=f"k{n}", bytes="ab"[n % 2])

    with ThreadPoolExecutor(8) as threads:
        first = list(threads.map(send, range(32)))
        assert list(threads.map(send, range(32))) == first
    assert session.get()["version"] == 33


def test_what_leaves_a_session_where_it_is_answers_as_before(create) -> None:
    """Drawn without a seed, nobody could make it again."""
    session = create(context="hello")
    body = {"steps": 20, "n": 2, "advance": False}
    first = session("sample", key="look", **body)
    assert session("sample", key="look", **body) == first
    assert session("sample", **body)["results"] != first["results"]
    assert code_of(session.post("advance", key="look", bytes="a"), 409) == "idempotency_conflict"


@pytest.mark.parametrize("end", ["deleted", "expired"])
@pytest.mark.parametrize("advance", [{}, {"advance": {"bytes": "b"}}])
def test_a_fork_is_answered_after_its_parents_end(create, end: str, advance: Any) -> None:
    session = create(context="hello", ttl=60 if end == "deleted" else 2)
    body = {**advance, "ttl": 60}
    first = session("fork", key="f", **body)
    if end == "deleted":
        session.http.delete(session.url)
    else:
        time.sleep(2.2)
    assert session("fork", key="f", **body) == first
    assert Session(session.http, first).get()["version"] == 1
    assert code_of(session.post("fork", key="g", **body), 404 if end == "deleted" else 410)
    assert code_of(session.post("fork", key="f"), 409) == "idempotency_conflict"


@pytest.mark.parametrize("call", ["advance", "delete"])
def test_every_change_is_answered_after_the_sessions_end(create, call: str) -> None:
    session = create(context="hello")
    first = session("advance", key="a", bytes="b")
    headers = {"Idempotency-Key": "end"}
    ended = session.http.delete(session.url, headers=headers).json()
    assert session("advance", key="a", bytes="b") == first
    assert session.http.delete(session.url, headers=headers).json() == ended
    other = session.http.delete(session.url, headers={"Idempotency-Key": "a"})
    assert code_of(other, 409) == "idempotency_conflict"


# Batches.


def test_each_call_of_a_batch_is_named_by_its_key_and_place(create, batch, http) -> None:
    one, other = create(context="one"), create(context="other")
    calls = [
        item(one, "advance", bytes="a"),
        item(other, "greedy", steps=2),
        item(one, "advance", bytes="a"),
        item(one, "fork"),
    ]
    first = batch(*calls, key="b")
    assert batch(*calls, key="b") == first
    assert [one.get()["version"], other.get()["version"]] == [3, 2]
    # The key alone, or a call's own, is another one.
    assert one("advance", key="b", bytes="a")["version"] == 4
    own = [item(one, "advance", "own", bytes="a")]
    assert batch(*own, key="c") == batch(*own, key="d")
    # Without a key it is made again.
    assert batch(*calls) != first


def test_the_key_of_a_batch_is_for_one_body(create, batch) -> None:
    one, other = create(context="one"), create(context="other")
    first = batch(item(one, "advance", bytes="a"), item(other, "advance", bytes="a"), key="b")
    for call in (item(other, "advance", bytes="b"), item(other, "greedy", steps=2)):
        again = batch(item(one, "advance", bytes="a"), call, key="b")
        assert again[0] == first[0]
        assert again[1]["error"]["code"] == "idempotency_conflict"
        assert again[1]["error"]["param"] == "calls[1].idempotency_key"
    assert (one.get()["version"], other.get()["version"]) == (2, 2)


def test_what_failed_in_a_batch_is_made_by_the_retry(create, batch) -> None:
    one, other = create(context="one"), create(context="other")
    calls = [item(one, "advance", bytes="a"), item(other, "advance", bytes="a", if_version=2)]
    first = batch(*calls, key="b")
    assert (first[0]["version"], first[1]["error"]["code"]) == (2, "version_conflict")
    other("advance", bytes="x")
    again = batch(*calls, key="b")
    assert again[0] == first[0]
    assert again[1]["version"] == 3


def test_looks_in_a_batch_see_what_they_saw(create, batch) -> None:
    session = create(context="hello")
    calls = [
        item(session, "next", top=3),
        item(session, "get"),
        item(session, "advance", bytes="a"),
        item(session, "next", top=3),
        item(session, "advance", bytes="b"),
        item(session, "next", top=3),
    ]
    first = batch(*calls, key="look")
    assert first[0]["results"] != first[3]["results"]
    again = batch(*calls, key="look")
    assert [r.get("results", r) for r in again] == [r.get("results", r) for r in first]
    assert session.get()["version"] == 3


def test_a_keyed_end_is_not_overtaken(create, batch) -> None:
    for n in range(20):
        session = create(context="hello")
        results = batch(
            item(session, "advance", bytes="a"),
            item(session, "delete", f"end {n}"),
            item(session, "advance", f"late {n}", bytes="b"),
            item(session, "get"),
        )
        assert results[0]["version"] == 2
        assert results[1] == {"id": session.info["id"], "deleted": True}
        assert [r["error"]["code"] for r in results[2:]] == ["session_not_found"] * 2


def test_a_batch_that_its_engine_leaves_tells_what_was_done(start_stub, until) -> None:
    with httpx.Client(base_url=start_stub("--again"), timeout=60) as http:
        done, slow = (
            Session(http, http.post("/v1/sessions", json={"context": text}).json())
            for text in ("hello", "the")
        )
        http.post("/test/delay", params={"value": 0.05})
        calls = [
            item(slow, "greedy", steps=64),
            item(done, "fork"),
            item(done, "advance", bytes="a"),
            item(slow, "get"),
        ]
        body, headers = {"calls": calls}, {"Idempotency-Key": "k"}
        with ThreadPoolExecutor() as threads:
            post = threads.submit(http.post, "/v1/sessions:batch", json=body, headers=headers)
            until(lambda: done.get()["version"] == 2)
            http.post("/test/die")
            answer = post.result(60)
        assert answer.status_code == 200
        first = answer.json()["results"]
        assert first[0]["index"] == 0
        assert first[0]["error"]["code"] == "dead"
        assert first[0]["error"]["param"] == "calls[0]"
        assert [first[i]["version"] for i in (1, 2, 3)] == [1, 2, 1]
        # A retry makes what was not made.
        until(lambda: http.get("/health").status_code == 200)
        again = http.post("/v1/sessions:batch", json=body, headers=headers).json()["results"]
        assert again[1:3] == first[1:3]
        assert again[0]["session"]["version"] == again[3]["version"] == 2


def test_a_batch_that_takes_too_long_tells_what_was_done(start_stub) -> None:
    with httpx.Client(base_url=start_stub("--set", "call_seconds=3"), timeout=60) as http:
        done, slow = (
            Session(http, http.post("/v1/sessions", json={"context": text}).json())
            for text in ("hello", "the")
        )
        http.post("/test/delay", params={"value": 0.5})
        body = {"calls": [item(slow, "greedy", steps=64), item(done, "fork")]}
        answer = http.post("/v1/sessions:batch", json=body)
        assert answer.status_code == 200
        first, second = answer.json()["results"]
        assert first["error"]["code"] == "deadline_passed"
        assert second["version"] == 1
        assert slow.get()["version"] == 1
        # What did nothing has one answer.
        answer = http.post("/v1/sessions:batch", json={"calls": body["calls"][:1]})
        assert code_of(answer, 504) == "deadline_passed"


def test_a_call_of_a_batch_that_fails_as_nobody_foresaw_fails_alone(create, batch, http) -> None:
    done, broken = create(context="hello"), create(context="the")
    http.post("/test/break", params={"value": 1})
    try:
        results = batch(item(broken, "greedy", steps=9), item(done, "fork"))
    finally:
        http.post("/test/break", params={"value": 0})
    assert results[0]["error"]["code"] == "internal_error"
    assert "secret" not in str(results)
    assert results[1]["version"] == 1


# Through the client.


@pytest.mark.parametrize("lost", [1, 2])
def test_a_batch_whose_answer_is_lost_happens_once(url: str, lost: int) -> None:
    with proxy_to(url) as proxy, Client(proxy.url) as client:
        session = client.session("hi")
        calls: list[Any] = [
            session.plan.advance(b"a"),
            session.plan.next(),
            session.plan.advance(b"b"),
            session.plan.fork(),
        ]
        proxy.break_after = lost
        moved, seen, last, fork = client.batch(calls)
        assert (moved.version, last.version, last.length) == (2, 3, 4)
        assert session.refresh().length == 4
        assert list(seen.logprobs) == list(client.next_bytes("hia").logprobs)
        assert client.resume(fork.id).length == 4
        # Sent again as a whole, its changes are the same.
        assert client.batch(calls[:1]) == [moved]


async def test_an_awaited_batch_whose_answer_is_lost_happens_once(url: str) -> None:
    with proxy_to(url) as proxy:
        async with AsyncClient(proxy.url) as client:
            session = await client.session("hi")
            proxy.break_after = 1
            await client.batch([session.plan.advance(b"a"), session.plan.advance(b"b")])
            assert (await session.refresh()).length == 4


def test_single_calls_whose_answers_are_lost_happen_once(url: str) -> None:
    with proxy_to(url) as proxy, Client(proxy.url) as client:
        proxy.break_after = 1
        session = client.session("hi", kind="token")
        for call in (
            lambda: session.advance(b"a"),
            lambda: session.prefill(b"b"),
            lambda: session.greedy(2),
            lambda: session.sample(2),
            lambda: session.fork(),
        ):
            proxy.break_after = 1
            call()
        assert session.refresh().version == 5
        proxy.break_after = 1
        session.delete()
