"""What a connection's client is waited for, look by look."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge
from uvicorn.config import Config

from bytelm.settings import ServerSettings
from bytelm_server.connections import LEAST_READ, Connection, Connections, Stage

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n"
SETTINGS = ServerSettings(header_seconds=3, body_seconds=3, unread_seconds=3, max_connections=4)


class Counts:
    """The metrics that connections have."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.connections = Gauge("connections", "", registry=registry)
        self.connections_ended = Counter("ended", "", ["why"], registry=registry)


class Wire(asyncio.Transport):
    """A transport from which a test takes what it wants."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__({"socket": sock})
        self.written = bytearray()
        self.waiting = 0
        self._end = ""

    def write(self, data: Any) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def is_closing(self) -> bool:
        return bool(self._end)

    def close(self) -> None:
        self._end = self._end or "closed"

    def abort(self) -> None:
        self._end = "aborted"

    def end(self) -> str:
        """How it ended; empty while it has not."""
        return self._end

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Server:
    """Connections to an application that answers when it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        self.answers = asyncio.Event()
        self.sock = sock
        self.all = Connections(SETTINGS, Counts())  # type: ignore[arg-type]
        self.config = Config(self._app, interface="asgi3", ws="none", log_config=None)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        await self.answers.wait()
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    def connect(self) -> tuple[Connection, Wire]:
        connection, wire = Connection(self.config, self.all, {}), Wire(self.sock)
        connection.connection_made(wire)
        return connection, wire


@pytest.fixture
def server() -> Iterator[Server]:
    one, other = socket.socketpair()
    with one, other:
        yield Server(one)


def looks(connection: Connection, count: int) -> None:
    for _ in range(count):
        connection.look()


async def answered(server: Server) -> None:
    server.answers.set()
    for _ in range(5):
        await asyncio.sleep(0)


async def test_headers_have_so_many_looks(server: Server) -> None:
    connection, wire = server.connect()
    connection.data_received(GET[:-1])
    looks(connection, 3)
    assert not wire.end()
    connection.data_received(GET[-1:])
    looks(connection, 30)  # a call may take longer
    assert not wire.end()
    await answered(server)
    assert bytes(wire.written).endswith(b"ok")
    connection.data_received(GET[:-1])
    looks(connection, 4)
    assert wire.end() == "closed"
    assert b" 408 " in wire.written


async def test_a_body_that_is_answered_before_it_has_come_has_so_many_looks(
    server: Server,
) -> None:
    connection, wire = server.connect()
    connection.data_received(POST + b"a")
    looks(connection, 30)  # whoever waits for it answers
    assert not wire.end()
    await answered(server)
    looks(connection, 1)
    assert wire.end() == "closed"


async def test_an_answered_body_that_comes_makes_room_for_the_next_call(server: Server) -> None:
    connection, wire = server.connect()
    connection.data_received(POST)
    await answered(server)
    connection.data_received(b"abc" + GET + POST + b"abc")
    await answered(server)
    assert bytes(wire.written).count(b"ok") == 2  # the third came too early
    assert wire.end() == "closed"


@pytest.mark.parametrize("closing", [False, True])
async def test_a_client_may_be_slow_but_must_read(server: Server, closing: bool) -> None:
    connection, wire = server.connect()
    connection.data_received(GET)
    await answered(server)
    wire.waiting = 10 * LEAST_READ
    if closing:
        wire.close()
    connection.look()
    for _ in range(8):
        looks(connection, 3)
        wire.waiting -= LEAST_READ
    assert wire.end() == ("closed" if closing else "")
    looks(connection, 3)
    assert wire.end() != "aborted"
    wire.waiting -= LEAST_READ - 1
    looks(connection, 4)
    assert wire.end() == "aborted"


async def test_what_is_still_written_is_not_unread(server: Server) -> None:
    connection, wire = server.connect()
    connection.data_received(GET)
    wire.waiting = 1000
    looks(connection, 30)
    assert not wire.end()
    connection.pause_writing()
    looks(connection, 5)
    assert wire.end() == "aborted"
    connection.connection_lost(None)
    await answered(server)


async def test_who_has_had_no_call_for_longest_makes_room(server: Server) -> None:
    wires = []
    for _ in range(4):
        connection, wire = server.connect()
        connection.data_received(GET)
        wires.append((connection, wire))
    refused, busy = server.connect()
    assert busy.end() == "closed"
    assert b" 503 " in busy.written
    refused.connection_lost(None)
    await answered(server)
    wires[0][0].data_received(GET)
    await answered(server)
    for k in (1, 2):
        server.connect()
        assert [wire.end() for _, wire in wires] == ["", *["closed"] * k, *[""] * (3 - k)]
    assert len(server.all.connections) == 4
    assert wires[0][0]._stage is Stage.IDLE
