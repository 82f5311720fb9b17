"""How much of bodies a server takes in, of one and of all that calls hold."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import httpx


async def test_calls_hold_no_more_of_bodies_than_leaves_room_for_others(
    start_stub: Callable[..., str],
) -> None:
    url = start_stub("--set", "max_bodies_bytes=14000", "--set", "max_running_calls=1")
    large: dict[str, Any] = {"contexts": ["hello there " * 13] * 40, "steps": 10}
    small = {"context": "a", "steps": 1}
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        await http.post("/test/delay", params={"value": 0.2})
        both = {asyncio.create_task(http.post("/v1/greedy", json=large)) for _ in range(2)}
        (first,), (holding,) = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        refused = await first
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        waiting = asyncio.create_task(http.post("/v1/greedy", json=small))
        await http.post("/test/delay", params={"value": 0})
        assert (await holding).status_code == 200
        assert (await waiting).status_code == 200
        # What was held is free again.
        for _ in range(5):
            assert (await http.post("/v1/greedy", json=large)).status_code == 200


def test_a_body_that_is_announced_to_be_too_large_is_not_waited_for(url: str) -> None:
    address = httpx.URL(url)
    head = (
        "POST /v1/greedy HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Content-Length: 99999999\r\n\r\n{"
    )
    with socket.create_connection((address.host, address.port or 80), timeout=30) as sock:
        sock.sendall(head.encode())
        assert b" 413 " in sock.recv(1000)
