"""Streamed answers are the others, bit by bit."""

import base64
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

EVENT_STREAM = "text/event-stream; charset=utf-8"

CALLS = [
    ("/v1/greedy", {"context": "hello", "steps": 12}),
    ("/v1/greedy", {"contexts": ["a", "the", "caf\xe9"], "steps": 20, "logprobs": True}),
    ("/v1/greedy", {"context": "hello", "steps": 30, "stop": ["e", "a", "i"]}),
    ("/v1/sample", {"context": "hello", "steps": 9, "seed": 3, "method": "byte"}),
    ("/v1/sample", {"context": "hello", "steps": 20, "seed": 3, "n": 3}),
    ("/v1/sample", {"contexts": ["a", "b"], "steps": 9, "seed": 3, "n": 2, "temperature": 0.7}),
    ("/v1/sample", {"context": "hello", "steps": 9, "seed": 3, "valid_utf8": True}),
]


def events_of(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The events of a stream that ends as it should."""
    assert response.status_code == 200, response.read()
    assert response.headers["content-type"] == EVENT_STREAM
    ended = False
    for line in response.iter_lines():
        assert not ended or line == ""
        if line == "data: [DONE]":
            ended = True
        elif line:
            yield json.loads(line.removeprefix("data: "))
    assert ended


def streamed(http: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with http.stream("POST", path, json={**body, "stream": True}) as response:
        return list(events_of(response))


@pytest.mark.parametrize(("path", "body"), CALLS)
def test_a_stream_has_the_bytes_of_the_whole_answer(
    http: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    whole = http.post(path, json=body).json()
    events = streamed(http, path, body)
    texts: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        texts[event["index"], event["sample"]].append(event)
    assert len(texts) == len(whole["results"])
    for place, result in enumerate(whole["results"]):
        key = (result.get("index", place), result.get("sample", 0))
        *some, last = texts[key]
        assert not any("finish_reason" in event or "logprob" in event for event in some)
        data = b"".join(base64.b64decode(e["bytes"]["base64"]) for e in texts[key])
        assert data == base64.b64decode(result["bytes"]["base64"])
        parts = [e["bytes"]["text"] for e in texts[key]]
        assert (None if None in parts else "".join(parts)) == result["bytes"]["text"]
        assert last["finish_reason"] == result["finish_reason"]
        assert last["logprob"] == pytest.approx(result["logprob"])
    assert [event for event in events if "usage" in event] == events[-1:]
    usage = events[-1]["usage"]
    assert (usage["bytes_in"], usage["bytes_out"]) == (
        whole["usage"]["bytes_in"],
        whole["usage"]["bytes_out"],
    )


def test_bytes_come_as_they_are_made(own: httpx.Client) -> None:
    own.post("/test/delay", params={"value": 0.3})
    body = {"context": "hello", "steps": 8, "stream": True}
    with own.stream("POST", "/v1/greedy", json=body) as response:
        made = []
        for event in events_of(response):
            made.append(own.get("/test/evaluations").json())
            if "finish_reason" in event:
                break
    assert made[0] < made[-1]


def test_a_bad_item_fails_alone(http: httpx.Client) -> None:
    body = {"contexts": ["good", "x" * 300, {"base64": "!"}], "steps": 3, "n": 2, "seed": 1}
    events = streamed(http, "/v1/sample", body)
    failed = {(e["index"], e["sample"]): e["error"] for e in events if "error" in e}
    assert sorted(failed) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert failed[1, 0]["code"] == "context_too_long"
    assert failed[2, 1]["param"] == "contexts[2].base64"
    good = [e for e in events if e["index"] == 0 and "finish_reason" in e]
    assert len(good) == 2
    assert "usage" in events[-1]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"steps": 65}, "limit_exceeded"),
        ({"context": "x" * 201}, "context_too_long"),
        ({"context": {"base64": "!"}}, "invalid_value"),
        ({"beam": {"eos_tokens": [100_000]}}, "invalid_value"),
    ],
)
def test_what_is_wrong_before_the_first_byte_is_no_stream(
    http: httpx.Client, change: dict[str, Any], code: str
) -> None:
    body = {"context": "hello", "steps": 3, "stream": True, **change}
    answer = http.post("/v1/greedy", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == code


@pytest.mark.parametrize(
    ("what", "code"), [("die", "dead"), ("break", "internal_error")], ids=["dead", "broken"]
)
def test_an_error_on_the_way_is_an_event(own: httpx.Client, what: str, code: str) -> None:
    own.post("/test/delay", params={"value": 0.02})
    body = {"context": "hello", "steps": 60, "stream": True}
    with own.stream("POST", "/v1/greedy", json=body) as response:
        events = events_of(response)
        assert "bytes" in next(events)
        own.post(f"/test/{what}", params={"value": 1})
        *_, last = events
    assert last["error"]["code"] == code
    assert "secret" not in str(last)


def test_a_client_that_goes_away_ends_the_work(
    own: httpx.Client, until: Callable[[Callable[[], bool]], None]
) -> None:
    own.post("/test/delay", params={"value": 0.02})
    body = {"contexts": [f"{i} " for i in range(8)], "steps": 64, "stream": True}
    with own.stream("POST", "/v1/greedy", json=body) as response:
        next(events_of(response))

    def still() -> bool:
        before = own.get("/test/evaluations").json()
        time.sleep(0.2)
        return bool(own.get("/test/evaluations").json() == before)

    until(still)
    assert own.get("/test/evaluations").json() < 8 * 64
