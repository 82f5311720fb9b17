"""What cannot be sent is refused before anything is."""

import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from bytelm_client import AsyncClient, CannotSend, Client, messages, segments, special

HALF = "\ud800"


def unreachable(request: httpx.Request) -> httpx.Response:
    raise AssertionError(f"{request.url} was called")


NOWHERE = httpx.MockTransport(unreachable)


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.greedy(HALF, 3),
        lambda client: client.greedy(["a", segments(special(HALF), "a")], 3),
        lambda client: client.sample(messages([{"role": "user", "content": HALF}]), 3),
        lambda client: client.sample("a", 3, temperature=math.nan),
        lambda client: client.next_bytes("a", beam={"prune_threshold": math.inf}),
        lambda client: list(client.stream_greedy("a", 3, stop=HALF)),
        lambda client: client.score("a", [HALF]),
        lambda client: client.resume(HALF),
        lambda client: client.call("/v1/greedy", {"context": HALF}),
    ],
)
def test_a_value_that_is_no_json(call: Callable[[Client], Any]) -> None:
    told = pytest.raises(CannotSend, match="surrogates not allowed|not JSON compliant")
    with Client("http://nowhere", transport=NOWHERE) as client, told:
        call(client)


async def test_a_value_that_is_no_json_is_told_by_the_other_client_too() -> None:
    async with AsyncClient("http://nowhere", transport=NOWHERE) as client:
        with pytest.raises(CannotSend):
            await client.greedy(HALF, 3)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("key", ["schlüssel", "a\nb", HALF])
def test_a_key_that_no_header_can_have_is_not_shown(kind: type[Client], key: str) -> None:
    with pytest.raises(CannotSend, match="the API key has characters that no key has") as caught:
        kind("http://nowhere", api_key=key)
    assert key not in str(caught.value)
