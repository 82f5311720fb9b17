"""``/v1/completions``: OpenAI's shape, in which a byte is a token."""

import base64
import json
import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from bytelm.generating.score import score
from bytelm.models.logprobs import EOS

PATH = "/v1/completions"
NAME = "<|im_end|>"
"""The stub model's EOS."""


@pytest.fixture
def complete(http: httpx.Client) -> Callable[..., dict[str, Any]]:
    """Makes a call that succeeds; greedy, unless it says otherwise."""

    def call(**body: Any) -> dict[str, Any]:
        answer = http.post(PATH, json={"temperature": 0, **body})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    return call


@pytest.fixture
def refused(http: httpx.Client) -> Callable[..., dict[str, Any]]:
    """Makes a call that is refused."""

    def call(status: int = 400, **body: Any) -> dict[str, Any]:
        answer = http.post(PATH, json=body)
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()["error"]
        assert set(found) == {"type", "message", "param", "code"}
        return found

    return call


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


def chunks(http: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream that ends as it should."""
    with http.stream("POST", PATH, json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def joined(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices that a stream's chunks make together."""
    made: dict[int, dict[str, Any]] = {}
    for part in parts:
        for choice in part["choices"]:
            empty = {**choice, "text": "", "logprobs": None, "finish_reason": None}
            whole = made.setdefault(choice["index"], empty)
            assert whole["finish_reason"] is None
            whole["text"] += choice["text"]
            whole["finish_reason"] = choice["finish_reason"]
            if choice["logprobs"] is not None:
                told = whole["logprobs"] or {name: [] for name in choice["logprobs"]}
                whole["logprobs"] = {n: told[n] + choice["logprobs"][n] for n in told}
    return [made[i] for i in sorted(made)]


def ends_at_once(http: httpx.Client) -> str:
    """A context after which EOS is the most probable."""
    for i in range(5000):
        context = f"{i:o}"
        body = {"context": context, "steps": 1}
        if http.post("/v1/greedy", json=body).json()["results"][0]["finish_reason"] == "eos":
            return context
    raise AssertionError


# The shape.


def test_an_answer_has_openais_shape(complete: Any, http: httpx.Client) -> None:
    answer = complete(prompt="hello", max_tokens=9)
    (model,) = http.get("/v1/models").json()["data"]
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 1_600_000_000
    (choice,) = answer.pop("choices")
    assert set(choice) == {"index", "text", "logprobs", "finish_reason"}
    assert answer == {
        "object": "text_completion",
        "model": model["name"],
        "system_fingerprint": model["fingerprint"],
        "usage": {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14},
    }


def test_greedy_is_that_of_v1_greedy(complete: Any, results: Any) -> None:
    answer = complete(prompt=["hello", "the "], max_tokens=20, stop=["e", "a"])
    found = results("/v1/greedy", contexts=["hello", "the "], steps=20, stop=["e", "a"])
    made = [base64.b64decode(one["bytes"]["base64"]) for one in found]
    assert texts(answer) == [data.decode(errors="replace") for data in made]


def test_the_default_is_16_bytes_drawn_at_temperature_1(http: httpx.Client, results: Any) -> None:
    for more in ({}, {"max_tokens": None, "temperature": None, "top_p": None, "n": None}):
        answer = http.post(PATH, json={"prompt": "hello", "seed": 3, **more}).json()
        (want,) = results("/v1/sample", context="hello", steps=16, seed=3)
        data = base64.b64decode(want["bytes"]["base64"])
        assert texts(answer) == [data.decode(errors="replace")]


def test_beam_and_prefill_are_ours(complete: Any, results: Any) -> None:
    ours = {"beam": {"K": 1, "prune_threshold": 0.5}, "prefill": "exact"}
    answer = complete(prompt="hello", max_tokens=20, logprobs=0, **ours)
    (want,) = results("/v1/greedy", context="hello", steps=20, logprobs=True, **ours)
    total = math.fsum(answer["choices"][0]["logprobs"]["token_logprobs"])
    assert total == pytest.approx(want["logprob"], abs=1e-9)


# Prompts.


def test_ids_are_bytes(complete: Any) -> None:
    text = complete(prompt="hé", max_tokens=9)
    ids = complete(prompt=list("hé".encode()), max_tokens=9)
    several = complete(prompt=[list("hé".encode()), list(b"hello")], max_tokens=9)
    assert texts(text) == texts(ids) == texts(several)[:1]
    assert texts(several)[1:] == texts(complete(prompt=["hello"], max_tokens=9))


def test_256_at_the_beginning_is_the_initial_context_once(complete: Any) -> None:
    body = {"max_tokens": 9, "logprobs": 1}
    with_it, without = complete(prompt=[256, 104], **body), complete(prompt=[104], **body)
    assert with_it["choices"] == without["choices"]
    assert with_it["usage"] == without["usage"]
    assert texts(complete(prompt=[256], max_tokens=9)) == texts(complete(prompt="", max_tokens=9))


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([104, 256], "id 1 is 256"),
        ([256, 256], "id 1 is 256"),
        ([257], "id 0 is 257"),
        ([-1], "id 0 is -1"),
        ([104, True], "id 1 is true"),
        ([104, 1.5], "id 1 is 1.5"),
        ([104, "a"], 'id 1 is "a"'),
        ([[104], [104, 300]], "id 1 of prompt 1 is 300"),
        (["a", 104], "of prompt 1"),
        ([], "give a text"),
        (5, "give a text"),
        ({"text": "a"}, "give a text"),
        (None, "give a text"),
    ],
)
def test_what_is_no_prompt_is_refused(refused: Any, prompt: Any, says: str) -> None:
    error = refused(prompt=prompt)
    assert (error["param"], error["code"]) == ("prompt", "invalid_value")
    assert says in error["message"]


