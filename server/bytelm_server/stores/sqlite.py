"""Sessions kept in one SQLite file, by one process.

What several calls have to write at the same time is written in one transaction (group commit); each
call returns when its own is committed. A trunk is stored in parts, so that a version that adds to
it writes the addition only. Readers have a connection of their own, which sees nothing that is not
committed.

::

    sessions  id, owner, version, ttl, expires_at, living, meta, head, reply
    trunks    session, part, data          in order of part, together a session's trunk
    replies   name, expires_at, body

What is committed survives the end of this process, whatever ended it. It survives a power cut only
if it is flushed to the disk first, at each commit, which ``fsync`` asks for; without that, a power
cut may take the last commits, but leaves a whole file.
"""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from bytelm.errors import InputError
from bytelm_server.stores import TOMBSTONE_SECONDS, Changed, Full, Record, Reply, SessionStore

T = TypeVar("T")

_FORMAT = 1
_SCHEMA = """
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    version INTEGER NOT NULL,
    ttl REAL NOT NULL,
    expires_at REAL NOT NULL,
    living INTEGER NOT NULL,
    meta BLOB NOT NULL,
    head BLOB NOT NULL,
    reply BLOB
);
CREATE INDEX living_of ON sessions (owner, id) WHERE living;
CREATE INDEX living_until ON sessions (expires_at) WHERE living;
CREATE INDEX dead_since ON sessions (expires_at) WHERE NOT living;
CREATE TABLE trunks (
    session TEXT NOT NULL,
    part INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (session, part)
) WITHOUT ROWID;
CREATE TABLE replies (name TEXT PRIMARY KEY, expires_at REAL NOT NULL, body BLOB NOT NULL);
CREATE INDEX replies_until ON replies (expires_at);
"""


class StoreError(InputError):
    """The file cannot be used; one line that says why, and what to do."""


class StoreInUse(StoreError):
    """Another process keeps its sessions there."""


