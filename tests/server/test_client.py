"""Both clients against a real server: the same answers as plain HTTP, and errors as exceptions."""

import asyncio
import http.server
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import numpy as np
import pytest

from bytelm_client import (
    AsyncClient,
    BadAnswer,
    CannotConnect,
    Client,
    InvalidRequest,
    ItemsFailed,
    NotReady,
    ServerFailed,
    TimedOut,
)


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture
async def async_client(url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url) as client:
        yield client


def test_health(client: Client) -> None:
    assert client.health() == "ready"


def test_models(client: Client) -> None:
    (model,) = client.models()
    assert model.name == "SteeredLM"
    assert model.limits["steps"] == 64
    assert len(model.initial_context) == 1


def test_next_bytes_is_a_distribution_over_bytes_and_eos(client: Client) -> None:
    result = client.next_bytes("hello")
    assert result.logprobs.shape == (257,)
    assert math.isclose(np.exp(result.logprobs).sum(), 1, rel_tol=1e-9)
    assert result.eos == result.logprobs[256]
    assert result.usage.bytes_in == 5


def test_top_is_best_first(client: Client) -> None:
    result = client.next_bytes("hello")
    top = result.top(3)
    assert [value for _, value in top] == sorted(result.logprobs[:256], reverse=True)[:3]
    assert result.logprobs[top[0][0][0]] == top[0][1]


def test_greedy_is_what_the_server_says(client: Client, http: httpx.Client) -> None:
    result = client.greedy("hello", 20, logprobs=True, beam={"K": 3, "prune_threshold": 0.1})
    body = {
        "context": "hello",
        "steps": 20,
        "logprobs": True,
        "beam": {"K": 3, "prune_threshold": 0.1},
    }
    (want,) = http.post("/v1/greedy", json=body).json()["results"]
    assert result.logprob == want["logprob"]
    assert result.finish_reason == want["finish_reason"]
    assert result.bytes.decode(errors="replace") == result.text


def test_logprob_is_none_unless_asked_for(client: Client) -> None:
    assert client.greedy("hello", 2).logprob is None


def test_text_and_its_bytes_are_the_same_context(client: Client) -> None:
    assert client.greedy("é", 9).bytes == client.greedy("é".encode(), 9).bytes


def test_a_list_gives_a_list(client: Client) -> None:
    contexts: list[str | bytes] = [b"\xff", "hello"]
    results = client.greedy(contexts, 9)
    assert [r.bytes for r in results] == [client.greedy(c, 9).bytes for c in contexts]
    assert len(client.next_bytes(contexts)) == 2
    assert len(client.sample(["hello"], 3)) == 1


def test_a_seed_repeats_a_sample(client: Client) -> None:
    first, again, other = (client.sample("hello", 20, seed=s).bytes for s in (1, 1, 2))
    assert first == again != other


async def test_the_async_client_gives_the_same(client: Client, async_client: AsyncClient) -> None:
    assert await async_client.health() == client.health()
    assert await async_client.models() == client.models()
    result = await async_client.next_bytes("hello")
    assert np.array_equal(result.logprobs, client.next_bytes("hello").logprobs)
    assert await async_client.greedy(["a", "b"], 9) == client.greedy(["a", "b"], 9)
    ours, theirs = await async_client.sample("a", 9, seed=4), client.sample("a", 9, seed=4)
    assert ours == theirs


async def test_32_async_calls_at_once(client: Client, async_client: AsyncClient) -> None:
    contexts = [f"call {i} " for i in range(32)]
    together = await asyncio.gather(*[async_client.greedy(c, 9) for c in contexts])
    assert together == [client.greedy(c, 9) for c in contexts]


def test_a_wrong_field_is_an_invalid_request(client: Client) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.greedy("hello", 0)
    assert (caught.value.status, caught.value.param) == (400, "steps")
    assert caught.value.code == "invalid_value"


def test_failed_items_leave_the_results_of_the_others(client: Client) -> None:
    with pytest.raises(ItemsFailed) as caught:
        client.greedy(["hello", "x" * 300], 5)
    good, bad = caught.value.results
    assert good.bytes == client.greedy("hello", 5).bytes
    assert bad is None
    assert caught.value.errors[1].code == "context_too_long"


def test_a_server_that_is_starting_is_not_ready(start_stub: Callable[..., str]) -> None:
    client = Client(start_stub("--wait"))
    assert client.health() == "starting"
    with pytest.raises(NotReady) as caught:
        client.greedy("hello", 3)
    assert caught.value.code == "starting"


def test_a_fault_of_the_server(client: Client, http: httpx.Client) -> None:
    http.post("/test/break", params={"value": 1})
    try:
        with pytest.raises(ServerFailed):
            client.greedy("hello", 3)
    finally:
        http.post("/test/break", params={"value": 0})
    assert client.greedy("hello", 3).bytes


def test_no_server_there() -> None:
    with pytest.raises(CannotConnect, match="is the server running"):
        Client("http://127.0.0.1:9").health()


def test_an_address_that_is_none() -> None:
    with pytest.raises(CannotConnect):
        Client("nonsense").health()


def test_a_server_that_takes_too_long(start_stub: Callable[..., str]) -> None:
    url = start_stub()
    httpx.post(f"{url}/test/delay", params={"value": 5})
    with pytest.raises(TimedOut):
        Client(url, timeout=0.3).greedy("hello", 3)


def test_another_server_at_the_address() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(BadAnswer, match="is the address right"):
            Client(f"http://127.0.0.1:{other.server_port}").health()
        other.shutdown()


def test_the_address_comes_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYTELM_URL", url + "/")
    assert Client().health() == "ready"
