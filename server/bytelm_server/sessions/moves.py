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
from typing import Any, Protocol, TypeVar

import orjson

from bytelm.errors import EngineError, InputError, SnapshotError
from bytelm_server.callers import Caller
from bytelm_server.counting import CountingLM, counting, usage_of
from bytelm_server.errors import CallError
from bytelm_server.service import ByteService
from bytelm_server.sessions import answers
from bytelm_server.sessions.failures import OtherModel, StoreFull, VersionConflict
from bytelm_server.sessions.held import Held, HeldSessions
from bytelm_server.sessions.lives import Lives
from bytelm_server.sessions.replies import Answer, Once
from bytelm_server.sessions.states import Packed, SessionState, unpack
from bytelm_server.stores import Changed, Full, Record, SessionStore

T = TypeVar("T")

Told = Callable[[answers.Session], Answer]
"""From what a session is after a call to the call's answer."""
Work = Callable[[SessionState, CountingLM], Awaitable[tuple[SessionState, Told]]]
"""From a session's state to the next one, and to the answer."""
Stay = Callable[[Held], Awaitable[Answer]]
"""From a session to an answer."""

ATTEMPTS = 5
"""How often a change is tried that another server's changes come before."""


class Serving(Protocol):
    """Whoever has the service, or says why there is none now."""

    @property
    def service(self) -> ByteService:
        """The calls over the model."""


