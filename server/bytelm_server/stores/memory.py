"""Sessions kept in this process: they end with it."""

import bisect
import contextlib
from dataclasses import replace

from bytelm_server.stores import (
    MOST_REPLIES,
    TOMBSTONE_SECONDS,
    Changed,
    Full,
    Record,
    Reply,
    SessionStore,
)


class MemoryStore(SessionStore):
    """Keeps records in dictionaries.

    Args:
        most: how many records may live at a time.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._records: dict[str, Record] = {}
        self._of: dict[str, list[str]] = {}  # ids by owner, sorted
        self._replies: dict[str, dict[str, Reply]] = {}  # by what they are about; oldest first
        self._living = 0

    async def create(self, record: Record, reply: Reply | None, now: float) -> bytes | None:
        """See ``SessionStore``."""
        if reply is not None and (known := self._known_reply(reply.about, reply.name, now)):
            return known.body
        if self._living >= self.most:
            raise Full
        self._records[record.id] = record
        bisect.insort(self._of.setdefault(record.owner, []), record.id)
        self._living += 1
        self._keep(reply)
        return None

    async def keep(self, reply: Reply, now: float) -> bytes | None:
        """See ``SessionStore``."""
        if known := self._known_reply(reply.about, reply.name, now):
            return known.body
        self._keep(reply)
        return None

    async def reply(self, about: str, name: str, now: float) -> bytes | None:
        """See ``SessionStore``."""
        known = self._known_reply(about, name, now)
        return None if known is None else known.body

    async def load(self, session_id: str) -> Record | None:
        """See ``SessionStore``."""
        return self._records.get(session_id)

    async def look(self, session_id: str) -> Record | None:
        """See ``SessionStore``."""
        return self._records.get(session_id)

    async def commit(self, record: Record, expected: int, kept: int, reply: Reply | None) -> None:
        """See ``SessionStore``."""
        self._known(record.id, expected)
        self._records[record.id] = record
        self._keep(reply)

    async def touch(self, record: Record) -> None:
        """See ``SessionStore``."""
        with contextlib.suppress(Changed):
            known = self._known(record.id, record.version)
            self._records[record.id] = replace(
                known, expires_at=record.expires_at, meta=record.meta
            )

    async def prolong(self, session_id: str, expires_at: float) -> None:
        """See ``SessionStore``."""
        if self._lives(session_id):
            known = self._records[session_id]
            later = max(known.expires_at, expires_at)
            self._records[session_id] = replace(known, expires_at=later)

    async def delete(self, session_id: str, expected: int, reply: Reply | None) -> None:
        """See ``SessionStore``."""
        self._forget(self._known(session_id, expected))
        self._keep(reply)

    async def page(self, owner: str, after: str, limit: int, now: float) -> list[Record]:
        """See ``SessionStore``."""
        ids = self._of.get(owner, [])
        found: list[Record] = []
        for i in range(bisect.bisect_right(ids, after), len(ids)):
            record = self._records[ids[i]]
            if record.expires_at > now:
                found.append(record)
                if len(found) == limit:
                    break
        return found

    async def sweep(self, now: float) -> None:
        """See ``SessionStore``."""
        for record in list(self._records.values()):
            if record.expires_at + TOMBSTONE_SECONDS <= now:
                self._forget(record)
            elif record.expires_at <= now and record.meta:
                self._records[record.id] = replace(record, meta=b"", head=b"", trunk=b"")
                self._living -= 1
        for about in [about for about in self._replies if not self._lives(about)]:
            kept = self._replies[about]
            self._replies[about] = {n: one for n, one in kept.items() if one.expires_at > now}
            if not self._replies[about]:
                del self._replies[about]

    async def count(self, now: float) -> int:
        """See ``SessionStore``."""
        return sum(record.expires_at > now for record in self._records.values())

    def _known(self, session_id: str, version: int) -> Record:
        record = self._records.get(session_id)
        if record is None or record.version != version or not record.meta:
            raise Changed
        return record

    def _lives(self, session_id: str) -> bool:
        record = self._records.get(session_id)
        return record is not None and bool(record.meta)

    def _known_reply(self, about: str, name: str, now: float) -> Reply | None:
        reply = self._replies.get(about, {}).get(name)
        if reply is None or (reply.expires_at <= now and not self._lives(about)):
            return None
        return reply

    def _keep(self, reply: Reply | None) -> None:
        if reply is None:
            return
        kept = self._replies.setdefault(reply.about, {})
        kept.pop(reply.name, None)
        kept[reply.name] = reply
        if len(kept) > MOST_REPLIES:
            del kept[next(iter(kept))]

    def _forget(self, record: Record) -> None:
        del self._records[record.id]
        ids = self._of[record.owner]
        del ids[bisect.bisect_left(ids, record.id)]
        if not ids:
            del self._of[record.owner]
        self._living -= bool(record.meta)
