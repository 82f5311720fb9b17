"""What a server bears of connections that bring no call, or take no answer."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bytelm_server.keys import KeyFile

HEAD = "POST /v1/greedy HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Raw:
    """A connection whose bytes a test chooses."""

    def __init__(self, url: str) -> None:
        address = httpx.URL(url)
        self.sock = socket.create_connection((address.host, address.port), timeout=60)

    def send(self, data: bytes) -> bool:
        """Whether the server has not closed the connection before."""
        try:
            self.sock.sendall(data)
        except OSError:
            return False
        return True

    def rest(self) -> bytes:
        """All that comes until the server ends the connection."""
        data = bytearray()
        try:
            while piece := self.sock.recv(1 << 16):
                data += piece
        except ConnectionResetError:
            pass
        return bytes(data)

    def answer(self) -> tuple[int, Any]:
        """The next answer's status and body."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.sock.recv(1)
            assert byte, head
            head += byte
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        )
        body = b""
        while len(body) < length:
            body += self.sock.recv(length - len(body))
        return int(head.split()[1]), json.loads(body)

    def drip(self, piece: bytes) -> int:
        """Send it every now and then until the server ends the connection; how often that was."""
        self.sock.settimeout(0.1)
        for count in range(1000):
            if not self.send(piece):
                return count
            try:
                if not self.sock.recv(1 << 16):
                    return count
            except TimeoutError:
                continue
            except ConnectionResetError:
                return count
        raise AssertionError("the server bears it forever")


@pytest.fixture
def raw() -> Iterator[Callable[[str], Raw]]:
    made: list[Raw] = []

    def connect(url: str) -> Raw:
        made.append(Raw(url))
        return made[-1]

    yield connect
    for one in made:
        one.sock.close()


@pytest.fixture(scope="module")
def hasty(start_stub: Callable[..., str]) -> str:
    """A server that waits for nobody for long."""
    names = ("header_seconds", "body_seconds", "unread_seconds", "keep_alive_seconds")
    return start_stub(*(part for name in names for part in ("--set", f"{name}=2")))


def count(url: str, name: str) -> float:
    """A metric's value."""
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), 0.0)


def ended(url: str, why: str) -> float:
    return count(url, f'bytelm_connections_ended_total{{why="{why}"}}')


@pytest.mark.parametrize(
    "piece", [b"a: " + b"b" * 1000 + b"\r\n", b"c" * 1000], ids=["many headers", "one header"]
)
def test_headers_that_never_end_are_not_read(
    url: str, raw: Callable[[str], Raw], piece: bytes
) -> None:
    connection = raw(url)
    connection.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\nx: ")
    sent = 0
    while sent < 60_000_000 and connection.send(piece * 64):
        sent += len(piece) * 64
    # What the system's buffers held beside.
    assert sent < 30_000_000
    assert httpx.get(f"{url}/health", timeout=60).status_code == 200


@pytest.mark.parametrize("limit", [8 << 10, 32 << 10])
def test_headers_that_are_too_large_are_refused(
    start_stub: Callable[..., str], raw: Callable[[str], Raw], limit: int
) -> None:
    url = start_stub("--set", f"max_header_bytes={limit}")
    for large in (
        f"GET /health?{'q' * limit} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        f"GET /health HTTP/1.1\r\nHost: localhost\r\nx: {'y' * limit}\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: localhost\r\n" + "x: y\r\n" * (limit // 2) + "\r\n",
    ):
        connection = raw(url)
        connection.send(large.encode())
        status, body = connection.answer()
        assert (status, body["error"]["code"]) == (431, "headers_too_large")
        assert connection.rest() == b""
    with httpx.Client(base_url=url) as http:
        for _ in range(3):  # what one request has does not count for the next
            fits = {"x": "y" * (limit - 500)}
            assert http.get("/health", headers=fits).status_code == 200


