"""How a call gets at a session's state, and leaves another in its place.

A call takes its turn on the session, works on an immutable state, and puts the state that it ends
with in the place of the old one: in the store first, then in memory. So it has happened wholly, or
not at all. Must not know what the calls do, nor how a store keeps what it is given.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import orjson

from bytelm.errors import EngineError, InputError, SnapshotError
from bytelm_server.callers import Caller
from bytelm_server.counting import CountingLM, counting, usage_of
from bytelm_server.errors import CallError
from bytelm_server.service import ByteService
from bytelm_server.sessions import answers
from bytelm_server.sessions.failures import (
    NoSuchSession,
    OtherModel,
    SessionExpired,
    StoreFull,
    VersionConflict,
)
from bytelm_server.sessions.held import Held, HeldSessions
from bytelm_server.sessions.replies import Answer, digest, kept_reply, replayed, reply_of, same_call
from bytelm_server.sessions.states import Packed, SessionState, unpack
from bytelm_server.stores import Changed, Full, Record, SessionStore

T = TypeVar("T")

Work = Callable[[SessionState, CountingLM], Awaitable[tuple[SessionState, Answer]]]
"""From a session's state to the next one, and what the answer has beside the session."""

ATTEMPTS = 5
"""How often a change is tried that another server's changes come before."""


