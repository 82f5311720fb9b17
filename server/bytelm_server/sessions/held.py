"""The sessions that are in use or in memory: one call at a time, no more than there is room for.

A session is in memory while a call works on it, and for a while afterwards, since the next call is
much cheaper then. What leaves is made again from the store. Must not know what calls do.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from bytelm_server.sessions.states import SessionState
from bytelm_server.stores import Record

Name = tuple[str, str]
"""Of a session, as one caller knows it: whose it is, and its id."""


@dataclass(eq=False)
class Held:
    """One session.

    Attributes:
        turn: taken by the call that works on it; others come in the order in which they asked.
        users: calls that work on it or wait.
        since: when the first of them came, in seconds since 1970; there was always one since then.
        due: when somebody has to see to it that it does not expire under them, as ``since``.
        record: what the store has, as far as is known; None until it was looked up.
        meta: the record's, read.
        state: what the session stands at; None until it was made.
    """

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    since: float = 0.0
    due: float = 0.0
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
        self._held: OrderedDict[Name, Held] = OrderedDict()  # the longest unused first
        self._in_use: dict[Name, Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    @contextmanager
    def using(self, name: Name) -> Iterator[Held]:
        """A session that a call is going to work on, or to look at: it is in use from here on."""
        held = self._held.setdefault(name, Held())
        if not held.users:
            held.since = held.due = time.time()
            self._in_use[name] = held
        held.users += 1
        try:
            yield held
        finally:
            held.users -= 1
            held.used = time.monotonic()
            self._weigh(held)
            if not held.users:
                del self._in_use[name]
            if not held.users and held.record is None:
                del self._held[name]
            else:
                self._held.move_to_end(name)
                self._make_room()

    @asynccontextmanager
    async def hold(self, name: Name) -> AsyncIterator[Held]:
        """A session, when it is this call's turn."""
        with self.using(name) as held:
            async with held.turn:
                yield held

    def due(self, now: float) -> list[tuple[Name, Held]]:
        """Those in use that somebody has to see to."""
        return [(name, held) for name, held in self._in_use.items() if held.due <= now]

    def drop_idle(self) -> None:
        """Let go of the sessions that were not used for a while."""
        oldest = time.monotonic() - self.idle_seconds
        for name, held in list(self._held.items()):
            if held.used > oldest and held.users == 0:
                break
            if not held.users:
                self._drop(name, held)

    def _weigh(self, held: Held) -> None:
        before, held.nbytes = held.nbytes, 0 if held.state is None else held.state.nbytes
        self.nbytes += held.nbytes - before

    def _make_room(self) -> None:
        if self.nbytes <= self.most_bytes:
            return
        for name, held in list(self._held.items()):
            if not held.users:
                self._drop(name, held)
                if self.nbytes <= self.most_bytes:
                    break

    def _drop(self, name: Name, held: Held) -> None:
        self.let_go += held.nbytes
        held.forget()
        self._weigh(held)
        del self._held[name]
