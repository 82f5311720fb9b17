"""What clients make of the lines of a stream, and of one that is over; no server."""

from collections.abc import Callable

import httpx
import pytest

from bytelm_client import AsyncClient, BadAnswer, Client, Closed, ConnectionLost, ServerFailed

EVENT = b'data: {"index":0,"sample":0,"bytes":{"text":"he","base64":"aGU="}}\n\n'
LAST = (
    b'data: {"index":0,"sample":0,"bytes":{"text":"y","base64":"eQ=="},"logprob":null,'
    b'"finish_reason":"steps","usage":{"bytes_in":0,"bytes_out":3,"evaluations":1}}\n\n'
)
FAILED = (
    b'data: {"error":{"type":"internal_error","message":"it broke","param":null,"code":"x"}}\n\n'
)
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

Answering = Callable[[bytes], Client]


@pytest.fixture
def answering() -> Answering:
    def client(body: bytes) -> Client:
        transport = httpx.MockTransport(lambda request: httpx.Response(200, content=body))
        return Client("http://nowhere", http=httpx.Client(transport=transport), retries=0)

    return client


def test_pings_on_quiet_streams_are_no_events(answering: Answering) -> None:
    lines = [PING, b":\n\n", EVENT, PING, b"event: message\n", LAST, b"retry: 5\n\n", PING, DONE]
    stream = answering(b"".join([*lines, PING])).stream_greedy("x", 3)
    assert list(stream) == [b"he", b"y"]
    assert stream.result.text == "hey"


def test_a_text_that_says_done_is_a_text(answering: Answering) -> None:
    done = EVENT.replace(b"aGU=", b"W0RPTkVd")
    assert list(answering(done + LAST + DONE).stream_greedy("x", 3)) == [b"[DONE]", b"y"]
    # Only as data does it end a stream.
    assert list(answering(b"[DONE]\n\n" + EVENT + LAST + DONE).stream_greedy("x", 3)) == [
        b"he",
        b"y",
    ]


def test_a_stream_that_was_read_has_no_more(answering: Answering) -> None:
    stream = answering(EVENT + LAST + DONE).stream_greedy("x", 3)
    assert list(stream) == [b"he", b"y"]
    assert list(stream) == []
    stream.close()
    assert list(stream) == []
    assert stream.result.text == "hey"


@pytest.mark.parametrize(
    ("body", "kind", "told"),
    [
        (EVENT + FAILED + DONE, ServerFailed, "it broke"),
        (EVENT, ConnectionLost, "broke after 2 bytes"),
        (EVENT + b"data: nonsense\n\n", BadAnswer, "not understood"),
    ],
)
def test_a_stream_that_failed_fails_again(
    answering: Answering, body: bytes, kind: type[Exception], told: str
) -> None:
    stream = answering(body).stream_greedy("x", 3)
    assert next(stream) == b"he"
    for _ in range(3):
        with pytest.raises(kind, match=told):
            list(stream)
        stream.close()
    assert stream.received == b"he"
    with pytest.raises(ValueError, match=told):
        _ = stream.result


@pytest.mark.parametrize("read", [0, 1])
def test_a_stream_that_was_left_says_so(answering: Answering, read: int) -> None:
    with answering(EVENT + LAST + DONE).stream_greedy("x", 3) as stream:
        for _ in range(read):
            next(stream)
    for _ in range(2):
        with pytest.raises(Closed, match=f"left after {2 * read} bytes"):
            list(stream)
    with pytest.raises(ValueError, match="left after"):
        _ = stream.result


async def test_so_says_an_awaited_one() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=EVENT + FAILED))
    client = AsyncClient("http://nowhere", http=httpx.AsyncClient(transport=transport), retries=0)
    async with client, client.stream_greedy("x", 3) as stream:
        assert await anext(stream) == b"he"
        for _ in range(2):
            with pytest.raises(ServerFailed):
                await anext(stream)
    left = client.stream_greedy("x", 3)
    await left.aclose()
    with pytest.raises(Closed):
        _ = [piece async for piece in left]


def test_what_a_caller_raises_leaves_the_stream(answering: Answering) -> None:
    stream = answering(EVENT + LAST + DONE).stream_greedy("x", 3)

    def interrupted() -> None:
        with stream:
            next(stream)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(Closed):
        next(stream)
