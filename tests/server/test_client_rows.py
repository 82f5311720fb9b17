"""Rows of both clients, and what happens to them on connections that break."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from bytelm.models.logprobs import EOS
from bytelm_client import (
    EOS_INDEX,
    AsyncClient,
    Client,
    Conflict,
    ConnectionLost,
    InvalidRequest,
    NotReady,
)
from tests.server.proxy import proxy_to

TEXT = b"the ant and \xc3\xa9" * 5


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture
def slow(start_stub: Callable[..., str]) -> str:
    """A server of one's own that takes its time for each evaluation."""
    url = start_stub()
    httpx.post(f"{url}/test/delay", params={"value": 0.1})
    return url


async def test_rows_are_the_librarys(client: Client, begun: Any) -> None:
    rows = client.rows("he ", TEXT, beam={"K": 4}, prefill="exact")
    state = await begun(b"he ", mode="exact", K=4)
    want = np.array([q.ps async for q in state.rows(TEXT)])
    assert rows.shape == (len(TEXT) + 1, 257)
    assert rows.dtype == np.float32
    assert np.array_equal(rows[:, :256], want[:, :256].astype(np.float32))
    assert np.array_equal(rows[:, EOS_INDEX], want[:, EOS].astype(np.float32))


def test_a_row_is_what_next_bytes_gives(client: Client) -> None:
    (row,) = client.rows("he", b"")
    assert np.array_equal(row, client.next_bytes("he").logprobs.astype(np.float32))


async def test_both_clients_and_both_ways_read_the_same(url: str, client: Client) -> None:
    want = client.rows("he", TEXT, dtype="float16")
    assert want.dtype == np.float16
    pieces = list(client.stream_rows("he", TEXT, dtype="float16"))
    assert len(pieces) > 1
    assert np.array_equal(np.concatenate(pieces), want)
    async with AsyncClient(url) as other:
        assert np.array_equal(await other.rows("he", TEXT, dtype="float16"), want)
        told = [piece async for piece in other.stream_rows("he", TEXT, dtype="float16")]
    assert np.array_equal(np.concatenate(told), want)


def test_rows_before_what_cannot_follow_are_there(start_stub: Callable[..., str]) -> None:
    client = Client(start_stub("--letters"))
    have: list[Any] = []

    def read() -> None:
        for rows in client.stream_rows("he", "llo\0"):
            have.extend(rows)

    with pytest.raises(InvalidRequest, match=r"^byte 3 \(0x00\) is in no token") as error:
        read()
    assert (error.value.code, error.value.param) == ("no_continuation", "text")
    assert error.value.request_id
    assert len(have) == 4
    with pytest.raises(InvalidRequest):
        client.rows("he", "llo\0")


def test_what_is_refused_is_raised_at_the_first_row(client: Client) -> None:
    for call in (client.rows, lambda *given: next(client.stream_rows(*given))):
        with pytest.raises(InvalidRequest) as error:
            call("he", "x" * 2000)
        assert (error.value.status, error.value.code) == (400, "limit_exceeded")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_rows_are_asked_for_again_where_the_connection_breaks(
    url: str, kind: type[Any]
) -> None:
    want = Client(url).rows("he", TEXT)
    with proxy_to(url) as proxy:
        proxy.break_before, proxy.break_after = 1, 1
        client = kind(proxy.url)
        have = client.rows("he", TEXT)
        have = have if kind is Client else await have
        assert proxy.connections == 3
    assert np.array_equal(have, want)


def test_rows_that_break_off_are_asked_for_again_and_streams_are_not(slow: str) -> None:
    text = "abcdefghijklm"
    want = Client(slow).rows("he", text)
    with proxy_to(slow) as proxy:
        proxy.cut_stream = True
        have: list[Any] = []

        def read() -> None:
            for rows in Client(proxy.url).stream_rows("he", text):
                have.extend(rows)

        with pytest.raises(ConnectionLost, match=r"broke after [01] rows"):
            read()
        assert np.array_equal(have, want[: len(have)].reshape(np.shape(have)))
        assert proxy.connections == 1
        with pytest.raises(ConnectionLost):
            Client(proxy.url, retries=1).rows("he", text)
        assert proxy.connections == 3


def test_an_engine_that_dies_in_the_middle_is_told(slow: str) -> None:
    pieces = Client(slow).stream_rows("he", "abcdefghijklm")
    next(pieces)
    httpx.post(f"{slow}/test/die")
    with pytest.raises(NotReady):
        list(pieces)


def test_a_stream_of_rows_that_is_left_ends_the_work(
    slow: str, until: Callable[[Callable[[], bool]], None]
) -> None:
    def evaluations() -> int:
        return int(httpx.get(f"{slow}/test/evaluations").json())

    def still() -> bool:
        before = evaluations()
        time.sleep(0.3)
        return evaluations() == before

    pieces = Client(slow).stream_rows("he", "abcdefghijklmno")
    next(pieces)
    begun = evaluations()
    pieces.close()
    until(still)
    assert evaluations() < begun + 15


async def test_a_session_moves_on_behind_its_rows(url: str, client: Client) -> None:
    with client.session("he ") as session, client.session("he ") as other:
        looked = session.rows(TEXT, advance=False)
        assert np.array_equal(looked, client.rows("he ", TEXT))
        assert (session.version, session.length) == (1, 3)
        first = session.rows(TEXT, if_version=1)
        assert np.array_equal(first, looked)
        assert (session.version, session.length) == (2, 3 + len(TEXT))
        assert np.array_equal(first[-1], session.next().logprobs.astype(np.float32))
        pieces = list(other.stream_rows(TEXT, dtype="float16"))
        assert np.array_equal(np.concatenate(pieces), client.rows("he ", TEXT, dtype="float16"))
        assert (other.version, other.length) == (2, 3 + len(TEXT))
        with pytest.raises(Conflict):
            session.rows(TEXT, if_version=1)
    with client.session("he", kind="token") as tokens, pytest.raises(TypeError):
        tokens.rows(b"a")
    async with AsyncClient(url) as awaited, awaited.session("he ") as session:
        assert np.array_equal(await session.rows(TEXT), first)
        assert session.version == 2


def test_rows_move_a_session_once_whatever_breaks(slow: str) -> None:
    with proxy_to(slow) as proxy:
        session = Client(proxy.url).session("he")
        want = session.rows("abc", advance=False)
        proxy.break_before, proxy.break_after = 1, 1
        connections = proxy.connections
        assert np.array_equal(session.rows("abc"), want)
        assert proxy.connections - connections >= 2
        assert (session.version, session.refresh().version) == (2, 2)
        proxy.cut_stream = True
        with pytest.raises(ConnectionLost):
            list(session.stream_rows("abcdefghijk"))
        proxy.cut_stream = False
        assert session.refresh().version == 2
