"""Sessions over HTTP: every call gives what the library gives on the same model."""

import base64
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from bytelm.beam import ByteBeamState
from bytelm.generating.draws import Draw
from bytelm.generating.generation import collect, generate
from bytelm.generating.token_sampling import sample
from bytelm.models.logprobs import EOS, LazyByteProbs
from bytelm.models.testing import assert_drawn_from
from bytelm.models.token_lm import StatefulTokenizedLM
from bytelm.prompts.context import Context, Special, Text
from bytelm_server.sessions import bodies
from bytelm_server.sessions.states import TokenState


class Session:
    """A session of the server, by its calls."""

    def __init__(self, http: httpx.Client, info: dict[str, Any]) -> None:
        self.http = http
        self.info = info
        self.url = f"/v1/sessions/{info['id']}"

    def post(self, call: str, key: str | None = None, **body: Any) -> httpx.Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        return self.http.post(f"{self.url}/{call}", json=body, headers=headers)

    def get(self, path: str = "", **query: Any) -> Any:
        answer = self.http.get(self.url + path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def __call__(self, call: str, key: str | None = None, **body: Any) -> Any:
        answer = self.post(call, key, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def fork(self, **body: Any) -> "Session":
        return Session(self.http, self("fork", **body))

    def next(self) -> Any:
        """The whole distribution, as it is in JSON."""
        return self.get("/next")["results"]

    def events(self, call: str, **body: Any) -> list[Any]:
        with self.http.stream("POST", f"{self.url}/{call}", json={**body, "stream": True}) as got:
            assert got.status_code == 200
            return events_of(got.read().decode())


def events_of(body: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def url(start_stub, request, tmp_path_factory) -> str:
    """A server for each store."""
    if request.param == "memory":
        return start_stub()
    file = tmp_path_factory.mktemp("store") / "sessions.sqlite"
    # Nothing stays in memory between two calls, so that all comes from the store.
    return start_stub("--set", f"session_store={file}", "--set", "session_cache_bytes=0")


@pytest.fixture
def create(http: httpx.Client) -> Callable[..., Session]:
    def make(**body: Any) -> Session:
        answer = http.post("/v1/sessions", json=body)
        assert answer.status_code == 200, answer.text
        return Session(http, answer.json())

    return make


def as_json(state_ps: Any) -> list[Any]:
    """A distribution as the API has it."""
    values = [None if p == -np.inf else float(p) for p in state_ps]
    return [{"logprobs": values[:256], "eos": values[EOS]}]


async def ps(state: ByteBeamState) -> list[Any]:
    return as_json((await state.logp_next()).ps)


def code_of(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"type", "message", "param", "code"}
    code: str = error["code"]
    return code


def data_of(result: dict[str, Any]) -> bytes:
    return base64.b64decode(result["bytes"]["base64"])


# What sessions stand at.


async def test_a_session_stands_at_the_state_after_its_context(create, begun) -> None:
    session = create(context="hello")
    assert session.info["kind"] == "byte"
    assert (session.info["version"], session.info["length"]) == (1, 5)
    assert session.info["n_calls"] == session.info["usage"]["evaluations"] > 0
    assert session.next() == await ps(await begun(b"hello"))


async def test_next_tells_what_may_be_drawn(create, begun) -> None:
    beam = {"K": 1, "prune_threshold": 0.5}
    session = create(context={"text": "hhet"}, prefill="exact", beam=beam)
    answer = session.get("/next", drawable=True)
    want = await (await begun(b"hhet", "exact", **beam)).logp_next()
    (result,) = answer["results"]
    told = [-math.inf if x is None else x for x in result["drawable"]["logprobs"]]
    assert told == want.drawable.ps[:256].tolist()
    assert min(told) == -math.inf < min(x for x in result["logprobs"] if x is not None)
    assert session.get(candidates=True)["deferred"] > 0


async def test_it_begins_with_the_initial_context_where_none_is_given(create, begun) -> None:
    session = create()
    assert session.info["length"] == 0
    assert session.next() == await ps(await begun(b""))


async def test_parameters_of_the_beam_stay_with_the_session(create, begun) -> None:
    beam = {"K": 2, "prune_threshold": 0.1, "eos_tokens": [[108], 5]}
    session = create(context="hel", beam=beam)
    session("advance", bytes="lo the")
    state = await begun(b"hel", K=2, prune_threshold=0.1, eos_byte_strings=[b"l", 5])
    for b in b"lo the":
        state = await (state.prune() << b)
    assert session.next() == await ps(state)


@pytest.mark.parametrize("prune", [True, False])
async def test_advance_consumes_byte_by_byte(create, begun, prune) -> None:
    session = create(context="hello")
    answer = session("advance", bytes=" then", prune=prune)
    assert (answer["version"], answer["length"], answer["usage"]["bytes_in"]) == (2, 10, 5)
    state = await begun(b"hello")
    for b in b" then":
        state = await ((state.prune() if prune else state) << b)
    assert session.next() == await ps(state)
    assert session.get("/next", prune=True)["results"] == await ps(state.prune())


@pytest.mark.parametrize("mode", ["fast", "exact"])
async def test_prefill_reads_a_long_text(create, begun, mode) -> None:
    session = create(context="the hello ")
    text = b"an apple a day, the thing is " * 3
    session("prefill", bytes=text.decode(), prefill=mode)
    state = await (await begun(b"the hello ")).prefill(text, mode)
    assert session.next() == await ps(state)
    assert session.get()["length"] == 10 + len(text)


@pytest.mark.parametrize(
    ("made", "call", "body"),
    [
        ("fast", "advance", {}),
        ("fast", "prefill", {"prefill": "exact"}),
        ("exact", "prefill", {}),
        ("exact", "prefill", {"prefill": "exact"}),
    ],
)
def test_what_is_walked_has_a_limit_in_every_call(create, made, call, body) -> None:
    session = create(prefill=made)
    answer = session.post(call, bytes="the " * 38, **body)
    assert code_of(answer, 400) == "limit_exceeded"
    assert "at most 150 bytes" in answer.json()["error"]["message"]
    assert session.get()["length"] == 0


def test_a_session_made_for_exact_prefill_may_read_a_long_text_fast(create) -> None:
    session = create(prefill="exact")
    assert session("prefill", bytes="the " * 38, prefill="fast")["length"] == 152


@pytest.mark.parametrize("reading", ["special", "literal"])
async def test_segments_carry_special_tokens(create, begun, lm, reading) -> None:
    end = lm.vocab.token_text.index("<|im_end|>")
    context = {"segments": [{"token": "<|im_start|>"}, {"text": "he"}]}
    session = create(context=context, beam={"special_tokens": reading})
    assert session.info["length"] == 2
    session("advance", segments=[{"text": "llo"}, {"token": "<|im_end|>"}, {"text": "the"}])
    head = Context([Special(lm.vocab.bos_token_id), Text(b"he")])
    state = (await begun(head, special_tokens=reading)).insert([end], b"llo")
    for b in b"the":
        state = await (state.prune() << b)
    assert session.next() == await ps(state)
    assert session.get()["length"] == 8


async def test_candidates_are_the_beams(create, begun) -> None:
    session = create(context="hello the")
    state = await begun(b"hello the")
    got = session.get(candidates=True)["candidates"]
    assert [(c["weight"], tuple(c["tokens"]), data_of({"bytes": c["partial"]})) for c in got] == [
        (c.weight, c.tokens, c.partial) for c in state
    ]
    assert len(got) > 1
    assert "candidates" not in session.get()


def test_next_gives_the_best_bytes_first(create) -> None:
    session = create(context="hello")
    (whole,) = session.next()
    (result,) = session.get("/next", top=4)["results"]
    ranked = sorted(range(256), key=lambda b: -(whole["logprobs"][b] or -np.inf))
    assert [one["byte"] for one in result["top"]] == ranked[:4]
    assert result["eos"] == whole["eos"]


# Continuations.


async def test_greedy_is_the_librarys_and_moves_the_session(create, begun) -> None:
    session = create(context="hello")
    answer = session("greedy", steps=20, logprobs=True)
    made = await collect(generate(await begun(b"hello"), 20, LazyByteProbs.argmax, logprobs=True))
    (result,) = answer["results"]
    assert (data_of(result), result["logprob"]) == (made.data, made.logprob)
    assert result["finish_reason"] == made.finish_reason
    assert answer["session"]["length"] == 5 + len(made.data)
    assert answer["session"]["version"] == 2
    assert session.next() == await ps(made.state)


def test_a_session_stands_before_a_stop_string(create) -> None:
    whole = data_of(create(context="hello")("greedy", steps=20)["results"][0])
    session = create(context="hello")
    stop = {"base64": base64.b64encode(whole[7:9]).decode()}
    answer = session("greedy", steps=20, stop=stop)
    assert answer["results"][0]["finish_reason"] == "stop"
    assert data_of(answer["results"][0]) == whole[: whole.index(whole[7:9])]
    assert answer["session"]["length"] == 5 + whole.index(whole[7:9])
    rest = data_of(session("greedy", steps=2)["results"][0])
    assert rest == whole[whole.index(whole[7:9]) :][:2]


@pytest.mark.parametrize("method", ["token", "byte"])
async def test_sample_draws_what_the_stateless_call_draws(create, begun, http, method) -> None:
    body = {"steps": 25, "seed": 9, "method": method}
    session = create(context="hello")
    answer = session("sample", **body)
    alone = http.post("/v1/sample", json={"context": "hello", **body}).json()["results"]
    assert answer["results"] == alone
    # The state is that of the bytes, however they were drawn.
    state = await begun(b"hello")
    if method == "token":
        state = await state.prefill(data_of(alone[0]))
    else:
        pieces = sample(state, 25, Draw(seed=9, key=(0, 0)), method="byte")
        state = (await collect(pieces)).state
    assert session.next() == await ps(state)


def test_several_samples_leave_the_session_where_it_is(create, http) -> None:
    session = create(context="hello")
    body = {"steps": 12, "seed": 4, "n": 3}
    answer = session("sample", advance=False, **body)
    assert (
        answer["results"]
        == (http.post("/v1/sample", json={"context": "hello", **body}).json()["results"])
    )
    assert answer["session"]["version"] == 1
    assert session.next() == create(context="hello").next()
    assert code_of(session.post("sample", **body), 400) == "invalid_value"


@pytest.mark.parametrize(
    ("call", "body"),
    [
        ("greedy", {"logprobs": True}),
        ("sample", {"seed": 2, "method": "token"}),
        ("sample", {"seed": 2, "method": "byte", "logprobs": True, "valid_utf8": True}),
    ],
)
def test_streams_give_the_same_bytes_and_states(create, call, body) -> None:
    whole, streamed = create(context="hello "), create(context="hello ")
    want = whole(call, steps=24, **body)
    events = streamed.events(call, steps=24, **body)
    assert b"".join(map(data_of, events)) == data_of(want["results"][0])
    for field in ("logprob", "finish_reason"):
        assert events[-1][field] == want["results"][0][field]
    assert events[-1]["usage"]["bytes_out"] == want["usage"]["bytes_out"]
    # Every event says where the session stands with its bytes.
    assert [e["version"] for e in events] == list(range(2, 2 + len(events)))
    now, last = streamed.get(), events[-1]
    assert all(last[name] == now[name] for name in ("version", "length", "at_limit"))
    lengths = itertools.accumulate((len(data_of(e)) for e in events), initial=len("hello "))
    assert [e["length"] for e in events] == list(lengths)[1:]
    assert streamed.get()["length"] == whole.get()["length"]
    assert streamed.next() == whole.next()


def test_streams_that_do_not_move_the_session(create) -> None:
    session = create(context="hello")
    body = {"steps": 8, "seed": 4, "n": 3, "advance": False}
    want = session("sample", **body)["results"]
    events = session.events("sample", **body)
    assert not any("version" in event for event in events)
    for result in want:
        mine = [e for e in events if e["sample"] == result["sample"]]
        assert b"".join(map(data_of, mine)) == data_of(result)
        assert mine[-1]["finish_reason"] == result["finish_reason"]
    assert [e for e in events if "usage" in e] == events[-1:]
    assert session.get()["version"] == 1


def test_a_client_that_leaves_a_stream_leaves_the_session_at_a_version_that_was_sent(
    url, create, http
) -> None:
    session = create(context="hello")
    http.post("/test/delay", params={"value": 0.05})
    try:
        seen: list[Any] = []
        body = {"steps": 60, "stream": True}
        with httpx.stream("POST", url + session.url + "/greedy", json=body) as stream:
            for line in stream.iter_lines():
                if line:
                    seen.append(json.loads(line.removeprefix("data: ")))
                if len(seen) == 3:
                    break
        time.sleep(0.3)  # so long an evaluation may still take
        before = http.get("/test/evaluations").json()
        now = session.get()
        time.sleep(0.5)
        assert http.get("/test/evaluations").json() == before
        assert session.get()["version"] == now["version"]
    finally:
        http.post("/test/delay", params={"value": 0})
    # What was on the way when the client left may have been stored, too, but nothing else.
    assert seen[-1]["version"] <= now["version"] <= seen[-1]["version"] + 3
    assert now["length"] - 5 == now["version"] - 1
    whole = data_of(create(context="hello")("greedy", steps=60)["results"][0])
    rest = data_of(session("greedy", steps=60 - now["length"] + 5)["results"][0])
    assert whole[now["length"] - 5 :] == rest


async def test_byte_sessions_go_on_with_the_end_of_what_is_too_long(create, begun) -> None:
    session = create(context="the hello " * 30, max_context_length=20)
    state = await begun(b"the hello " * 30, max_context_length=20)
    assert session.next() == await ps(state)
    for text in (b"an apple a day is ", b"the thing"):
        session("advance", bytes=text.decode())
        for b in text:
            state = await (state.prune() << b)
    assert session.next() == await ps(state)
    assert session.get()["length"] == 327
    answer = session.post("sample", steps=40, method="token")
    assert code_of(answer, 400) == "invalid_value"
    assert answer.json()["error"]["param"] == "method"


# Forks, and the end.


def test_forks_go_their_own_ways(create) -> None:
    session = create(context="hello")
    fork = session.fork()
    moved = session.fork(advance={"bytes": " the"})
    assert fork.info["version"] == moved.info["version"] == 1
    assert len({session.info["id"], fork.info["id"], moved.info["id"]}) == 3
    before = session.next()
    fork("advance", bytes="xyz")
    assert session.next() == before
    assert session.get()["version"] == 1
    session("advance", bytes=" the")
    assert moved.next() == session.next()
    assert moved.info["length"] == 9


def test_a_fork_may_prune_or_not(create) -> None:
    session = create(context="hello")
    for prune in (True, False):
        fork, twin = session.fork(advance={"bytes": " the", "prune": prune}), session.fork()
        twin("advance", bytes=" the", prune=prune)
        assert fork.next() == twin.next()


def test_a_deleted_session_is_unknown(create) -> None:
    session = create(context="hello")
    fork = session.fork()
    answer = session.http.delete(session.url)
    assert answer.json() == {"id": session.info["id"], "deleted": True}
    assert code_of(session.http.get(session.url), 404) == "session_not_found"
    assert code_of(session.post("advance", bytes="a"), 404) == "session_not_found"
    assert fork.get()["version"] == 1


def test_an_unknown_session(http: httpx.Client) -> None:
    for session_id in ("nothing", "0" * 36, "%00", "é"):
        assert code_of(http.get(f"/v1/sessions/{session_id}"), 404) == "session_not_found"


def test_a_session_expires_when_nobody_uses_it(create) -> None:
    before = time.time()
    session, used = create(context="hello", ttl=0.5), create(context="hello", ttl=10)
    assert before + 0.5 <= session.info["expires_at"] <= time.time() + 0.5
    time.sleep(0.6)  # more than a twentieth of 10 seconds: less is not worth a change in the store
    assert used.get()["expires_at"] > used.info["expires_at"] + 0.5
    assert code_of(session.http.get(session.url), 410) == "session_expired"
    assert code_of(session.post("advance", bytes="a"), 410) == "session_expired"
    listed = {one["id"] for one in session.http.get("/v1/sessions?limit=1000").json()["data"]}
    assert session.info["id"] not in listed
    assert used.info["id"] in listed


def test_ttl_has_a_limit(http: httpx.Client) -> None:
    answer = http.post("/v1/sessions", json={"ttl": 1e9})
    assert code_of(answer, 400) == "limit_exceeded"


def test_sessions_are_listed_page_by_page(create, http: httpx.Client) -> None:
    mine = []
    for _ in range(5):
        mine.append(create(context="a").info["id"])
        time.sleep(0.002)
    seen, after = [], mine[0]
    while after:
        page = http.get("/v1/sessions", params={"after": after, "limit": 2}).json()
        assert len(page["data"]) <= 2
        seen += [one["id"] for one in page["data"]]
        after = page["next"]
    assert [one for one in seen if one in mine] == mine[1:]
    one = page["data"][-1]
    assert one == http.get(f"/v1/sessions/{one['id']}").json()


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_a_full_store_takes_no_more_sessions(start_stub, tmp_path, store) -> None:
    name = "memory" if store == "memory" else str(tmp_path / "sessions.sqlite")
    url = start_stub("--set", f"session_store={name}", "--set", "max_sessions=2")
    with httpx.Client(base_url=url, timeout=60) as http:
        made = [http.post("/v1/sessions", json={"ttl": ttl}).json() for ttl in (60, 0.2)]
        answer = http.post("/v1/sessions", json={})
        assert code_of(answer, 507) == "store_full"
        assert answer.json()["error"]["type"] == "insufficient_storage"
        path = f"/v1/sessions/{made[0]['id']}"
        assert code_of(http.post(f"{path}/fork", json={}), 507) == "store_full"
        # Those that there are go on; what expired makes room.
        assert http.post(f"{path}/advance", json={"bytes": "a"}).status_code == 200
        time.sleep(0.2)
        assert http.post(f"{path}/fork", json={}).status_code == 200
        assert code_of(http.post("/v1/sessions", json={}), 507) == "store_full"
        http.delete(path)
        assert http.post("/v1/sessions", json={}).status_code == 200


# Versions and retries.


def test_a_version_is_checked_before_anything_changes(create) -> None:
    session = create(context="hello")
    assert session("advance", bytes="a", if_version=1)["version"] == 2
    calls: list[tuple[str, dict[str, Any]]] = [
        ("advance", {"bytes": "b"}),
        ("prefill", {"bytes": "b"}),
        ("greedy", {"steps": 2}),
        ("greedy", {"steps": 2, "stream": True}),
        ("sample", {"steps": 2}),
        ("score", {"continuations": ["b"]}),
        ("score", {"continuations": ["b"], "advance": False}),
        ("rows", {"text": "b"}),
        ("rows", {"text": "b", "advance": False}),
        ("fork", {}),
    ]
    for call, body in calls:
        answer = session.post(call, **body, if_version=1)
        assert code_of(answer, 409) == "version_conflict"
    gone = session.http.delete(session.url, params={"if_version": 1})
    assert code_of(gone, 409) == "version_conflict"
    assert session.get()["version"] == 2
    assert session.http.delete(session.url, params={"if_version": 2}).status_code == 200


@pytest.mark.parametrize("version", [0, 2**63, 10**30])
def test_what_can_be_no_version_is_refused(create, version: int) -> None:
    session = create(context="hello")
    ended = session.http.delete(session.url, params={"if_version": version})
    # httpx's own JSON takes integers of any size.
    moved = session.post("advance", bytes="a", if_version=version)
    for answer in (ended, moved):
        code_of(answer, 400)
        assert answer.json()["error"]["param"] == "if_version"
    assert session.get()["version"] == 1


@pytest.mark.parametrize(
    ("call", "body", "other"),
    [
        ("advance", {"bytes": " the"}, {"bytes": " th"}),
        ("prefill", {"bytes": " the"}, {"bytes": " th"}),
        ("greedy", {"steps": 4}, {"steps": 3}),
        ("sample", {"steps": 4}, {"steps": 4, "seed": 1}),
        ("score", {"continuations": [" the"]}, {"continuations": [" th"]}),
    ],
)
def test_a_key_makes_a_retry_answer_as_before(create, call, body, other) -> None:
    session = create(context="hello")
    first = session(call, key="one", **body)
    assert session(call, key="one", **body) == first
    assert session.get()["version"] == 2
    assert code_of(session.post(call, key="one", **other), 409) == "idempotency_conflict"
    assert code_of(session.post("advance", key="one", bytes="zz"), 409) == "idempotency_conflict"
    assert code_of(session.post("fork", key="one"), 409) == "idempotency_conflict"
    # Another key, or none, is another call; no key is forgotten for it.
    second = session(call, key="two", **body)
    assert session(call, **body) not in (first, second)
    assert session(call, key="one", **body) == first
    assert session(call, key="two", **body) == second
    assert session.get()["version"] == 4


def test_a_retry_is_answered_whatever_version_it_wanted(create) -> None:
    session = create(context="hello")
    first = session("advance", key="one", bytes="a", if_version=1)
    assert session("advance", key="one", bytes="a", if_version=1) == first


def test_a_key_creates_once(http: httpx.Client) -> None:
    def post(body: dict[str, Any]) -> httpx.Response:
        return http.post("/v1/sessions", json=body, headers={"Idempotency-Key": "create-once"})

    first = post({"context": "hello"}).json()
    assert post({"context": "hello"}).json() == first
    assert code_of(post({"context": "hallo"}), 409) == "idempotency_conflict"


def test_a_key_creates_once_even_at_the_same_time(http: httpx.Client) -> None:
    def post(n: int) -> str:
        answer = http.post(
            "/v1/sessions", json={"context": "hello"}, headers={"Idempotency-Key": "together"}
        )
        created: str = answer.json()["id"]
        return created

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(post, range(8)))) == 1


def test_a_key_forks_once_and_leaves_the_version(create) -> None:
    session = create(context="hello")
    first = session("fork", key="f", advance={"bytes": "a"})
    assert session("fork", key="f", advance={"bytes": "a"}) == first
    assert code_of(session.post("fork", key="f"), 409) == "idempotency_conflict"
    assert session("fork", key="g")["id"] != first["id"]
    # Several forks of one session can all be tried again.
    assert session("fork", key="f", advance={"bytes": "a"}) == first
    assert session.get()["version"] == 1


def test_a_key_deletes_once(create) -> None:
    session = create(context="hello")
    headers = {"Idempotency-Key": "end"}
    first = session.http.delete(session.url, headers=headers)
    assert session.http.delete(session.url, headers=headers).json() == first.json()
    assert code_of(session.http.delete(session.url), 404) == "session_not_found"


def test_streams_take_no_key(create) -> None:
    session = create(context="hello")
    answer = session.post("greedy", key="k", steps=2, stream=True)
    assert code_of(answer, 400) == "invalid_value"
    assert answer.json()["error"]["param"] == "Idempotency-Key"


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_keys_have_a_length(create, key) -> None:
    assert code_of(create().post("advance", key=key, bytes="a"), 400) == "invalid_value"


def test_a_call_that_fails_changes_nothing(create, http: httpx.Client) -> None:
    session = create(context="hello")
    before = session.next()
    http.post("/test/break", params={"value": 1})
    try:
        assert session.post("advance", bytes="abcdefgh").status_code == 500
    finally:
        http.post("/test/break", params={"value": 0})
    assert session.post("advance", bytes="x" * 1000).status_code == 400
    assert session.get()["version"] == 1
    assert session.next() == before


def test_a_client_that_goes_away_changes_nothing(create, http: httpx.Client, url) -> None:
    session = create(context="hello")
    http.post("/test/delay", params={"value": 0.05})
    try:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                url + session.url + "/advance", json={"bytes": "qwertyuiopasdfgh"}, timeout=0.4
            )
        assert session.get()["version"] == 1
        assert session.get()["length"] == 5
    finally:
        http.post("/test/delay", params={"value": 0})


