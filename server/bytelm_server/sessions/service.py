"""The sessions of a server: in memory and in the store, from its start to its end.

Must not know HTTP, nor what the calls do.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bytelm import memory
from bytelm.settings import ServerSettings
from bytelm_server.callers import Caller
from bytelm_server.errors import Unavailable
from bytelm_server.sessions.calls import SessionCalls
from bytelm_server.sessions.held import HeldSessions
from bytelm_server.sessions.lives import SWEPT_AFTER, Lives
from bytelm_server.sessions.moves import Serving
from bytelm_server.stores import SessionStore
from bytelm_server.stores.watched import WatchedStore

SWEEP_SECONDS = 1.0
USE_SECONDS = 0.1
"""How often somebody sees to it that no session expires in use."""
GIVE_BACK_BYTES = 8 << 20
"""What states that have left memory took, before it is given back to the system."""


class Sessions:
    """The sessions of a server: those in memory, and the store that has all.

    Args:
        store: keeps them.
        settings: limits and defaults.
    """

    def __init__(self, store: SessionStore, settings: ServerSettings) -> None:
        self.store = WatchedStore(store)
        self.settings = settings
        self.held = HeldSessions(settings.session_cache_bytes, settings.session_idle_seconds)
        self.lives = Lives(self.store, self.held)

    @property
    def fault(self) -> str | None:
        """Why no session can be kept now, and what to do; None where all is well."""
        return self.store.fault

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep sessions; on leaving, all that was acknowledged is in the store."""
        await self.store.open()
        tasks = [
            asyncio.create_task(self._sweep(), name="sessions"),
            asyncio.create_task(self._see_to_use(), name="sessions in use"),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.store.close()

    def of(self, serving: Serving, caller: Caller) -> SessionCalls:
        """The calls of one caller, on the model that ``serving`` has when one is needed."""
        return SessionCalls(self.store, self.held, self.lives, self.settings, serving, caller)

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
            await self.store.look_after()
            # A store that fails tells so itself; each call that needs it fails meanwhile.
            with contextlib.suppress(Unavailable):
                await self.lives.sweep(SWEPT_AFTER)

    async def _see_to_use(self) -> None:
        while True:
            await asyncio.sleep(USE_SECONDS)
            await self.lives.see_to()