def test_what_is_no_http_is_answered_in_the_one_shape(url: str, raw: Callable[[str], Raw]) -> None:
    connection = raw(url)
    connection.send(b"what is this?\r\n\r\n")
    status, body = connection.answer()
    assert (status, body["error"]["code"]) == (400, "invalid_http")
    assert connection.rest() == b""


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
def test_a_wish_for_another_protocol_is_not_heard(
    url: str, raw: Callable[[str], Raw], protocol: str
) -> None:
    wish = f"Connection: Upgrade\r\nUpgrade: {protocol}\r\n"
    connection = raw(url)
    connection.send(GET[:-2] + f"{wish}\r\n".encode() + GET)
    assert connection.answer()[0] == 200
    assert connection.rest() == b""  # what follows would not be understood
    connection, body = raw(url), '{"context": "the", "steps": 2}'
    connection.send(f"{HEAD}{wish}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    status, said = connection.answer()
    assert (status, said["error"]["code"]) == (400, "invalid_http")
    assert "Upgrade" in said["error"]["message"]
    assert connection.rest() == b""


@pytest.mark.parametrize(
    "before", [b"", GET], ids=["on a new connection", "behind an answered call"]
)
def test_headers_that_do_not_come_are_not_waited_for(
    hasty: str, raw: Callable[[str], Raw], before: bytes
) -> None:
    connection = raw(hasty)
    if before:
        connection.send(before)
        assert connection.answer()[0] == 200
    connection.send(b"GET /health HTTP/1.1\r\nHost: localh")
    status, body = connection.answer()
    assert (status, body["error"]["code"]) == (408, "request_timeout")
    assert connection.rest() == b""


@pytest.mark.parametrize("piece", [b"x", b"\r\n", b"x: y\r\n"])
def test_bytes_that_come_one_by_one_are_not_waited_for(
    hasty: str, raw: Callable[[str], Raw], piece: bytes
) -> None:
    connection = raw(hasty)
    if piece != b"\r\n":
        connection.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\nx: ")
    assert connection.drip(piece) < 1000


def test_a_connection_without_a_call_is_not_kept(hasty: str, raw: Callable[[str], Raw]) -> None:
    assert raw(hasty).rest() == b""
    connection = raw(hasty)
    connection.send(GET)
    assert connection.answer()[0] == 200
    assert connection.rest() == b""


def test_empty_lines_keep_no_connection(hasty: str, raw: Callable[[str], Raw]) -> None:
    connection = raw(hasty)
    connection.send(GET)
    assert connection.answer()[0] == 200
    assert connection.drip(b"\r\n") < 1000


def test_a_body_that_comes_byte_by_byte_is_not_waited_for(
    hasty: str, raw: Callable[[str], Raw]
) -> None:
    connection = raw(hasty)
    connection.send(f"{HEAD}Content-Length: 10000\r\n\r\n".encode())
    assert connection.drip(b" ") < 1000
    connection = raw(hasty)
    connection.send(f"{HEAD}Content-Length: 10000\r\n\r\n{{".encode())
    assert connection.answer()[0] == 408
    assert connection.rest() == b""


def test_nobody_without_a_key_has_a_connection_for_long(
    start_stub: Callable[..., str], raw: Callable[[str], Raw], tmp_path: Path
) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    keys.create("somebody")
    url = start_stub("--set", f"keys_file={keys.path}", "--set", "body_seconds=1")
    connection = raw(url)
    connection.send(f"{HEAD}Content-Length: 10000\r\n\r\n".encode())
    assert connection.answer()[0] == 401
    assert connection.drip(b" ") < 1000


@pytest.mark.parametrize(
    "piece", [b"z" * 1000, b"z: " + b"z" * 1000 + b"\r\n"], ids=["one trailer", "many trailers"]
)
def test_what_is_around_a_body_is_bounded(
    url: str, raw: Callable[[str], Raw], piece: bytes
) -> None:
    for begin in (b"1;x=", b"0\r\nx: "):
        connection = raw(url)
        connection.send(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode() + begin)
        sent = 0
        while sent < 60_000_000 and connection.send(piece * 64):
            sent += len(piece) * 64
        assert sent < 30_000_000


def test_trailers_are_no_headers(url: str, raw: Callable[[str], Raw]) -> None:
    connection = raw(url)
    body = b'{"context": "the", "steps": 2}'
    connection.send(
        f"{HEAD}Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n".encode()
        + body
        + b"\r\n0\r\nX-Request-ID: trailer\r\n\r\n"
    )
    assert connection.answer()[0] == 200
    connection.send(GET)
    assert connection.answer()[0] == 200


def test_one_connection_too_many_ends_the_one_that_had_no_call_for_longest(
    start_stub: Callable[..., str], raw: Callable[[str], Raw]
) -> None:
    url = start_stub("--set", "max_connections=4")
    first, *others = (raw(url) for _ in range(4))
    for one in (first, *others):
        one.send(GET)
        assert one.answer()[0] == 200
    first.send(GET)
    assert first.answer()[0] == 200
    flood = [raw(url) for _ in range(50)]
    for one in others:
        assert one.rest() == b""
    flood[-1].send(GET)
    assert flood[-1].answer()[0] == 200
    assert ended(url, "full") >= 50


def test_where_all_connections_have_calls_one_more_is_refused(
    start_stub: Callable[..., str],
    raw: Callable[[str], Raw],
    until: Callable[[Callable[[], bool]], None],
) -> None:
    url = start_stub("--set", "max_connections=3")
    httpx.post(f"{url}/test/delay", params={"value": 0.05})
    body = '{"context": "hello", "steps": 60, "beam": {"K": 1}}'
    busy = [raw(url) for _ in range(2)]
    for one in busy:
        one.send(f"{HEAD}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    with httpx.Client(base_url=url, timeout=60) as http:
        until(lambda: "bytelm_calls_running 2.0" in http.get("/metrics").text)
        third = raw(url)  # the other client's connection has no call now
        third.send(f"{HEAD}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        with raw(url).sock as fourth:
            fourth.settimeout(60)
            try:
                said = fourth.recv(1000)
            except ConnectionResetError:
                said = b""
    assert said == b"" or b"too_many_connections" in said
    for one in (*busy, third):
        assert one.answer()[0] == 200


def test_a_request_before_the_answer_to_the_last_is_not_taken(
    own: httpx.Client,
    raw: Callable[[str], Raw],
    until: Callable[[Callable[[], bool]], None],
) -> None:
    own.post("/test/delay", params={"value": 0.05})
    url, body = str(own.base_url), '{"context": "hello", "steps": 60, "beam": {"K": 1}}'
    call = f"{HEAD}Content-Length: {len(body)}\r\n\r\n{body}".encode()
    connection = raw(url)
    connection.send(call + GET * 20_000)
    assert connection.answer()[0] == 200
    assert connection.rest() == b""
    # Nor does it hide that the client leaves.
    connection = raw(url)
    connection.send(call + GET)
    until(lambda: "bytelm_calls_running 1.0" in own.get("/metrics").text)
    connection.sock.close()
    until(lambda: "bytelm_calls_running 0.0" in own.get("/metrics").text)


def reluctant(url: str, path: str, body: dict[str, Any]) -> socket.socket:
    """A connection that has made a call, for whose answer there is little room on the way."""
    address, data = httpx.URL(url), json.dumps(body).encode()
    sock = socket.socket()
    # The server's buffer follows the size of segments, which are large inside a machine.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(60)
    sock.connect((address.host, address.port))
    head = HEAD.replace("/v1/greedy", path)
    sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return sock


ROWS = {"contexts": [f"{i} " for i in range(39)], "beam": {"K": 1}}


def test_an_answer_that_nobody_reads_is_thrown_away(
    hasty: str, until: Callable[[Callable[[], bool]], None]
) -> None:
    before = ended(hasty, "unread")
    with reluctant(hasty, "/v1/next_bytes", ROWS):
        until(lambda: ended(hasty, "unread") == before + 1)


def test_an_answer_that_is_read_late_is_whole(url: str) -> None:
    with reluctant(url, "/v1/next_bytes", ROWS) as sock:
        time.sleep(2)
        data = b""
        while b'"usage"' not in data:
            data += sock.recv(1 << 16)
    assert len(json.loads(data.partition(b"\r\n\r\n")[2])["results"]) == 39


def test_a_stream_that_nobody_reads_ends(
    start_stub: Callable[..., str], until: Callable[[Callable[[], bool]], None]
) -> None:
    many = ("max_contexts", "max_results", "max_total_steps", "max_body_bytes")
    url = start_stub(
        *("--set", "unread_seconds=1"), *(p for name in many for p in ("--set", f"{name}=1000000"))
    )
    # Its events cost little, and are more than all buffers on the way hold.
    wide = {"contexts": ["hello", *[{"base64": "!"}] * 6000], "steps": 2}
    with reluctant(url, "/v1/greedy", {**wide, "stream": True}):
        until(lambda: ended(url, "unread") == 1)
        until(lambda: count(url, "bytelm_requests_in_progress") == 1)
    assert count(url, "bytelm_streams_unread") == count(url, "bytelm_calls_running") == 0
    assert count(url, "bytelm_callers") == 0
