"""Errors travel between processes, name their request, and are of one tree."""

import asyncio
import copy
import inspect
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import httpx
import pytest

from bytelm_client import AsyncClient, Client, Closed, ItemsFailed, errors
from bytelm_client.errors import APIError, BytelmClientError, api_error

DETAIL = {
    "type": "invalid_request",
    "message": "steps: too many",
    "code": "limit",
    "param": "steps",
}
KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, BytelmClientError)
]


def made(kind: type[BytelmClientError]) -> BytelmClientError:
    if kind is ItemsFailed:
        return ItemsFailed({1: api_error(400, DETAIL)}, ["a", None])
    if issubclass(kind, APIError):
        return kind("steps: too many", status=400, type="t", code="c", param="steps")
    return kind("it broke after 7 bytes")


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_the_same_in_another_process(kind: type[BytelmClientError]) -> None:
    error = made(kind).of_request("17")
    error.add_note("a note")
    for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(again) is kind
        assert str(again) == str(error)
        told, was = vars(again), vars(error)
        assert told.keys() == was.keys()
        assert [str(v) for v in told.values()] == [str(v) for v in was.values()]


def fail(status: int) -> None:
    raise api_error(status, DETAIL)


def test_a_pool_of_processes_raises_it() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        error = pool.submit(fail, 409).exception(timeout=100)
    assert isinstance(error, errors.Conflict)
    assert (error.status, error.code, error.param) == (409, "limit", "steps")


def test_every_kind_is_offered() -> None:
    import bytelm_client

    assert {kind.__name__ for kind in KINDS} <= set(bytelm_client.__all__)


Handler = Callable[[httpx.Request], httpx.Response]


def refused(request: httpx.Request) -> httpx.Response:
    return httpx.Response(400, json={"error": DETAIL}, headers={"X-Request-ID": "of the server"})


def unnamed(request: httpx.Request) -> httpx.Response:
    sent.append(request.headers["X-Request-ID"])
    return httpx.Response(200, json={"of": "another server"})


def unanswered(request: httpx.Request) -> httpx.Response:
    sent.append(request.headers["X-Request-ID"])
    raise httpx.ReadTimeout("nothing came")


def one_failed(request: httpx.Request) -> httpx.Response:
    usage = {"bytes_in": 0, "bytes_out": 0, "evaluations": 0}
    results = [{"index": 0, "error": DETAIL}, {"index": 1, "error": DETAIL}]
    answer = {"results": results, "usage": usage}
    return httpx.Response(200, json=answer, headers={"X-Request-ID": "of the server"})


def broken_off(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=b"", headers={"X-Request-ID": "of the server"})


sent: list[str] = []


@pytest.mark.parametrize("handler", [refused, unnamed, unanswered, one_failed])
def test_an_error_names_its_request(handler: Handler) -> None:
    sent.clear()
    transport = httpx.MockTransport(handler)
    with Client("http://nowhere", http=httpx.Client(transport=transport), retries=0) as client:
        with pytest.raises(BytelmClientError) as caught:
            client.greedy(["a", "b"], 3)
        assert caught.value.request_id == (sent[0] if sent else "of the server")
        if isinstance(caught.value, ItemsFailed):
            assert {e.request_id for e in caught.value.errors.values()} == {"of the server"}


@pytest.mark.parametrize("handler", [refused, broken_off])
def test_so_does_that_of_a_stream(handler: Handler) -> None:
    transport = httpx.MockTransport(handler)
    client = Client("http://nowhere", http=httpx.Client(transport=transport), retries=0)
    with client, pytest.raises(BytelmClientError) as caught:
        list(client.stream_greedy("a", 3))
    assert caught.value.request_id == "of the server"


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.health(),
        lambda client: client.greedy("a", 3),
        lambda client: client.session("a"),
        lambda client: next(client.stream_greedy("a", 3)),
        lambda client: next(client.sessions()),
    ],
)
def test_a_closed_client_says_so(call: Callable[[Client], Any]) -> None:
    client = Client("http://nowhere")
    client.close()
    with pytest.raises(Closed, match="http://nowhere.*closed"):
        call(client)


async def test_so_does_an_awaited_one() -> None:
    client = AsyncClient("http://nowhere")
    await client.aclose()
    with pytest.raises(Closed, match="closed"):
        await client.session("a")
    with pytest.raises(Closed, match="closed"):
        await anext(client.stream_greedy("a", 3))


def test_a_client_of_a_loop_that_is_over_says_so() -> None:
    class OfItsLoop(httpx.AsyncBaseTransport):
        """What connections of asyncio do in another loop."""

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise RuntimeError("Event loop is closed")

    client = AsyncClient("http://nowhere", http=httpx.AsyncClient(transport=OfItsLoop()))
    with pytest.raises(Closed, match="of no use any more: Event loop is closed"):
        asyncio.run(client.health())
