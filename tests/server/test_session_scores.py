"""Scores from where a session stands: those of the library, once, the session moving on or not."""

import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from bytelm.models.logprobs import EOS
from bytelm_client import AsyncClient, Client, Conflict
from tests.server.test_once import item
from tests.server.test_sessions import Session, code_of, ps


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


async def walk(state: Any, text: bytes) -> tuple[list[float], float, Any]:
    """Each byte's log-probability, EOS's behind them, and the state there."""
    logprobs = []
    for b in text:
        logprobs.append(float((await state.logp_next()).ps[b]))
        state = await state.prune().advanced(b)
    return logprobs, float((await state.logp_next()).ps[EOS]), state


@pytest.mark.parametrize("eos", [False, True])
async def test_a_session_moves_on_behind_what_it_scores(create: Any, begun: Any, eos: bool) -> None:
    session = create(context="he")
    state = await begun(b"he")
    for version, text in enumerate(["llo", " th", "", "e é"], 2):
        answer = session("score", continuations=[text], per_byte=True, spans="words", eos=eos)
        logprobs, end, state = await walk(state, text.encode())
        (result,) = answer["results"]
        assert result["logprobs"] == logprobs
        assert result["logprob"] == pytest.approx(math.fsum(logprobs) + (end if eos else 0.0))
        assert sum(span["logprob"] for span in result["spans"]) == pytest.approx(sum(logprobs))
        assert answer["usage"]["bytes_in"] == len(text.encode())
        assert answer["session"]["version"] == version
        assert session.next() == await ps(state)
    assert session.get()["length"] == len("hello the é".encode())


async def test_a_session_stays_while_it_is_looked_at(create: Any, begun: Any) -> None:
    session = create(context="he")
    before = session.next()
    texts = ["llo", "", "llo the"]
    answer = session("score", continuations=[*texts, "x" * 300], advance=False, top=2)
    for text, result in zip(texts, answer["results"], strict=False):
        logprobs, _, _ = await walk(await begun(b"he"), text.encode())
        assert result["logprob"] == math.fsum(logprobs)
        assert len(result["top"]) == len(text)
    assert answer["results"][3]["error"]["code"] == "context_too_long"
    assert answer["session"]["version"] == 1
    assert session.next() == before
    assert answer["session"]["n_calls"] > session.info["n_calls"]


def test_a_score_is_made_once(create: Any) -> None:
    session, twin = create(context="he"), create(context="he")
    body = {"continuations": ["llo"], "eos": True}
    first = session("score", key="a", **body)
    assert session("score", key="a", **body) == first
    assert session.get()["version"] == 2
    assert code_of(session.post("score", key="a", continuations=["x"]), 409) == (
        "idempotency_conflict"
    )
    assert code_of(session.post("score", **body, if_version=1), 409) == "version_conflict"
    assert code_of(session.post("score", **body, if_version=1, advance=False), 409)
    look = twin("score", key="a", **body, advance=False)
    twin("advance", bytes="x")
    assert twin("score", key="a", **body, advance=False) == look
    assert session("score", **body, if_version=2)["session"]["version"] == 3


def test_what_cannot_be_scored_leaves_the_session_where_it_is(create: Any) -> None:
    session = create(context="he")
    several = session.post("score", continuations=["a", "b"])
    assert "several continuations go with advance false only" in several.text
    wrong: list[tuple[dict[str, Any], str, str | None]] = [
        ({"continuations": []}, "invalid_value", "continuations"),
        ({"continuations": ["x" * 300]}, "context_too_long", "context"),
        ({"continuations": [5]}, "invalid_value", "continuations[0]"),
        (
            {"continuations": ["a", {"x": 1}], "advance": False},
            "unknown_field",
            "continuations[1].x",
        ),
        ({"continuations": ["a"], "spans": [[[0, 2]]]}, "invalid_value", "spans[0][0]"),
        ({"continuations": ["a"], "beam": {}}, "unknown_field", "beam"),
        ({"continuations": ["a"], "top": 0}, "invalid_value", "top"),
    ]
    for body, code, param in wrong:
        for key in (None, "key"):
            error = session.post("score", key=key, **body).json()["error"]
            assert (error["code"], error["param"]) == (code, param)
    tokens = create(kind="token", context="he")
    assert "token sessions have no scores" in tokens.post("score", continuations=["a"]).text
    assert session.get()["version"] == tokens.get()["version"] == 1