def test_a_prompt_is_needed(refused: Any) -> None:
    assert refused()["code"] == "missing_field"


# Tokens.


def test_tokens_are_characters_or_bytes(complete: Any) -> None:
    prompt = [104, 0xC3, 0xA9, 0xE4, 0xBA, 0x91, 0xFF, 0xE4, 0xBA, 33]
    (choice,) = complete(prompt=prompt, echo=True, max_tokens=0, logprobs=0)["choices"]
    assert choice["text"] == bytes(prompt).decode(errors="replace") == "hé云\ufffd\ufffd!"
    found = choice["logprobs"]
    high = [f"bytes:\\x{b:02x}" for b in prompt[1:-1]]
    assert found["tokens"] == ["h", *high, "!"]
    assert found["text_offset"] == [0, 1, 1, 2, 2, 2, 3, 4, 4, 5]


def test_top_logprobs_are_of_the_same_row(complete: Any, http: httpx.Client) -> None:
    (choice,) = complete(prompt="the an", echo=True, max_tokens=0, logprobs=3)["choices"]
    for i, b in enumerate(b"the an"):
        body = {"context": "the an"[:i], "top": 3, "prefill": "exact"}
        (row,) = http.post("/v1/next_bytes", json=body).json()["results"]
        want = {
            chr(one["byte"]) if one["byte"] < 128 else f"bytes:\\x{one['byte']:02x}": one["logprob"]
            for one in row["top"]
        }
        top = choice["logprobs"]["top_logprobs"][i]
        assert len(top) in (3, 4)
        own = choice["logprobs"]["token_logprobs"][i]
        assert top[chr(b)] == own
        for name, logprob in top.items():
            assert name in {**want, chr(b): 0, NAME: 0}
            assert logprob == pytest.approx(want.get(name, logprob), abs=1e-9)


def test_without_logprobs_there_are_none(complete: Any) -> None:
    (choice,) = complete(prompt="hello", max_tokens=3, echo=True)["choices"]
    assert choice["logprobs"] is None
    assert choice["text"].startswith("hello")


def test_the_impossible_is_minus_9999(start_stub: Any) -> None:
    with httpx.Client(base_url=start_stub("--letters"), timeout=60) as http:
        body = {"prompt": ["he", "h\0e"], "echo": True, "temperature": 0, "logprobs": 1}
        for steps in (0, 1):
            good, bad = http.post(PATH, json={**body, "max_tokens": steps}).json()["choices"]
            found = bad["logprobs"]
            # One more entry, as behind any prompt, so that who leaves out the last loses nothing.
            assert found["tokens"] == ["h", "\0", "e", *[NAME] * steps]
            assert found["token_logprobs"][0] == good["logprobs"]["token_logprobs"][0]
            assert found["token_logprobs"][1:] == [-9999.0] * (2 + steps)
            assert found["top_logprobs"][1]["\0"] == -9999.0
            assert bad["text"] == "h\0e"
            assert len(good["logprobs"]["tokens"]) == 2 + steps


