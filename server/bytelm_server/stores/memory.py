"""Sessions kept in this process: they end with it."""

import bisect
import contextlib
from dataclasses import replace

from bytelm_server.stores import TOMBSTONE_SECONDS, Changed, Full, Record, Reply, SessionStore


class MemoryStore(SessionStore):
    """Keeps records in dictionaries.

    Args:
        most: how many records may live at a time.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._records: dict[str, Record] = {}
        self._of: dict[str, list[str]] = {}  # ids by owner, sorted
        self._replies: dict[str, Reply] = {}
        self._living = 0

    async def create(self, record: Record, reply: Reply | None, now: float) -> bytes | None:
        """See ``SessionStore``."""
        if reply is not None and (known := await self.reply(reply.name, now)) is not None:
            return known
        if self._living >= self.most:
            raise Full
        self._records[record.id] = record
        bisect.insort(self._of.setdefault(record.owner, []), record.id)
        self._living += 1
        if reply is not None:
            self._replies[reply.name] = reply
        return None

    async def reply(self, name: str, now: float) -> bytes | None:
        """See ``SessionStore``."""
        reply = self._replies.get(name)
        return reply.body if reply is not None and reply.expires_at > now else None

    async def load(self, session_id: str) -> Record | None:
        """See ``SessionStore``."""
        return self._records.get(session_id)

    async def version(self, session_id: str) -> int | None:
        """See ``SessionStore``."""
        record = self._records.get(session_id)
        return None if record is None else record.version

    async def commit(self, record: Record, expected: int, kept: int) -> None:
        """See ``SessionStore``."""
        self._known(record.id, expected)
        self._records[record.id] = record

    async def touch(self, record: Record) -> None:
        """See ``SessionStore``."""
        with contextlib.suppress(Changed):
            known = self._known(record.id, record.version)
            self._records[record.id] = replace(
                known, expires_at=record.expires_at, meta=record.meta
            )

    async def delete(self, session_id: str, expected: int, reply: Reply | None) -> None:
        """See ``SessionStore``."""
        self._forget(self._known(session_id, expected))
        if reply is not None:
            self._replies[reply.name] = reply

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
                empty = replace(record, meta=b"", head=b"", trunk=b"", reply=None)
                self._records[record.id] = empty
                self._living -= 1
        for reply in list(self._replies.values()):
            if reply.expires_at <= now:
                del self._replies[reply.name]

    async def count(self, now: float) -> int:
        """See ``SessionStore``."""
        return sum(record.expires_at > now for record in self._records.values())

    def _known(self, session_id: str, version: int) -> Record:
        record = self._records.get(session_id)
        if record is None or record.version != version or not record.meta:
            raise Changed
        return record

    def _forget(self, record: Record) -> None:
        del self._records[record.id]
        ids = self._of[record.owner]
        del ids[bisect.bisect_left(ids, record.id)]
        if not ids:
            del self._of[record.owner]
        self._living -= bool(record.meta)