def test_a_call_that_takes_too_long_changes_nothing(start_stub) -> None:
    url = start_stub("--set", "call_seconds=3")
    with httpx.Client(base_url=url, timeout=60) as http:
        path = f"/v1/sessions/{http.post('/v1/sessions', json={'context': 'hello'}).json()['id']}"
        http.post("/test/delay", params={"value": 0.3})
        answer = http.post(f"{path}/advance", json={"bytes": "qwertyuiopasdfgh"})
        assert code_of(answer, 504) == "deadline_passed"
        assert (http.get(path).json()["version"], http.get(path).json()["length"]) == (1, 5)
        # A stream stands where it was told last.
        with http.stream("POST", f"{path}/greedy", json={"steps": 60, "stream": True}) as stream:
            events = events_of(stream.read().decode())
        assert events[-1]["error"]["code"] == "deadline_passed"
        versions = [event["version"] for event in events[:-1]]
        assert versions
        assert http.get(path).json()["version"] in (versions[-1], versions[-1] + 1)


def test_calls_on_one_session_run_one_after_another(create) -> None:
    """All of them happen, each on the state that the one before it left."""
    session = create(context="")
    letters = "abcdefghijklmnop"
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda b: session("advance", bytes=b), letters))
    assert sorted(a["version"] for a in answers) == list(range(2, 18))
    order = [letters[i] for i in np.argsort([a["version"] for a in answers])]
    twin = create(context="")
    twin("advance", bytes="".join(order))
    assert session.next() == twin.next()