# Echo.


@pytest.mark.parametrize("steps", [0, 1, 5])
async def test_an_echo_is_a_score(complete: Any, begun: Any, steps: int) -> None:
    prompts = ["the ant", "hello there", "é"]
    answer = complete(prompt=prompts, echo=True, max_tokens=steps, logprobs=1)
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        data = prompt.encode()
        want = await score(await begun(b""), data)
        assert choice["logprobs"]["token_logprobs"][: len(data)] == list(want.logprobs)
        assert choice["text"].startswith(prompt)
        assert choice["finish_reason"] == "length"
        assert len(choice["logprobs"]["tokens"]) == len(data) + steps
    made = sum(map(len, map(str.encode, prompts)))
    assert answer["usage"]["prompt_tokens"] == made


def test_256_has_an_entry_without_a_logprob(complete: Any) -> None:
    body = {"echo": True, "max_tokens": 1, "logprobs": 1}
    (plain,) = complete(prompt=[104, 101], **body)["choices"]
    (begun,) = complete(prompt=[256, 104, 101], **body)["choices"]
    assert begun["text"] == plain["text"]
    for name, entry in {
        "tokens": NAME,
        "token_logprobs": None,
        "top_logprobs": None,
        "text_offset": 0,
    }.items():
        assert begun["logprobs"][name] == [entry, *plain["logprobs"][name]]


async def test_an_immediate_eos_has_its_entry(
    http: httpx.Client, complete: Any, begun: Any
) -> None:
    context = ends_at_once(http)
    for more in ({"echo": True}, {}):
        answer = complete(prompt=context, max_tokens=1, logprobs=1, **more)
        (choice,) = answer["choices"]
        assert choice["finish_reason"] == "stop"
        assert choice["text"] == (context if more else "")
        found = choice["logprobs"]
        assert found["tokens"][-1] == NAME
        assert len(found["tokens"]) == 1 + (len(context) if more else 0)
        row = await (await begun(context.encode(), mode="exact")).logp_next()
        assert found["token_logprobs"][-1] == row.ps[EOS] == found["top_logprobs"][-1][NAME]
        assert found["text_offset"][-1] == len(choice["text"])
        assert answer["usage"]["completion_tokens"] == 0


def test_an_echo_goes_on_as_the_walk_does(complete: Any, results: Any) -> None:
    (echoed,) = complete(prompt="the ant", echo=True, max_tokens=9, logprobs=0)["choices"]
    (plain,) = complete(prompt="the ant", max_tokens=9, prefill="exact")["choices"]
    assert echoed["text"] == "the ant" + plain["text"]


def test_prompts_that_begin_alike_share_their_walk(complete: Any, http: httpx.Client) -> None:
    def evaluations(*prompts: str) -> int:
        before = http.get("/test/evaluations").json()
        complete(prompt=list(prompts), echo=True, max_tokens=1, logprobs=1)
        return int(http.get("/test/evaluations").json()) - before

    question = "an apple a day keeps the thing away " * 2
    choices = [question + end for end in ("yes", "no", "maybe")]
    apart = sum(evaluations(one) for one in choices)
    assert evaluations(*choices) < apart / 2


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 0, "max_tokens": 12},
        {"temperature": 0, "max_tokens": 12, "echo": True, "logprobs": 1},
        {"temperature": 0.7, "max_tokens": 1, "seed": 1},
        {"temperature": 0.7, "max_tokens": 1, "seed": 1, "echo": True, "logprobs": 1},
    ],
)
def test_what_texts_of_a_prompt_have_in_common_is_evaluated_once(
    own: httpx.Client, how: dict[str, Any]
) -> None:
    def evaluations(n: int) -> int:
        before = own.get("/test/evaluations").json()
        own.post("/test/delay", params={"value": 0.01})  # so that they are asked for side by side
        answer = own.post(PATH, json={"prompt": "the apple", "n": n, **how})
        assert len(answer.json()["choices"]) == n
        return int(own.get("/test/evaluations").json()) - before

    assert evaluations(8) == evaluations(1) > 0


