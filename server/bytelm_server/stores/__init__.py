"""Where sessions are kept: the one interface to it.

A store keeps records by id and knows three things of each: whose it is, its version, and when it
expires. The rest is bytes. What changes a record names the version that it goes out from, so that
two changes never both follow the same one.

::

              create            commit, touch, prolong          expires_at
    (nothing) ──────► version 1, 2, 3 … ──────────────► expired ──────────► (nothing)
                          │        delete                        one day later
                          └────────────────► (nothing)

With a change it keeps the answer to it, the reply: both or neither. Replies are about a record (or
about nothing but themselves), outlive it, and are given back by name.

Must not know what a session is, nor HTTP.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

TOMBSTONE_SECONDS = 24 * 60 * 60.0
"""How long an expired record is still known to have been."""
MOST_REPLIES = 256
"""Replies about one record, at least; the newest ones."""


@dataclass(frozen=True)
class Record:
    """What a store keeps of a session.

    Attributes:
        id: its name; ids sort by the time when they were made.
        owner: whose it is.
        version: how many states it had, from 1.
        ttl: seconds without use after which it expires.
        expires_at: when it does, in seconds since 1970.
        meta: small; ``page`` gives it, too.
        head: what each version writes anew.
        trunk: what a version mostly leaves as it was, or adds to at the end.
    """

    id: str
    owner: str
    version: int
    ttl: float
    expires_at: float
    meta: bytes
    head: bytes = b""
    trunk: bytes = b""


@dataclass(frozen=True)
class Reply:
    """An answer that is kept by name.

    Attributes:
        about: the record that it is about, by id; or its own name.
        name: tells it apart from all others.
        expires_at: when it may be forgotten, in seconds since 1970, where its record has ended.
        body: the answer.
    """

    about: str
    name: str
    expires_at: float
    body: bytes


class Full(Exception):
    """There is no room for another record, or for what a change adds."""


class Changed(Exception):
    """The record has another version than the one that a change goes out from, or has gone."""


class SessionStore(ABC):
    """Keeps records; each call is atomic, and durable as far as the store is when it returns.

    Attributes:
        is_shared: whether other processes may change the same records.
    """

    is_shared: bool = False

    async def open(self) -> None:
        """Be ready; an InputError says in one line why that cannot be."""
        return

    async def close(self) -> None:
        """Write what is not written yet, and let go."""
        return

    @abstractmethod
    async def create(self, record: Record, reply: Reply | None, now: float) -> bytes | None:
        """Keep a new record, and a reply with it.

        Args:
            record: the record.
            reply: the reply, or None.
            now: the time, in seconds since 1970; a reply by the same name may have expired.

        Returns:
            The body of the reply that there is by this name already; then nothing else was done.

        Raises:
            Full: there is no room.
        """

    @abstractmethod
    async def keep(self, reply: Reply, now: float) -> bytes | None:
        """Keep a reply by itself; or give the body of the one that there is by this name."""

    @abstractmethod
    async def reply(self, about: str, name: str, now: float) -> bytes | None:
        """The body of the reply that is kept by this name."""

    @abstractmethod
    async def load(self, session_id: str) -> Record | None:
        """The record, expired or not; of an expired one the contents may be gone."""

    @abstractmethod
    async def look(self, session_id: str) -> Record | None:
        """The same without ``head`` and ``trunk``."""

    @abstractmethod
    async def commit(self, record: Record, expected: int, kept: int, reply: Reply | None) -> None:
        """Put a new version of a record in the place of the old one, and keep a reply.

        Args:
            record: the new version.
            expected: the old one.
            kept: how many bytes of the stored trunk the new one begins with: all of them, or 0.
            reply: the reply, or None.

        Raises:
            Changed: there is no record with the version ``expected``.
            Full: there is no room.
        """

    @abstractmethod
    async def touch(self, record: Record) -> None:
        """Keep a record's ``expires_at`` and ``meta``, if its version is still this one."""

    @abstractmethod
    async def prolong(self, session_id: str, expires_at: float) -> None:
        """Let a record that has not ended yet live until then at least."""

    @abstractmethod
    async def delete(self, session_id: str, expected: int, reply: Reply | None) -> None:
        """Forget a record, and keep a reply.

        Raises:
            Changed: there is no record with the version ``expected``.
        """

    @abstractmethod
    async def page(self, owner: str, after: str, limit: int, now: float) -> list[Record]:
        """An owner's records that have not expired, in the order of their ids, behind ``after``.

        ``head`` and ``trunk`` may be left out.
        """

    @abstractmethod
    async def sweep(self, now: float) -> None:
        """Let go of what expired before ``now``, and forget what expired a day before it."""

    @abstractmethod
    async def count(self, now: float) -> int:
        """How many records have not expired."""

    async def check(self) -> None:
        """Write and read something; raises what keeps the store from it."""
        return