@dataclass(eq=False)
class _Wanted:
    """A change that waits to be written."""

    change: Callable[[aiosqlite.Connection], Awaitable[Any]]
    done: asyncio.Future[Any] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class SqliteStore(SessionStore):
    """Keeps records in a file, which is reserved for this process at once.

    Args:
        path: the file; it is made, readable to its owner alone, where there is none.
        most: how many records may live at a time.
        fsync: flush each commit to the disk.
        most_bytes: how large the file may get; None for any size.

    Raises:
        StoreInUse: another process has it.
        StoreError: it cannot be used.
    """

    def __init__(
        self, path: Path, most: int, *, fsync: bool = False, most_bytes: int | None = None
    ) -> None:
        self.path = path
        self.most = most
        self._pragmas = [
            "PRAGMA journal_mode = WAL",
            f"PRAGMA synchronous = {'FULL' if fsync else 'NORMAL'}",
        ]
        if most_bytes is not None:
            self._pragmas.append(f"PRAGMA max_page_count = {max(1, most_bytes // 4096)}")
        self._waiting: asyncio.Queue[_Wanted] = asyncio.Queue()
        self._writer: asyncio.Task[None] | None = None
        self._living = 0
        self._lock = self._reserved()
        self._prepare()

    def _reserved(self) -> int:
        """A lock on a file beside it, which ends with this process."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(
                f"sessions cannot be kept in {self.path}: {error.strerror}; give another file with "
                "--session-store, or memory"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise StoreInUse(
                f"another server keeps its sessions in {self.path}: stop it, or give another file "
                "with --session-store, or memory"
            ) from None
        return lock

    def _prepare(self) -> None:
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            with sqlite3.connect(self.path) as db:
                for pragma in self._pragmas:
                    db.execute(pragma)
                (found,) = db.execute("PRAGMA user_version").fetchone()
                if not found:
                    db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_FORMAT}; COMMIT;")
                count = db.execute("SELECT count(*) FROM sessions WHERE living").fetchone()
                self._living = int(count[0])
            db.close()
        except (sqlite3.Error, OSError) as error:
            self._release()
            raise StoreError(
                f"sessions cannot be kept in {self.path}: {error}; give another file with "
                "--session-store, or memory"
            ) from None
        if found not in (0, _FORMAT):
            self._release()
            raise StoreError(
                f"{self.path} was written by another version of bytelm: give another file with "
                "--session-store"
            )

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def open(self) -> None:
        """See ``SessionStore``."""
        self._db = await aiosqlite.connect(self.path, isolation_level=None)
        self._reader = await aiosqlite.connect(self.path, isolation_level=None)
        for pragma in self._pragmas:
            await self._db.execute(pragma)
        self._writer = asyncio.create_task(self._write(), name="session store")

    async def close(self) -> None:
        """See ``SessionStore``; all that waits is written."""
        if self._writer is None:
            return self._release()
        await self._waiting.join()
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)
        await self._reader.close()
        await self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        await self._db.close()
        self._writer = None
        return self._release()

    async def create(self, record: Record, reply: Reply | None, now: float) -> bytes | None:
        """See ``SessionStore``."""
        if self._living >= self.most:
            if reply is not None and (known := await self.reply(reply.name, now)) is not None:
                return known
            raise Full

        async def change(db: aiosqlite.Connection) -> bytes | None:
            if reply is not None:
                known = await _one(
                    db,
                    "SELECT body FROM replies WHERE name = ? AND expires_at > ?",
                    (reply.name, now),
                )
                if known is not None:
                    return bytes(known[0])
                await _keep(db, reply)
            await db.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, 1, ?, ?, ?)",
                (
                    record.id,
                    record.owner,
                    record.version,
                    record.ttl,
                    record.expires_at,
                    record.meta,
                    record.head,
                    record.reply,
                ),
            )
            if record.trunk:
                await db.execute("INSERT INTO trunks VALUES (?, 0, ?)", (record.id, record.trunk))
            return None

        self._living += 1
        known = None
        try:
            known = await self._written(change)
        except BaseException:
            self._living -= 1
            raise
        self._living -= known is not None
        return known

    async def reply(self, name: str, now: float) -> bytes | None:
        """See ``SessionStore``."""
        found = await _one(
            self._reader, "SELECT body FROM replies WHERE name = ? AND expires_at > ?", (name, now)
        )
        return None if found is None else bytes(found[0])

    async def load(self, session_id: str) -> Record | None:
        """See ``SessionStore``."""
        row = await _one(
            self._reader,
            "SELECT owner, version, ttl, expires_at, meta, head, reply FROM sessions WHERE id = ?",
            (session_id,),
        )
        if row is None:
            return None
        parts = await self._reader.execute_fetchall(
            "SELECT data FROM trunks WHERE session = ? ORDER BY part", (session_id,)
        )
        owner, version, ttl, expires_at, meta, head, reply = row
        trunk = b"".join(part for (part,) in parts)
        return Record(session_id, owner, version, ttl, expires_at, meta, head, trunk, reply)

    async def version(self, session_id: str) -> int | None:
        """See ``SessionStore``."""
        row = await _one(self._reader, "SELECT version FROM sessions WHERE id = ?", (session_id,))
        return None if row is None else int(row[0])

    async def commit(self, record: Record, expected: int, kept: int) -> None:
        """See ``SessionStore``."""

        async def change(db: aiosqlite.Connection) -> None:
            changed = await db.execute(
                "UPDATE sessions SET version = ?, expires_at = ?, meta = ?, head = ?, reply = ? "
                "WHERE id = ? AND version = ? AND living",
                (
                    record.version,
                    record.expires_at,
                    record.meta,
                    record.head,
                    record.reply,
                    record.id,
                    expected,
                ),
            )
            if changed.rowcount != 1:
                raise Changed
            if not kept:
                await db.execute("DELETE FROM trunks WHERE session = ?", (record.id,))
            if len(record.trunk) > kept:
                await db.execute(
                    "INSERT INTO trunks VALUES (?, ?, ?)", (record.id, kept, record.trunk[kept:])
                )

        await self._written(change)

    async def touch(self, record: Record) -> None:
        """See ``SessionStore``."""

        async def change(db: aiosqlite.Connection) -> None:
            await db.execute(
                "UPDATE sessions SET expires_at = ?, meta = ? "
                "WHERE id = ? AND version = ? AND living",
                (record.expires_at, record.meta, record.id, record.version),
            )

        await self._written(change)

    async def delete(self, session_id: str, expected: int, reply: Reply | None) -> None:
        """See ``SessionStore``."""

        async def change(db: aiosqlite.Connection) -> None:
            gone = await db.execute(
                "DELETE FROM sessions WHERE id = ? AND version = ? AND living",
                (session_id, expected),
            )
            if gone.rowcount != 1:
                raise Changed
            await db.execute("DELETE FROM trunks WHERE session = ?", (session_id,))
            if reply is not None:
                await _keep(db, reply)

        await self._written(change)
        self._living -= 1

    async def page(self, owner: str, after: str, limit: int, now: float) -> list[Record]:
        """See ``SessionStore``."""
        rows = await self._reader.execute_fetchall(
            "SELECT id, version, ttl, expires_at, meta FROM sessions "
            "WHERE owner = ? AND id > ? AND living AND expires_at > ? ORDER BY id LIMIT ?",
            (owner, after, now, limit),
        )
        return [
            Record(session_id, owner, version, ttl, expires_at, meta)
            for session_id, version, ttl, expires_at, meta in rows
        ]

    async def sweep(self, now: float) -> None:
        """See ``SessionStore``."""
        due = await _one(
            self._reader,
            "SELECT EXISTS (SELECT 1 FROM sessions WHERE living AND expires_at <= ?1)"
            " OR EXISTS (SELECT 1 FROM sessions WHERE NOT living AND expires_at <= ?2)"
            " OR EXISTS (SELECT 1 FROM replies WHERE expires_at <= ?1)",
            (now, now - TOMBSTONE_SECONDS),
        )
        if due is None or not due[0]:
            return

        async def change(db: aiosqlite.Connection) -> int:
            await db.execute(
                "DELETE FROM trunks WHERE session IN "
                "(SELECT id FROM sessions WHERE living AND expires_at <= ?)",
                (now,),
            )
            ended = await db.execute(
                "UPDATE sessions SET living = 0, meta = x'', head = x'', reply = NULL "
                "WHERE living AND expires_at <= ?",
                (now,),
            )
            await db.execute(
                "DELETE FROM sessions WHERE NOT living AND expires_at <= ?",
                (now - TOMBSTONE_SECONDS,),
            )
            await db.execute("DELETE FROM replies WHERE expires_at <= ?", (now,))
            return ended.rowcount

        self._living -= await self._written(change)

    async def count(self, now: float) -> int:
        """See ``SessionStore``."""
        row = await _one(
            self._reader,
            "SELECT count(*) FROM sessions WHERE living AND expires_at > ?",
            (now,),
        )
        assert row is not None
        return int(row[0])

    # Group commit.

    async def _written(self, change: Callable[[aiosqlite.Connection], Awaitable[T]]) -> T:
        """The result of a change, when it is committed."""
        wanted = _Wanted(change)
        self._waiting.put_nowait(wanted)
        result: T = await wanted.done
        return result

    async def _write(self) -> None:
        while True:
            group = [await self._waiting.get()]
            while not self._waiting.empty():
                group.append(self._waiting.get_nowait())
            try:
                await self._commit_all(group)
            finally:
                for _ in group:
                    self._waiting.task_done()

    async def _commit_all(self, group: list[_Wanted]) -> None:
        """One transaction for all; where that fails, one for each."""
        try:
            outcomes = await self._transaction(group)
        except sqlite3.Error as error:
            if len(group) == 1:
                full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
                return _fail(group[0], Full() if full else error)
            for one in group:
                await self._commit_all([one])
            return None
        for one, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Changed):
                _fail(one, outcome)
            elif not one.done.done():
                one.done.set_result(outcome)
        return None

    async def _transaction(self, group: list[_Wanted]) -> list[Any]:
        outcomes: list[Any] = []
        await self._db.execute("BEGIN IMMEDIATE")
        try:
            for one in group:
                try:
                    outcomes.append(await one.change(self._db))
                except Changed as error:
                    # It comes before a change has written anything.
                    outcomes.append(error)
            await self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                await self._db.execute("ROLLBACK")
            raise
        return outcomes


def _fail(wanted: _Wanted, error: Exception) -> None:
    if not wanted.done.done():
        wanted.done.set_exception(error)


async def _one(db: aiosqlite.Connection, sql: str, values: tuple[Any, ...]) -> Any:
    async with db.execute(sql, values) as cursor:
        return await cursor.fetchone()


async def _keep(db: aiosqlite.Connection, reply: Reply) -> None:
    await db.execute(
        "INSERT OR REPLACE INTO replies VALUES (?, ?, ?)",
        (reply.name, reply.expires_at, reply.body),
    )
