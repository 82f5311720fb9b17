"""Sessions in Redis: the laws of all stores, and what is Redis's own."""

import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from bytelm.errors import InputError
from bytelm.settings import ServerSettings
from bytelm_server.errors import Unavailable
from bytelm_server.stores import TOMBSTONE_SECONDS, Changed, Full, Reply, first_format
from bytelm_server.stores.chosen import store_of
from bytelm_server.stores.redis import NoRedis, RedisStore
from tests.scale.conftest import RedisServer
from tests.server.conftest import free_port
from tests.server.proxy import proxy_to
from tests.unit.store_laws import LAWS, a_day_later_it_is_unknown, record
from tests.unit.test_sessions import SMALL, Served, Stopping

MOST = 8
# Redis forgets by its own clock; see below.
ITS_LAWS = [law for law in LAWS if law is not a_day_later_it_is_unknown]


@pytest.fixture
async def store(redis: RedisServer) -> AsyncIterator[RedisStore]:
    store = RedisStore(redis.url, MOST)
    await store.open()
    yield store
    await store.close()


@pytest.mark.parametrize("law", ITS_LAWS, ids=lambda law: law.__name__)
async def test_law(store: RedisStore, law: Callable[..., Awaitable[None]]) -> None:
    await law(store, time.time())


async def test_redis_forgets_a_day_after_the_end(store: RedisStore) -> None:
    now = time.time()
    await store.create(record("a", now, expires_at=now + 10), None, now)
    for _ in range(2):
        left = await store._redis.pttl("bytelm:session:a") / 1000
        assert TOMBSTONE_SECONDS + 5 < left <= TOMBSTONE_SECONDS + 10
        await store.sweep(now + 11)
    await store.create(record("old", now, expires_at=now - TOMBSTONE_SECONDS - 1), None, now)
    assert await store.load("old") is None
    await store.sweep(now)
    assert await store._redis.zrange("bytelm:living", 0, -1) == []


async def test_two_servers_see_one_anothers_changes(redis: RedisServer, store: RedisStore) -> None:
    other = RedisStore(redis.url, MOST)
    now = time.time()
    first = record("a", now)
    await store.create(first, None, now)
    assert await other.load("a") == first
    await other.commit(replace(first, version=2), 1, len(first.trunk), None)
    assert (await store.look("a")).version == 2  # type: ignore[union-attr]
    with pytest.raises(Changed):
        await store.commit(replace(first, version=2, head=b"mine"), 1, len(first.trunk), None)
    assert await store.load("a") == replace(first, version=2)
    await other.close()


async def test_a_redis_without_room_is_full() -> None:
    with tempfile.TemporaryDirectory(prefix="bytelm-redis-") as folder:
        redis = RedisServer(Path(folder))
        redis.start("--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
        store = RedisStore(redis.url, 1000)
        now = time.time()
        first = record("a0", now, trunk=b"x" * 100_000)

        async def fill() -> None:
            for i in range(100):
                await store.create(replace(first, id=f"a{i}"), None, now)

        with pytest.raises(Full):
            await fill()
        assert await store.load("a0") == first
        await store.delete("a0", 1, Reply("r", "r", now + 9, b"x"))
        assert await store.load("a0") is None
        await store.close()
        redis.end()


async def test_a_redis_that_does_not_answer_is_told(redis: RedisServer, store: RedisStore) -> None:
    redis.end()
    with pytest.raises(Unavailable, match="does not answer"):
        await store.load("a")
    redis.start()
    assert await store.load("a") is None


def test_an_address_without_redis_is_refused_in_one_line(redis: RedisServer) -> None:
    for url in (redis.url + "x", "redis://127.0.0.1:1", "redis://localhost:port"):
        with pytest.raises(NoRedis) as error:
            store_of(ServerSettings(session_store=url))
        assert isinstance(error.value, InputError)
        assert "\n" not in str(error.value)
    assert isinstance(store_of(ServerSettings(session_store=redis.url)), RedisStore)


async def test_what_the_first_format_kept_is_read(redis: RedisServer, store: RedisStore) -> None:
    now = time.time()
    await store.create(record("a", now), None, now)
    raw, body = store._redis, orjson.dumps({"request": "r", "answer": 1})
    last = orjson.dumps({"key": "k", "request": "r", "answer": 1})
    await raw.hset("bytelm:session:a", "reply", last)
    await raw.hset("bytelm:reply:named", mapping={"body": body, "expires_at": repr(now + 9)})
    name, _ = first_format.reply_of("me", "a", last)
    for _ in range(2):
        assert await store.reply("a", name, now) == body
        assert await store.reply("a", "another", now) is None
        assert await store.reply("named", "named", now) == body
        assert await store.reply("named", "named", now + 9) is None
        assert await store.create(record("b", now), Reply("x", "named", now, b""), now) == body
        # A change leaves it there.
        seen = await store.look("a")
        assert seen is not None
        await store.commit(record("a", now, version=seen.version + 1), seen.version, 0, None)


async def test_what_redis_may_have_done_is_not_sent_again(redis: RedisServer) -> None:
    redis.end()
    port = free_port()
    redis.start("--port", str(port))
    with proxy_to(f"http://127.0.0.1:{port}") as proxy:
        store = RedisStore(proxy.url.replace("http", "redis"), MOST)
        now = time.time()
        await store.create(record("a", now), None, now)
        await store.commit(record("a", now, version=2), 1, 0, None)  # the script is known now
        proxy.break_after = 1
        with pytest.raises(Unavailable):
            await store.commit(record("a", now, version=3), 2, 0, None)
        proxy.break_after = 0
        found = await store.look("a")
        assert found is not None
        assert found.version in (2, 3)
        await store.close()


async def test_a_redis_that_refuses_to_write_is_told(store: RedisStore) -> None:
    served = Served(Stopping(SMALL), store)
    session_id = await served.create(context="ab")
    await store._redis.config_set("min-replicas-to-write", 1)
    for _ in range(2):
        with pytest.raises(Unavailable, match="failed at this call"):
            await served.advance(session_id, "c")
        assert served.sessions.fault is not None
        await served.sessions.store.look_after()
    assert (await served.calls.look(session_id))["version"] == 1
    await store._redis.config_set("min-replicas-to-write", 0)
    await served.sessions.store.look_after()
    assert served.sessions.fault is None
    assert (await served.advance(session_id, "c"))["version"] == 2
