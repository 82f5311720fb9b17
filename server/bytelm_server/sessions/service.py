"""The sessions of a server: in memory and in the store, from its start to its end.

Must not know HTTP, nor what the calls do.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bytelm import memory
from bytelm.settings import ServerSettings
from bytelm_server.callers import Caller
from bytelm_server.service import ByteService
from bytelm_server.sessions.calls import SessionCalls
from bytelm_server.sessions.held import HeldSessions
from bytelm_server.stores import SessionStore

SWEEP_SECONDS = 1.0
GIVE_BACK_BYTES = 8 << 20
"""What states that have left memory took, before it is given back to the system."""

_log = logging.getLogger(__name__)


class Sessions:
    """The sessions of a server: those in memory, and the store that has all.

    Args:
        store: keeps them.
        settings: limits and defaults.
    """

    def __init__(self, store: SessionStore, settings: ServerSettings) -> None:
        self.store = store
        self.settings = settings
        self.held = HeldSessions(settings.session_cache_bytes, settings.session_idle_seconds)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep sessions; on leaving, all that was acknowledged is in the store."""
        await self.store.open()
        sweeper = asyncio.create_task(self._sweep(), name="sessions")
        try:
            yield
        finally:
            sweeper.cancel()
            await asyncio.gather(sweeper, return_exceptions=True)
            await self.store.close()

    def of(self, service: ByteService, caller: Caller) -> SessionCalls:
        """The calls of one caller, on a model."""
        return SessionCalls(self.store, self.held, self.settings, service, caller)

    async def count(self) -> int:
        """How many sessions there are."""
        return await self.store.count(time.time())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.held.drop_idle()
            if self.held.let_go >= GIVE_BACK_BYTES:
                self.held.let_go = 0
                await asyncio.to_thread(memory.give_back)
            try:
                await self.store.sweep(time.time())
            except Exception:
                # The store may come back; each call that needs it fails by itself meanwhile.
                _log.exception("expired sessions could not be removed")
