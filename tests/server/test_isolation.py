"""Sessions never touch one another, and nobody reaches another's."""

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest

from bytelm.models.logprobs import EOS
from bytelm_server.keys import KeyFile

SESSIONS = 64
ROUNDS = 30


@dataclass
class Known:
    """A session, and the bytes that it was moved by since its context."""

    session_id: str
    context: bytes
    added: bytes = b""
    version: int = 1
    answer: Any = field(default=None)


@pytest.fixture(scope="module")
def http(start_stub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server whose memory has room for a few sessions only, so that they come and go."""
    file = tmp_path_factory.mktemp("store") / "sessions.sqlite"
    url = start_stub("--set", f"session_store={file}", "--set", "session_cache_bytes=60000")
    with httpx.Client(base_url=url, timeout=120) as client:
        yield client


def call(http: httpx.Client, method: str, path: str, **body: Any) -> Any:
    answer = http.request(method, path, json=body if method == "POST" else None)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_one_session_never_changes_another(http: httpx.Client, begun) -> None:
    """64 sessions, at random: moved, looked at, forked and ended, many at a time."""
    draws = random.Random(11)
    known: list[Known] = []
    for i in range(SESSIONS):
        context = f"session {i % 16} the "
        made = call(http, "POST", "/v1/sessions", context=context)
        known.append(Known(made["id"], context.encode()))

    def act(choice: tuple[str, Known, str]) -> Known | None:
        """One call; the session that is new, if there is one."""
        what, one, text = choice
        path = f"/v1/sessions/{one.session_id}"
        if what == "advance":
            made = call(http, "POST", f"{path}/advance", bytes=text)
            one.added += text.encode()
            one.version += 1
            assert (made["version"], made["length"]) == (
                one.version,
                len(one.context + one.added),
            )
        elif what == "look":
            call(http, "GET", f"{path}?candidates=true")
            call(http, "POST", f"{path}/sample", steps=3, advance=False)
            one.answer = call(http, "GET", f"{path}/next")["results"]
        elif what == "fork":
            made = call(http, "POST", f"{path}/fork", advance={"bytes": text})
            return Known(made["id"], one.context, one.added + text.encode())
        return None

    with ThreadPoolExecutor(16) as threads:
        for _ in range(ROUNDS):
            chosen = draws.sample(known, 24)
            actions = ["advance", "look", "fork"]
            choices = [
                (
                    draws.choices(actions, [6, 3, 1])[0],
                    one,
                    "".join(draws.choices("abc the", k=draws.randint(1, 2))),
                )
                for one in chosen
            ]
            known += [one for one in threads.map(act, choices) if one is not None]
            while len(known) > SESSIONS:
                gone = known.pop(draws.randrange(len(known)))
                call(http, "DELETE", f"/v1/sessions/{gone.session_id}")
        got = list(
            threads.map(lambda one: call(http, "GET", f"/v1/sessions/{one.session_id}/next"), known)
        )
    for one, answer in zip(known, got, strict=True):
        state = await begun(one.context)
        for b in one.added:
            state = await (state.prune() << b)
        ps = (await state.logp_next()).ps
        values = [None if p == -np.inf else float(p) for p in ps]
        assert answer["results"] == [{"logprobs": values[:256], "eos": values[EOS]}]


@pytest.fixture(scope="module")
def callers(
    start_stub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Two clients of one server, each with a key of its own."""
    folder = tmp_path_factory.mktemp("keys")
    keys = KeyFile(folder / "keys.json")
    secrets = [keys.create(name)[1] for name in ("mine", "yours")]
    url = start_stub(
        *("--set", f"keys_file={folder / 'keys.json'}"),
        *("--set", f"session_store={folder / 'sessions.sqlite'}"),
    )
    clients = [
        httpx.Client(base_url=url, timeout=60, headers={"Authorization": f"Bearer {secret}"})
        for secret in secrets
    ]
    yield clients[0], clients[1]
    for client in clients:
        client.close()


CALLS = [
    ("GET", "", {}),
    ("GET", "?candidates=true", {}),
    ("GET", "/next", {}),
    ("POST", "/fork", {}),
    ("POST", "/fork", {"advance": {"bytes": "a"}}),
    ("POST", "/advance", {"bytes": "a"}),
    ("POST", "/prefill", {"bytes": "a"}),
    ("POST", "/greedy", {"steps": 1}),
    ("POST", "/greedy", {"steps": 1, "stream": True}),
    ("POST", "/sample", {"steps": 1}),
    ("DELETE", "", {}),
]


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_a_key_never_reaches_anothers_session(callers, method, path, body) -> None:
    """Not even whether there is one."""
    mine, yours = callers
    session_id = call(mine, "POST", "/v1/sessions", context="hello")["id"]
    send = {"json": body} if method == "POST" else {}
    answers = [
        yours.request(method, f"/v1/sessions/{one}{path}", **send)
        for one in (session_id, "0" * len(session_id))
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    messages = [answer.json()["error"]["message"] for answer in answers]
    assert messages[0].replace(session_id, "0" * len(session_id)) == messages[1]
    assert call(mine, "GET", f"/v1/sessions/{session_id}")["version"] == 1


def test_a_batch_never_reaches_anothers_session(callers) -> None:
    mine, yours = callers
    session_id = call(mine, "POST", "/v1/sessions", context="hello")["id"]
    calls = [
        {"id": session_id, "call": name, "body": body}
        for name, body in [("get", {}), ("advance", {"bytes": "a"}), ("delete", {})]
    ]
    results = call(yours, "POST", "/v1/sessions:batch", calls=calls)["results"]
    assert {one["error"]["code"] for one in results} == {"session_not_found"}
    assert call(mine, "GET", f"/v1/sessions/{session_id}")["version"] == 1


def test_a_key_sees_its_own_sessions_only(callers) -> None:
    mine, yours = callers
    made = call(yours, "POST", "/v1/sessions")["id"]
    assert made in [one["id"] for one in call(yours, "GET", "/v1/sessions")["data"]]
    assert made not in [one["id"] for one in call(mine, "GET", "/v1/sessions")["data"]]


def test_idempotency_keys_of_two_keys_are_two(callers) -> None:
    made = [
        one.post("/v1/sessions", json={}, headers={"Idempotency-Key": "same"}).json()["id"]
        for one in callers
    ]
    assert len(set(made)) == 2


def test_expired_sessions_of_others_are_unknown(callers) -> None:
    mine, yours = callers
    session_id = call(mine, "POST", "/v1/sessions", ttl=0.01)["id"]
    time.sleep(0.1)
    assert mine.get(f"/v1/sessions/{session_id}").status_code == 410
    assert yours.get(f"/v1/sessions/{session_id}").status_code == 404
