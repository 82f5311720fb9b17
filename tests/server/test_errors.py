"""Every wrong call gets a 4xx in the one shape, and the server goes on."""

import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest


@pytest.fixture(autouse=True)
def _goes_on(http: httpx.Client) -> Iterator[None]:
    yield
    answer = http.post("/v1/greedy", json={"context": "hello", "steps": 2})
    assert answer.status_code == 200


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"type", "message", "param", "code"}
    assert body["error"]["message"]
    assert "Traceback" not in response.text
    error: dict[str, Any] = body["error"]
    return error


SEGMENT = "context.segments[0].token"
MESSAGE = "context.messages[0].content"
GOOD = {"context": "hello", "steps": 3}
WRONG = [
    ({"colour": 1}, "unknown_field", "colour"),
    ({"beam": {"width": 3}}, "unknown_field", "beam.width"),
    ({"context": {"text": "a", "lang": "en"}}, "unknown_field", "context.lang"),
    ({"steps": 0}, "invalid_value", "steps"),
    ({"steps": -1}, "invalid_value", "steps"),
    ({"steps": 65}, "limit_exceeded", "steps"),
    ({"steps": "3"}, "invalid_value", "steps"),
    ({"steps": 1.5}, "invalid_value", "steps"),
    ({"steps": True}, "invalid_value", "steps"),
    ({"steps": None}, "invalid_value", "steps"),
    ({"context": 5}, "invalid_value", "context"),
    ({"context": None}, "invalid_value", None),
    ({"context": {}}, "invalid_value", "context"),
    ({"context": {"base64": "a"}}, "invalid_value", "context.base64"),
    ({"context": {"base64": "YQ=!"}}, "invalid_value", "context.base64"),
    ({"context": {"base64": "é"}}, "invalid_value", "context.base64"),
    ({"context": {"text": "a", "base64": "YQ=="}}, "invalid_value", "context"),
    ({"contexts": ["a"]}, "invalid_value", None),
    ({"context": "x" * 201}, "context_too_long", "context"),
    ({"context": "x" * 1001}, "limit_exceeded", "context"),
    ({"beam": {"K": 0}}, "invalid_value", "beam.K"),
    ({"beam": {"K": 11}}, "limit_exceeded", "beam.K"),
    ({"beam": {"K": None}}, "limit_exceeded", "beam.K"),
    ({"beam": {"prune_threshold": 1}}, "invalid_value", "beam.prune_threshold"),
    ({"beam": {"prune_threshold": -0.1}}, "invalid_value", "beam.prune_threshold"),
    ({"beam": {"eos_tokens": [46, "."]}}, "invalid_value", "beam.eos_tokens[1]"),
    ({"beam": {"eos_tokens": [[257]]}}, "invalid_value", "beam.eos_tokens[0]"),
    ({"beam": {"eos_tokens": [[46, 46]]}}, "invalid_value", "beam.eos_tokens"),
    ({"beam": {"eos_tokens": [100_000]}}, "invalid_value", "beam.eos_tokens"),
    ({"beam": {"eos_tokens": [1] * 257}}, "invalid_value", "beam.eos_tokens"),
    ({"beam": {"heal": None}}, "invalid_value", "beam.heal"),
    ({"beam": {"heal_max_backoff": -1}}, "invalid_value", "beam.heal_max_backoff"),
    ({"beam": {"heal_max_splits": -1}}, "invalid_value", "beam.heal_max_splits"),
    ({"beam": {"special_tokens": "text"}}, "invalid_value", "beam.special_tokens"),
    ({"prefill": "slow"}, "invalid_value", "prefill"),
    ({"stop": ""}, "invalid_value", "stop[0]"),
    ({"stop": [".", {"base64": ""}]}, "invalid_value", "stop[1]"),
    ({"stop": ["x" * 1025]}, "invalid_value", "stop[0]"),
    ({"stop": ["."] * 17}, "invalid_value", "stop"),
    ({"stop": [46]}, "invalid_value", "stop[0]"),
    ({"context": {"segments": [{"token": "<|im_stop|>"}]}}, "invalid_value", SEGMENT),
    ({"context": {"segments": [{"token": "the"}]}}, "invalid_value", SEGMENT),
    ({"context": {"segments": [{"token": ""}]}}, "invalid_value", SEGMENT),
    (
        {"context": {"segments": [{"text": "a", "token": "b"}]}},
        "invalid_value",
        "context.segments[0]",
    ),
    ({"context": {"segments": [{"text": "x" * 1001}]}}, "limit_exceeded", "context"),
    ({"context": {"segments": [{"token": "<|im_end|>"}] * 201}}, "context_too_long", "context"),
    ({"context": {"messages": []}}, "invalid_value", "context.messages"),
    ({"context": {"messages": [{"role": "user"}]}}, "missing_field", MESSAGE),
    ({"context": {"text": "a", "add_generation_prompt": False}}, "invalid_value", "context"),
    ({"context": {"tokens": [1]}}, "not_supported", "context.tokens"),
    ({"prefill": "exact", "context": "x" * 151}, "limit_exceeded", "context"),
    ({"stream": 1}, "invalid_value", "stream"),
]


