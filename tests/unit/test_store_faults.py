"""Stores that fail: every call ends, the server tells, and goes on when the store is well again."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiosqlite
import httpx
import pytest

from bytelm.settings import ServerSettings
from bytelm_server.app import create_app
from bytelm_server.errors import Unavailable
from bytelm_server.sessions import bodies
from bytelm_server.stores import SessionStore, sqlite_writer
from bytelm_server.stores.memory import MemoryStore
from bytelm_server.stores.sqlite import SqliteStore
from tests.unit.test_sessions import SMALL, Served, Stopping

HUNG = 60.0
ERRORS = [sqlite3.OperationalError("disk I/O error"), RuntimeError("can't start new thread")]


class Faults:
    """What goes wrong at the statements of SQLite, or at the calls of a store.

    Attributes:
        at: the statement that fails, counted from 1; None while all is well.
        lasting: whether all later ones fail, too.
        error: how.
    """

    def __init__(self) -> None:
        self.at: int | None = None
        self.lasting = False
        self.error: Exception = RuntimeError()
        self.count = 0

    def set(self, at: int, error: Exception, lasting: bool) -> None:
        self.at, self.error, self.lasting, self.count = at, error, lasting, 0

    def step(self) -> None:
        self.count += 1
        if self.at is not None and (
            self.count == self.at or (self.lasting and self.count > self.at)
        ):
            raise self.error


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    made, execute = Faults(), aiosqlite.Connection._execute

    async def failing(self: aiosqlite.Connection, fn: Any, *arguments: Any, **named: Any) -> Any:
        if fn.__name__ != "close":
            made.step()
        return await execute(self, fn, *arguments, **named)

    monkeypatch.setattr(aiosqlite.Connection, "_execute", failing)
    return made


class Faulty(MemoryStore):
    """A store in memory whose calls fail, before or after they are done."""

    def __init__(self, faults: Faults, *, late: bool) -> None:
        super().__init__(100)
        for name in SessionStore.__abstractmethods__ | {"check"}:
            setattr(self, name, self._failing(getattr(self, name), faults, late))

    @staticmethod
    def _failing(
        call: Callable[..., Awaitable[Any]], faults: Faults, late: bool
    ) -> Callable[..., Awaitable[Any]]:
        async def failing(*arguments: Any) -> Any:
            if not late:
                faults.step()
            result = await call(*arguments)
            if late:
                faults.step()
            return result

        return failing


@pytest.fixture(params=["memory", "memory, late", "sqlite"])
async def served(
    request: pytest.FixtureRequest, faults: Faults, tmp_path: Path
) -> AsyncIterator[Served]:
    store: SessionStore
    if request.param == "sqlite":
        store = SqliteStore(tmp_path / "s.sqlite", 100)
    else:
        store = Faulty(faults, late="late" in request.param)
    served = Served(Stopping(SMALL), store)
    await served.sessions.store.open()
    yield served
    faults.at = None
    await served.sessions.store.close()


Op = Callable[[Served, str, str], Awaitable[Any]]


async def create(served: Served, session_id: str, key: str) -> Any:
    return await served.calls.create(bodies.CreateCall(), key)


async def advance(served: Served, session_id: str, key: str) -> Any:
    return await served.advance(session_id, "c", key)


async def fork(served: Served, session_id: str, key: str) -> Any:
    return await served.calls.fork(session_id, bodies.ForkCall(), key)


async def look(served: Served, session_id: str, key: str) -> Any:
    return await served.calls.look(session_id)


async def next_bytes(served: Served, session_id: str, key: str) -> Any:
    return await served.next(session_id)


async def page(served: Served, session_id: str, key: str) -> Any:
    return await served.calls.page("", 9)


async def delete(served: Served, session_id: str, key: str) -> Any:
    return await served.calls.delete(session_id, bodies.DeleteCall(), key)


async def sweep(served: Served, session_id: str, key: str) -> Any:
    return await served.sessions.lives.sweep()


OPS: list[Op] = [create, advance, fork, look, next_bytes, page, delete, sweep]


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("op", OPS)
async def test_every_call_ends_wherever_the_store_fails(
    served: Served, faults: Faults, op: Op, lasting: bool
) -> None:
    for error in ERRORS:
        for at in range(1, 40):
            session_id = await served.create(context="ab")
            served.sessions.held.idle_seconds = 0
            served.sessions.held.drop_idle()  # so that all is read again
            key = f"{at} {error}"
            faults.set(at, error, lasting)
            async with asyncio.timeout(HUNG):
                outcomes = await asyncio.gather(op(served, session_id, key), return_exceptions=True)
            reached = faults.count >= at
            if isinstance(outcomes[0], BaseException):
                assert isinstance(outcomes[0], Unavailable), outcomes
                assert outcomes[0].code == "store_unreachable"
                assert served.sessions.fault is not None
                if lasting:
                    await served.sessions.store.look_after()
                    assert type(error).__name__ in served.sessions.fault
            faults.at = None
            await served.sessions.store.look_after()
            assert served.sessions.fault is None
            # Sent again it is done, and was done once.
            async with asyncio.timeout(HUNG):
                again = await op(served, session_id, key)
            if not isinstance(outcomes[0], BaseException) and op in (create, advance, fork, delete):
                assert again == outcomes[0]
            if op is advance:
                assert (again["version"], again["length"]) == (2, 3)
            elif op is not delete:
                assert (await served.advance(session_id, "c"))["version"] == 2
            if not reached:
                break
        else:
            raise AssertionError("there was no end of statements")
    found = await served.calls.page("", 1000)
    assert len(found["data"]) == await served.sessions.count()


async def test_a_file_counts_its_sessions_whatever_failed(faults: Faults, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.sqlite", 3)
    served = Served(Stopping(SMALL), store)
    await store.open()
    for at in range(1, 12):
        faults.set(at, ERRORS[at % 2], lasting=False)
        outcomes = await asyncio.gather(served.create(), served.create(), return_exceptions=True)
        faults.at = None
        made = await served.sessions.count()
        assert made >= sum(isinstance(outcome, str) for outcome in outcomes)
        for one in (await served.calls.page("", 9))["data"]:
            await served.calls.delete(one["id"], bodies.DeleteCall())
    for _ in range(3):
        await served.create()
    with pytest.raises(Exception, match="no room"):
        await served.create()
    await store.close()


async def test_a_disk_that_hangs_ends_calls_and_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "ANSWER_SECONDS", 0.5)
    store = SqliteStore(tmp_path / "s.sqlite", 9)
    served = Served(Stopping(SMALL), store)
    await store.open()
    session_id = await served.create(context="ab")
    blocker = sqlite3.connect(tmp_path / "s.sqlite", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    async with asyncio.timeout(HUNG):
        with pytest.raises(Unavailable):
            await served.advance(session_id, "c")
    assert served.sessions.fault is not None
    blocker.execute("ROLLBACK")
    blocker.close()
    async with asyncio.timeout(HUNG):
        while served.sessions.fault is not None:
            await served.sessions.store.look_after()
            await asyncio.sleep(0.01)
    version = (await served.calls.look(session_id))["version"]
    assert (await served.advance(session_id, "c"))["version"] == version + 1
    await store.close()


async def test_the_servers_health_tells() -> None:
    settings = ServerSettings(session_store="memory", allowed_hosts="test")
    app = create_app(Stopping(SMALL), settings)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as http,
    ):
        session = (await http.post("/v1/sessions", json={})).json()
        path = f"/v1/sessions/{session['id']}"
        faults = Faults()
        inner = app.state.sessions.store._store
        app.state.sessions.store._store = broken = Faulty(faults, late=False)
        faults.set(1, ERRORS[0], lasting=True)
        for answer in (
            await http.post(f"{path}/advance", json={"bytes": "a"}),
            await http.get(path),
            await http.get("/v1/sessions"),
        ):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "store_unreachable"
            assert "retry-after" in answer.headers
        health = await http.get("/health")
        assert health.status_code == 503
        assert health.json()["status"] == "store_failed"
        assert "OperationalError" in health.json()["reason"]
        # What needs no store is answered.
        greedy = await http.post("/v1/greedy", json={"context": "ab", "steps": 2})
        assert greedy.status_code == 200
        app.state.sessions.store._store = inner
        faults.at = None
        del broken
        async with asyncio.timeout(HUNG):
            while (await http.get("/health")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await http.get("/health")).json() == {"status": "ready"}
        moved = await http.post(f"{path}/advance", json={"bytes": "a"})
        assert moved.json()["version"] == 2