class Moves:
    """How the sessions of one caller move, on one model.

    Args:
        store: has all sessions.
        held: those in memory.
        lives: how long they live.
        serving: has the model, where one is needed.
        caller: who calls.
    """

    def __init__(
        self,
        store: SessionStore,
        held: HeldSessions,
        lives: Lives,
        serving: Serving,
        caller: Caller,
    ) -> None:
        self.store = store
        self.held = held
        self.lives = lives
        self.serving = serving
        self.caller = caller

    @property
    def service(self) -> ByteService:
        """The model's, while there is one."""
        return self.serving.service

    @asynccontextmanager
    async def turn(self, session_id: str) -> AsyncIterator[Held]:
        """This call's turn on a session, whether there is such a one or not."""
        async with self.held.hold((self.caller.key_id, session_id)) as held:
            try:
                yield held
            except (CallError, InputError, EngineError, asyncio.CancelledError, GeneratorExit):
                raise
            except BaseException:
                # Nobody foresaw this: better to look at the store again.
                held.forget()
                raise

    async def find(self, session_id: str, held: Held) -> Record:
        """A session of this caller, in its turn; see ``Lives``."""
        return await self.lives.find((self.caller.key_id, session_id), held)

    @asynccontextmanager
    async def hold(self, session_id: str) -> AsyncIterator[Held]:
        """A session of this caller, when it is this call's turn."""
        async with self.turn(session_id) as held:
            await self.find(session_id, held)
            yield held

    async def state(self, held: Held) -> tuple[SessionState, CountingLM]:
        """What a session stands at, made again if it has left memory; the model for this call."""
        assert held.record is not None
        lm = self._model(held.meta)
        if held.state is None:
            state = await _unpacked(held.meta, held.record.head, held.record.trunk, lm)
        else:
            state = held.state.on(lm)
        held.state = await state.settled()
        return held.state, lm

    async def restored(
        self, meta: Answer, head: bytes, trunk: bytes
    ) -> tuple[SessionState, CountingLM]:
        """What a session stood at when its record was this; the model for this call."""
        lm = self._model(meta)
        return await (await _unpacked(meta, head, trunk, lm)).settled(), lm

    def _model(self, meta: Answer) -> CountingLM:
        if meta["fingerprint"] != self.service.fingerprint:
            raise OtherModel(
                "the session was made on another model than this server runs: create a new one"
            )
        return counting(self.service.lm, self.caller.cache_salt, self.service.shares)

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
        with contextlib.suppress(Full):
            await self.store.touch(held.record)

    async def change(
        self, session_id: str, if_version: int | None, once: Once | None, work: Work
    ) -> Answer:
        """A call that moves a session on: once, whatever other servers do meanwhile."""
        async with self.turn(session_id) as held:
            for _ in range(ATTEMPTS):
                if known := await self.replied(once):
                    return known
                record = await self.find(session_id, held)
                check_version(record, if_version)
                state, lm = await self.state(held)
                after, answer = await work(state, lm)
                try:
                    return await self.commit(held, after, lm.usage.evaluations, answer, once)
                except Changed:
                    held.forget()
        raise too_busy()

    async def stay(self, session_id: str, once: Once | None, work: Stay) -> Answer:
        """A call that leaves a session where it is; its answer is kept all the same."""
        async with self.turn(session_id) as held:
            if known := await self.replied(once):
                return known
            record = await self.find(session_id, held)
            answer = await work(held)
            await self.remember(once, answer, record.ttl)
            return answer

    async def remember(self, once: Once | None, answer: Answer, ttl: float) -> None:
        """Keep the answer to a call that leaves a session where it is, if there is room."""
        if once is not None:
            reply = once.reply(answer, time.time() + ttl)
            with contextlib.suppress(Full):
                await finished(self.store.keep(reply, time.time()))

    async def follow(
        self,
        held: Held,
        after: SessionState,
        evaluations: int,
        answer: Told,
        once: Once | None,
    ) -> Answer:
        """As ``commit``, for a call that has told too much already to be tried again.

        Raises:
            VersionConflict: another server changed the session.
        """
        try:
            return await self.commit(held, after, evaluations, answer, once)
        except Changed:
            held.forget()
            raise VersionConflict(
                "another server changed the session: go on from its version"
            ) from None

    async def commit(
        self,
        held: Held,
        after: SessionState,
        evaluations: int,
        answer: Told,
        once: Once | None,
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
        )
        answered = answer(session_as_answer(record, meta))
        reply = None if once is None else once.reply(answered, record.expires_at)
        kept = len(before.trunk) if packed.trunk.startswith(before.trunk) else 0

        async def put() -> None:
            try:
                await self.store.commit(record, before.version, kept, reply)
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
        once: Once | None,
        *,
        n_calls: int | None = None,
        replies_ttl: float = 0.0,
    ) -> Answer:
        """A state as a new session; see ``created``."""
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
        return await self.created(record, answer, once, state, replies_ttl)

    async def created(
        self,
        record: Record,
        answer: Answer,
        once: Once | None,
        state: SessionState | None,
        replies_ttl: float = 0.0,
    ) -> Answer:
        """Keep a new record; the answer to it, or to the call that had the same key before.

        Args:
            record: the record.
            answer: the answer to it, which is kept as long as the session, and ``replies_ttl``.
            once: what it answers.
            state: what the session stands at, if that is known.
            replies_ttl: seconds.
        """
        expires_at = time.time() + max(record.ttl, replies_ttl)
        reply = None if once is None else once.reply(answer, expires_at)

        async def put() -> bytes | None:
            try:
                return await self.store.create(record, reply, time.time())
            except Full:
                # What has expired may still be in the way.
                await self.lives.sweep()
            try:
                return await self.store.create(record, reply, time.time())
            except Full:
                raise StoreFull(
                    "there is no room for another session: delete some, or wait until they expire"
                ) from None

        known = await finished(put())
        if once is not None and known is not None:
            return once.answer(known)
        if state is not None:
            async with self.held.hold((self.caller.key_id, record.id)) as held:
                # Whoever found it by its list may have moved it already.
                if held.record is None:
                    held.record, held.meta, held.state = record, orjson.loads(record.meta), state
        return answer

    async def replied(self, once: Once | None) -> Answer | None:
        """The answer to the same call before; None where there was none."""
        if once is None:
            return None
        known = await self.store.reply(once.about, once.name, time.time())
        return None if known is None else once.answer(known)


async def _unpacked(meta: Answer, head: bytes, trunk: bytes, lm: CountingLM) -> SessionState:
    try:
        state: SessionState = await unpack(meta["kind"], Packed(meta["state"], head, trunk), lm)
    except SnapshotError as error:
        raise OtherModel(f"the session cannot be read here: {error}") from error
    return state


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