@pytest.mark.parametrize(("change", "code", "param"), WRONG)
def test_wrong_field(http: httpx.Client, change: dict[str, Any], code: str, param: str) -> None:
    error = error_of(http.post("/v1/greedy", json={**GOOD, **change}))
    assert (error["type"], error["code"], error["param"]) == ("invalid_request", code, param)


WRONG_TO_SAMPLE = [
    ({"top_k": 0}, "invalid_value", "top_k"),
    ({"top_p": 0}, "invalid_value", "top_p"),
    ({"top_p": 1.1}, "invalid_value", "top_p"),
    ({"min_p": -0.1}, "invalid_value", "min_p"),
    ({"min_p": 2}, "invalid_value", "min_p"),
    ({"n": 0}, "invalid_value", "n"),
    ({"n": None}, "invalid_value", "n"),
    ({"n": 51}, "limit_exceeded", "n"),
    ({"n": 50, "steps": 31}, "limit_exceeded", "steps"),
    ({"context": None, "contexts": ["a", "b"], "n": 26}, "limit_exceeded", "n"),
    ({"method": "token", "top_k": 5}, "invalid_value", "top_k"),
    ({"method": "letter"}, "invalid_value", "method"),
    ({"valid_utf8": 1}, "invalid_value", "valid_utf8"),
    ({"valid_utf8": True, "stop": {"base64": "qQ=="}}, "invalid_value", None),
    ({"valid_utf8": True, "context": {"base64": "8J8="}, "steps": 1}, "invalid_value", "context"),
]


@pytest.mark.parametrize(("change", "code", "param"), WRONG_TO_SAMPLE)
def test_wrong_field_of_sample(
    http: httpx.Client, change: dict[str, Any], code: str, param: str
) -> None:
    error = error_of(http.post("/v1/sample", json={**GOOD, **change}))
    assert (error["type"], error["code"], error["param"]) == ("invalid_request", code, param)


def test_greedy_does_not_draw(http: httpx.Client) -> None:
    for field in ("top_p", "n", "method", "valid_utf8"):
        error = error_of(http.post("/v1/greedy", json={**GOOD, field: 1}))
        assert (error["code"], error["param"]) == ("unknown_field", field)


WRONG_TO_SCORE = [
    ({"continuations": []}, "invalid_value", "continuations"),
    ({"continuations": "a"}, "invalid_value", "continuations"),
    ({"continuations": None}, "invalid_value", "continuations"),
    ({"continuations": ["a"] * 51}, "limit_exceeded", "continuations"),
    ({"continuations": ["x" * 800, "x" * 701]}, "limit_exceeded", "continuations"),
    ({"context": None}, "invalid_value", "context"),
    ({"context": "x" * 201}, "context_too_long", "context"),
    ({"contexts": ["a"]}, "unknown_field", "contexts"),
    ({"eos": 1}, "invalid_value", "eos"),
    ({"beam": {"K": 11}}, "limit_exceeded", "beam.K"),
]