# Many sessions in one request.


def test_a_batch_answers_as_each_call_by_itself(create, http: httpx.Client) -> None:
    sessions = [create(context=f"call {i}") for i in range(7)]
    calls: list[tuple[str, dict[str, Any]]] = [
        ("advance", {"bytes": " the"}),
        ("prefill", {"bytes": "x" * 40}),
        ("next", {"top": 3}),
        ("greedy", {"steps": 4}),
        ("sample", {"steps": 4, "seed": 1}),
        ("score", {"continuations": [" the ant"], "spans": "words", "top": 2}),
        ("get", {"candidates": True}),
    ]
    twins = [session.fork() for session in sessions]
    items = [
        {"id": s.info["id"], "call": call, "body": body}
        for s, (call, body) in zip(sessions, calls, strict=True)
    ]
    answer = http.post("/v1/sessions:batch", json={"calls": items})
    assert answer.status_code == 200
    for result, twin, (call, body) in zip(answer.json()["results"], twins, calls, strict=True):
        alone = twin.get("/next", **body) if call == "next" else None
        alone = alone or (twin.get(**body) if call == "get" else twin(call, **body))
        assert _without_names(result) == _without_names(alone)


def _without_names(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without what tells two sessions at the same state apart."""
    own = {k: v for k, v in answer.items() if k not in ("id", "expires_at", "n_calls", "usage")}
    if "session" in own:
        own["session"] = _without_names(own["session"])
    return own


def test_calls_of_a_batch_on_one_session_run_in_their_order(create, http: httpx.Client) -> None:
    session, twin = create(context=""), create(context="the thing")
    calls = [
        {"id": session.info["id"], "call": "advance", "body": {"bytes": b}} for b in "the thing"
    ]
    calls += [{"id": session.info["id"], "call": "fork"}]
    results = http.post("/v1/sessions:batch", json={"calls": calls}).json()["results"]
    assert [r["version"] for r in results] == [*range(2, 11), 1]
    twin = create(context="")
    for b in "the thing":
        twin("advance", bytes=b)
    assert session.next() == twin.next() == Session(http, results[-1]).next()


def test_keys_of_a_batch_belong_to_its_calls(create, http: httpx.Client) -> None:
    sessions = [create(context="a") for _ in range(3)]
    calls: list[dict[str, Any]] = [
        {"id": s.info["id"], "call": "advance", "body": {"bytes": "b"}, "idempotency_key": "k"}
        for s in sessions
    ]
    first = http.post("/v1/sessions:batch", json={"calls": calls}).json()
    assert http.post("/v1/sessions:batch", json={"calls": calls}).json() == first
    assert [s.get()["version"] for s in sessions] == [2, 2, 2]


def test_a_bad_call_of_a_batch_fails_alone(create, http: httpx.Client) -> None:
    good = create(context="hello")
    session_id = good.info["id"]
    calls = [
        {"id": session_id, "call": "advance", "body": {"bytes": "a"}},
        {"id": "nothing", "call": "get"},
        {"id": session_id, "call": "advance", "body": {"bites": "a"}},
        {"id": session_id, "call": "advance", "body": {"bytes": "a", "if_version": 7}},
        {"id": session_id, "call": "greedy", "body": {"steps": 2, "stream": True}},
        {"id": session_id, "call": "jump"},
        5,
        {"id": session_id, "call": "advance", "body": {"tokens": [5]}},
        {"id": session_id, "call": "next", "body": {"top": 1}},
    ]
    answer = http.post("/v1/sessions:batch", json={"calls": calls})
    assert answer.status_code == 200
    first, *bad, last = answer.json()["results"]
    assert first["version"] == 2
    assert len(last["results"][0]["top"]) == 1
    assert [set(one) for one in bad] == [{"index", "error"}] * 7
    assert [(one["index"], one["error"]["code"], one["error"]["param"]) for one in bad] == [
        (1, "session_not_found", "calls[1].id"),
        (2, "unknown_field", "calls[2].body.bites"),
        (3, "version_conflict", "calls[3].body.if_version"),
        (4, "invalid_value", "calls[4].body.stream"),
        (5, "invalid_value", "calls[5].call"),
        (6, "invalid_value", "calls[6]"),
        (7, "invalid_value", "calls[7].body.tokens"),
    ]


def test_a_batch_has_a_limit(http: httpx.Client) -> None:
    calls = [{"id": "x", "call": "get"}] * 41
    answer = http.post("/v1/sessions:batch", json={"calls": calls})
    assert code_of(answer, 400) == "limit_exceeded"
    assert answer.json()["error"]["param"] == "calls"


async def test_a_session_tells_when_it_fills_the_model(create, begun) -> None:
    # No token of the vocabulary has more than one of these bytes; 199 of them and BOS fill the
    # model, and one more is a token that has begun.
    session, state = create(context="#" * 197), await begun(b"#" * 197)
    assert session.info["at_limit"] is False
    told = []
    for b in b"###":
        told.append(session("advance", bytes=chr(b))["at_limit"])
        state = await (state.prune() << b)
        assert told[-1] == state.at_limit
    assert told == [False, False, True]
    answer = session.post("advance", bytes="#")
    assert code_of(answer, 400) == "no_continuation"
    assert "as long as the model takes, 200 tokens" in answer.json()["error"]["message"]
    assert session.get()["at_limit"] is session.fork().info["at_limit"] is True
    answer = session("greedy", steps=5)
    assert answer["results"][0]["finish_reason"] == "length"
    assert answer["session"]["at_limit"] is True


# Token sessions.


def test_token_sessions_stand_at_a_token_lms_state(create, lm) -> None:
    session = create(kind="token", context="hello the")
    ids = Context.of(b"hello the").tokens(lm.vocab)
    assert session.get(candidates=True)["candidates"][0]["tokens"] == ids
    assert session.info["length"] == len(ids)
    assert session.info["n_calls"] == 0
    (result,) = session.get("/next", top=5)["results"]
    row = lm.row(ids)
    assert [one["token"] for one in result["top"]] == np.argsort(-row, kind="stable")[:5].tolist()
    assert [one["logprob"] for one in result["top"]] == np.sort(row)[::-1][:5].tolist()
    assert session.get()["n_calls"] == 1


def test_token_sessions_give_whole_rows_as_octets(create, lm) -> None:
    session = create(kind="token", context={"tokens": [5, 6]})
    answer = session.http.get(session.url + "/next", headers={"accept": "application/octet-stream"})
    assert answer.headers["content-type"] == "application/octet-stream"
    assert np.array_equal(np.frombuffer(answer.content, "<f4"), lm.row([5, 6]))
    assert code_of(session.http.get(session.url + "/next"), 400) == "invalid_value"
    byte = create(context="a")
    answer = byte.http.get(byte.url + "/next", headers={"accept": "application/octet-stream"})
    assert code_of(answer, 400) == "invalid_value"


def test_token_sessions_advance_by_tokens_bytes_and_segments(create, lm) -> None:
    end = lm.vocab.token_text.index("<|im_end|>")
    session = create(kind="token", context={"tokens": [7]})
    assert session("advance", tokens=[1, 2])["length"] == 3
    session("prefill", bytes="the hello")
    session("advance", segments=[{"token": "<|im_end|>"}, {"text": "he"}])
    want = [7, 1, 2, *lm.vocab.encode(b"the hello"), end, *lm.vocab.encode(b"he")]
    assert session.get(candidates=True)["candidates"][0]["tokens"] == want


def test_token_sessions_generate_tokens(create, lm) -> None:
    session = create(kind="token", context={"tokens": [7]})
    answer = session("greedy", steps=6, logprobs=True)
    (result,) = answer["results"]
    context, total = [7], 0.0
    for _ in range(6):
        row = lm.row(context)
        context.append(int(row.argmax()))
        total += float(row.max())
    assert result["tokens"] == context[1:]
    assert data_of(result) == lm.vocab.decode(context[1:])
    assert result["logprob"] == pytest.approx(total, abs=1e-6)
    assert answer["session"]["length"] == 7
    assert session.get(candidates=True)["candidates"][0]["tokens"] == context


def test_token_sessions_let_the_model_generate_where_that_is_the_same(create, lm) -> None:
    def generated() -> int:
        found: int = session.http.get("/test/generated").json()
        return found

    session = create(kind="token", context={"tokens": [7]})
    by_rows, before = session.fork(), generated()
    native = session("greedy", steps=12)
    assert generated() - before == len(native["results"][0]["tokens"])
    rows = by_rows("greedy", steps=12, logprobs=True)
    assert generated() - before == len(native["results"][0]["tokens"])
    for part in ("tokens", "bytes", "finish_reason"):
        assert native["results"][0][part] == rows["results"][0][part]
    assert session.get("/next", top=9)["results"] == by_rows.get("/next", top=9)["results"]
    # So are drawn ones, of which a seed makes the same again, streamed or not.
    twin, before = session.fork(), generated()
    events = twin.events("sample", steps=12, seed=3)
    tokens = [token for event in events for token in event["tokens"]]
    assert tokens
    assert generated() - before == len(tokens) + (events[-1]["finish_reason"] == "eos")
    drawn = session("sample", steps=12, seed=3)["results"][0]
    assert (drawn["tokens"], drawn["finish_reason"]) == (tokens, events[-1]["finish_reason"])
    # Where something is forgotten on the way, or filtered, rows are needed.
    before = generated()
    short = create(kind="token", context={"tokens": [7, 8, 9]}, max_context_length=8)
    assert len(short("greedy", steps=12)["results"][0]["tokens"]) == 12
    session("sample", steps=12, top_k=3)
    assert generated() == before


async def test_token_sessions_draw_from_the_models_distribution(lm) -> None:
    state = TokenState(StatefulTokenizedLM(lm, [7]), 1)
    call = bodies.SessionSampleCall(steps=1)
    draws, counts = Draw(seed=1), Counter[int]()
    for n in range(4000):
        async for piece in state.grown(call, draws.spawn(0, n)):
            counts.update(piece.tokens or lm.vocab.eos_token_ids)
    probs = dict(enumerate(np.exp(lm.row([7]).astype(np.float64))))
    assert_drawn_from(counts, probs)


def test_token_sessions_draw_tokens(create, lm) -> None:
    body = {"steps": 6, "seed": 5, "temperature": 0.7, "top_k": 20}
    session = create(kind="token", context={"tokens": [7]})
    twin = session.fork()
    answer = session("sample", **body)
    draw, context = Draw(temperature=0.7, top_k=20, seed=5, key=(0, 0)), [7]
    for _ in range(6):
        context.append(draw.among(lm.row(context)))
    assert answer["results"][0]["tokens"] == context[1:]
    events = twin.events("sample", **body)
    assert [t for e in events for t in e["tokens"]] == context[1:]
    assert twin.get()["version"] == 1 + len(events)
    assert session.get("/next", top=9)["results"] == twin.get("/next", top=9)["results"]


def test_token_sessions_end_before_a_token_with_a_stop_string(create, lm) -> None:
    whole = create(kind="token", context={"tokens": [7]})("greedy", steps=8)["results"][0]
    data = data_of(whole)
    session = create(kind="token", context={"tokens": [7]})
    stop = {"base64": base64.b64encode(data[4:6]).decode()}
    answer = session("greedy", steps=8, stop=stop)
    (result,) = answer["results"]
    assert result["finish_reason"] == "stop"
    assert data[4:6] not in data_of(result)
    assert whole["tokens"][: len(result["tokens"])] == result["tokens"]
    assert answer["session"]["length"] == 1 + len(result["tokens"])


def test_token_sessions_tell_when_they_fill_the_model(create) -> None:
    session = create(kind="token", context={"tokens": [7] * 199})
    answer = session("sample", steps=5, seed=1)
    (result,) = answer["results"]
    assert (result["finish_reason"], len(result["tokens"])) == ("length", 2)
    assert answer["session"]["at_limit"] is True
    assert session("sample", steps=5)["results"][0]["finish_reason"] == "length"
    assert create(kind="token", context={"tokens": [7] * 200}).info["at_limit"] is False


def test_token_sessions_forget_what_is_too_long_ago(create, lm) -> None:
    session = create(kind="token", context={"tokens": [1, 2, 3, 4, 5, 6]}, max_context_length=4)
    assert session.get(candidates=True)["candidates"][0]["tokens"] == [3, 4, 5, 6]
    answer = session("advance", tokens=[7, 8])
    assert answer["length"] == 8
    assert session.get(candidates=True)["candidates"][0]["tokens"] == [5, 6, 7, 8]
    assert session.fork(advance={"tokens": [9]}).get(candidates=True)["candidates"][0][
        "tokens"
    ] == [6, 7, 8, 9]


WRONG = [
    ({"kind": "letter"}, "kind"),
    ({"kind": "token", "beam": {}}, None),
    ({"kind": "token", "prefill": "fast"}, None),
    ({"context": {"tokens": [1]}}, None),
    ({"kind": "token", "context": {"tokens": []}}, "context.tokens"),
    ({"kind": "token", "context": {"tokens": [-1]}}, "context.tokens[0]"),
    ({"kind": "token", "context": {"tokens": [9999]}}, "context.tokens[0]"),
    ({"kind": "token", "context": {"segments": [{"token": "?"}]}}, "context.segments[0].token"),
    ({"max_context_length": 1}, None),
    ({"max_context_length": 0}, "max_context_length"),
    ({"ttl": 0}, "ttl"),
    ({"ttl": "1"}, "ttl"),
    ({"beam": {"K": 11}}, "beam.K"),
    ({"colour": 1}, "colour"),
]


@pytest.mark.parametrize(("body", "param"), WRONG)
def test_wrong_sessions_are_not_created(http: httpx.Client, body, param) -> None:
    answer = http.post("/v1/sessions", json=body)
    code_of(answer, 400)
    assert answer.json()["error"]["param"] == param


WRONG_STEPS = [
    ({}, None),
    ({"bytes": "a", "tokens": [1]}, None),
    ({"tokens": [1]}, "tokens"),
    ({"bytes": 5}, "bytes"),
    ({"segments": [{"token": "<|nothing|>"}]}, "segments[0].token"),
    ({"bytes": "a", "if_version": 0}, "if_version"),
    ({"bytes": "x" * 1001}, "bytes"),
    ({"bytes": "a", "prune": 1}, "prune"),
]


@pytest.mark.parametrize(("body", "param"), WRONG_STEPS)
def test_wrong_steps_are_not_taken(create, body, param) -> None:
    session = create(context="hello")
    answer = session.post("advance", **body)
    code_of(answer, 400)
    assert answer.json()["error"]["param"] == param
    fork = {key: value for key, value in body.items() if key != "if_version"}
    if body != fork:
        return
    answer = session.post("fork", advance=fork)
    code_of(answer, 400)
    assert answer.json()["error"]["param"] == ("advance" if param is None else f"advance.{param}")


# Rows of tokens.


def test_token_logprobs_are_the_models_rows(http: httpx.Client, lm) -> None:
    body: dict[str, Any] = {"contexts": [[5, 6], [7]]}
    answer = http.post(
        "/v1/token_logprobs", json=body, headers={"accept": "application/octet-stream"}
    )
    assert answer.headers["x-shape"] == f"2,{lm.vocab.size}"
    rows = np.frombuffer(answer.content, "<f4").reshape(2, -1)
    assert np.array_equal(rows, [lm.row([5, 6]), lm.row([7])])
    top = http.post("/v1/token_logprobs", json={**body, "top": 3}).json()
    for row, result in zip(rows, top["results"], strict=True):
        best = np.argsort(-row, kind="stable")[:3]
        assert result["top"] == [{"token": int(t), "logprob": float(row[t])} for t in best]
    assert top["usage"]["evaluations"] == 2
    assert code_of(http.post("/v1/token_logprobs", json=body), 400) == "invalid_value"


def test_a_bad_context_of_tokens_fails_alone(http: httpx.Client) -> None:
    body = {"contexts": [[5], [9999], [1] * 201], "top": 1}
    good, *bad = http.post("/v1/token_logprobs", json=body).json()["results"]
    assert len(good["top"]) == 1
    assert [(one["index"], one["error"]["code"], one["error"]["param"]) for one in bad] == [
        (1, "invalid_value", "contexts[1][0]"),
        (2, "context_too_long", "contexts[2]"),
    ]
    wrong: list[Any] = [[], [[]], [[-1]], [[1.5]], ["a"], [[5]] * 41]
    for contexts in wrong:
        answer = http.post("/v1/token_logprobs", json={"contexts": contexts, "top": 1})
        assert answer.status_code == 400


def test_what_cannot_follow_has_a_code_of_its_own(create) -> None:
    beam = {"K": 1, "prune_threshold": 0.9, "heal": False, "deferred": False}
    session = create(context="hheth", beam=beam, prefill="exact")
    calls: dict[str, dict[str, Any]] = {
        "advance": {"bytes": "i"},
        "fork": {"advance": {"bytes": "i"}},
    }
    for call, body in calls.items():
        answer = session.post(call, **body)
        assert code_of(answer, 400) == "no_continuation"
        assert answer.json()["error"]["param"].endswith("bytes")
    assert session.get()["version"] == 1


# The documentation.


def test_every_call_has_examples_that_work(create, http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    for path, calls in paths.items():
        if not path.startswith(("/v1/sessions", "/v1/token_logprobs")) or "post" not in calls:
            continue
        call = calls["post"]
        content = call["requestBody"]["content"]["application/json"]
        for name, example in content["examples"].items():
            session_id = create(context="hello").info["id"]
            # The default model's ids; this one has fewer.
            body = json.loads(json.dumps(example["value"]).replace("504, 3575, 282", "42, 43, 44"))
            answer = http.post(path.format(session_id=session_id), json=body)
            assert answer.status_code == 200, (path, name, answer.text)
        answers = call["responses"]["200"]["content"].values()
        assert any("example" in one for one in answers), path
        for status in ("4XX", "503", "504"):
            assert status in call["responses"], path