def test_greedy_texts_of_a_prompt_are_one(complete: Any) -> None:
    body = {"prompt": ["hello", "the "], "max_tokens": 20, "logprobs": 1, "stop": "e"}
    several = complete(**body, n=3)
    for choice, index in zip(several["choices"], (0, 0, 0, 1, 1, 1), strict=True):
        want = complete(**body)["choices"][index]
        assert {**choice, "index": index} == want
    made = sum(len(choice["logprobs"]["tokens"]) for choice in several["choices"])
    assert several["usage"]["completion_tokens"] <= made


def test_an_echo_that_fills_the_model_is_refused(refused: Any, complete: Any) -> None:
    prompt = "#" * 200
    error = refused(prompt=prompt, echo=True, logprobs=1, max_tokens=1)
    assert (error["code"], error["param"]) == ("context_too_long", "prompt")
    assert len(complete(prompt=prompt, echo=True, logprobs=0, max_tokens=0)["choices"]) == 1


# Ends, seeds, usage.


def test_finish_reasons(complete: Any, http: httpx.Client) -> None:
    (choice,) = complete(prompt="hello", max_tokens=9)["choices"]
    assert choice["finish_reason"] == "length"
    stop = choice["text"][2]
    if stop == "\ufffd":
        stop = next(c for c in choice["text"] if c != "\ufffd")
    (stopped,) = complete(prompt="hello", max_tokens=9, stop=stop)["choices"]
    assert stopped["finish_reason"] == "stop"
    assert stop not in stopped["text"]
    (ended,) = complete(prompt=ends_at_once(http), max_tokens=9)["choices"]
    assert (ended["finish_reason"], ended["text"]) == ("stop", "")
    (full,) = complete(prompt="#" * 198, max_tokens=64)["choices"]
    assert full["finish_reason"] in ("length", "stop")


def test_choices_stand_prompt_by_prompt_and_seeds_are_those_of_sample(
    complete: Any, results: Any
) -> None:
    body = {"seed": 3, "n": 3, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.01}
    answer = complete(prompt=["a", "the "], max_tokens=12, **body)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    want = results("/v1/sample", contexts=["a", "the "], steps=12, **body)
    made = [base64.b64decode(one["bytes"]["base64"]).decode(errors="replace") for one in want]
    assert texts(answer) == made


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_top_k_of_none_is_all(complete: Any, top_k: int) -> None:
    body = {"prompt": "a", "temperature": 0.9, "seed": 1}
    assert texts(complete(**body, top_k=top_k)) == texts(complete(**body))


def test_usage_counts_bytes(complete: Any) -> None:
    answer = complete(prompt=["é", "the"], max_tokens=4, n=2)
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 16, "total_tokens": 21}


# The model, and what is accepted and refused.


@pytest.mark.parametrize("model", [None, "default", "SteeredLM"])
def test_the_model_may_be_named(complete: Any, model: str | None) -> None:
    assert complete(prompt="a", model=model)["model"] == "SteeredLM"


def test_another_model_is_not_found(refused: Any) -> None:
    error = refused(404, prompt="a", model="gpt-4")
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'SteeredLM'" in error["message"]
    assert "'default'" in error["message"]


NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": None,
    "best_of": 1,
    "suffix": None,
    "stop": None,
    "stop_token_ids": [],
    "response_format": {"type": "text"},
    "add_special_tokens": True,
}
HINTS = {"user": "me", "metadata": {"a": "b"}, "skip_special_tokens": False, "store": True}


