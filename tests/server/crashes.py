"""Clients that advance sessions while their server is killed again and again."""

import asyncio
import base64
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from bytelm_client.retries import LATER

CLIENTS = 32
LONGEST_TEXT = 120
"""Bytes after which a client goes on with a new session: no model is full by then."""


@dataclass
class Client:
    """One client with one session, which it tries to move on by bytes of its own.

    Attributes:
        name: tells it apart.
        session_id: its session.
        text: all bytes of which the server has said that the session consumed them.
        version: what the server said last of this session.
        changes: how often the server said that it moved a session on.
        retries: how often a call had to be sent again.
    """

    name: str
    random: random.Random
    http: httpx.AsyncClient
    session_id: str = ""
    text: str = ""
    version: int = 0
    changes: int = 0
    calls: int = 0
    retries: int = 0

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer to a call, which is sent until there is one, with one key."""
        self.calls += 1
        headers = {"Idempotency-Key": f"{self.name}-{self.calls}"}
        while True:
            try:
                answer = await self.http.request(method, path, json=body, headers=headers)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code not in LATER:
                assert answer.status_code == 200, answer.text
                return answer.json()
            self.retries += 1
            await asyncio.sleep(0.05)

    async def begin(self) -> None:
        """Make the session."""
        self.text = f"{self.name}: "
        answer = await self.call("POST", "/v1/sessions", {"context": self.text})
        self.session_id, self.version = answer["id"], answer["version"]

    async def run(self, stop: asyncio.Event) -> None:
        """Move the session on, a few bytes at a time."""
        while not stop.is_set():
            path = f"/v1/sessions/{self.session_id}"
            if len(self.text) > LONGEST_TEXT:
                await self.call("DELETE", path)
                await self.begin()
                continue
            added = "".join(self.random.choices("abc the", k=self.random.randint(1, 3)))
            answer = await self.call("POST", f"{path}/advance", {"bytes": added})
            self.text += added
            self.version += 1
            self.changes += 1
            # None lost, none taken twice, whatever happened since the last answer.
            assert answer["version"] == self.version, (self.name, answer, self.version)
            assert answer["length"] == len(self.text), (self.name, answer, self.text)


@dataclass
class Crashes:
    """Many such clients, and a server that is killed while they work.

    Args:
        url: where the server is, after each start.
        start: starts it; returns when it answers.
        kill: ends it at once, without a chance to write anything.
        headers: what all calls are sent with.
    """

    url: str
    start: Callable[[], None]
    kill: Callable[[], None]
    clients: list[Client] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)

    async def run(self, kills: int, seconds: float) -> None:
        """Kill the server so many times, each time after about so many seconds of work."""
        draws = random.Random(7)
        limits = httpx.Limits(max_connections=CLIENTS)
        stop = asyncio.Event()
        await asyncio.to_thread(self.start)
        async with httpx.AsyncClient(
            base_url=self.url, timeout=300, limits=limits, headers=self.headers
        ) as http:
            self.clients = [Client(f"client {i}", random.Random(i), http) for i in range(CLIENTS)]
            await asyncio.gather(*(client.begin() for client in self.clients))
            working = [asyncio.create_task(client.run(stop)) for client in self.clients]
            try:
                for _ in range(kills):
                    await self._some_work(working, seconds * draws.uniform(0.5, 1.5))
                    self.kill()
                    await asyncio.to_thread(self.start)
                await self._some_work(working, seconds)
            finally:
                stop.set()
                results = await asyncio.gather(*working, return_exceptions=True)
            for result in results:
                if result is not None:
                    raise result
            await self._check(http)

    async def _some_work(self, working: list[asyncio.Task[None]], seconds: float) -> None:
        """Until all clients got an answer since the last kill, and a while longer."""
        before = [client.changes for client in self.clients]
        deadline = time.monotonic() + 240
        while any(c.changes <= n for c, n in zip(self.clients, before, strict=True)):
            assert time.monotonic() < deadline, "the clients hang"
            for task in working:
                if task.done():
                    task.result()
            await asyncio.sleep(0.02)
        await asyncio.sleep(seconds)

    async def _check(self, http: httpx.AsyncClient) -> None:
        """All sessions consumed exactly what their clients know of, in this order."""
        vocab = (await http.get("/v1/vocab")).json()
        spelled = [base64.b64decode(token["bytes"]) for token in vocab["tokens"]]
        for client in self.clients:
            path = f"/v1/sessions/{client.session_id}"
            answer = (await http.get(path, params={"candidates": True})).json()
            assert (answer["version"], answer["length"]) == (client.version, len(client.text))
            for candidate in answer["candidates"]:
                text = b"".join(spelled[token] for token in candidate["tokens"])
                text += base64.b64decode(candidate["partial"]["base64"])
                assert text == client.text.encode()
        # Nobody has more sessions than were made.
        page = (await http.get("/v1/sessions", params={"limit": 1000})).json()
        assert len(page["data"]) == CLIENTS
