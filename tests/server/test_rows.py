"""Rows of a known text over HTTP are the library's, and come as they are made."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import numpy as np
import pytest

from bytelm.models.logprobs import EOS
from bytelm.prompts.context import Context, Special, Text

TEXT = "the ant and the ing" * 4
WIDTH = 257


def read(answer: httpx.Response) -> tuple[np.ndarray, dict[str, Any] | None]:
    """The rows of a body, and what stands behind them."""
    assert answer.headers["content-type"] == "application/octet-stream"
    dtype, body = np.dtype(answer.headers["x-dtype"]), answer.read()
    size = WIDTH * dtype.itemsize
    whole = np.frombuffer(body[: len(body) // size * size], dtype).reshape(-1, WIDTH)
    ends = np.flatnonzero(np.isnan(whole[:, 0]))
    count = int(ends[0]) if len(ends) else len(whole)
    rest = body[count * size :]
    return whole[:count], json.loads(rest[dtype.itemsize :]) if rest else None


def rows_of(http: httpx.Client, **body: Any) -> tuple[np.ndarray, dict[str, Any] | None]:
    answer = http.post("/v1/rows", json=body)
    assert answer.status_code == 200, answer.text
    return read(answer)


async def walked(state: Any, text: bytes) -> np.ndarray:
    rows = [(await state.logp_next()).ps]
    for b in text:
        state = await state.prune().advanced(b)
        rows.append((await state.logp_next()).ps)
    return np.array(rows)[:, [*range(256), EOS]]


@pytest.mark.parametrize("text", ["", "a", TEXT, "caf\xe9 \xe9"])
@pytest.mark.parametrize("prefill", ["fast", "exact"])
async def test_rows_are_those_of_the_walk(
    http: httpx.Client, begun: Any, text: str, prefill: str
) -> None:
    have, end = rows_of(http, context="he ate the", text=text, prefill=prefill)
    want = await walked(await begun(b"he ate the", mode=prefill), text.encode())
    assert end is None
    assert have.dtype == np.float32
    assert np.array_equal(have, want.astype(np.float32))


async def test_half_as_many_bytes_are_rounded(http: httpx.Client, begun: Any) -> None:
    have, _ = rows_of(http, context="he", text=TEXT, dtype="float16")
    assert have.dtype == np.float16
    assert have.shape == (77, WIDTH)
    want = await walked(await begun(b"he"), TEXT.encode())
    assert np.array_equal(have, want.astype(np.float16))


async def test_a_context_of_any_kind_and_any_beam(http: httpx.Client, begun: Any, lm: Any) -> None:
    segments = [{"token": "<|im_start|>"}, "he"]
    body = {"context": {"segments": segments}, "text": {"base64": "w6nDqcM="}, "beam": {"K": 2}}
    context = Context([Special.named("<|im_start|>", lm.vocab), Text(b"he")])
    want = await walked(await begun(context, K=2), b"\xc3\xa9\xc3\xa9\xc3")
    assert np.array_equal(rows_of(http, **body)[0], want.astype(np.float32))


def test_what_the_call_took_stands_behind_the_rows(own: httpx.Client) -> None:
    before = own.get("/test/evaluations").json()
    have, end = rows_of(own, context="h\xe9", text=TEXT, usage=True)
    assert len(have) == len(TEXT) + 1
    assert end is not None
    assert set(end) == {"usage"}
    used = own.get("/test/evaluations").json() - before
    assert (end["usage"]["bytes_in"], end["usage"]["bytes_out"]) == (3 + len(TEXT), 0)
    assert end["usage"]["evaluations"] == used > 0
    metrics = own.get("/metrics").text
    assert 'bytelm_requests_total{call="POST /v1/rows",status="200"} 1.0' in metrics
    assert f"bytelm_bytes_in_total {3 + len(TEXT)}.0" in metrics


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"text": "x" * 1501}, "limit_exceeded", "text"),
        ({"text": "e " * 250}, "context_too_long", "context"),
        ({"context": "x" * 1001}, "limit_exceeded", "context"),
        ({"text": None}, "invalid_value", "text"),
        ({"text": {"base64": "!"}}, "invalid_value", "text.base64"),
        ({"dtype": "float64"}, "invalid_value", "dtype"),
        ({"beam": {"eos_tokens": [100_000]}}, "invalid_value", "beam.eos_tokens"),
        ({"contexts": ["a"]}, "unknown_field", "contexts"),
    ],
)
def test_what_is_wrong_before_the_first_row_is_an_ordinary_error(
    http: httpx.Client, change: dict[str, Any], code: str, param: str
) -> None:
    answer = http.post("/v1/rows", json={"context": "hello", "text": "a", **change})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)


def test_a_byte_that_cannot_follow_ends_the_rows(start_stub: Callable[..., str]) -> None:
    with httpx.Client(base_url=start_stub("--letters"), timeout=60) as http:
        have, end = rows_of(http, context="he", text="llo\0x" + TEXT)
        assert end is not None
        assert (end["error"]["code"], end["error"]["param"]) == ("no_continuation", "text")
        assert end["error"]["message"].startswith("byte 3 (0x00) is in no token of the vocabulary")
        assert len(have) == 4
        assert have[3][0] == -np.inf
        whole, _ = rows_of(http, context="he", text="llo")
        assert np.array_equal(have, whole)
        alone, end = rows_of(http, context="he", text="\0")
        assert (len(alone), end is None) == (1, False)


def test_rows_end_where_the_model_is_full(http: httpx.Client) -> None:
    have, end = rows_of(http, context="a" * 150, text="e" * 60)
    assert end is not None
    assert end["error"]["code"] == "context_too_long"
    assert 40 < len(have) <= 60


@pytest.mark.parametrize(
    ("what", "code"), [("die", "dead"), ("break", "internal_error")], ids=["dead", "broken"]
)
def test_an_error_on_the_way_stands_behind_the_rows(
    own: httpx.Client, what: str, code: str
) -> None:
    own.post("/test/delay", params={"value": 0.2})
    body = {"context": "hello", "text": "abcdefghijklmno", "usage": True}
    with own.stream("POST", "/v1/rows", json=body) as answer:
        pieces = answer.iter_raw()
        begun = next(pieces)
        own.post(f"/test/{what}", params={"value": 1})
        rest = b"".join(pieces)
    whole = begun + rest
    assert len(whole) % (4 * WIDTH)
    assert np.isfinite(np.frombuffer(whole[: 4 * WIDTH], "<f4")).any()
    error = json.loads(whole[whole.index(b'{"error"') :])["error"]
    assert error["code"] == code
    assert "secret" not in str(error)


def test_rows_come_as_they_are_made(own: httpx.Client) -> None:
    own.post("/test/delay", params={"value": 0.3})
    body = {"context": "hello", "text": "abcdefgh"}
    with own.stream("POST", "/v1/rows", json=body) as answer:
        pieces = answer.iter_raw()
        first = next(pieces)
        made = own.get("/test/evaluations").json()
        assert len(first + b"".join(pieces)) == 9 * 4 * WIDTH
    assert own.get("/test/evaluations").json() > made


def test_a_client_that_goes_away_ends_the_work(
    own: httpx.Client, until: Callable[[Callable[[], bool]], None]
) -> None:
    own.post("/test/delay", params={"value": 0.2})
    body = {"context": "hello", "text": "abcdefghijklmno"}
    with own.stream("POST", "/v1/rows", json=body) as answer:
        next(answer.iter_raw())
        begun = own.get("/test/evaluations").json()

    def still() -> bool:
        before = own.get("/test/evaluations").json()
        time.sleep(0.3)
        return bool(own.get("/test/evaluations").json() == before)

    until(still)
    assert own.get("/test/evaluations").json() < begun + 15


@pytest.fixture
async def hasty(start_stub: Callable[..., str]) -> AsyncIterator[httpx.AsyncClient]:
    """A server of one call at a time, which may take three seconds and takes longer."""
    url = start_stub("--set", "call_seconds=3", "--set", "max_running_calls=1")
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        await http.post("/test/delay", params={"value": 0.4})
        yield http


async def test_rows_have_a_deadline_and_wait_for_their_turn(hasty: httpx.AsyncClient) -> None:
    body = {"context": "a", "text": "abcdefghijklmno"}
    first = asyncio.create_task(hasty.post("/v1/rows", json=body))
    await asyncio.sleep(0.2)
    waiting = await hasty.post("/v1/rows", json=body)
    rows, end = read(await first)
    assert len(rows) >= 1
    assert end is not None
    assert end["error"]["code"] == "deadline_passed"
    assert waiting.status_code == 504 or read(waiting)[1] is not None


def test_every_example_is_answered(http: httpx.Client) -> None:
    call = http.get("/openapi.json").json()["paths"]["/v1/rows"]["post"]
    for example in call["requestBody"]["content"]["application/json"]["examples"].values():
        answer = http.post("/v1/rows", json=example["value"])
        rows, _ = read(answer)
        assert answer.headers["x-shape"] == f"{len(rows)},{WIDTH}"
