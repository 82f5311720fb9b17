"""What connections may take beside their calls: places, bytes, time.

Uvicorn reads and writes HTTP; it bounds little of what comes before a call is known, or after its
answer. That is bounded here, for everybody alike: no key is known yet.

::

                  first byte            headers are whole          body is whole
        IDLE ────────────────► HEADERS ──────────────────► BODY ────────────────► ANSWER
          ▲                       ▲ begins here              │                      │
          └──────────────── the body is whole, and answered ─┴──────────────────────┘

Each connection is looked at once a second, and its age is the number of looks: so time counts only
while the server is there to read what has come. Must not know what calls are about.
"""

import asyncio
import fcntl
import logging
import resource
import struct
import termios
from enum import Enum, auto
from http import HTTPStatus
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from bytelm.settings import ServerSettings
from bytelm_server.errors import ErrorDetail, answer, invalid_request
from bytelm_server.metrics import Metrics

_log = logging.getLogger(__name__)

OTHER_FILES = 512
"""Open files that are left for everything but connections."""
LEAST_READ = 1 << 14
"""Bytes that a client must take within ``unread_seconds``, where more wait for it."""


class Stage(Enum):
    """What a connection's client is waited for."""

    HEADERS = auto()
    BODY = auto()
    ANSWER = auto()
    IDLE = auto()
    DEAF = auto()
    """Nothing more is read: the connection ends with the answer that is under way, if one is."""


