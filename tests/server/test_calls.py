"""Every call over HTTP gives what the library gives on the same model."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from bytelm.beam import ByteBeamState
from bytelm.generating.draws import Choose, Draw
from bytelm.generating.generation import Generated, collect, generate
from bytelm.models.logprobs import EOS, LazyByteProbs
from tests.served import served_params

CONTEXTS = [b"", b"hello", b"the thing ", b"\xff\xfe", "é".encode()[:1], b"an apple" * 5]


def bytes_in(data: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode()}


def logprobs(values: list[float | None]) -> NDArray[np.float64]:
    return np.array([-np.inf if v is None else v for v in values])


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        yield client


async def post(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def state_after(lm: Any, data: bytes, **params: Any) -> ByteBeamState:
    return await (await ByteBeamState.initial(lm, served_params(**params))).prefill(data)


async def continued(state: ByteBeamState, choose: Choose) -> Generated[ByteBeamState]:
    return await collect(generate(state, 20, choose, logprobs=True))


async def test_health_is_ready(http: httpx.AsyncClient) -> None:
    response = await http.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})


async def test_models_describe_the_model_and_the_limits(http: httpx.AsyncClient, lm: Any) -> None:
    (model,) = (await http.get("/v1/models")).json()["data"]
    assert model["fingerprint"] == lm.vocab.fingerprint()
    assert model["vocab_size"] == lm.vocab.size
    assert model["initial_context"] == list(lm.vocab.initial_context)
    assert model["limits"]["context_tokens"] == 200
    assert model["limits"]["steps"] == 64


@pytest.mark.parametrize("context", CONTEXTS)
async def test_next_bytes_are_the_librarys(
    http: httpx.AsyncClient, lm: Any, context: bytes
) -> None:
    answer = await post(http, "/v1/next_bytes", {"context": bytes_in(context)})
    (result,) = answer["results"]
    want = (await (await state_after(lm, context)).logp_next()).ps
    assert np.array_equal(logprobs(result["logprobs"]), want[:256])
    assert result["eos"] == want[EOS]


async def test_top_has_the_best_bytes_first(http: httpx.AsyncClient, lm: Any) -> None:
    (result,) = (await post(http, "/v1/next_bytes", {"context": "hello", "top": 7}))["results"]
    want = (await (await state_after(lm, b"hello")).logp_next()).ps
    assert [t["byte"] for t in result["top"]] == list(np.argsort(-want[:256], kind="stable")[:7])
    assert [t["logprob"] for t in result["top"]] == [want[t["byte"]] for t in result["top"]]
    assert result["eos"] == want[EOS]


@pytest.mark.parametrize("context", CONTEXTS)
async def test_greedy_is_the_librarys(http: httpx.AsyncClient, lm: Any, context: bytes) -> None:
    answer = await post(
        http, "/v1/greedy", {"context": bytes_in(context), "steps": 20, "logprobs": True}
    )
    (result,) = answer["results"]
    made = await continued(await state_after(lm, context), LazyByteProbs.argmax)
    whole = await (await state_after(lm, b"")).greedy(context, 20)
    assert base64.b64decode(result["bytes"]["base64"]) == made.data == whole[len(context) :]
    assert result["logprob"] == made.logprob
    assert result["finish_reason"] == made.finish_reason


async def test_beam_parameters_reach_the_beam(http: httpx.AsyncClient, lm: Any) -> None:
    body = {"context": "hello", "steps": 20, "logprobs": True}
    beam = {"K": 1, "prune_threshold": 0.5}
    (result,) = (await post(http, "/v1/greedy", {**body, "beam": beam}))["results"]
    made = await continued(await state_after(lm, b"hello", **beam), LazyByteProbs.argmax)
    assert result["logprob"] == made.logprob
    (usual,) = (await post(http, "/v1/greedy", body))["results"]
    assert result["logprob"] != usual["logprob"]


async def test_sample_draws_what_the_seed_says(http: httpx.AsyncClient, lm: Any) -> None:
    body = {"contexts": ["hello", "the "], "steps": 20, "seed": 3, "temperature": 0.7}
    results = (await post(http, "/v1/sample", body))["results"]
    assert [(r["index"], r["sample"]) for r in results] == [(0, 0), (1, 0)]
    for index, (context, result) in enumerate(zip([b"hello", b"the "], results, strict=True)):
        draw = Draw(temperature=0.7, seed=3, key=(index, 0))
        made = await continued(await state_after(lm, context), draw)
        assert base64.b64decode(result["bytes"]["base64"]) == made.data


async def test_another_seed_draws_other_bytes(http: httpx.AsyncClient) -> None:
    made = set()
    for seed in (1, 2, None, None):
        body = {"context": "hello", "steps": 20, "seed": seed}
        made.add((await post(http, "/v1/sample", body))["results"][0]["bytes"]["base64"])
    assert len(made) == 4


async def test_the_same_seed_draws_the_same_beside_other_calls(http: httpx.AsyncClient) -> None:
    body = {"context": "hello", "steps": 30, "seed": 11}
    alone = await post(http, "/v1/sample", body)
    noise = [post(http, "/v1/sample", {**body, "seed": s}) for s in range(20)]
    again, *_ = await asyncio.gather(post(http, "/v1/sample", body), *noise)
    assert again == alone


async def test_32_greedy_calls_at_once_answer_as_each_alone(http: httpx.AsyncClient) -> None:
    bodies = [{"context": f"call {i} ", "steps": 30, "logprobs": True} for i in range(32)]
    together = await asyncio.gather(*[post(http, "/v1/greedy", b) for b in bodies])
    assert together == [await post(http, "/v1/greedy", b) for b in bodies]


async def test_contexts_answer_as_each_alone(http: httpx.AsyncClient) -> None:
    contexts = ["hello", {"text": "the "}, bytes_in(b"\xff")]
    together = (await post(http, "/v1/greedy", {"contexts": contexts, "steps": 9}))["results"]
    alone = [
        (await post(http, "/v1/greedy", {"context": c, "steps": 9}))["results"][0] for c in contexts
    ]
    assert together == alone


async def test_generation_ends_at_eos(http: httpx.AsyncClient, lm: Any) -> None:
    for i in range(5000):
        context = f"{i:o}".encode()
        ps = (await (await state_after(lm, context)).logp_next()).ps
        if ps.argmax() == EOS:
            break
    body = {"context": context.decode(), "steps": 5, "logprobs": True}
    (result,) = (await post(http, "/v1/greedy", body))["results"]
    assert result["finish_reason"] == "eos"
    assert result["bytes"] == {"text": "", "base64": ""}
    assert result["logprob"] == ps[EOS]


async def test_generation_ends_where_the_model_takes_no_more(http: httpx.AsyncClient) -> None:
    # No token of the vocabulary has more than one of these bytes, and 199 and BOS fill the model.
    body = {"context": "#" * 198, "steps": 64}
    answer = await post(http, "/v1/greedy", body)
    (result,) = answer["results"]
    assert result["finish_reason"] in ("length", "eos")
    assert answer["usage"]["bytes_out"] < 64


async def test_text_is_null_where_the_bytes_are_not_utf8(http: httpx.AsyncClient) -> None:
    seen = set()
    for seed in range(20):
        body = {"context": "hello", "steps": 3, "seed": seed}
        out = (await post(http, "/v1/sample", body))["results"][0]["bytes"]
        data = base64.b64decode(out["base64"])
        try:
            assert out["text"] == data.decode()
        except UnicodeDecodeError:
            assert out["text"] is None
        seen.add(out["text"] is None)
    assert seen == {True, False}


async def test_usage_counts_bytes_and_evaluations(http: httpx.AsyncClient) -> None:
    before = (await http.get("/test/evaluations")).json()
    answer = await post(http, "/v1/greedy", {"contexts": ["é", "the"], "steps": 4})
    used = (await http.get("/test/evaluations")).json() - before
    assert answer["usage"] == {
        "bytes_in": 5,
        "bytes_out": sum(len(base64.b64decode(r["bytes"]["base64"])) for r in answer["results"]),
        "evaluations": used,
        "tokens_computed": None,
        "tokens_cached": None,
    }


async def test_documentation_has_an_example_for_every_call(http: httpx.AsyncClient) -> None:
    assert (await http.get("/docs")).status_code == 200
    paths = (await http.get("/openapi.json")).json()["paths"]
    for path in ("/v1/next_bytes", "/v1/greedy", "/v1/sample", "/v1/score"):
        call = paths[path]["post"]
        examples = call["requestBody"]["content"]["application/json"]["examples"]
        for example in examples.values():
            assert (await http.post(path, json=example["value"])).status_code == 200
        assert "example" in call["responses"]["200"]["content"]["application/json"]
        assert "4XX" in call["responses"]
