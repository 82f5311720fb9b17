"""Streams of both clients: the bytes of the whole answers, and clear errors on the way."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from bytelm_client import (
    AsyncClient,
    Client,
    ConnectionLost,
    InvalidRequest,
    NotReady,
    ServerFailed,
    TimedOut,
    segments,
    special,
)
from tests.server.proxy import proxy_to


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture
def slow(start_stub: Callable[..., str]) -> str:
    """A server of one's own that takes its time for each evaluation."""
    url = start_stub()
    httpx.post(f"{url}/test/delay", params={"value": 0.05})
    return url


def test_a_greedy_stream_has_the_bytes_of_the_whole(client: Client) -> None:
    stream = client.stream_greedy("hello", 20, logprobs=True, beam={"K": 3})
    pieces = list(stream)
    whole = client.greedy("hello", 20, logprobs=True, beam={"K": 3})
    assert len(pieces) > 1
    assert all(pieces)
    assert b"".join(pieces) == stream.received == whole.bytes
    assert stream.result.finish_reason == whole.finish_reason
    assert stream.result.logprob == pytest.approx(whole.logprob)
    assert stream.result.usage.bytes_out == whole.usage.bytes_out


def test_a_drawn_stream_has_the_bytes_of_the_whole(client: Client) -> None:
    context = segments(special("<|im_start|>"), b"\xff")
    drawn: dict[str, Any] = {"seed": 4, "method": "byte", "temperature": 0.9}
    stream = client.stream_sample(context, 20, **drawn)
    assert b"".join(stream) == client.sample(context, 20, **drawn).bytes


async def test_the_async_client_streams_the_same(url: str, client: Client) -> None:
    async with AsyncClient(url) as async_client:
        stream = async_client.stream_greedy("hello", 20)
        assert b"".join([piece async for piece in stream]) == client.greedy("hello", 20).bytes
        assert stream.result.finish_reason == "steps"
        drawn = async_client.stream_sample("hello", 9, seed=1)
        assert b"".join([p async for p in drawn]) == client.sample("hello", 9, seed=1).bytes


def test_bytes_come_while_others_are_made(slow: str) -> None:
    with Client(slow).stream_greedy("hello", 64) as stream:
        first = next(stream)
    assert 0 < len(first) < 64
    with pytest.raises(ValueError, match="has not ended"):
        _ = stream.result


def test_pings_are_no_bytes(start_stub: Callable[..., str], client: Client) -> None:
    url = start_stub("--set", "ping_seconds=0.05")
    httpx.post(f"{url}/test/delay", params={"value": 0.3})
    with httpx.stream(
        "POST", f"{url}/v1/greedy", json={"context": "the", "steps": 5, "stream": True}, timeout=60
    ) as response:
        assert ": ping" in list(response.iter_lines())
    stream = Client(url).stream_greedy("the", 5)
    assert b"".join(stream) == client.greedy("the", 5).bytes
    assert stream.result.finish_reason == "steps"


def test_leaving_a_stream_ends_the_servers_work(slow: str) -> None:
    with Client(slow).stream_greedy("hello", 64) as stream:
        next(stream)
    counts = []
    for _ in range(50):
        counts.append(httpx.get(f"{slow}/test/evaluations").json())
        if counts[-3:].count(counts[-1]) == 3:
            return
        time.sleep(0.2)
    raise AssertionError(f"the server works on: {counts}")


async def test_a_cancelled_async_stream_is_closed(slow: str) -> None:
    async with AsyncClient(slow) as client, client.stream_greedy("hello", 64) as stream:
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_what_is_wrong_with_the_call_is_an_error_at_the_first_byte(client: Client) -> None:
    with pytest.raises(InvalidRequest) as caught:
        next(client.stream_greedy("hello", 0))
    assert caught.value.param == "steps"
    with pytest.raises(TypeError, match="one context"):
        client.stream_greedy(["a", "b"], 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("what", "kind"), [("die", NotReady), ("break", ServerFailed)])
def test_what_fails_on_the_way_is_an_error_after_the_bytes(
    slow: str, what: str, kind: type[Exception]
) -> None:
    stream = Client(slow).stream_greedy("hello", 64)
    next(stream)
    httpx.post(f"{slow}/test/{what}")
    with pytest.raises(kind):
        list(stream)
    assert stream.received


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_connection_that_breaks_is_one_clear_error(
    url: str, kind: type[Client | AsyncClient]
) -> None:
    async def read(client: Client | AsyncClient) -> None:
        if isinstance(client, Client):
            list(client.stream_greedy("hello", 64))
        else:
            _ = [piece async for piece in client.stream_greedy("hello", 64)]

    with proxy_to(url) as proxy:
        proxy.cut_stream = True
        with pytest.raises(ConnectionLost, match=r"broke after \d+ bytes"):
            await read(kind(proxy.url))
        assert proxy.connections == 1


def test_a_server_that_falls_silent(slow: str) -> None:
    stream = Client(slow, timeout=5).stream_greedy("hello", 64)
    next(stream)
    httpx.post(f"{slow}/test/delay", params={"value": 30})
    with pytest.raises(TimedOut, match="fell silent after"):
        list(stream)


def test_a_stream_begins_again_only_before_its_first_byte(url: str, client: Client) -> None:
    with proxy_to(url) as proxy:
        proxy.break_before = 1
        stream = Client(proxy.url).stream_greedy("hello", 9)
        assert b"".join(stream) == client.greedy("hello", 9).bytes
        assert proxy.connections == 2
