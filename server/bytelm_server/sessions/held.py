"""The sessions that are in memory: one call at a time, and no more than there is room for.

A session is in memory while a call works on it, and for a while afterwards, since the next call is
much cheaper then. What leaves is made again from the store. Must not know what calls do.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from bytelm_server.sessions.states import SessionState
from bytelm_server.stores import Record


@dataclass(eq=False)
class Held:
    """One session in memory.

    Attributes:
        turn: taken by the call that works on it; others come in the order in which they asked.
        users: calls that work on it or wait.
        record: what the store has, as far as is known; None until it was looked up.
        meta: the record's, read.
        state: what the session stands at; None until it was made.
    """

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    record: Record | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    state: SessionState | None = None
    used: float = 0.0
    nbytes: int = 0

    def forget(self) -> None:
        """Know nothing; the store does."""
        self.record = self.state = None


class HeldSessions:
    """All of them.

    Args:
        most_bytes: memory for states, about.
        idle_seconds: how long a session stays without calls.

    Attributes:
        nbytes: what their states take, about.
        let_go: what those took that have left memory; whoever gives it back sets it to 0.
    """

    def __init__(self, most_bytes: int, idle_seconds: float) -> None:
        self.most_bytes = most_bytes
        self.idle_seconds = idle_seconds
        self.nbytes = 0
        self.let_go = 0
        self._held: OrderedDict[str, Held] = OrderedDict()  # the longest unused first

    def __len__(self) -> int:
        return len(self._held)

    @asynccontextmanager
    async def hold(self, session_id: str) -> AsyncIterator[Held]:
        """A session, when it is this call's turn."""
        held = self._held.setdefault(session_id, Held())
        held.users += 1
        try:
            async with held.turn:
                yield held
        finally:
            held.users -= 1
            held.used = time.monotonic()
            self._weigh(held)
            if not held.users and held.record is None:
                del self._held[session_id]
            else:
                self._held.move_to_end(session_id)
                self._make_room()

    def drop_idle(self) -> None:
        """Let go of the sessions that were not used for a while."""
        oldest = time.monotonic() - self.idle_seconds
        for session_id, held in list(self._held.items()):
            if held.used > oldest and held.users == 0:
                break
            if not held.users:
                self._drop(session_id, held)

    def _weigh(self, held: Held) -> None:
        before, held.nbytes = held.nbytes, 0 if held.state is None else held.state.nbytes
        self.nbytes += held.nbytes - before

    def _make_room(self) -> None:
        if self.nbytes <= self.most_bytes:
            return
        for session_id, held in list(self._held.items()):
            if not held.users:
                self._drop(session_id, held)
                if self.nbytes <= self.most_bytes:
                    break

    def _drop(self, session_id: str, held: Held) -> None:
        self.let_go += held.nbytes
        held.forget()
        self._weigh(held)
        del self._held[session_id]
