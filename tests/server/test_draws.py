"""Stop strings, samples and filters over HTTP are the library's on the same model."""

import base64
import json
from typing import Any

import httpx
import pytest

from bytelm.generating.draws import Draw
from bytelm.generating.generation import collect, generate
from bytelm.generating.token_sampling import sample_tokens
from bytelm.models.logprobs import LazyByteProbs


def data(result: Any) -> bytes:
    return base64.b64decode(result["bytes"]["base64"])


def encoded(text: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(text).decode()}


@pytest.fixture
def drawn(begun: Any) -> Any:
    """What the library draws after a context, as (bytes, log-probability, finish reason)."""

    async def continuation(context: bytes, choose: Any, steps: int = 20, **wanted: Any) -> Any:
        pieces = generate(await begun(context), steps, choose, logprobs=True, **wanted)
        made = await collect(pieces)
        return made.data, made.logprob, made.finish_reason

    return continuation


def as_drawn(result: Any) -> tuple[bytes, float, str]:
    return data(result), result["logprob"], result["finish_reason"]


FILTERS: list[dict[str, Any]] = [
    {"temperature": 0.5},
    {"top_k": 3},
    {"top_p": 0.5},
    {"min_p": 0.3},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
]


@pytest.mark.parametrize("filters", FILTERS, ids=json.dumps)
async def test_filters_are_the_librarys(results: Any, drawn: Any, filters: dict[str, Any]) -> None:
    body = {"context": "hello", "steps": 20, "seed": 3, "logprobs": True}
    (result,) = results("/v1/sample", **body, **filters)
    assert as_drawn(result) == await drawn(b"hello", Draw(**filters, seed=3).spawn(0, 0))
    assert data(result) != data(results("/v1/sample", **body)[0])


async def test_samples_are_in_order_each_with_a_stream_of_its_own(results: Any, drawn: Any) -> None:
    body = {"contexts": ["hello", "the "], "steps": 20, "n": 3, "seed": 8, "logprobs": True}
    found = results("/v1/sample", **body)
    places = [(index, sample) for index in range(2) for sample in range(3)]
    assert [(r["index"], r["sample"]) for r in found] == places
    for (index, sample), result in zip(places, found, strict=True):
        draw = Draw(seed=8).spawn(index, sample)
        assert as_drawn(result) == await drawn([b"hello", b"the "][index], draw)
    assert len({data(r) for r in found}) == 6


async def test_more_samples_do_not_change_the_first(results: Any) -> None:
    body = {"context": "hello", "steps": 20, "seed": 8}
    assert results("/v1/sample", **body, n=9)[:2] == results("/v1/sample", **body, n=2)


def test_samples_share_the_state_that_they_begin_with(http: httpx.Client) -> None:
    def evaluations(n: int) -> int:
        body = {"context": "the thing he told the ant", "steps": 1, "n": n, "method": "byte"}
        return int(http.post("/v1/sample", json=body).json()["usage"]["evaluations"])

    # One step needs the distribution, and no more than that is evaluated for it.
    before = http.post("/v1/next_bytes", json={"context": "the thing he told the ant"}).json()
    assert evaluations(1) == evaluations(9) == before["usage"]["evaluations"]


async def test_tokens_are_drawn_wherever_that_is_possible(results: Any, begun: Any) -> None:
    body = {"context": "hello", "steps": 20, "seed": 8, "n": 3, "stop": "a"}
    usual = results("/v1/sample", **body)
    assert results("/v1/sample", **body, method="auto") == usual
    assert results("/v1/sample", **body, method="token") == usual
    assert results("/v1/sample", **body, method="byte") != usual
    for sample, result in enumerate(usual):
        draw = Draw(seed=8).spawn(0, sample)
        made = await collect(sample_tokens(await begun(b"hello"), 20, draw, stop=b"a"))
        assert (data(result), result["finish_reason"]) == (made.data, made.finish_reason)


NOT_BY_TOKENS: list[dict[str, Any]] = [
    *FILTERS,
    {"logprobs": True},
    {"valid_utf8": True},
]


@pytest.mark.parametrize("options", NOT_BY_TOKENS, ids=json.dumps)
def test_bytes_are_drawn_where_tokens_cannot_be(results: Any, options: dict[str, Any]) -> None:
    body = {"context": "hello", "steps": 20, "seed": 8, **options}
    by_bytes = results("/v1/sample", **body, method="byte")
    assert results("/v1/sample", **body) == by_bytes


@pytest.mark.parametrize("options", NOT_BY_TOKENS, ids=json.dumps)
def test_what_tokens_cannot_keep_is_named(http: httpx.Client, options: dict[str, Any]) -> None:
    body = {"context": "hello", "steps": 20, "method": "token", **options}
    answer = http.post("/v1/sample", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == next(iter(options))
    assert 'method "token"' in error["message"]


def test_logprob_is_null_unless_asked_for(results: Any) -> None:
    (result,) = results("/v1/sample", context="hello", steps=3)
    assert result["logprob"] is None


@pytest.mark.parametrize("path", ["/v1/greedy", "/v1/sample"])
async def test_a_stop_string_is_cut(results: Any, drawn: Any, path: str) -> None:
    drawing = {"seed": 4} if path == "/v1/sample" else {}
    choose = Draw(seed=4).spawn(0, 0) if drawing else LazyByteProbs.argmax
    whole, _, _ = await drawn(b"hello", choose)
    stop = whole[7:10]
    choose = Draw(seed=4).spawn(0, 0) if drawing else LazyByteProbs.argmax
    want = await drawn(b"hello", choose, stop=[stop, b"never"])
    assert want[2] == "stop"
    for given in (encoded(stop), [encoded(stop), "never"]):
        (result,) = results(path, context="hello", steps=20, stop=given, logprobs=True, **drawing)
        assert as_drawn(result) == want
        assert data(result) == whole[: whole.index(stop)]


async def test_valid_utf8_is_the_librarys(results: Any, drawn: Any) -> None:
    body = {"context": encoded(b"caf\xc3"), "steps": 20, "n": 8, "seed": 2, "logprobs": True}
    for sample, result in enumerate(results("/v1/sample", **body, valid_utf8=True)):
        draw = Draw(seed=2).spawn(0, sample)
        assert as_drawn(result) == await drawn(b"caf\xc3", draw, valid_utf8=True)
        assert (b"caf\xc3" + data(result)).decode()
    texts = [(b"caf\xc3" + data(r)).decode(errors="replace") for r in results("/v1/sample", **body)]
    assert any("\ufffd" in text for text in texts)