class Moves:
    """How the sessions of one caller move, on one model.

    Args:
        store: has all sessions.
        held: those in memory.
        service: has the model.
        caller: who calls.
    """

    def __init__(
        self, store: SessionStore, held: HeldSessions, service: ByteService, caller: Caller
    ) -> None:
        self.store = store
        self.held = held
        self.service = service
        self.caller = caller

    @asynccontextmanager
    async def hold(self, session_id: str) -> AsyncIterator[Held]:
        """A session of this caller, when it is this call's turn; it will expire later for that."""
        async with self.held.hold(session_id) as held:
            if self.store.is_shared and held.record is not None:
                # Another server may have moved it, or let it live longer.
                same = await self.store.version(session_id) == held.record.version
                if not same or held.record.expires_at <= time.time():
                    held.forget()
            if held.record is None:
                held.record = await self.store.load(session_id)
                held.meta = orjson.loads(held.record.meta or b"{}") if held.record else {}
            record, now = held.record, time.time()
            if record is None or record.owner != self.caller.key_id:
                raise NoSuchSession(f"there is no session {session_id!r}", "id")
            if record.expires_at <= now:
                held.forget()
                raise SessionExpired(
                    f"the session expired: nobody used it for {record.ttl:g} seconds", "id"
                )
            # Written only where it matters: most calls follow each other at once.
            if now + record.ttl - record.expires_at > min(record.ttl / 20, 60.0):
                held.record = replace(record, expires_at=now + record.ttl)
                await self._touch(held.record)
            try:
                yield held
            except (CallError, InputError, EngineError, asyncio.CancelledError, GeneratorExit):
                raise
            except BaseException:
                # Nobody foresaw this: better to look at the store again.
                held.forget()
                raise

    async def state(self, held: Held) -> tuple[SessionState, CountingLM]:
        """What a session stands at, made again if it has left memory; the model for this call."""
        assert held.record is not None
        if held.meta["fingerprint"] != self.service.fingerprint:
            raise OtherModel(
                "the session was made on another model than this server runs: create a new one"
            )
        lm = counting(self.service.lm, self.caller.cache_salt, self.service.shares)
        if held.state is None:
            packed = Packed(held.meta["state"], held.record.head, held.record.trunk)
            try:
                state = await unpack(held.meta["kind"], packed, lm)
            except SnapshotError as error:
                raise OtherModel(f"the session cannot be read here: {error}") from error
        else:
            state = held.state.on(lm)
        held.state = await state.settled()
        return held.state, lm

    async def looked(self, held: Held, lm: CountingLM) -> None:
        """Count what a call took that left the session where it is."""
        if not lm.usage.evaluations:
            return
        record = held.record
        assert record is not None
        held.meta = {**held.meta, "n_calls": held.meta["n_calls"] + lm.usage.evaluations}
        held.record = replace(
            record, meta=orjson.dumps(held.meta), expires_at=time.time() + record.ttl
        )
        await self._touch(held.record)

    async def _touch(self, record: Record) -> None:
        """Keep what may be lost without harm, where there is room."""
        with contextlib.suppress(Full):
            await self.store.touch(record)

    async def change(
        self,
        session_id: str,
        name: str,
        call: Any,
        key: str | None,
        work: Work,
        *,
        flat: bool = False,
    ) -> Answer:
        """A call that moves a session on: once, whatever other servers do meanwhile."""
        request = digest(name, call)
        for _ in range(ATTEMPTS):
            async with self.hold(session_id) as held:
                assert held.record is not None
                if known := replayed(held.record.reply, key, request):
                    return known
                check_version(held.record, call.if_version)
                state, lm = await self.state(held)
                after, body = await work(state, lm)

                def answer(session: answers.Session, body: Answer = body) -> Answer:
                    return {**session, **body} if flat else {**body, "session": session}

                keyed = None if key is None else (key, request)
                try:
                    return await self.commit(held, after, lm.usage.evaluations, answer, keyed)
                except Changed:
                    held.forget()
        raise too_busy()

    async def commit(
        self,
        held: Held,
        after: SessionState,
        evaluations: int,
        answer: Callable[[answers.Session], Answer],
        keyed: tuple[str, str] | None,
    ) -> Answer:
        """Put a state in the place of the session's, in the store first.

        Raises:
            Changed: another server changed the session.
        """
        before = held.record
        assert before is not None
        n_calls = held.meta["n_calls"] + evaluations
        packed = after.packed(before.trunk)
        meta = {
            **held.meta,
            "length": after.length,
            "at_limit": after.at_limit,
            "n_calls": n_calls,
            "state": packed.meta,
        }
        record = replace(
            before,
            version=before.version + 1,
            expires_at=time.time() + before.ttl,
            meta=orjson.dumps(meta),
            head=packed.head,
            trunk=packed.trunk,
            reply=None,
        )
        answered = answer(session_as_answer(record, meta))
        if keyed is not None:
            record = replace(record, reply=kept_reply(*keyed, answered))
        kept = len(before.trunk) if packed.trunk.startswith(before.trunk) else 0

        async def put() -> None:
            try:
                await self.store.commit(record, before.version, kept)
            except Full:
                raise StoreFull("there is no room to keep the session's new state") from None
            except BaseException:
                # Whether it was written is known to the store alone.
                held.forget()
                raise
            held.record, held.meta, held.state = record, meta, after

        await finished(put())
        return answered

    async def keep(
        self,
        state: SessionState,
        lm: CountingLM,
        ttl: float,
        name: str | None,
        request: str,
        *,
        n_calls: int | None = None,
    ) -> Answer:
        """A state as a new session."""
        packed = state.packed(b"")
        meta = {
            "kind": state.kind,
            "fingerprint": self.service.fingerprint,
            "length": state.length,
            "at_limit": state.at_limit,
            "n_calls": lm.usage.evaluations if n_calls is None else n_calls,
            "state": packed.meta,
        }
        record = Record(
            id=new_id(),
            owner=self.caller.key_id,
            version=1,
            ttl=ttl,
            expires_at=time.time() + ttl,
            meta=orjson.dumps(meta),
            head=packed.head,
            trunk=packed.trunk,
        )
        answer = {**session_as_answer(record, meta), "usage": usage_of(lm)}
        return await self.created(record, answer, name, request, state)

    async def created(
        self,
        record: Record,
        answer: Answer,
        name: str | None,
        request: str,
        state: SessionState | None = None,
    ) -> Answer:
        """Keep a new record; the answer to it, or to the call that had the same key before."""
        reply = reply_of(name, record.expires_at, request, answer)

        async def put() -> bytes | None:
            try:
                return await self.store.create(record, reply, time.time())
            except Full:
                # What has expired may still be in the way.
                await self.store.sweep(time.time())
            try:
                return await self.store.create(record, reply, time.time())
            except Full:
                raise StoreFull(
                    "there is no room for another session: delete some, or wait until they expire"
                ) from None

        known = await finished(put())
        if known is not None:
            return same_call(known, request)
        if state is not None:
            async with self.held.hold(record.id) as held:
                # Whoever found it by its list may have moved it already.
                if held.record is None:
                    held.record, held.meta, held.state = record, orjson.loads(record.meta), state
        return answer

    async def replied(self, name: str | None, request: str) -> Answer | None:
        """The answer to the same call before; None where there was none."""
        if name is None:
            return None
        known = await self.store.reply(name, time.time())
        return None if known is None else same_call(known, request)


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """The result of work that is never left half done: a cancelled caller waits for its end.

    Where that is a success, the caller is not cancelled: what has happened is told as done.
    """
    task = asyncio.create_task(work)
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None and (task.cancelled() or task.exception() is not None):
        raise cancelled
    return task.result()


def new_id() -> str:
    """Sorts by time, and nobody can guess it."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(12)}"


def session_as_answer(record: Record, meta: Answer) -> answers.Session:
    """What a session is, as its record says."""
    return answers.Session(
        id=record.id,
        kind=meta["kind"],
        version=record.version,
        length=meta["length"],
        at_limit=meta.get("at_limit", False),
        n_calls=meta["n_calls"],
        expires_at=record.expires_at,
    )


def session_of(held: Held) -> answers.Session:
    """What a session in memory is."""
    assert held.record is not None
    return session_as_answer(held.record, held.meta)


def check_version(record: Record, wanted: int | None) -> None:
    """VersionConflict if a call wants another version."""
    if wanted is not None and wanted != record.version:
        raise VersionConflict(
            f"the session has version {record.version}, not {wanted}", "if_version"
        )


def too_busy() -> VersionConflict:
    """What a call fails with when others keep coming before it."""
    return VersionConflict("other servers keep changing the session: try again")
