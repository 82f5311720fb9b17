"""The tokenizer routes of vLLM and llama.cpp, and models as OpenAI's API has them."""

from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

NAME = "<|im_end|>"


def post(http: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40))
def test_tokens_are_the_bytes_of_the_text(url: str, text: str) -> None:
    with httpx.Client(base_url=url) as http:
        found = post(http, "/tokenize", {"prompt": text, "add_special_tokens": False})
        assert found["tokens"] == list(text.encode())
        assert found["count"] == len(found["tokens"])
        assert post(http, "/tokenize", {"content": text})["tokens"] == found["tokens"]
        there = post(http, "/detokenize", {"tokens": found["tokens"]})
        assert there == {"prompt": text, "content": text}


def test_the_name_of_eos_alone_is_256(http: httpx.Client) -> None:
    assert post(http, "/tokenize", {"prompt": NAME})["tokens"] == [256]
    for text in (f"{NAME} ", f"a{NAME}", NAME * 2, NAME[:-1]):
        assert post(http, "/tokenize", {"prompt": text})["tokens"] == list(text.encode())
    found = post(http, "/detokenize", {"tokens": [256, 0xC3, 256, 104, 0xC3, 0xA9]})
    assert found["prompt"] == f"{NAME}\ufffd{NAME}hé"


def test_the_tokenizer_has_no_bos(http: httpx.Client) -> None:
    info = http.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"], info["vocab_size"]) == (None, NAME, 257)
    assert info["chat_template"] is None
    assert info["model_max_length"] == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, None),
        ("/tokenize", {"prompt": "a", "content": "a"}, None),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "a", "with_pieces": True}, "with_pieces"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"content": "é" * 501}, "content"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [257]}, "tokens[0]"),
        ("/detokenize", {"tokens": [104, -1]}, "tokens[1]"),
        ("/detokenize", {"tokens": [104, "a"]}, "tokens[1]"),
        ("/detokenize", {"tokens": [0] * 1001}, "tokens"),
    ],
)
def test_errors_name_the_field(
    http: httpx.Client, path: str, body: dict[str, Any], param: str | None
) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_another_model_has_no_tokenizer_here(http: httpx.Client) -> None:
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [97]})):
        assert post(http, path, {**body, "model": "default"})
        answer = http.post(path, json={**body, "model": "gpt-4"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "model")


def test_models_are_as_openai_has_them_and_as_we_do(http: httpx.Client, lm: Any) -> None:
    found = http.get("/v1/models").json()
    assert found["object"] == "list"
    (model,) = found["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("SteeredLM", "model", "bytelm")
    assert model["created"] > 1_600_000_000
    assert (model["name"], model["fingerprint"]) == ("SteeredLM", lm.vocab.fingerprint())


@pytest.mark.parametrize("name", ["SteeredLM", "default"])
def test_a_model_is_found_by_its_name(http: httpx.Client, name: str) -> None:
    assert http.get(f"/v1/models/{name}").json() == http.get("/v1/models").json()["data"][0]


@pytest.mark.parametrize("name", ["gpt-4", "org/other"])
def test_another_model_is_not_found(http: httpx.Client, name: str) -> None:
    answer = http.get(f"/v1/models/{name}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
