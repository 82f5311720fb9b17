"""Nobody keeps others from their turn: not by many calls, nor by streams that are not read."""

import asyncio
import itertools
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bytelm_server.keys import KeyFile

LONG = {"context": "hello", "steps": 60, "beam": {"K": 1}}
SHORT = {"context": "hello", "steps": 2}
MANY = [
    part
    for what in ("max_contexts", "max_results", "max_total_steps", "max_body_bytes")
    for part in ("--set", f"{what}=1000000")
]
# Its events cost little, and are more than all buffers on the way hold.
WIDE = {"contexts": ["hello", *[{"base64": "!"}] * 6000], "steps": 2}


@pytest.fixture
async def callers(
    start_stub: Callable[..., str], tmp_path: Path
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Two with a key each, of a server that takes its time."""
    keys = KeyFile(tmp_path / "keys.json")
    secrets = [keys.create(name)[1] for name in ("many", "one")]
    url = start_stub(
        *("--set", f"keys_file={keys.path}"),
        *("--set", "max_running_calls=4", "--set", "max_waiting_calls=4"),
    )
    limits = httpx.Limits(max_connections=None)
    many, one = (
        httpx.AsyncClient(
            base_url=url, timeout=60, limits=limits, headers={"Authorization": f"Bearer {secret}"}
        )
        for secret in secrets
    )
    async with many, one:
        await many.post("/test/delay", params={"value": 0.1})
        yield many, one


async def test_a_key_with_many_calls_keeps_no_other_waiting(
    callers: tuple[httpx.AsyncClient, httpx.AsyncClient],
) -> None:
    many, one = callers
    flood = [asyncio.create_task(many.post("/v1/greedy", json=LONG)) for _ in range(12)]
    for one_of_them in itertools.islice(asyncio.as_completed(flood), 12 - 3 - 4):
        assert (await one_of_them).status_code == 429  # for these there was no room
    assert (await one.post("/v1/greedy", json=SHORT)).status_code == 200
    # It was worked on beside them, and the queue has room for others.
    assert sum(task.done() for task in flood) == 12 - 3 - 4
    more = [asyncio.create_task(one.post("/v1/greedy", json=SHORT)) for _ in range(3)]
    assert [answer.status_code for answer in await asyncio.gather(*more)] == [200] * 3
    answers = await asyncio.gather(*flood)
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {answer.json()["error"]["code"] for answer in refused} == {"queue_full"}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert len(answers) - len(refused) >= 3 + 4 - 2


class Unread:
    """The client of a stream that does not read until it is told to."""

    def __init__(self, url: str, path: str, body: dict[str, Any]) -> None:
        address = httpx.URL(url)
        self.sock = socket.socket()
        # The server's buffer follows the size of segments, which are large inside a machine.
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.connect((address.host, address.port))
        data = json.dumps({**body, "stream": True}).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        )
        self.sock.sendall(head.encode() + data)

    def read(self) -> bytes:
        """All that comes until the connection ends."""
        self.sock.settimeout(120)
        data = bytearray()
        while piece := self.sock.recv(1 << 16):
            data += piece
        return bytes(data)


@pytest.fixture
def unread() -> Iterator[Callable[..., Unread]]:
    made: list[Unread] = []

    def start(*arguments: Any) -> Unread:
        made.append(Unread(*arguments))
        return made[-1]

    yield start
    for one in made:
        one.sock.close()


def value(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


def test_a_stream_that_nobody_reads_lends_its_turn_and_takes_it_back(
    start_stub: Callable[..., str],
    unread: Callable[..., Unread],
    until: Callable[[Callable[[], bool]], None],
) -> None:
    url = start_stub("--set", "max_running_calls=1", *MANY)
    stream = unread(url, "/v1/greedy", WIDE)
    until(lambda: value(url, "bytelm_streams_unread") == 1)
    assert value(url, "bytelm_calls_running") == 0
    assert httpx.post(f"{url}/v1/greedy", json=SHORT, timeout=60).status_code == 200
    text = stream.read().decode()
    assert text.count('"param":"contexts[') == 6000
    assert text.count('"finish_reason"') == 1
    assert "data: [DONE]" in text
    until(lambda: value(url, "bytelm_streams_unread") == 0)


def test_streams_that_nobody_reads_keep_nobody_from_a_turn(
    start_stub: Callable[..., str],
    unread: Callable[..., Unread],
    until: Callable[[Callable[[], bool]], None],
) -> None:
    url = start_stub("--set", "max_running_calls=2", *MANY)
    for _ in range(3):
        unread(url, "/v1/greedy", WIDE)
    until(lambda: value(url, "bytelm_streams_unread") == 3)
    assert httpx.post(f"{url}/v1/greedy", json=SHORT, timeout=60).status_code == 200


@pytest.mark.parametrize("path", ["/v1/greedy", "/v1/sessions/{}/greedy"])
def test_a_quiet_stream_says_that_it_lives(start_stub: Callable[..., str], path: str) -> None:
    url = start_stub("--set", "ping_seconds=0.1")
    body: dict[str, Any] = {"steps": 6, "stream": True}
    with httpx.Client(base_url=url, timeout=60) as http:
        if "{}" in path:
            path = path.format(http.post("/v1/sessions", json={"context": "the"}).json()["id"])
        else:
            body["context"] = "the"
        http.post("/test/delay", params={"value": 0.5})
        answer = http.post(path, json=body)
    blocks = answer.text.split("\n\n")
    assert blocks.pop() == ""
    events = [json.loads(b.removeprefix("data: ")) for b in blocks[:-1] if b != ": ping"]
    first = blocks.index(next(b for b in blocks if b != ": ping"))
    # A session that knows what comes first waits later only.
    assert first > 0 or "sessions" in path
    assert ": ping" in blocks[first:]
    assert events[-1]["finish_reason"] in ("steps", "eos")
    assert blocks[-1] == "data: [DONE]"


def test_what_goes_wrong_after_a_ping_is_an_event(start_stub: Callable[..., str]) -> None:
    url = start_stub("--set", "ping_seconds=0.1", "--set", "call_seconds=1")
    httpx.post(f"{url}/test/delay", params={"value": 30})
    answer = httpx.post(f"{url}/v1/greedy", json={**LONG, "stream": True}, timeout=60)
    assert answer.status_code == 200
    *pings, error, done = answer.text.split("\n\n")[:-1]
    assert set(pings) == {": ping"}
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "deadline_passed"
    assert done == "data: [DONE]"
