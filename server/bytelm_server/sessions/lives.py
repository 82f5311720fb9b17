"""How long sessions live: as long as somebody uses them, and their ``ttl`` more.

A call uses a session from when it comes until it is answered, whether it works or waits. Meanwhile
the store is told again and again that the session lives, so that no other server takes it for one
that nobody uses. Must not know what calls do.
"""

import asyncio
import contextlib
import math
import time
from dataclasses import replace

import orjson

from bytelm_server.sessions.failures import NoSuchSession, SessionExpired
from bytelm_server.sessions.held import Held, HeldSessions, Name
from bytelm_server.stores import Full, Record, SessionStore

SWEPT_AFTER = 5.0
"""Seconds that an expired session stays, in case that it is in use and the store was not told yet.
"""


class Lives:
    """The lives of all sessions.

    Args:
        store: has them.
        held: those in use.
    """

    def __init__(self, store: SessionStore, held: HeldSessions) -> None:
        self._store = store
        self._held = held

    async def find(self, name: Name, held: Held) -> Record:
        """A session's record, which is in memory from here on; it lives longer for that.

        Raises:
            NoSuchSession: there is none, or it is somebody else's.
            SessionExpired: it has expired.
        """
        if self._store.is_shared and held.record is not None:
            # Another server may have moved it, or let it live longer.
            seen = await self._store.look(name[1])
            if seen is None or seen.version != held.record.version:
                held.forget()
            else:
                held.record = replace(held.record, expires_at=seen.expires_at)
        if held.record is None:
            held.record = await self._store.load(name[1])
            held.meta = orjson.loads(held.record.meta or b"{}") if held.record else {}
        try:
            held.record = await self._prolonged(name, held, held.record)
        except (NoSuchSession, SessionExpired):
            held.forget()
            raise
        return held.record

    async def look(self, name: Name) -> Record:
        """The same without its contents, as the store has it, whoever works on it.

        Raises:
            NoSuchSession: there is none, or it is somebody else's.
            SessionExpired: it has expired.
        """
        with self._held.using(name) as held:
            record = await self._prolonged(name, held, await self._store.look(name[1]))
            if held.record is not None and held.record.version == record.version:
                held.record = replace(held.record, expires_at=record.expires_at)
            return record

    async def see_to(self) -> None:
        """Let those that are in use live on; failures of the store are its own to tell."""
        due = self._held.due(time.time())
        await asyncio.gather(*(self._see_to(*one) for one in due), return_exceptions=True)

    async def _see_to(self, name: Name, held: Held) -> None:
        try:
            await self.look(name)
        except (NoSuchSession, SessionExpired):
            held.due = math.inf

    async def sweep(self, before: float = 0.0) -> None:
        """Let go of what expired so many seconds ago."""
        now = time.time()
        await self.see_to()
        await self._store.sweep(now - before)

    async def _prolonged(self, name: Name, held: Held, record: Record | None) -> Record:
        if record is None or record.owner != name[0]:
            raise NoSuchSession(f"there is no session {name[1]!r}", "id")
        if record.expires_at <= held.since or not record.meta:
            raise SessionExpired(
                f"the session expired: nobody used it for {record.ttl:g} seconds", "id"
            )
        # Written only where it matters: most calls follow each other at once.
        slack, expires_at = min(record.ttl / 20, 60.0), time.time() + record.ttl
        if expires_at - record.expires_at > slack:
            with contextlib.suppress(Full):
                await self._store.prolong(record.id, expires_at)
                record = replace(record, expires_at=expires_at)
        held.due = record.expires_at - record.ttl + slack
        return record
