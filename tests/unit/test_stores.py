"""The stores of sessions: the laws of all, and what is SQLite's own."""

import asyncio
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bytelm.errors import InputError
from bytelm.settings import ServerSettings
from bytelm_server.stores import Full, SessionStore
from bytelm_server.stores.chosen import store_of
from bytelm_server.stores.memory import MemoryStore
from bytelm_server.stores.sqlite import SqliteStore, StoreError, StoreInUse
from tests.unit.store_laws import LAWS, NOW, record

MOST = 8


@asynccontextmanager
async def opened(store: SessionStore) -> AsyncIterator[SessionStore]:
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_law(kind: str, law: Callable[..., Awaitable[None]], tmp_path: Path) -> None:
    store = MemoryStore(MOST) if kind == "memory" else SqliteStore(tmp_path / "s.sqlite", MOST)
    async with opened(store):
        await law(store, NOW)


async def test_a_file_has_everything_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "s.sqlite"
    first = record("a", NOW)
    async with opened(SqliteStore(path, 2)) as store:
        await store.create(first, None, NOW)
        grown = record("a", NOW, version=2, trunk=first.trunk + b"more")
        await store.commit(grown, 1, len(first.trunk), None)
        await store.create(record("b", NOW), None, NOW)
    async with opened(SqliteStore(path, 2)) as store:
        assert await store.load("a") == grown
        with pytest.raises(Full):
            await store.create(record("c", NOW), None, NOW)


async def test_it_is_written_before_the_call_returns(tmp_path: Path) -> None:
    """Another connection sees it, as the next process will."""
    path = tmp_path / "s.sqlite"
    async with opened(SqliteStore(path, MOST)) as store:
        await store.create(record("a", NOW), None, NOW)
        await store.commit(record("a", NOW, version=2), 1, 0, None)
        with sqlite3.connect(path) as db:
            assert db.execute("SELECT version FROM sessions").fetchall() == [(2,)]
        db.close()


async def test_changes_at_the_same_time_are_one_transaction(tmp_path: Path) -> None:
    async with opened(SqliteStore(tmp_path / "s.sqlite", 100)) as store:
        assert isinstance(store, SqliteStore)
        begun = []
        assert store._writer._db is not None
        await store._writer._db.set_trace_callback(
            lambda sql: begun.append(sql) if sql.startswith("BEGIN") else None
        )
        await asyncio.gather(*(store.create(record(f"a{i}", NOW), None, NOW) for i in range(50)))
        # The first one may have been begun before the others came.
        assert 1 <= len(begun) <= 2
        assert await store.count(NOW) == 50


async def test_a_version_writes_what_is_new_only(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    trunk = b"x" * 100_000
    async with opened(SqliteStore(path, MOST)) as store:
        await store.create(record("a", NOW, trunk=trunk), None, NOW)
        for version in range(2, 6):
            after = record("a", NOW, version=version, trunk=trunk + b"y" * (version - 1))
            await store.commit(after, version - 1, len(after.trunk) - 1, None)
        assert await store.load("a") == after
        with sqlite3.connect(path) as db:
            sizes = db.execute("SELECT length(data) FROM trunks ORDER BY part").fetchall()
        db.close()
    assert sizes == [(100_000,), (1,), (1,), (1,), (1,)]


async def test_a_file_may_be_full(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.sqlite", MOST, most_bytes=200_000)
    async with opened(store):
        small, big = record("a", NOW), b"x" * 400_000
        await store.create(small, None, NOW)
        outcomes = await asyncio.gather(
            store.create(record("b", NOW, trunk=big), None, NOW),
            store.create(record("c", NOW), None, NOW),
            store.commit(record("a", NOW, version=2, trunk=big), 1, 0, None),
            return_exceptions=True,
        )
        # What is too large fails alone, and leaves nothing behind.
        assert [type(o) for o in outcomes] == [Full, type(None), Full]
        assert await store.load("a") == small
        assert await store.load("b") is None
        assert await store.load("c") == record("c", NOW)


async def test_closing_writes_what_waits(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.sqlite", 100)
    await store.open()
    waiting = [
        asyncio.create_task(store.create(record(f"a{i}", NOW), None, NOW)) for i in range(30)
    ]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*waiting)
    async with opened(SqliteStore(tmp_path / "s.sqlite", 100)) as again:
        assert await again.count(NOW) == 30


async def test_a_file_belongs_to_one_process(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    store = SqliteStore(path, MOST)
    with pytest.raises(StoreInUse, match="another server"):
        SqliteStore(path, MOST)
    await store.close()
    await SqliteStore(path, MOST).close()


def test_a_file_is_free_when_its_process_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    program = (
        "import sys; from pathlib import Path; from bytelm_server.stores.sqlite import SqliteStore;"
        "store = SqliteStore(Path(sys.argv[1]), 8); print('has it', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"has it\n"
        with pytest.raises(StoreInUse):
            SqliteStore(path, MOST)
        process.kill()
    SqliteStore(path, MOST)


def test_only_its_owner_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "own" / "s.sqlite"
    SqliteStore(path, MOST)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_what_is_no_such_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, though long enough to look like one " * 50)
    with sqlite3.connect(tmp_path / "newer") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    for path in (tmp_path / "text", tmp_path / "newer", tmp_path, tmp_path / "text" / "below"):
        with pytest.raises(StoreError) as error:
            SqliteStore(path, MOST)
        assert isinstance(error.value, InputError)
        assert "\n" not in str(error.value)
        assert "--session-store" in str(error.value)


def test_settings_choose_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYTELM_STATE", str(tmp_path))
    assert isinstance(store_of(ServerSettings(session_store="memory")), MemoryStore)
    stores = [
        store_of(ServerSettings(port=8123)),
        store_of(ServerSettings(session_store=str(tmp_path / "mine"))),
        # Servers that take any free port do not get into each other's way.
        store_of(ServerSettings(port=0)),
        store_of(ServerSettings(port=0)),
    ]
    names = [store.path.name for store in stores if isinstance(store, SqliteStore)]
    assert names == [
        "sessions-8123.sqlite",
        "mine",
        "sessions-any-port-0.sqlite",
        "sessions-any-port-1.sqlite",
    ]
    with pytest.raises(StoreInUse):
        store_of(ServerSettings(port=8123))
