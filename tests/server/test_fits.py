"""What does not fit is refused before anything is evaluated, in every call, with the same error."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

LONG = "é ü " * 100  # 200 tokens fit
TOO_LONG = "context_too_long"
STATELESS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/next_bytes", {}),
    ("/v1/greedy", {"steps": 3}),
    ("/v1/greedy", {"steps": 3, "stream": True}),
    ("/v1/sample", {"steps": 3, "n": 3}),
    ("/v1/score", {"continuations": ["a"]}),
    ("/v1/rows", {"text": "a"}),
    ("/v1/sessions", {}),
    ("/v1/sessions", {"kind": "token"}),
]


@pytest.fixture(scope="module")
def roomy(start_stub: Callable[..., str]) -> Iterator[httpx.Client]:
    """A server that takes longer texts than its model does."""
    limits = ("max_walked_bytes=9000", "max_context_bytes=20000", "max_total_steps=20000")
    arguments = [part for limit in limits for part in ("--set", limit)]
    with httpx.Client(base_url=start_stub(*arguments), timeout=60) as client:
        yield client


def refused(http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The error of a call that is refused at no evaluation."""
    before = http.get("/test/evaluations").json()
    answer = http.post(path, json=body)
    assert http.get("/test/evaluations").json() == before
    found = answer.json()
    error: dict[str, Any] = found["error"] if "error" in found else found["results"][0]["error"]
    assert error["code"] == TOO_LONG
    assert "tokens long, the model takes at most 200: shorten it" in error["message"]
    return error


@pytest.mark.parametrize("prefill", ["fast", "exact"])
@pytest.mark.parametrize(("path", "more"), STATELESS)
@pytest.mark.parametrize("length", [1, 10])
def test_a_context_that_does_not_fit(
    roomy: httpx.Client, path: str, more: dict[str, Any], prefill: str, length: int
) -> None:
    how = {} if "kind" in more else {"prefill": prefill}
    refused(roomy, path, {"context": LONG * length, **more, **how})


@pytest.mark.parametrize("length", [1, 10])
def test_a_continuation_that_does_not_fit(roomy: httpx.Client, length: int) -> None:
    body = {"context": "a", "continuations": [LONG * length]}
    refused(roomy, "/v1/score", body)
    refused(roomy, "/v1/rows", {"context": "a", "text": LONG * length})


def test_of_several_continuations_those_that_fit_are_scored(roomy: httpx.Client) -> None:
    alone = roomy.post("/v1/score", json={"context": "he", "continuations": ["llo"]}).json()
    body = {"context": "he", "continuations": [LONG, "llo", LONG * 10]}
    found = roomy.post("/v1/score", json=body).json()["results"]
    assert found[1] == alone["results"][0]
    assert [found[i]["error"]["code"] for i in (0, 2)] == [TOO_LONG] * 2
    assert [found[i]["index"] for i in (0, 2)] == [0, 2]


@pytest.mark.parametrize("given", ["bytes", "segments", "tokens"])
@pytest.mark.parametrize("call", ["advance", "prefill", "fork"])
@pytest.mark.parametrize("length", [1, 10])
def test_a_session_is_not_moved_beyond_the_model(
    roomy: httpx.Client, call: str, given: str, length: int
) -> None:
    kind = "token" if given == "tokens" else "byte"
    session = roomy.post("/v1/sessions", json={"context": "hello", "kind": kind}).json()
    text = LONG * length
    ways: dict[str, dict[str, Any]] = {
        "bytes": {"bytes": text},
        "segments": {"segments": [{"token": "<|im_start|>"}, text, {"token": "<|im_end|>"}, "a"]},
        "tokens": {"tokens": [104] * len(text)},
    }
    by = ways[given]
    body: Any = {"advance": by} if call == "fork" else by
    path = f"/v1/sessions/{session['id']}"
    refused(roomy, f"{path}/{call}", body)
    batch = {"calls": [{"id": session["id"], "call": call, "body": body}]}
    refused(roomy, "/v1/sessions:batch", batch)
    assert roomy.get(path).json()["version"] == 1


def test_contexts_of_ids_that_do_not_fit(roomy: httpx.Client) -> None:
    refused(roomy, "/v1/token_logprobs", {"contexts": [[104] * 201], "top": 1})


def test_a_token_session_keeps_the_last_tokens_of_many(roomy: httpx.Client) -> None:
    body = {"kind": "token", "context": {"tokens": [1, 2]}, "max_context_length": 4}
    session = roomy.post("/v1/sessions", json=body).json()
    path = f"/v1/sessions/{session['id']}"
    assert (
        roomy.post(f"{path}/advance", json={"tokens": list(range(100)) * 3}).json()["length"] == 302
    )
    found = roomy.get(path, params={"candidates": True}).json()
    assert found["candidates"][0]["tokens"] == [96, 97, 98, 99]


def test_an_answer_has_so_many_values_whatever_it_is_made_of(roomy: httpx.Client) -> None:
    """39 × 256 here: a batch's calls together, and candidates by their tokens."""
    session = roomy.post("/v1/sessions", json={"context": "hello"}).json()["id"]
    calls = [{"id": session, "call": "next"}] * 40
    found = roomy.post("/v1/sessions:batch", json={"calls": calls}).json()["results"]
    assert [result["error"]["code"] for result in found[38:]] == ["limit_exceeded"] * 2
    assert all("results" in result for result in found[:38])
    token = roomy.post("/v1/sessions", json={"kind": "token", "context": "x" * 190}).json()["id"]
    calls = [{"id": token, "call": "next", "body": {"top": 268}}] * 31
    calls += [{"id": token, "call": "get", "body": {"candidates": True}}] * 9
    found = roomy.post("/v1/sessions:batch", json={"calls": calls}).json()["results"]
    assert all("results" in result for result in found[:31])
    assert "candidates" in found[31]
    assert found[-1]["error"]["code"] == "limit_exceeded"


def test_scores_of_each_byte_are_values_too(roomy: httpx.Client) -> None:
    body = {"context": "a", "continuations": ["a" * 150] * 49, "per_byte": True}
    assert roomy.post("/v1/score", json=body).status_code == 200
    body["continuations"] = ["x" * 9999]
    error = roomy.post("/v1/score", json=body).json()["error"]
    assert (error["code"], error["param"]) == ("limit_exceeded", "per_byte")