@pytest.mark.parametrize(("change", "code", "param"), WRONG_TO_SCORE)
def test_wrong_field_of_score(
    http: httpx.Client, change: dict[str, Any], code: str, param: str
) -> None:
    body = {"context": "hello", "continuations": ["a"], **change}
    error = error_of(http.post("/v1/score", json=body))
    assert (error["type"], error["code"], error["param"]) == ("invalid_request", code, param)


def test_a_special_token_that_the_model_has_not_is_named_with_ones_that_it_has(
    http: httpx.Client,
) -> None:
    body = {**GOOD, "context": {"segments": [{"token": "<|im_stop|>"}]}}
    message = error_of(http.post("/v1/greedy", json=body))["message"]
    assert "'<|im_stop|>'" in message
    assert "'<|im_end|>'" in message


def test_a_template_that_refuses_messages_is_an_error_of_them(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "nobody", "content": "b"}]
    error = error_of(http.post("/v1/greedy", json={**GOOD, "context": {"messages": messages}}))
    assert (error["code"], error["param"]) == ("invalid_value", "context.messages")
    assert "nobody" in error["message"]


def test_messages_need_a_model_with_a_template(start_stub: Callable[..., str]) -> None:
    messages = [{"role": "user", "content": "a"}]
    body = {"context": {"messages": messages}, "steps": 3}
    answer = httpx.post(f"{start_stub('--no-template')}/v1/greedy", json=body)
    error = error_of(answer)
    assert error["param"] == "context.messages"
    assert "no chat template" in error["message"]


@pytest.mark.parametrize("temperature", [0, -1, "warm"])
def test_temperature_must_be_above_zero(http: httpx.Client, temperature: object) -> None:
    error = error_of(http.post("/v1/sample", json={**GOOD, "temperature": temperature}))
    assert error["param"] == "temperature"


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5])
def test_seed_must_be_a_64_bit_number(http: httpx.Client, seed: object) -> None:
    body = {**GOOD, "seed": seed}
    if seed == 2**64:
        assert error_of(http.post("/v1/sample", json=body))["code"] in (
            "invalid_json",
            "invalid_value",
        )
    else:
        assert error_of(http.post("/v1/sample", json=body))["param"] == "seed"


@pytest.mark.parametrize("top", [0, 257])
def test_top_must_be_1_to_256(http: httpx.Client, top: int) -> None:
    error = error_of(http.post("/v1/next_bytes", json={"context": "a", "top": top}))
    assert error["param"] == "top"


def test_missing_steps(http: httpx.Client) -> None:
    error = error_of(http.post("/v1/greedy", json={"context": "hello"}))
    assert (error["code"], error["param"]) == ("missing_field", "steps")


def test_too_many_contexts(http: httpx.Client) -> None:
    error = error_of(http.post("/v1/next_bytes", json={"contexts": ["a"] * 41}))
    assert (error["code"], error["param"]) == ("limit_exceeded", "contexts")


def test_too_many_log_probabilities(http: httpx.Client) -> None:
    error = error_of(http.post("/v1/next_bytes", json={"contexts": ["a"] * 40}))
    assert error["code"] == "limit_exceeded"
    assert http.post("/v1/next_bytes", json={"contexts": ["a"] * 40, "top": 5}).status_code == 200


def test_no_contexts(http: httpx.Client) -> None:
    assert error_of(http.post("/v1/next_bytes", json={"contexts": []}))["param"] == "contexts"