class Connections(ServerState):
    """All connections of a server.

    Args:
        settings: how many there may be, and how long and large what they bring.
        metrics: counts those that are ended, and why.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        super().__init__()
        self.settings = settings
        # Those without a call, in the order in which they had one last.
        self.without_call: dict[Connection, None] = {}
        self.ended = metrics.connections_ended
        metrics.connections.set_function(lambda: len(self.connections))
        self._most = min(settings.max_connections, _files(settings.max_connections) - OTHER_FILES)
        if self._most < settings.max_connections:
            _log.warning("there can be %d connections only: ulimit -n is the reason", self._most)

    def look(self) -> None:
        """End connections whose clients take too long; called once a second."""
        for connection in list(self.connections):
            assert isinstance(connection, Connection)
            connection.look()

    def make_room(self, newcomer: "Connection") -> None:
        """Where there is one too many, end the one that has had no call for the longest time."""
        if len(self.connections) <= self._most:
            return
        oldest = next(iter(self.without_call))
        if oldest is newcomer:
            newcomer.refuse_for_want_of_room()
        else:
            oldest.end("full")
            self.connections.discard(oldest)


class Connection(HttpToolsProtocol):
    """One connection, as a protocol of asyncio and as the parser's target."""

    server_state: Connections

    def __init__(
        self,
        config: Config,
        server_state: Connections,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings = server_state.settings
        self._stage = Stage.HEADERS
        self._age = 0
        # Bytes of headers, or around the bytes of a body, since the last that were of use.
        self._overhead = 0
        # What waited for the client, and for how many looks it has taken too little of that.
        self._left: int | None = None
        self._unread_age = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The connection is there."""
        super().connection_made(transport)
        self._enter(Stage.HEADERS)
        self.server_state.make_room(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.server_state.without_call.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._stage is Stage.DEAF:
            return
        if self._stage is Stage.IDLE:
            self._enter(Stage.HEADERS)
        self._overhead += len(data)
        super().data_received(data)
        if self._overhead > self._settings.max_header_bytes:
            self._refuse_overhead()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if self._stage is Stage.ANSWER:
            # Before the last one has its answer. Whoever does that must send it again where the
            # connection ends; and one that waited here would keep the one at work from hearing
            # that the client leaves.
            self._listen_no_more()
        elif self._stage is not Stage.DEAF:
            if self._stage is Stage.IDLE:
                self._enter(Stage.HEADERS)
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        if self._stage is Stage.HEADERS:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; those behind a body do not count."""
        if self._stage is Stage.HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """All headers are there: a call begins."""
        if self._stage is not Stage.HEADERS:
            return
        length = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if length > self._settings.max_header_bytes:
            self._refuse_overhead()
        elif self.parser.should_upgrade() and _have_body(self.headers):
            # The parser would take the body for the other protocol.
            message = "this server speaks HTTP/1.1 only: send the call without the header Upgrade"
            self._refuse(400, invalid_request(message, "invalid_http"))
        else:
            super().on_headers_complete()
            self._enter(Stage.BODY)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self._stage is Stage.BODY:
            self._overhead = 0
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._stage is Stage.BODY:
            super().on_message_complete()
            self._enter(Stage.IDLE if self.cycle.response_complete else Stage.ANSWER)

    def on_response_complete(self) -> None:
        """The answer has been written."""
        if self._stage is Stage.ANSWER:
            self._enter(Stage.IDLE)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """The parser does not understand what comes."""
        self._refuse(400, invalid_request("this is no HTTP request", "invalid_http"))

    def _unsupported_upgrade_warning(self) -> None:
        # The call is answered as it is; the parser takes no other one after it.
        self._listen_no_more()

    def look(self) -> None:
        """End the connection if its client takes too long; called once a second."""
        self._age += 1
        if self._is_unread():
            self.end("unread")
        elif self._stage is Stage.HEADERS and self._age > self._settings.header_seconds:
            if not self._overhead:
                return self.end("headers")
            self._count("headers")
            message = f"the headers did not come within {self._settings.header_seconds:g} seconds"
            self._refuse(408, invalid_request(message, "request_timeout"))
        elif (
            self._stage is Stage.BODY
            and self._age > self._settings.body_seconds
            and self.cycle.response_complete  # else the rest is waited for, which is answered first
        ):
            self.end("body")
        return None

    def end(self, why: str) -> None:
        """End the connection at once."""
        self._count(why)
        self._listen_no_more()
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def refuse_for_want_of_room(self) -> None:
        """Answer that there are too many connections."""
        self._count("full")
        message = "the server has all the connections that it can have: try again later"
        kind, code = "overloaded", "too_many_connections"
        self._refuse(503, ErrorDetail(type=kind, message=message, param=None, code=code))

    def _enter(self, stage: Stage) -> None:
        self._stage, self._age, self._overhead = stage, 0, 0
        self.server_state.without_call.pop(self, None)
        if stage in (Stage.HEADERS, Stage.IDLE):
            self.server_state.without_call[self] = None

    def _listen_no_more(self) -> None:
        self._enter(Stage.DEAF)
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def _count(self, why: str) -> None:
        self.server_state.ended.labels(why).inc()
        _log.info("a connection of %s was ended: %s", self.client and self.client[0], why)

    def _refuse_overhead(self) -> None:
        most = self._settings.max_header_bytes
        message = f"the headers have more than {most} bytes"
        self._refuse(431, invalid_request(message, "headers_too_large"))

    def _refuse(self, status: int, detail: ErrorDetail) -> None:
        """Read no more: it is the client's fault. If that was no call yet, tell it so."""
        stage = self._stage
        if stage is Stage.DEAF:
            return
        self._listen_no_more()
        if stage is Stage.BODY:
            # Whoever waits for the rest of it hears that the client is gone.
            self.transport.abort()
        elif stage is Stage.HEADERS:
            response = answer(status, detail, {"Connection": "close"})
            lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
            lines += [b"%b: %b" % header for header in response.raw_headers]
            self.transport.write(b"\r\n".join([*lines, b"", bytes(response.body)]))
            self.transport.close()

    def _is_unread(self) -> bool:
        """Whether the client has taken too little, for too long, of what waits for it."""
        grows = not (
            self.flow.write_paused
            or self.transport.is_closing()
            or self.cycle is None
            or self.cycle.response_complete
        )
        waiting = self.transport.get_write_buffer_size()
        if grows or not waiting:
            self._left = None
            return False
        left = waiting + _in_kernel(self.transport)
        self._unread_age += 1
        if self._left is None or self._left - left >= LEAST_READ:
            self._left, self._unread_age = left, 0
        return self._unread_age > self._settings.unread_seconds


def _have_body(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in headers)


def _in_kernel(transport: asyncio.Transport) -> int:
    """Bytes that the system has taken, and the client not yet."""
    handle = transport.get_extra_info("socket").fileno()
    (count,) = struct.unpack("i", fcntl.ioctl(handle, termios.TIOCOUTQ, bytes(4)))
    return int(count)


def _files(wanted: int) -> int:
    """How many files may be open: so many and more for other things, if the system allows that."""
    wanted += OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft
