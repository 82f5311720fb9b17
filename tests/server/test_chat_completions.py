"""``/v1/chat/completions``: OpenAI's shape, in which a byte is a token."""

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

PATH = "/v1/chat/completions"
NAME = "<|im_end|>"
"""The stub model's EOS."""
HI = [{"role": "user", "content": "hi there"}]


@pytest.fixture
def chat(http: httpx.Client) -> Callable[..., dict[str, Any]]:
    """Makes a call that succeeds; greedy, unless it says otherwise."""

    def call(**body: Any) -> dict[str, Any]:
        answer = http.post(PATH, json={"temperature": 0, "messages": HI, **body})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    return call


def contents(answer: dict[str, Any]) -> list[str]:
    return [choice["message"]["content"] for choice in answer["choices"]]


def made(results: list[Any]) -> list[str]:
    return [base64.b64decode(r["bytes"]["base64"]).decode(errors="replace") for r in results]


def test_an_answer_has_openais_shape(chat: Any, http: httpx.Client) -> None:
    answer = chat(max_tokens=9)
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("created") > 1_600_000_000
    (choice,) = answer.pop("choices")
    assert choice.pop("message") == {
        "role": "assistant",
        "content": contents(chat(max_tokens=9))[0],
        "refusal": None,
    }
    assert choice == {"index": 0, "logprobs": None, "finish_reason": "length"}
    # Names of roles and white space are the template's bytes; special tokens count 0.
    given = len("user\nhi there\nassistant\n")
    assert answer == {
        "object": "chat.completion",
        "model": "SteeredLM",
        "system_fingerprint": http.get("/v1/models").json()["data"][0]["fingerprint"],
        "usage": {"prompt_tokens": given, "completion_tokens": 9, "total_tokens": given + 9},
    }


def test_it_is_the_greedy_continuation_of_the_template(chat: Any, results: Any) -> None:
    messages = [{"role": "system", "content": "be kind"}, *HI]
    want = results("/v1/greedy", context={"messages": messages}, steps=20, stop="e")
    assert contents(chat(messages=messages, max_tokens=20, stop="e")) == made(want)


def test_seeds_are_those_of_sample(chat: Any, results: Any) -> None:
    body = {"seed": 3, "n": 3, "temperature": 0.7}
    want = results("/v1/sample", context={"messages": HI}, steps=12, **body)
    answer = chat(max_completion_tokens=12, **body)
    assert contents(answer) == made(want)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]


def test_parts_are_one_text(chat: Any) -> None:
    parts = [{"type": "text", "text": "hi "}, {"type": "text", "text": "there"}]
    split = chat(messages=[{"role": "user", "content": parts}], max_tokens=9)
    assert contents(split) == contents(chat(max_tokens=9))


def test_the_last_answer_may_be_continued(chat: Any, results: Any) -> None:
    messages = [*HI, {"role": "assistant", "content": "the an "}]
    answer = chat(messages=messages, continue_final_message=True, max_tokens=9)
    start = {"token": "<|im_start|>"}
    segments = [start, "user\nhi there", {"token": NAME}, "\n", start, "assistant\nthe an "]
    want = results("/v1/greedy", context={"segments": segments}, steps=9)
    assert contents(answer) == made(want)
    again = chat(messages=messages, max_tokens=9)
    want = results("/v1/greedy", context={"messages": messages}, steps=9)
    assert contents(again) == made(want)


def test_without_a_limit_there_is_the_servers(chat: Any) -> None:
    answer = chat(max_tokens=None)
    choice = answer["choices"][0]
    assert answer["usage"]["completion_tokens"] == 64 or choice["finish_reason"] == "stop"
    # Texts share what one call may make, and how many log-probabilities it may tell.
    chat(n=50)
    chat(n=50, logprobs=True, top_logprobs=20)


def test_logprobs_have_the_bytes(chat: Any, http: httpx.Client) -> None:
    (choice,) = chat(max_tokens=12, logprobs=True, top_logprobs=2)["choices"]
    assert choice["logprobs"]["refusal"] is None
    found = choice["logprobs"]["content"]
    data = bytes(b for one in found for b in one["bytes"] or [])
    assert data.decode(errors="replace") == choice["message"]["content"]
    row = {"context": {"messages": HI}, "top": 2}
    top = http.post("/v1/next_bytes", json=row).json()["results"][0]["top"]
    first = found[0]["top_logprobs"]
    assert [(one["bytes"], one["logprob"]) for one in first] == [
        ([one["byte"]], one["logprob"]) for one in top
    ]
    for one in found:
        assert set(one) == {"token", "logprob", "bytes", "top_logprobs"}
        for told in (one, *one["top_logprobs"]):
            (b,) = told["bytes"] or [None]
            name = NAME if b is None else chr(b) if b < 128 else f"bytes:\\x{b:02x}"
            assert told["token"] == name
    (plain,) = chat(max_tokens=3, logprobs=True)["choices"]
    assert all(one["top_logprobs"] == [] for one in plain["logprobs"]["content"])


NEUTRAL: dict[str, Any] = {
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "frequency_penalty": 0,
    "logit_bias": None,
    "user": "me",
    "parallel_tool_calls": True,
}


def test_neutral_values_and_hints_are_accepted(chat: Any) -> None:
    assert contents(chat(max_tokens=9, **NEUTRAL)) == contents(chat(max_tokens=9))
    message = {**HI[0], "name": None, "tool_calls": None, "refusal": None}
    assert contents(chat(messages=[message], max_tokens=9)) == contents(chat(max_tokens=9))


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format", "not_supported"),
        ({"structured_outputs": {"json": {}}}, "structured_outputs", "not_supported"),
        ({"tools": [{"type": "function"}]}, "tools", "not_supported"),
        ({"frequency_penalty": 1}, "frequency_penalty", "not_supported"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "not_supported"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_field"),
        ({"messages": [{"role": "user", "content": "a", "name": "Al"}]}, "messages[0].name", None),
        ({"messages": [{"role": "nobody", "content": "a"}]}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": "a" * 1001}]}, "messages", "limit_exceeded"),
        ({"messages": [{"role": "user", "content": "#" * 300}]}, "messages", "context_too_long"),
        ({"max_tokens": 65}, "max_tokens", "limit_exceeded"),
        ({"max_completion_tokens": 65}, "max_completion_tokens", "limit_exceeded"),
        ({"top_logprobs": 2}, None, "invalid_value"),
        ({"continue_final_message": True}, None, "invalid_value"),
        ({"whatever": 1}, "whatever", "unknown_field"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_name_the_field(
    http: httpx.Client, body: dict[str, Any], param: str | None, code: str | None, stream: bool
) -> None:
    answer = http.post(PATH, json={"messages": HI, "stream": stream, **body})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["code"] == (code or "not_supported")


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ([{"type": "image_url", "image_url": {"url": "data:"}}], "messages[0].content[0].type"),
        ([{"type": "text"}], "messages[0].content[0].text"),
        (["a"], "messages[0].content[0]"),
        (None, "messages[0].content"),
        (5, "messages[0].content"),
    ],
)
def test_a_content_is_text(http: httpx.Client, content: Any, param: str) -> None:
    answer = http.post(PATH, json={"messages": [{"role": "user", "content": content}]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_another_model_is_not_found(http: httpx.Client) -> None:
    answer = http.post(PATH, json={"messages": HI, "model": "gpt-4"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_a_model_without_a_template_says_so(start_stub: Any) -> None:
    answer = httpx.post(f"{start_stub('--no-template')}{PATH}", json={"messages": HI}, timeout=60)
    assert answer.status_code == 400
    assert "no chat template" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": 12},
        {"max_tokens": 20, "temperature": 1, "seed": 3, "n": 3},
        {"max_tokens": 20, "logprobs": True, "top_logprobs": 1, "temperature": 1.3, "seed": 1},
    ],
)
def test_a_stream_is_the_whole_in_parts(http: httpx.Client, body: dict[str, Any]) -> None:
    body = {"messages": HI, "temperature": 0, **body}
    whole = http.post(PATH, json=body).json()
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    lines = [line for line in http.post(PATH, json=streamed).text.splitlines() if line]
    assert lines.pop() == "data: [DONE]"
    parts = [json.loads(line.removeprefix("data: ")) for line in lines]
    last = parts.pop()
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    for choice in whole["choices"]:
        of_one = [c for p in parts for c in p["choices"] if c["index"] == choice["index"]]
        assert [part["delta"].get("role") for part in of_one] == [
            "assistant",
            *[None] * (len(of_one) - 1),
        ]
        text = "".join(part["delta"]["content"] for part in of_one)
        assert text == choice["message"]["content"]
        assert [part["finish_reason"] for part in of_one[:-1]] == [None] * (len(of_one) - 1)
        assert of_one[-1]["finish_reason"] == choice["finish_reason"]
        if choice["logprobs"] is not None:
            told = [entry for part in of_one for entry in part["logprobs"]["content"]]
            assert told == choice["logprobs"]["content"]
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
