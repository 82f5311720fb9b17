"""Writes to a SQLite file: what several want at the same time, in one transaction (group commit).

Whatever goes wrong, each change is answered, and the next ones find a connection that works, if
there can be one. Must not know what the changes are.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiosqlite

from bytelm_server.stores import Changed, Full

T = TypeVar("T")

Change = Callable[[aiosqlite.Connection], Awaitable[T]]
"""Writes something; raises ``Changed`` and ``Full`` before it has written anything."""
Connect = Callable[[], Awaitable[aiosqlite.Connection]]

ANSWER_SECONDS = 30.0
"""How long a disk may take."""


class InDoubt(Exception):
    """Nobody knows whether a transaction was committed."""


@dataclass(eq=False)
class _Wanted:
    """A change that waits to be written."""

    change: Change[Any]
    done: asyncio.Future[Any] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def succeed(self, outcome: Any) -> None:
        if not self.done.done():
            self.done.set_result(outcome)

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()  # whoever waited may have left


class SqliteWriter:
    """One connection, and the changes that wait for it.

    Args:
        connect: makes a connection.

    Attributes:
        count: changes count here what they add and take away; a transaction that fails has not.
    """

    def __init__(self, connect: Connect) -> None:
        self.count = 0
        self._connect = connect
        self._db: aiosqlite.Connection | None = None
        self._waiting: asyncio.Queue[_Wanted] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Be ready to write."""
        self._db = await self._connect()
        self._task = asyncio.create_task(self._write(), name="session store")

    async def close(self) -> None:
        """Write what waits, and let go."""
        await self._waiting.join()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):  # the next process does it as well
                await self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            await self._db.close()
            self._db = None

    async def write(self, change: Change[T]) -> T:
        """The result of a change, when it is committed.

        Raises:
            TimeoutError: the disk does not answer; whether it is written is not known.
        """
        if self._task is None:
            raise RuntimeError("the store is closed")
        wanted = _Wanted(change)
        self._waiting.put_nowait(wanted)
        await asyncio.wait({wanted.done}, timeout=ANSWER_SECONDS)
        if not wanted.done.done():
            wanted.done.cancel()  # one that has not begun never will
            raise TimeoutError("the disk does not answer")
        result: T = wanted.done.result()
        return result

    async def _write(self) -> None:
        while True:
            group = [await self._waiting.get()]
            while not self._waiting.empty():
                group.append(self._waiting.get_nowait())
            try:
                await self._commit_all(group)
            except BaseException as error:
                for one in group:
                    one.fail(RuntimeError(f"the store's writer was ended: {error!r}"))
                raise
            finally:
                for _ in group:
                    self._waiting.task_done()

    async def _commit_all(self, group: list[_Wanted]) -> None:
        """One transaction for all; where that fails, one for each."""
        group = [one for one in group if not one.done.done()]
        try:
            outcomes = await self._transaction(group)
        except Exception as error:
            code = getattr(error, "sqlite_errorcode", None)
            for one in group:
                if len(group) > 1 and not isinstance(error, InDoubt):
                    await self._commit_all([one])
                else:
                    one.fail(Full() if code == sqlite3.SQLITE_FULL else error)
            return
        for one, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Changed | Full):
                one.fail(outcome)
            else:
                one.succeed(outcome)
        return

    async def _transaction(self, group: list[_Wanted]) -> list[Any]:
        if self._db is None:
            self._db = await self._connect()
        db, count = self._db, self.count
        outcomes: list[Any] = []
        try:
            await db.execute("BEGIN IMMEDIATE")
            for one in group:
                try:
                    outcomes.append(await one.change(db))
                except (Changed, Full) as error:
                    outcomes.append(error)
            try:
                await db.execute("COMMIT")
            except Exception as error:
                if isinstance(error, sqlite3.Error) or db.in_transaction:
                    raise  # it was not
                raise InDoubt("a transaction was interrupted") from error
        except BaseException:
            self.count = count
            await self._start_over(db)
            raise
        return outcomes

    async def _start_over(self, db: aiosqlite.Connection) -> None:
        """Undo the transaction; what failed once may go on failing on the same connection."""
        self._db = None
        with contextlib.suppress(Exception):
            if db.in_transaction:
                await db.execute("ROLLBACK")
        with contextlib.suppress(Exception):
            await db.close()
