"""A server that is asked to stop: no call is left without an answer."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

LONG = {"context": "hello", "steps": 60, "beam": {"K": 1}}
SHORT = {"context": "hello", "steps": 2}


@pytest.fixture(params=[2])
async def slow(
    run_stub: Callable[..., Any], request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    """A server whose evaluations take a while, with so many seconds to stop in."""
    server = run_stub("--set", f"shutdown_grace={request.param}", "--set", "max_running_calls=4")
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        await http.post("/test/delay", params={"value": 0.1})
        yield server, http


patient = pytest.mark.parametrize("slow", [60], indirect=True)


async def in_progress(http: httpx.AsyncClient, count: int) -> None:
    """Returns when the server has so many requests."""
    async with asyncio.timeout(60):
        wanted = f"bytelm_requests_in_progress {count + 1}.0"  # one of them asks
        while wanted not in (await http.get("/metrics")).text:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def ended(server: Any) -> int:
    code: int = await asyncio.to_thread(server.process.wait, 120)
    return code


@patient
async def test_running_calls_end_and_new_ones_are_refused(
    slow: tuple[Any, httpx.AsyncClient],
) -> None:
    server, http = slow
    running = [asyncio.create_task(http.post("/v1/greedy", json=LONG)) for _ in range(3)]
    await in_progress(http, 3)
    server.process.send_signal(signal.SIGTERM)
    while (health := await http.get("/health")).status_code == 200:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    assert not any(task.done() for task in running)
    assert (health.status_code, health.json()) == (503, {"status": "draining"})
    new = await http.post("/v1/greedy", json=SHORT)
    assert (new.status_code, new.json()["error"]["code"]) == (503, "draining")
    for task in running:
        answer = await task
        assert answer.status_code == 200
        assert answer.json()["results"][0]["finish_reason"] in ("steps", "eos")
    assert await ended(server) == 0


async def test_calls_that_take_too_long_are_told_so(slow: tuple[Any, httpx.AsyncClient]) -> None:
    server, http = slow
    await http.post("/test/delay", params={"value": 0.5})
    running = [asyncio.create_task(http.post("/v1/greedy", json=LONG)) for _ in range(6)]
    streamed = asyncio.create_task(http.post("/v1/greedy", json={**LONG, "stream": True}))
    await in_progress(http, 7)
    server.process.send_signal(signal.SIGTERM)
    for task in running:
        answer = await task
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    answer = await streamed
    assert answer.status_code in (200, 503)  # it may have waited for its turn
    assert "draining" in answer.text
    assert await ended(server) == 0


async def test_a_stream_that_takes_too_long_ends_with_an_error(
    slow: tuple[Any, httpx.AsyncClient],
) -> None:
    server, http = slow
    await http.post("/test/delay", params={"value": 0.2})
    async with http.stream("POST", "/v1/greedy", json={**LONG, "stream": True}) as response:
        lines = response.aiter_lines()
        await anext(lines)
        server.process.send_signal(signal.SIGTERM)
        *_, error, _, done, _ = [line async for line in lines]
    assert '"draining"' in error
    assert done == "data: [DONE]"
    assert await ended(server) == 0


async def test_rows_that_take_too_long_end_with_an_error(
    slow: tuple[Any, httpx.AsyncClient],
) -> None:
    server, http = slow
    await http.post("/test/delay", params={"value": 0.5})
    body = {"context": "hello", "text": "abcdefghijklmno"}
    async with http.stream("POST", "/v1/rows", json=body) as response:
        pieces = response.aiter_raw()
        await anext(pieces)
        server.process.send_signal(signal.SIGTERM)
        rest = b"".join([piece async for piece in pieces])
    assert b'"draining"' in rest
    assert await ended(server) == 0


async def test_an_idle_server_ends_at_once_after_ctrl_c(
    slow: tuple[Any, httpx.AsyncClient],
) -> None:
    server, http = slow
    assert (await http.post("/v1/greedy", json=SHORT)).status_code == 200
    server.process.send_signal(signal.SIGINT)
    assert await ended(server) == 130


@patient
async def test_the_second_signal_ends_it_whatever_runs(
    slow: tuple[Any, httpx.AsyncClient],
) -> None:
    server, http = slow
    await http.post("/test/delay", params={"value": 30})
    running = asyncio.create_task(http.post("/v1/greedy", json=LONG))
    await in_progress(http, 1)
    server.process.send_signal(signal.SIGTERM)
    while (await http.get("/health")).status_code == 200:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    assert server.process.poll() is None
    server.process.send_signal(signal.SIGTERM)
    assert await ended(server) == 0
    with pytest.raises(httpx.TransportError):
        await running
