"""Rows from where a session stands: those of the library, once, the session moving on or not."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from tests.server.test_rows import WIDTH, read, walked
from tests.server.test_sessions import Session, code_of

TEXT = "the ant and the \xe9"


@pytest.fixture(scope="module", params=["memory", "sqlite"])
def url(start_stub: Any, request: Any, tmp_path_factory: Any) -> str:
    """A server for each store."""
    if request.param == "memory":
        return str(start_stub())
    file = tmp_path_factory.mktemp("store") / "sessions.sqlite"
    return str(start_stub("--set", f"session_store={file}", "--set", "session_cache_bytes=0"))


@pytest.fixture
def create(http: httpx.Client) -> Callable[..., Session]:
    def make(**body: Any) -> Session:
        return Session(http, http.post("/v1/sessions", json=body).json())

    return make


def rows(session: Session, key: str | None = None, **body: Any) -> tuple[np.ndarray, Any]:
    answer = session.post("rows", key=key, **{"usage": True, **body})
    assert answer.status_code == 200, answer.text
    return read(answer)


async def test_a_session_moves_on_behind_what_it_reads(create: Any, begun: Any) -> None:
    session = create(context="he ")
    state = await begun(b"he ")
    for version, text in enumerate([TEXT, "", "ing " * 8, "b"], 2):
        have, end = rows(session, text=text)
        want = await walked(state, text.encode())
        assert np.array_equal(have, want.astype(np.float32))
        for b in text.encode():
            state = await state.prune().advanced(b)
        assert end["session"] == session.get() | {"expires_at": end["session"]["expires_at"]}
        assert end["session"]["version"] == version
        assert end["usage"]["bytes_in"] == len(text.encode())
    assert session.get()["length"] == len(f"he {TEXT}{'ing ' * 8}b".encode())


async def test_a_session_stays_while_rows_are_looked_at(create: Any, begun: Any) -> None:
    session = create(context="he ")
    before, n_calls = session.next(), session.get()["n_calls"]
    have, end = rows(session, text=TEXT, advance=False, dtype="float16")
    want = await walked(await begun(b"he "), TEXT.encode())
    assert np.array_equal(have, want.astype(np.float16))
    assert end["session"]["version"] == session.get()["version"] == 1
    assert session.next() == before
    assert session.get()["n_calls"] >= n_calls + end["usage"]["evaluations"] > n_calls


async def test_the_first_row_may_be_that_of_the_pruned_state(create: Any, begun: Any) -> None:
    session = create(context="th", beam={"K": 1, "prune_threshold": 0.05})
    state = await begun(b"th", K=1, prune_threshold=0.05)
    want = await walked(state.prune(), b"e a")
    have, _ = rows(session, text="e a", advance=False, prune=True)
    assert np.array_equal(have, want.astype(np.float32))
    other, _ = rows(session, text="e a", advance=False)
    assert not np.array_equal(other[0], have[0])
    assert np.array_equal(other[1:], have[1:])


def test_without_usage_nothing_stands_behind_the_rows(create: Any) -> None:
    answer = create(context="he").post("rows", text="llo")
    assert len(answer.content) == 4 * 4 * WIDTH


def test_a_key_makes_a_retry_read_again_and_move_nothing(create: Any) -> None:
    session = create(context="he ")
    first, end = rows(session, key="k", text=TEXT)
    session("advance", bytes="x")
    again, told = rows(session, key="k", text=TEXT)
    assert np.array_equal(again, first)
    assert told["session"] == end["session"]
    assert session.get()["version"] == 3
    for other in ({"text": "the"}, {"text": TEXT, "advance": False}):
        conflict = session.post("rows", key="k", usage=True, **other)
        assert code_of(conflict, 409) == "idempotency_conflict"
    assert code_of(session.post("advance", key="k", bytes="a"), 409) == "idempotency_conflict"
    session.http.delete(session.url)
    assert np.array_equal(rows(session, key="k", text=TEXT)[0], first)


def test_a_look_by_a_key_is_a_look_at_what_was_there(create: Any) -> None:
    session = create(context="he ")
    first, end = rows(session, key="k", text=TEXT, advance=False)
    session("advance", bytes="x")
    again, told = rows(session, key="k", text=TEXT, advance=False)
    assert np.array_equal(again, first)
    assert told["session"] == end["session"]
    assert session.get()["version"] == 2


def test_what_is_wrong_before_the_first_row_is_an_ordinary_error(create: Any) -> None:
    session = create(context="he ")
    assert code_of(session.post("rows", text="a", if_version=2), 409) == "version_conflict"
    assert code_of(session.post("rows", text="a", advance=False, if_version=2), 409)
    assert code_of(session.post("rows", text="x" * 300), 400) == "context_too_long"
    assert code_of(session.post("rows", text="x" * 1501), 400) == "limit_exceeded"
    assert code_of(session.post("rows"), 400) == "missing_field"
    token = create(kind="token", context="he ")
    error = token.post("rows", text="a")
    assert code_of(error, 400) == "invalid_value"
    assert error.json()["error"]["param"] == "text"
    session.http.delete(session.url)
    assert code_of(session.post("rows", text="a"), 404) == "session_not_found"


def test_a_session_does_not_grow_longer_than_contexts_may_be(start_stub: Any) -> None:
    with httpx.Client(base_url=start_stub("--set", "max_context_bytes=20"), timeout=60) as http:
        session = Session(http, http.post("/v1/sessions", json={"context": "a" * 15}).json())
        assert code_of(session.post("rows", text="b" * 6), 400) == "limit_exceeded"
        assert len(rows(session, text="b" * 6, advance=False)[0]) == 7
        assert len(rows(session, text="b" * 5)[0]) == 6


def test_rows_that_end_early_leave_the_session_where_it_was(start_stub: Any) -> None:
    with httpx.Client(base_url=start_stub("--letters"), timeout=60) as http:
        session = Session(http, http.post("/v1/sessions", json={"context": "he"}).json())
        for _ in range(2):  # nothing is kept of it
            have, end = rows(session, key="k", text="llo\0")
            assert len(have) == 4
            assert end["error"]["code"] == "no_continuation"
            assert session.get()["version"] == 1


def test_a_client_that_goes_away_leaves_the_session_where_it_was(
    start_stub: Any, until: Callable[[Callable[[], bool]], None]
) -> None:
    with httpx.Client(base_url=start_stub(), timeout=60) as http:
        session = Session(http, http.post("/v1/sessions", json={"context": "he"}).json())
        http.post("/test/delay", params={"value": 0.2})
        body = {"text": "abcdefghijklmno"}
        with http.stream("POST", f"{session.url}/rows", json=body) as answer:
            next(answer.iter_raw())

        def still() -> bool:
            before = http.get("/test/evaluations").json()
            time.sleep(0.3)
            return bool(http.get("/test/evaluations").json() == before)

        until(still)
        assert session.get()["version"] == 1
        http.post("/test/delay", params={"value": 0})
        assert len(rows(session, text="abc")[0]) == 4
        assert session.get()["version"] == 2


def test_others_move_a_session_while_rows_look_from_where_it_was(start_stub: Any) -> None:
    with httpx.Client(base_url=start_stub(), timeout=60) as http:
        session = Session(http, http.post("/v1/sessions", json={"context": "he"}).json())
        want, _ = rows(session, text="abcdefghijklmno", advance=False)
        http.post("/test/delay", params={"value": 0.05})
        body = {"text": "abcdefghijklmno", "advance": False}
        with http.stream("POST", f"{session.url}/rows", json=body) as answer:
            pieces = answer.iter_raw()
            data = next(pieces)
            session("advance", bytes="x")
            data += b"".join(pieces)
        assert np.array_equal(np.frombuffer(data, "<f4").reshape(-1, WIDTH), want)
        assert session.get()["version"] == 2
