"""What a server that has enough to do answers: wait, 429, 504."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

BODY = {"context": "hello", "steps": 30, "beam": {"K": 1}}


@pytest.fixture
async def slow(start_stub: Callable[..., str]) -> AsyncIterator[httpx.AsyncClient]:
    """A server that works on two calls at a time, lets two wait, and takes its time."""
    url = start_stub("--set", "max_running_calls=2", "--set", "max_waiting_calls=2")
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        await http.post("/test/delay", params={"value": 0.02})
        yield http


async def test_calls_wait_for_their_turn_and_the_rest_is_refused(slow: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*[slow.post("/v1/greedy", json=BODY) for _ in range(12)])
    good = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(good) >= 4
    assert refused
    assert len(good) + len(refused) == 12
    assert len({answer.json()["results"][0]["bytes"]["base64"] for answer in good}) == 1
    for answer in refused:
        assert answer.json()["error"]["code"] == "queue_full"
        assert answer.json()["error"]["type"] == "overloaded"
        assert int(answer.headers["retry-after"]) >= 1
    assert (await slow.post("/v1/greedy", json=BODY)).status_code == 200


async def test_a_stream_keeps_its_turn_to_its_end(slow: httpx.AsyncClient) -> None:
    body = {**BODY, "stream": True}
    async with (
        slow.stream("POST", "/v1/greedy", json=body) as first,
        slow.stream("POST", "/v1/greedy", json=body) as second,
    ):
        lines = [first.aiter_lines(), second.aiter_lines()]
        for of_one in lines:
            await anext(of_one)
        waiting = asyncio.create_task(slow.post("/v1/greedy", json=BODY))
        for of_one in lines:
            for _ in range(10):
                await anext(of_one)
        assert not waiting.done()
        for of_one in lines:
            assert [line async for line in of_one][-2:] == ["data: [DONE]", ""]
    assert (await waiting).status_code == 200


async def test_a_client_that_leaves_gives_its_turn_to_the_next(slow: httpx.AsyncClient) -> None:
    long = {"contexts": [f"{i} " for i in range(10)], "steps": 64, "stream": True}
    async with (
        slow.stream("POST", "/v1/greedy", json=long) as first,
        slow.stream("POST", "/v1/sample", json={**long, "method": "byte"}) as second,
    ):
        await anext(first.aiter_lines())
        await anext(second.aiter_lines())
    assert (await slow.post("/v1/greedy", json=BODY)).status_code == 200


@pytest.fixture
async def hasty(start_stub: Callable[..., str]) -> AsyncIterator[httpx.AsyncClient]:
    """A server whose calls may take three seconds, and take longer."""
    url = start_stub("--set", "call_seconds=3", "--set", "max_running_calls=1")
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        await http.post("/test/delay", params={"value": 0.1})
        yield http


async def evaluations(http: httpx.AsyncClient) -> int:
    count: int = (await http.get("/test/evaluations")).json()
    return count


SEVERAL = [f"{i} " for i in range(8)]
COMPLETION = {"prompt": SEVERAL, "max_tokens": 64, "temperature": 0}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/greedy", {"contexts": SEVERAL, "steps": 64}),
        ("/v1/completions", COMPLETION),
        ("/v1/completions", {**COMPLETION, "echo": True, "logprobs": 0}),
    ],
)
async def test_a_call_past_its_deadline_is_stopped(
    hasty: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    answer = await hasty.post(path, json=body)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_passed"
    after = await evaluations(hasty)
    await asyncio.sleep(0.5)
    assert await evaluations(hasty) == after
    short = await hasty.post("/v1/greedy", json={**BODY, "steps": 1})
    assert short.status_code == 200


async def test_waiting_counts_towards_the_deadline(hasty: httpx.AsyncClient) -> None:
    long = {"context": "a", "steps": 64}
    answers = await asyncio.gather(*[hasty.post("/v1/greedy", json=long) for _ in range(3)])
    assert [answer.status_code for answer in answers] == [504] * 3


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/greedy", {"context": "a", "steps": 64}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 64, "temperature": 0}),
    ],
)
async def test_a_stream_past_its_deadline_ends_with_an_error(
    hasty: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    answer = await hasty.post(path, json={**body, "stream": True})
    *events, error, done = [line for line in answer.text.splitlines() if line]
    assert len(events) >= 2
    assert '"deadline_passed"' in error
    assert done == "data: [DONE]"


async def test_what_is_wrong_costs_no_turn(hasty: httpx.AsyncClient) -> None:
    running = asyncio.create_task(hasty.post("/v1/greedy", json={"context": "a", "steps": 64}))
    while "bytelm_calls_running 1.0" not in (await hasty.get("/metrics")).text:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    answer = await hasty.post("/v1/greedy", json={"context": "a", "steps": 0})
    assert answer.status_code == 400
    assert not running.done()
    await running


async def test_a_body_that_does_not_come_is_not_waited_for(start_stub: Callable[..., str]) -> None:
    url = httpx.URL(start_stub("--set", "body_seconds=0.5"))
    reader, writer = await asyncio.open_connection(url.host, url.port)
    head = "POST /v1/greedy HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f'{head}Content-Length: 100\r\n\r\n{{"context"'.encode())
    async with asyncio.timeout(30):
        assert b" 408 " in await reader.readline()
        assert b'"request_timeout"' in await reader.readuntil(b"}}")
    writer.close()
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        await http.post("/test/delay", params={"value": 0.1})
        # Work may take longer than its body.
        assert (await http.post("/v1/greedy", json={**BODY, "steps": 12})).status_code == 200
