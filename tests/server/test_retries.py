"""Clients on connections that break, and on servers that cannot answer yet."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from bytelm_client import AsyncClient, Client, ConnectionLost, NotReady, TimedOut
from tests.server.proxy import Proxy, proxy_to


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    with proxy_to(url) as proxy:
        yield proxy


async def answered(client: Client | AsyncClient, context: str) -> Any:
    if isinstance(client, AsyncClient):
        async with client:
            return await client.greedy(context, 9)
    with client:
        return client.greedy(context, 9)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_call_is_sent_again_on_a_new_connection(
    proxy: Proxy, url: str, kind: type[Client | AsyncClient]
) -> None:
    proxy.break_before, proxy.break_after = 1, 1
    assert await answered(kind(proxy.url), "hello") == Client(url).greedy("hello", 9)
    assert proxy.connections == 3


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_it_is_sent_so_often_and_no_more(
    proxy: Proxy, kind: type[Client | AsyncClient]
) -> None:
    proxy.break_before = 100
    with pytest.raises(ConnectionLost):
        await answered(kind(proxy.url, retries=2), "hello")
    assert proxy.connections == 3


def test_a_call_that_takes_too_long_is_not_sent_again(start_stub: Callable[..., str]) -> None:
    url = start_stub()
    httpx.post(f"{url}/test/delay", params={"value": 5})
    with proxy_to(url) as proxy:
        with pytest.raises(TimedOut):
            Client(proxy.url, timeout=0.3).greedy("hello", 3)
        assert proxy.connections == 1


def test_a_client_waits_for_a_server_that_is_starting(start_stub: Callable[..., str]) -> None:
    url = start_stub("--wait")
    client = Client(url)

    def start() -> None:
        time.sleep(0.5)
        httpx.post(f"{url}/test/start")

    thread = threading.Thread(target=start)
    thread.start()
    assert client.greedy("hello", 3).bytes
    thread.join()


def test_without_retries_its_error_comes_at_once(start_stub: Callable[..., str]) -> None:
    with pytest.raises(NotReady):
        Client(start_stub("--wait"), retries=0).greedy("hello", 3)
