"""Streams that move a session: its handle says what the server says, whatever goes on beside."""

import asyncio
import contextlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bytelm_client import AsyncClient, AsyncSession, Client, Conflict, ConnectionLost, Session
from bytelm_client.results import SessionInfo
from tests.server.proxy import proxy_to


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture
def session(client: Client) -> Iterator[Session]:
    with client.session("hello") as session:
        yield session


def standing(info: SessionInfo) -> tuple[int, int]:
    return info.version, info.length


def test_a_stream_takes_the_session_along(client: Client, session: Session) -> None:
    want = client.greedy("hello", 30).bytes
    stream = session.stream_greedy(30)
    first = next(stream)
    assert session.length == 5 + len(first)
    assert first + b"".join(stream) == want
    assert (session.version, session.length) == standing(session.refresh())
    drawn = b"".join(session.stream_sample(9, seed=1, advance=False))
    assert session.length == 35
    assert drawn


async def test_other_calls_during_a_stream_do_not_count_twice(url: str) -> None:
    async with AsyncClient(url) as client, client.session("hello") as session:
        stream = session.stream_greedy(30)
        first = await anext(stream)
        assert session.length == 5 + len(first)
        await session.next()  # when the stream is over on the server
        assert (session.version, session.length) == standing(await session.refresh())
        at_the_end = session.info
        assert len(b"".join([first, *[piece async for piece in stream]])) == 30
        assert session.info == at_the_end
        await session.advance("x", if_version=session.version)
        assert session.length == 36


def test_a_stream_that_is_left_tells_where_its_session_stands(client: Client) -> None:
    for _ in range(5):
        with client.session("hello") as session:
            with session.stream_greedy(60) as stream:
                made = next(stream)
            assert session.length >= 5 + len(made)
            session.advance("x", if_version=session.version)
            with session.stream_greedy(3, advance=False) as stream:
                next(stream)
            assert (session.version, session.length) == standing(session.refresh())


async def test_so_does_a_cancelled_one(url: str) -> None:
    async with AsyncClient(url) as client, client.session("hello") as session:

        async def read() -> None:
            async with session.stream_greedy(60) as stream:
                async for _ in stream:
                    begun.set()
                    await asyncio.sleep(60)

        begun = asyncio.Event()
        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await session.advance("x", if_version=session.version)
        assert (session.version, session.length) == standing(await session.refresh())


async def use(
    client: AsyncClient, session: AsyncSession, dice: random.Random, seen: list[int]
) -> None:
    """Calls of all kinds; what the session says of itself never goes back."""
    for _ in range(8):
        match dice.randrange(8):
            case 0:
                await session.advance(b"a" * dice.randrange(1, 4))
            case 1:
                await session.next()
            case 2:
                async with session.fork("b") as fork:
                    assert fork.length >= 6
            case 3:
                await session.greedy(dice.randrange(1, 4))
            case 4:
                await client.batch([session.plan.advance("z"), session.plan.get()])
            case 5:
                with contextlib.suppress(Conflict):
                    await session.advance("c", if_version=session.version)
            case 6:
                async for _ in session.stream_greedy(dice.randrange(1, 6)):
                    await asyncio.sleep(0)
                    seen.append(session.version)
            case 7:
                async with session.stream_sample(6, seed=1) as stream:
                    await anext(stream, None)
        seen.append(session.version)


@pytest.mark.parametrize("seed", range(4))
async def test_one_handle_under_streams_and_calls_has_the_servers_count(
    url: str, seed: int
) -> None:
    async with AsyncClient(url) as client, client.session("hello") as session:
        seen: list[int] = []
        await asyncio.gather(
            *[use(client, session, random.Random(f"{seed} {i}"), seen) for i in range(6)]
        )
        assert seen == sorted(seen)
        here = session.version, session.length
        assert here == standing(await (await client.resume(session.id)).refresh())


def test_so_has_one_that_threads_share(client: Client, session: Session) -> None:
    def work(number: int) -> None:
        for i in range(6):
            match (number + i) % 3:
                case 0:
                    session.advance(b"a")
                case 1:
                    made.extend(session.stream_greedy(4))
                case 2:
                    session.next()

    made: list[bytes] = []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert (session.version, session.length) == standing(client.resume(session.id).info)
    assert session.length == 5 + 8 + len(b"".join(made))


def test_after_a_broken_stream_the_session_goes_on(url: str, client: Client) -> None:
    want = client.greedy("hello", 45).bytes
    assert len(want) == 45
    with proxy_to(url) as proxy, Client(proxy.url) as shaky, shaky.session("hello") as session:
        resumed = shaky.resume(session.id)
        proxy.cut_stream = True
        stream = resumed.stream_greedy(40)
        with pytest.raises(ConnectionLost):
            list(stream)
        proxy.cut_stream = False
        again = client.resume(session.id)
        # The server may have gone on a little, until it saw that nobody reads.
        made = again.greedy(5).bytes
        end = again.length - len("hello")
        assert 5 <= end <= 45
        assert made == want[end - 5 : end]


def test_a_stream_that_may_have_moved_its_session_is_not_sent_again(
    url: str, client: Client
) -> None:
    want = client.greedy("hello", 40).bytes
    with proxy_to(url) as proxy, Client(proxy.url) as shaky, shaky.session("hello") as session:
        proxy.break_after = 1
        with pytest.raises(ConnectionLost):
            list(session.stream_greedy(9))
        session.refresh()
        made = session.length - len("hello")
        assert 1 <= made <= 9
        assert session.greedy(5).bytes == want[made : made + 5]
        # One that stays where it is may be.
        proxy.break_after = 1
        assert len(b"".join(session.stream_greedy(9, advance=False))) == 9
