"""Sessions kept in one SQLite file, by one process.

What several calls have to write at the same time is written in one transaction (group commit); each
call returns when its own is committed. A trunk is stored in parts, so that a version that adds to
it writes the addition only. Readers have a connection of their own, which sees nothing that is not
committed.

What is committed survives the end of this process, whatever ended it. It survives a power cut only
if it is flushed to the disk first, at each commit, which ``fsync`` asks for; without that, a power
cut may take the last commits, but leaves a whole file.
"""

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiosqlite

from bytelm.errors import InputError
from bytelm_server.stores import (
    MOST_REPLIES,
    TOMBSTONE_SECONDS,
    Changed,
    Full,
    Record,
    Reply,
    SessionStore,
)
from bytelm_server.stores.sqlite_schema import FORMAT, UnknownFormat, prepare
from bytelm_server.stores.sqlite_writer import ANSWER_SECONDS, SqliteWriter

_REPLY = "SELECT body FROM replies WHERE name = ? AND (living OR expires_at > ?)"


class StoreError(InputError):
    """The file cannot be used; one line that says why, and what to do."""


class StoreInUse(StoreError):
    """Another process keeps its sessions there."""


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
        self._writer = SqliteWriter(self._connected)
        self._reader: aiosqlite.Connection | None = None
        self._opening = asyncio.Lock()
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
            with closing(sqlite3.connect(self.path, isolation_level=None)) as db:
                for pragma in self._pragmas:
                    db.execute(pragma)
                prepare(db)
                (count,) = db.execute("SELECT count(*) FROM sessions WHERE living").fetchone()
                self._writer.count = int(count)
        except (sqlite3.Error, OSError, ValueError) as error:
            self._release()
            raise StoreError(
                f"sessions cannot be kept in {self.path}: {error}; give another file with "
                "--session-store, or memory"
            ) from None
        except UnknownFormat:
            self._release()
            raise StoreError(
                f"{self.path} was written by another version of bytelm: give another file with "
                "--session-store"
            ) from None

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def _connected(self) -> aiosqlite.Connection:
        # Where the file has gone, an empty one in its place would be no store.
        name = f"file:{quote(str(self.path.absolute()))}?mode=rw"
        db = await aiosqlite.connect(name, uri=True, isolation_level=None)
        try:
            for pragma in self._pragmas:
                await db.execute(pragma)
        except BaseException:
            await db.close()
            raise
        return db

    async def open(self) -> None:
        """See ``SessionStore``."""
        await self._writer.open()

    async def close(self) -> None:
        """See ``SessionStore``; all that waits is written."""
        try:
            await self._writer.close()
            if self._reader is not None:
                await self._reader.close()
        finally:
            self._release()

    async def create(self, record: Record, reply: Reply | None, now: float) -> bytes | None:
        """See ``SessionStore``."""

        async def change(db: aiosqlite.Connection) -> bytes | None:
            if reply is not None and (known := await _kept(db, reply, now)) is not None:
                return known
            if self._writer.count >= self.most:
                raise Full
            self._writer.count += 1
            await db.execute(
                "INSERT INTO sessions (id, owner, version, ttl, expires_at, living, meta, head) "
                "VALUES (?, ?, ?, ?, ?, 1, ?, ?)",
                (
                    record.id,
                    record.owner,
                    record.version,
                    record.ttl,
                    record.expires_at,
                    record.meta,
                    record.head,
                ),
            )
            if record.trunk:
                await db.execute("INSERT INTO trunks VALUES (?, 0, ?)", (record.id, record.trunk))
            await _keep(db, reply)
            return None

        return await self._writer.write(change)

    async def keep(self, reply: Reply, now: float) -> bytes | None:
        """See ``SessionStore``."""

        async def change(db: aiosqlite.Connection) -> bytes | None:
            known = await _kept(db, reply, now)
            if known is None:
                await _keep(db, reply)
            return known

        return await self._writer.write(change)

    async def reply(self, about: str, name: str, now: float) -> bytes | None:
        """See ``SessionStore``."""
        found = await self._one(_REPLY, name, now)
        return None if found is None else bytes(found[0])

    async def load(self, session_id: str) -> Record | None:
        """See ``SessionStore``."""
        row = await self._one(
            "SELECT owner, version, ttl, expires_at, meta, head FROM sessions WHERE id = ?",
            session_id,
        )
        if row is None:
            return None
        parts = await self._read(
            "SELECT data FROM trunks WHERE session = ? ORDER BY part", session_id
        )
        owner, version, ttl, expires_at, meta, head = row
        trunk = b"".join(part for (part,) in parts)
        return Record(session_id, owner, version, ttl, expires_at, meta, head, trunk)

    async def look(self, session_id: str) -> Record | None:
        """See ``SessionStore``."""
        row = await self._one(
            "SELECT owner, version, ttl, expires_at, meta FROM sessions WHERE id = ?", session_id
        )
        if row is None:
            return None
        owner, version, ttl, expires_at, meta = row
        return Record(session_id, owner, version, ttl, expires_at, meta)

    async def commit(self, record: Record, expected: int, kept: int, reply: Reply | None) -> None:
        """See ``SessionStore``."""

        async def change(db: aiosqlite.Connection) -> None:
            changed = await db.execute(
                "UPDATE sessions SET version = ?, expires_at = ?, meta = ?, head = ? "
                "WHERE id = ? AND version = ? AND living",
                (
                    record.version,
                    record.expires_at,
                    record.meta,
                    record.head,
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
            await _keep(db, reply)

        await self._writer.write(change)

    async def touch(self, record: Record) -> None:
        """See ``SessionStore``."""

        async def change(db: aiosqlite.Connection) -> None:
            await db.execute(
                "UPDATE sessions SET expires_at = ?, meta = ? "
                "WHERE id = ? AND version = ? AND living",
                (record.expires_at, record.meta, record.id, record.version),
            )

        await self._writer.write(change)

    async def prolong(self, session_id: str, expires_at: float) -> None:
        """See ``SessionStore``."""

        async def change(db: aiosqlite.Connection) -> None:
            await db.execute(
                "UPDATE sessions SET expires_at = max(expires_at, ?) WHERE id = ? AND living",
                (expires_at, session_id),
            )

        await self._writer.write(change)

    async def delete(self, session_id: str, expected: int, reply: Reply | None) -> None:
        """See ``SessionStore``."""

        async def change(db: aiosqlite.Connection) -> None:
            gone = await db.execute(
                "DELETE FROM sessions WHERE id = ? AND version = ? AND living",
                (session_id, expected),
            )
            if gone.rowcount != 1:
                raise Changed
            self._writer.count -= 1
            await db.execute("DELETE FROM trunks WHERE session = ?", (session_id,))
            await db.execute("UPDATE replies SET living = 0 WHERE about = ?", (session_id,))
            await _keep(db, reply)

        await self._writer.write(change)

    async def page(self, owner: str, after: str, limit: int, now: float) -> list[Record]:
        """See ``SessionStore``."""
        rows = await self._read(
            "SELECT id, version, ttl, expires_at, meta FROM sessions "
            "WHERE owner = ? AND id > ? AND living AND expires_at > ? ORDER BY id LIMIT ?",
            *(owner, after, now, limit),
        )
        return [
            Record(session_id, owner, version, ttl, expires_at, meta)
            for session_id, version, ttl, expires_at, meta in rows
        ]

    async def sweep(self, now: float) -> None:
        """See ``SessionStore``."""
        due = await self._one(
            "SELECT EXISTS (SELECT 1 FROM sessions WHERE living AND expires_at <= ?1)"
            " OR EXISTS (SELECT 1 FROM sessions WHERE NOT living AND expires_at <= ?2)"
            " OR EXISTS (SELECT 1 FROM replies WHERE NOT living AND expires_at <= ?1)",
            *(now, now - TOMBSTONE_SECONDS),
        )
        if not due[0]:
            return

        async def change(db: aiosqlite.Connection) -> None:
            ended = "(SELECT id FROM sessions WHERE living AND expires_at <= ?)"
            await db.execute(f"DELETE FROM trunks WHERE session IN {ended}", (now,))
            await db.execute(f"UPDATE replies SET living = 0 WHERE about IN {ended}", (now,))
            emptied = await db.execute(
                "UPDATE sessions SET living = 0, meta = x'', head = x'' "
                "WHERE living AND expires_at <= ?",
                (now,),
            )
            self._writer.count -= emptied.rowcount
            await db.execute(
                "DELETE FROM sessions WHERE NOT living AND expires_at <= ?",
                (now - TOMBSTONE_SECONDS,),
            )
            await db.execute("DELETE FROM replies WHERE NOT living AND expires_at <= ?", (now,))

        await self._writer.write(change)

    async def count(self, now: float) -> int:
        """See ``SessionStore``."""
        row = await self._one("SELECT count(*) FROM sessions WHERE living AND expires_at > ?", now)
        return int(row[0])

    async def check(self) -> None:
        """See ``SessionStore``."""

        async def change(db: aiosqlite.Connection) -> None:
            await db.execute(f"PRAGMA user_version = {FORMAT}")

        await self._writer.write(change)
        await self._read("SELECT 1")

    # Reading.

    async def _one(self, sql: str, *values: Any) -> Any:
        """The first row, or None."""
        return next(iter(await self._read(sql, *values)), None)

    async def _read(self, sql: str, *values: Any) -> Iterable[Any]:
        """All rows."""
        async with asyncio.timeout(ANSWER_SECONDS):
            db = self._reader or await self._open_reader()
            try:
                return await db.execute_fetchall(sql, values)
            except Exception:
                # What failed once may go on failing on the same connection.
                if self._reader is db:
                    self._reader = None
                    with contextlib.suppress(Exception):
                        await db.close()
                raise

    async def _open_reader(self) -> aiosqlite.Connection:
        async with self._opening:
            self._reader = self._reader or await self._connected()
            return self._reader


async def _keep(db: aiosqlite.Connection, reply: Reply | None) -> None:
    if reply is None:
        return
    await db.execute(
        "INSERT OR REPLACE INTO replies (name, about, living, expires_at, body) VALUES "
        "(?1, ?2, EXISTS (SELECT 1 FROM sessions WHERE id = ?2 AND living), ?3, ?4)",
        (reply.name, reply.about, reply.expires_at, reply.body),
    )
    await db.execute(
        "DELETE FROM replies WHERE rowid IN "
        "(SELECT rowid FROM replies WHERE about = ? ORDER BY rowid DESC LIMIT -1 OFFSET ?)",
        (reply.about, MOST_REPLIES),
    )


async def _kept(db: aiosqlite.Connection, reply: Reply, now: float) -> bytes | None:
    """The body of the reply that there is by this name."""
    for (body,) in await db.execute_fetchall(_REPLY, (reply.name, now)):
        return bytes(body)
    return None
