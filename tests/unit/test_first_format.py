"""Stores that an earlier version wrote are read: sessions go on, and retries are answered."""

import sqlite3
from contextlib import closing
from pathlib import Path

import orjson
import pytest

from bytelm_server.callers import Caller
from bytelm_server.sessions import bodies
from bytelm_server.sessions.replies import Once, digest
from bytelm_server.stores.sqlite import SqliteStore, StoreError
from bytelm_server.stores.sqlite_schema import FORMAT
from tests.unit.store_laws import NOW, record
from tests.unit.test_sessions import SMALL, Served, Stopping

TABLES = """
CREATE TABLE sessions (id TEXT PRIMARY KEY, owner TEXT NOT NULL, version INTEGER NOT NULL,
    ttl REAL NOT NULL, expires_at REAL NOT NULL, living INTEGER NOT NULL, meta BLOB NOT NULL,
    head BLOB NOT NULL, reply BLOB);
CREATE INDEX living_of ON sessions (owner, id) WHERE living;
CREATE INDEX living_until ON sessions (expires_at) WHERE living;
CREATE INDEX dead_since ON sessions (expires_at) WHERE NOT living;
CREATE TABLE trunks (session TEXT NOT NULL, part INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (session, part)) WITHOUT ROWID;
CREATE TABLE replies (name TEXT PRIMARY KEY, expires_at REAL NOT NULL, body BLOB NOT NULL);
CREATE INDEX replies_until ON replies (expires_at);
PRAGMA user_version = 1;
"""


def kept(key: str, call: bodies.AdvanceCall, answer: object) -> bytes:
    """A reply as it was kept with a session."""
    return orjson.dumps({"key": key, "request": digest("advance", call), "answer": answer})


async def test_a_file_of_the_first_format_goes_on(tmp_path: Path) -> None:
    """What a server made in this one is put into a file of that one, as it was there."""
    new, old = tmp_path / "new.sqlite", tmp_path / "old.sqlite"
    served = Served(Stopping(SMALL), SqliteStore(new, 9))
    await served.store.open()
    session_id = await served.create(context="ab")
    call = bodies.AdvanceCall.model_validate({"bytes": "c"})
    moved = await served.calls.advance(session_id, call)
    await served.create(context="abc")
    seen = await served.next(session_id)
    await served.store.close()
    create = bodies.CreateCall.model_validate({"context": "ab"})
    once = Once.of(Caller().key_id, "made", "create", create)
    assert once is not None
    with closing(sqlite3.connect(old)) as db:
        db.executescript(TABLES)
        db.execute("ATTACH ? AS new", (str(new),))
        db.execute("INSERT INTO sessions SELECT *, NULL FROM new.sessions")
        db.execute("INSERT INTO trunks SELECT * FROM new.trunks")
        reply = kept("last", call, moved)
        db.execute("UPDATE sessions SET reply = ? WHERE id = ?", (reply, session_id))
        body = orjson.dumps({"request": once.request, "answer": {"id": "made before"}})
        db.execute("INSERT INTO replies VALUES (?, ?, ?)", (once.name, 1e12, body))
        db.commit()
    for _ in range(2):
        served = Served(Stopping(SMALL), SqliteStore(old, 9))
        await served.store.open()
        assert await served.sessions.count() == 2
        assert await served.calls.advance(session_id, call, "last") == moved
        assert await served.calls.create(create, "made") == {"id": "made before"}
        assert (await served.next(session_id))["eos"] == seen["eos"]
        await served.store.close()
    served = Served(Stopping(SMALL), SqliteStore(old, 9))
    await served.store.open()
    assert (await served.calls.advance(session_id, call, "next"))["version"] == 3
    assert await served.calls.advance(session_id, call, "last") == moved
    await served.store.close()


async def test_a_file_whose_conversion_breaks_off_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(TABLES)
        db.execute(
            "INSERT INTO sessions VALUES ('a', '', 1, 9.0, 1e12, 1, '{}', '', ?)", (b"no JSON",)
        )
        db.commit()
    with pytest.raises(StoreError, match="cannot be kept"):
        SqliteStore(path, 9)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        db.execute("UPDATE sessions SET reply = NULL")
        db.commit()
    store = SqliteStore(path, 9)
    await store.open()
    assert (await store.look("a")) is not None
    await store.create(record("b", NOW), None, NOW)
    await store.close()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (FORMAT,)
