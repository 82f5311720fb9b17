"""A store whose faults are known: whoever asks hears that it failed, and others that it does.

::

       a call fails
    ┌────────────────► fault ───┐ tried again by ``look_after``, each second
    well ◄──────────────────────┘ until it can be written and read

Must not know how the store keeps anything.
"""

import logging
from collections.abc import Awaitable
from typing import TypeVar

from bytelm_server.errors import Unavailable
from bytelm_server.stores import Changed, Full, Record, Reply, SessionStore

T = TypeVar("T")

_log = logging.getLogger(__name__)


class WatchedStore(SessionStore):
    """Another store, as the server uses it.

    Args:
        store: the other.

    Attributes:
        fault: what is wrong with it now, and what to do; None where it is well.
    """

    def __init__(self, store: SessionStore) -> None:
        self.is_shared = store.is_shared
        self.fault: str | None = None
        self._store = store

    async def look_after(self) -> None:
        """Find out whether a store that had failed is well again."""
        if self.fault is None:
            return
        try:
            await self._store.check()
        except Exception as error:
            _log.warning("the store of sessions still fails: %s", error)
        else:
            self.fault = None
            _log.warning("the store of sessions is well again")

    async def _answer(self, work: Awaitable[T]) -> T:
        """The result of ``work``.

        Raises:
            Unavailable: it failed; what it was to change may have changed or not.
        """
        try:
            return await work
        except (Changed, Full):
            raise
        except Exception as error:
            if self.fault is None:
                _log.exception("the store of sessions failed")
            self.fault = (
                f"sessions cannot be read or written ({type(error).__name__}); it is tried again "
                "every second; if that does not help, look at the server's log"
            )
            if isinstance(error, Unavailable):
                raise
            raise Unavailable(
                "store_unreachable", "the store of sessions failed at this call; try again"
            ) from error

    async def open(self) -> None:
        """See ``SessionStore``."""
        await self._store.open()

    async def close(self) -> None:
        """See ``SessionStore``."""
        await self._store.close()

    async def create(self, record: Record, reply: Reply | None, now: float) -> bytes | None:
        """See ``SessionStore``."""
        return await self._answer(self._store.create(record, reply, now))

    async def keep(self, reply: Reply, now: float) -> bytes | None:
        """See ``SessionStore``."""
        return await self._answer(self._store.keep(reply, now))

    async def reply(self, about: str, name: str, now: float) -> bytes | None:
        """See ``SessionStore``."""
        return await self._answer(self._store.reply(about, name, now))

    async def load(self, session_id: str) -> Record | None:
        """See ``SessionStore``."""
        return await self._answer(self._store.load(session_id))

    async def look(self, session_id: str) -> Record | None:
        """See ``SessionStore``."""
        return await self._answer(self._store.look(session_id))

    async def commit(self, record: Record, expected: int, kept: int, reply: Reply | None) -> None:
        """See ``SessionStore``."""
        await self._answer(self._store.commit(record, expected, kept, reply))

    async def touch(self, record: Record) -> None:
        """See ``SessionStore``."""
        await self._answer(self._store.touch(record))

    async def prolong(self, session_id: str, expires_at: float) -> None:
        """See ``SessionStore``."""
        await self._answer(self._store.prolong(session_id, expires_at))

    async def delete(self, session_id: str, expected: int, reply: Reply | None) -> None:
        """See ``SessionStore``."""
        await self._answer(self._store.delete(session_id, expected, reply))

    async def page(self, owner: str, after: str, limit: int, now: float) -> list[Record]:
        """See ``SessionStore``."""
        return await self._answer(self._store.page(owner, after, limit, now))

    async def sweep(self, now: float) -> None:
        """See ``SessionStore``."""
        await self._answer(self._store.sweep(now))

    async def count(self, now: float) -> int:
        """See ``SessionStore``."""
        return await self._answer(self._store.count(now))