def test_neutral_values_and_hints_are_accepted(complete: Any) -> None:
    plain = texts(complete(prompt="hello", max_tokens=9))
    assert texts(complete(prompt="hello", max_tokens=9, **NEUTRAL, **HINTS)) == plain
    assert texts(complete(prompt="hello", max_tokens=9, **dict.fromkeys(NEUTRAL))) == plain


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frequency_penalty", 0.5),
        ("presence_penalty", -1),
        ("repetition_penalty", 1.1),
        ("logit_bias", {"50256": -100}),
        ("best_of", 2),
        ("suffix", "end"),
        ("stop_token_ids", [10]),
        ("min_tokens", 1),
        ("ignore_eos", True),
        ("add_special_tokens", False),
        ("response_format", {"type": "json_object"}),
        ("structured_outputs", {"regex": "a"}),
        ("guided_choice", ["a"]),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(
    refused: Any, field: str, value: Any
) -> None:
    error = refused(prompt="a", **{field: value})
    assert (error["code"], error["param"]) == ("not_supported", field)
    assert field in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": 65}, "max_tokens"),
        ({"max_tokens": 64, "n": 24}, "max_tokens"),
        ({"n": 51, "max_tokens": 1}, "n"),
        ({"prompt": ["a"] * 41}, "prompt"),
        ({"prompt": "a" * 1001}, "prompt"),
        ({"prompt": ["a", "a" * 1001]}, "prompt[1]"),
        ({"prompt": "#" * 300}, "prompt"),
        ({"prompt": ["a", "#" * 300], "echo": True, "logprobs": 0}, "prompt[1]"),
        ({"prompt": ["a" * 900, "b" * 900], "echo": True, "logprobs": 0}, "prompt"),
        ({"prompt": "a" * 150, "echo": True, "logprobs": 99, "max_tokens": 0}, "logprobs"),
        ({"max_tokens": 64, "logprobs": 200}, "logprobs"),
        ({"prompt": "a" * 80, "echo": True, "logprobs": 3, "n": 50, "max_tokens": 0}, "echo"),
        ({"prompt": "a" * 29, "echo": True, "logprobs": 9, "n": 50, "max_tokens": 0}, "logprobs"),
        ({"prompt": "a" * 99, "echo": True, "logprobs": 61, "max_tokens": 64}, "logprobs"),
        ({"prompt": ["a" * 40] * 2, "echo": True, "n": 25, "max_tokens": 0}, "echo"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 258}, "logprobs"),
        ({"temperature": -1}, "temperature"),
        ({"seed": -1}, "seed"),
        ({"stop": ""}, "stop[0]"),
        ({"beam": {"K": 11}}, "beam.K"),
        ({"stream_options": {"include": True}}, "stream_options.include"),
        ({"whatever": 1}, "whatever"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_name_the_field(
    refused: Any, body: dict[str, Any], param: str, stream: bool
) -> None:
    assert refused(**{"prompt": "a", "stream": stream, **body})["param"] == param


# Streams.


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "hello", "max_tokens": 12, "temperature": 0},
        {"prompt": ["a", "the", "café"], "max_tokens": 20, "logprobs": 2, "temperature": 0},
        {"prompt": "hello", "max_tokens": 20, "seed": 3, "n": 3},
        {"prompt": ["hello", "a"], "max_tokens": 20, "temperature": 0, "n": 3, "logprobs": 1},
        {"prompt": "hello", "max_tokens": 20, "seed": 3, "n": 2, "logprobs": 0, "stop": ["e"]},
        {"prompt": [256, 0xC3, 0xA9], "max_tokens": 9, "echo": True, "logprobs": 1, "seed": 5},
        {"prompt": ["hé", "he"], "max_tokens": 9, "echo": True, "seed": 5},
        {"prompt": "he", "max_tokens": 0, "echo": True, "logprobs": 1},
        {"prompt": [0xE4, 0xBA], "max_tokens": 0, "echo": True, "logprobs": 1},
        {"prompt": "he", "max_tokens": 0},
    ],
)
def test_a_stream_is_the_whole_in_parts(http: httpx.Client, body: dict[str, Any]) -> None:
    whole = http.post(PATH, json=body).json()
    parts = chunks(http, body)
    assert joined(parts) == whole["choices"]
    assert len({part["id"] for part in parts}) == 1
    assert {part["object"] for part in parts} == {"text_completion"}
    assert all("usage" not in part for part in parts)


def test_a_character_comes_when_it_is_complete(http: httpx.Client) -> None:
    body = {"prompt": "hello", "max_tokens": 60, "logprobs": 0, "temperature": 1.5}
    for seed in range(8):
        for part in chunks(http, {**body, "seed": seed}):
            (choice,) = part["choices"]
            offsets = choice["logprobs"]["text_offset"]
            tokens = [t for t in choice["logprobs"]["tokens"] if t != NAME]
            assert len(set(offsets[: len(tokens)])) == len(choice["text"])


def test_a_stream_tells_the_usage_where_wanted(http: httpx.Client) -> None:
    body = {"prompt": ["hello", "a"], "max_tokens": 5, "temperature": 0}
    parts = chunks(http, {**body, "stream_options": {"include_usage": True}})
    last = parts.pop()
    assert last["choices"] == []
    assert last["usage"] == http.post(PATH, json=body).json()["usage"]
    assert all(part["usage"] is None for part in parts)
    assert joined(parts) == http.post(PATH, json=body).json()["choices"]