@pytest.mark.parametrize(
    "body", [b"{", b'{"context": NaN}', b'{"context": "\\ud800"}', b"[" * 3000, b"\xff"]
)
def test_what_is_not_json(http: httpx.Client, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    error = error_of(http.post("/v1/greedy", content=body, headers=headers))
    assert error["code"] == "invalid_json"


@pytest.mark.parametrize("body", [b"", b"[]", b"3", b"null"])
def test_a_body_that_is_no_object(http: httpx.Client, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    error_of(http.post("/v1/greedy", content=body, headers=headers))


def test_a_body_of_another_type(http: httpx.Client) -> None:
    answer = http.post("/v1/greedy", content=b"{}", headers={"content-type": "text/plain"})
    assert error_of(answer, 415)["code"] == "unsupported_media_type"


def test_a_body_that_is_too_large(http: httpx.Client) -> None:
    answer = http.post("/v1/greedy", json={**GOOD, "context": "x" * 50_001})
    assert error_of(answer, 413)["code"] == "body_too_large"


def test_a_streamed_body_that_is_too_large(http: httpx.Client) -> None:
    answer = http.post(
        "/v1/greedy",
        content=iter([b'{"context": "' + b"x" * 30_000, b"x" * 30_000 + b'"}']),
        headers={"content-type": "application/json"},
    )
    assert error_of(answer, 413)["code"] == "body_too_large"


def test_unknown_path(http: httpx.Client) -> None:
    assert error_of(http.get("/v1/nothing"), 404)["code"] == "not_found"


def test_wrong_method(http: httpx.Client) -> None:
    answer = http.get("/v1/greedy")
    assert error_of(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "POST"


def test_a_broken_request_line(url: str) -> None:
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port), timeout=10) as sock:
        sock.sendall(b"nonsense\r\n\r\n")
        assert b" 400 " in sock.recv(1000)


def test_a_bad_item_fails_alone(http: httpx.Client) -> None:
    items = ["good", "x" * 300, {"base64": "!"}, {"text": "a", "base64": "YQ=="}, 7, "x" * 1001]
    answer = http.post("/v1/greedy", json={"contexts": items, "steps": 3})
    assert answer.status_code == 200
    good, *bad = answer.json()["results"]
    assert (
        good == http.post("/v1/greedy", json={"context": "good", "steps": 3}).json()["results"][0]
    )
    assert [set(item) for item in bad] == [{"index", "error"}] * 5
    assert [item["index"] for item in bad] == [1, 2, 3, 4, 5]
    assert [(item["error"]["code"], item["error"]["param"]) for item in bad] == [
        ("context_too_long", "contexts[1]"),
        ("invalid_value", "contexts[2].base64"),
        ("invalid_value", "contexts[3]"),
        ("invalid_value", "contexts[4]"),
        ("limit_exceeded", "contexts[5]"),
    ]


def test_a_bad_context_has_an_error_for_each_of_its_samples(http: httpx.Client) -> None:
    contexts = ["good", {"segments": [{"token": "?"}]}, {"messages": []}, "fine"]
    body = {"contexts": contexts, "steps": 3, "n": 2, "seed": 1}
    results = http.post("/v1/sample", json=body).json()["results"]
    places = [(i, s) for i in range(4) for s in range(2)]
    assert [(r["index"], r["sample"]) for r in results] == places
    assert ["error" in r for r in results] == [i in (1, 2) for i, _ in places]
    assert results[2]["error"]["param"] == "contexts[1].segments[0].token"
    assert results[4]["error"]["param"] == "contexts[2].messages"


def test_a_bad_continuation_fails_alone(http: httpx.Client) -> None:
    items = ["good", {"base64": "!"}, "x" * 300, 7, ""]
    body = {"context": "hello", "continuations": items}
    good, *bad, empty = http.post("/v1/score", json=body).json()["results"]
    assert [set(item) for item in bad] == [{"index", "error"}] * 3
    assert [(r["index"], r["error"]["code"], r["error"]["param"]) for r in bad] == [
        (1, "invalid_value", "continuations[1].base64"),
        (2, "context_too_long", "continuations[2]"),
        (3, "invalid_value", "continuations[3]"),
    ]
    alone = http.post("/v1/score", json={"context": "hello", "continuations": ["good", ""]})
    assert [good, empty] == alone.json()["results"]


def test_a_fault_of_the_server_tells_nothing_of_it(http: httpx.Client) -> None:
    http.post("/test/break", params={"value": 1})
    try:
        answer = http.post("/v1/greedy", json=GOOD)
    finally:
        http.post("/test/break", params={"value": 0})
    assert error_of(answer, 500)["code"] == "internal_error"
    assert "secret" not in answer.text