def test_a_session_does_not_stand_behind_what_has_no_probability(create: Any) -> None:
    beam = {"K": 1, "prune_threshold": 0.9, "deferred": False, "heal": False}
    session = create(context="hheth", beam=beam, prefill="exact")
    answer = session.post("score", continuations=["ing"])
    assert code_of(answer, 400) == "no_continuation"
    assert answer.json()["error"]["param"] == "continuations[0]"
    assert "byte 0 (0x69) has no probability" in answer.json()["error"]["message"]
    (result,) = session("score", continuations=["ing"], advance=False)["results"]
    assert result["logprob"] is None
    assert session.get()["version"] == 1


def test_a_session_takes_no_longer_context_by_a_score(start_stub: Any) -> None:
    with httpx.Client(base_url=start_stub("--set", "max_context_bytes=8"), timeout=60) as http:
        session = Session(http, http.post("/v1/sessions", json={"context": "hello"}).json())
        error = session.post("score", continuations=["long"]).json()["error"]
        assert (error["code"], error["param"]) == ("limit_exceeded", "continuations[0]")
        assert session("score", continuations=["abc"])["session"]["length"] == 8


def test_scores_go_with_other_calls(create: Any, http: httpx.Client) -> None:
    session, alone = create(context="he"), create(context="he")
    calls = [
        item(session, "score", continuations=["llo"]),
        item(session, "score", continuations=[" the", "x"], advance=False),
        item(session, "score", continuations=["a"], spans=[[[0, 2]]]),
    ]
    body = {"calls": calls}
    one, other, wrong = http.post("/v1/sessions:batch", json=body).json()["results"]
    assert one["results"] == alone("score", continuations=["llo"])["results"]
    assert (
        other["results"] == (alone("score", continuations=[" the", "x"], advance=False)["results"])
    )
    assert wrong["error"]["param"] == "calls[2].body.spans[0][0]"
    assert session.get()["version"] == 2


def test_the_client_scores_from_where_a_session_stands(url: str, http: httpx.Client) -> None:
    with Client(url) as client, client.session("he") as session, client.session("he") as twin:
        several = twin.score(("llo", b"\xff"), advance=False, per_byte=True)
        one = session.score(b"llo", spans="words", top=1)
        assert one.logprob == several[0].logprob == client.score("he", "llo").logprob
        assert one.spans is not None
        assert one.top is not None
        assert (one.spans[0].bytes, len(one.top)) == (b"llo", 3)
        assert (session.version, session.length, twin.version) == (2, 5, 1)
        with pytest.raises(Conflict):
            session.score("x", if_version=1)
        planned = client.batch([session.plan.score(" the"), twin.plan.score("llo the")])
        assert planned[1].logprob == pytest.approx(one.logprob + planned[0].logprob)
        assert (session.length, twin.length) == (9, 9)
        with client.session("he", kind="token") as tokens, pytest.raises(TypeError):
            tokens.score("a")


async def test_the_other_client_does_so_too(url: str) -> None:
    async with AsyncClient(url) as client, client.session("he") as session:
        one = await session.score("llo", spans=[(0, 1), (1, 3)])
        assert one.spans is not None
        assert sum(span.logprob for span in one.spans) == pytest.approx(one.logprob)
        assert session.version == 2


def test_the_numbers_of_a_batch_count_together(start_stub: Any) -> None:
    with httpx.Client(base_url=start_stub("--set", "max_row_values=100"), timeout=60) as http:
        session = Session(http, http.post("/v1/sessions", json={"context": "hello"}).json())
        call = item(session, "score", continuations=["a" * 30], per_byte=True, advance=False)
        found = http.post("/v1/sessions:batch", json={"calls": [call] * 4}).json()["results"]
        assert [result.get("error", {}).get("code") for result in found].count(
            "limit_exceeded"
        ) == 1
