"""What can be done with sessions: order, versions, retries, expiry.

A call takes its turn on the session, works on an immutable state, and puts the state that it ends
with in the place of the old one: in the store first, then in memory. So it has happened wholly, or
not at all. Must not know HTTP, nor how a store keeps what it is given.
"""

import asyncio
import contextlib
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import ValidationError

from bytelm.draws import Draw
from bytelm.errors import (
    ContextTooLong,
    EmptyBeam,
    EngineError,
    InputError,
    MethodError,
    SnapshotError,
)
from bytelm.settings import ServerSettings
from bytelm.token_lm import StatefulTokenizedLM
from bytelm.token_sampling import by_tokens
from bytelm_server.answers import Usage, bytes_out
from bytelm_server.callers import Caller
from bytelm_server.contexts import Body
from bytelm_server.counting import CountingLM, counting
from bytelm_server.errors import (
    CallError,
    ErrorDetail,
    FieldError,
    LimitExceeded,
    NoContinuation,
    detail_of,
    item_detail,
)
from bytelm_server.requests import Drawing, Generation
from bytelm_server.service import ByteService, concurrently, usage_of
from bytelm_server.sessions import answers, bodies
from bytelm_server.sessions.failures import (
    KeyConflict,
    NoSuchSession,
    OtherModel,
    SessionExpired,
    StoreFull,
    VersionConflict,
)
from bytelm_server.sessions.held import Held, HeldSessions
from bytelm_server.sessions.states import (
    ByteState,
    Grown,
    Packed,
    SessionState,
    TokenState,
    check_fits,
    text_length,
    unpack,
)
from bytelm_server.stores import Changed, Full, Record, Reply, SessionStore
from bytelm_server.streams import Channel, Events, Text

T = TypeVar("T")

Answer = dict[str, Any]
Work = Callable[[SessionState, CountingLM], Awaitable[tuple[SessionState, Answer]]]
"""From a session's state to the next one, and what the answer has beside the session."""

ATTEMPTS = 5
"""How often a change is tried that another server's changes come before."""
SWEEP_SECONDS = 1.0
MOST_LISTED = 1000
"""Sessions on one page."""

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

    def of(self, service: ByteService, caller: Caller) -> "SessionCalls":
        """The calls of one caller, on a model."""
        return SessionCalls(self, service, caller)

    async def count(self) -> int:
        """How many sessions there are."""
        return await self.store.count(time.time())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.held.drop_idle()
            try:
                await self.store.sweep(time.time())
            except Exception:
                # The store may come back; each call that needs it fails by itself meanwhile.
                _log.exception("expired sessions could not be removed")


class SessionCalls:
    """The calls of one caller; all but ``page`` raise CallErrors that ``failures`` has."""

    def __init__(self, sessions: Sessions, service: ByteService, caller: Caller) -> None:
        self.store = sessions.store
        self.settings = sessions.settings
        self.service = service
        self.caller = caller
        self._sessions = sessions

    # One session.

    async def create(self, call: bodies.CreateCall, key: str | None = None) -> Answer:
        """A new session after a context."""
        name, request = self._reply_name("create", key), _digest("create", call)
        if known := await self._replied(name, request):
            return known
        ttl = self._ttl(call.ttl)
        state, lm = await self._begun(call)
        return await self._kept(state, lm, ttl, name, request)

    async def page(self, after: str, limit: int) -> answers.Page:
        """The caller's sessions, oldest first."""
        limit = min(limit, MOST_LISTED)
        records = await self.store.page(self.caller.key_id, after, limit + 1, time.time())
        listed = [_session(record, orjson.loads(record.meta)) for record in records[:limit]]
        following = records[limit - 1].id if len(records) > limit else None
        return answers.Page(data=listed, next=following)

    async def get(self, session_id: str, call: bodies.GetCall) -> Answer:
        """What a session is."""
        async with self._hold(session_id) as held:
            answer: Answer = dict(_session_of(held))
            if call.candidates:
                state, lm = await self._state(held)
                answer["candidates"] = state.candidates()
                await self._looked(held, lm)
            return answer

    async def fork(self, session_id: str, call: bodies.ForkCall, key: str | None = None) -> Answer:
        """A second session at the same state, or moved on from it."""
        name, request = self._reply_name(session_id, key), _digest("fork", call)
        async with self._hold(session_id) as held:
            assert held.record is not None
            if known := await self._replied(name, request):
                return known
            _refuse_used_key(held.record.reply, key)
            _check_version(held.record, call.if_version)
            ttl = held.record.ttl if call.ttl is None else self._ttl(call.ttl)
            if call.advance is None:
                child = replace(
                    held.record,
                    id=_new_id(),
                    version=1,
                    ttl=ttl,
                    expires_at=time.time() + ttl,
                    reply=None,
                )
                answer = {**_session(child, held.meta), "usage": self._nothing_used()}
                return await self._created(child, answer, name, request)
            state, lm = await self._state(held)
            before = held.meta["n_calls"]
        # What follows concerns the new session alone.
        state = await self._advanced(state, call.advance, "advance.")
        used = lm.usage.evaluations
        bytes_in = text_length(call.advance)
        return await self._kept(
            state, lm, ttl, name, request, n_calls=before + used, bytes_in=bytes_in
        )

    async def advance(
        self, session_id: str, call: bodies.AdvanceCall, key: str | None = None
    ) -> Answer:
        """Move a session on, step by step."""

        async def work(state: SessionState, lm: CountingLM) -> tuple[SessionState, Answer]:
            after = await self._advanced(state, call)
            return after, {"usage": usage_of(lm, text_length(call), 0)}

        return await self._change(session_id, "advance", call, key, work, flat=True)

    async def prefill(
        self, session_id: str, call: bodies.PrefillCall, key: str | None = None
    ) -> Answer:
        """Move a session on by a long text."""

        async def work(state: SessionState, lm: CountingLM) -> tuple[SessionState, Answer]:
            with _naming(call):
                self._check_length(state, call, call.prefill == "exact")
                after = await state.prefilled(call, call.prefill)
            return after, {"usage": usage_of(lm, text_length(call), 0)}

        return await self._change(session_id, "prefill", call, key, work, flat=True)

    async def next(self, session_id: str, call: bodies.NextCall) -> Answer:
        """The distribution over what comes next."""
        if call.top is not None:
            self.service.limits.check_rows(1, call.top)
        async with self._hold(session_id) as held:
            state, lm = await self._state(held)
            result = await state.next(call.top, call.prune)
            await self._looked(held, lm)
            usage = usage_of(lm, 0, 0)
            return {"results": [result], "usage": usage, "session": _session_of(held)}

    async def row(self, session_id: str) -> NDArray[np.float32]:
        """A token session's whole distribution, float32 ``[vocab.size]``."""
        async with self._hold(session_id) as held:
            state, lm = await self._state(held)
            if not isinstance(state, TokenState):
                raise FieldError("only token sessions give rows of bytes: ask for JSON", "accept")
            row = await state.row()
            await self._looked(held, lm)
            return row

    async def generate(
        self,
        session_id: str,
        call: bodies.SessionGreedyCall | bodies.SessionSampleCall,
        key: str | None = None,
    ) -> Answer:
        """The most probable continuation, or drawn ones; the session moves on behind it."""
        draw = self._draw(call)

        async def work(state: SessionState, lm: CountingLM) -> tuple[SessionState, Answer]:
            grown = await _collected(state.grown(call, None if draw is None else draw.spawn(0, 0)))
            return grown.state, self._generated([grown], lm, drawn=draw is not None)

        name = "greedy" if draw is None else "sample"
        if call.advance:
            return await self._change(session_id, name, call, key, work)
        async with self._hold(session_id) as held:
            assert held.record is not None
            _check_version(held.record, call.if_version)
            state, lm = await self._state(held)
            if draw is None or _count(call) == 1:
                _, answer = await work(state, lm)
            else:
                texts = await concurrently(
                    _collected(state.grown(call, draw.spawn(0, n))) for n in range(_count(call))
                )
                answer = self._generated(texts, lm, drawn=True)
            await self._looked(held, lm)
            return {**answer, "session": _session_of(held)}

    async def events(
        self, session_id: str, call: bodies.SessionGreedyCall | bodies.SessionSampleCall
    ) -> Events:
        """The same as it comes: ``answers.SessionEvent``; a version is stored before it is told."""
        draw = self._draw(call)
        async with self._hold(session_id) as held:
            assert held.record is not None
            _check_version(held.record, call.if_version)
            state, lm = await self._state(held)
            if call.advance:
                told = self._moving(held, state, lm, call, draw)
            else:
                told = self._staying(state, lm, call, draw)
            async with aclosing(told):
                async for event in told:
                    yield event
            if not call.advance:
                await self._looked(held, lm)

    async def _moving(
        self,
        held: Held,
        state: SessionState,
        lm: CountingLM,
        call: Generation,
        draw: Draw | None,
    ) -> AsyncGenerator[Answer, None]:
        """The events of a continuation that the session follows."""
        text, told, counted = _Text(0), 0, 0
        grown = state.grown(call, None if draw is None else draw.spawn(0, 0))
        async with aclosing(grown) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                told += len(piece.data)
                event = text.event(piece, self._by_tokens(state))
                if piece.finish_reason is not None:
                    event["usage"] = usage_of(lm, 0, told)
                used, counted = lm.usage.evaluations - counted, lm.usage.evaluations
                try:
                    await self._commit(held, piece.state, used, lambda session: {}, None)
                except Changed:
                    held.forget()
                    raise VersionConflict(
                        "another server changed the session: go on from its version"
                    ) from None
                event["version"] = held.record.version if held.record else 0
                yield event

    async def _staying(
        self, state: SessionState, lm: CountingLM, call: Generation, draw: Draw | None
    ) -> AsyncGenerator[Answer, None]:
        """The events of continuations that the session does not follow."""
        channel, left, told = Channel(), _count(call), 0

        async def one(n: int) -> None:
            nonlocal left, told
            text = _Text(n)
            async for piece in state.grown(call, None if draw is None else draw.spawn(0, n)):
                told += len(piece.data)
                event = text.event(piece, self._by_tokens(state))
                if piece.finish_reason is not None:
                    left -= 1
                    if not left:
                        event["usage"] = usage_of(lm, 0, told)
                await channel.put(event)

        async def all_of_them() -> None:
            await concurrently(one(n) for n in range(_count(call)))

        async with aclosing(channel.of(all_of_them())) as events:
            async for event in events:
                yield dict(event)

    async def delete(
        self, session_id: str, call: bodies.DeleteCall, key: str | None = None
    ) -> Answer:
        """End a session."""
        name, request = self._reply_name(session_id, key), _digest("delete", call)
        if known := await self._replied(name, request):
            return known
        answer: Answer = dict(answers.Ended(id=session_id, deleted=True))
        for _ in range(ATTEMPTS):
            async with self._hold(session_id) as held:
                record = held.record
                assert record is not None
                _refuse_used_key(record.reply, key)
                _check_version(record, call.if_version)
                reply = _reply(name, time.time() + record.ttl, request, answer)
                held.forget()
                with contextlib.suppress(Changed):
                    try:
                        await finished(self.store.delete(session_id, record.version, reply))
                    except Full:
                        await finished(self.store.delete(session_id, record.version, None))
                    return answer
        raise _too_busy()

    # Many sessions.

    async def batch(self, call: bodies.BatchCall) -> answers.Batch:
        """An answer for each call; one that fails has its error there, the others go on."""
        if len(call.calls) > self.settings.max_contexts:
            most = self.settings.max_contexts
            raise LimitExceeded(
                f"one batch takes at most {most} calls, not {len(call.calls)}", "calls"
            )
        turn = asyncio.Semaphore(self.settings.concurrency)

        async def one(item: bodies.BatchItem | ValidationError, index: int) -> Answer:
            place = f"calls[{index}]"
            try:
                if isinstance(item, ValidationError):
                    raise item
                place += ".body"
                body = bodies.CALLS[item.call].model_validate_json(orjson.dumps(item.body))
                async with turn:
                    return await self._one_of_many(item, body)
            except ValidationError as error:
                return {"index": index, "error": item_detail(error, place)}
            except (CallError, InputError) as error:
                return {"index": index, "error": _in_batch(detail_of(error, None), index)}

        items = enumerate(call.calls)
        return answers.Batch(results=await concurrently(one(item, index) for index, item in items))

    async def _one_of_many(self, item: bodies.BatchItem, body: Any) -> Answer:
        key = item.idempotency_key
        match item.call:
            case "get":
                return await self.get(item.id, body)
            case "fork":
                return await self.fork(item.id, body, key)
            case "advance":
                return await self.advance(item.id, body, key)
            case "prefill":
                return await self.prefill(item.id, body, key)
            case "next":
                return await self.next(item.id, body)
            case "delete":
                return await self.delete(item.id, body, key)
            case _:
                if body.stream:
                    raise FieldError("calls of a batch have no streams", "stream")
                return await self.generate(item.id, body, key)

    # How a call gets at a state, and leaves one.

    @asynccontextmanager
    async def _hold(self, session_id: str) -> AsyncIterator[Held]:
        """A session of this caller, when it is this call's turn; it will expire later for that."""
        async with self._sessions.held.hold(session_id) as held:
            if (
                held.record is not None
                and self.store.is_shared
                and await self.store.version(session_id) != held.record.version
            ):
                held.forget()
            if held.record is None:
                held.record = await self.store.load(session_id)
                held.meta = orjson.loads(held.record.meta or b"{}") if held.record else {}
            record, now = held.record, time.time()
            if record is None or record.owner != self.caller.key_id:
                held.forget()
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

    async def _state(self, held: Held) -> tuple[SessionState, CountingLM]:
        """What a session stands at, made again if it has left memory; the model for this call."""
        assert held.record is not None
        if held.meta["fingerprint"] != self.service.fingerprint:
            raise OtherModel(
                "the session was made on another model than this server runs: create a new one"
            )
        lm = counting(self.service.lm, self.caller.cache_salt)
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

    async def _looked(self, held: Held, lm: CountingLM) -> None:
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

    async def _change(
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
        request = _digest(name, call)
        for _ in range(ATTEMPTS):
            async with self._hold(session_id) as held:
                assert held.record is not None
                if known := _replayed(held.record.reply, key, request):
                    return known
                _check_version(held.record, call.if_version)
                state, lm = await self._state(held)
                after, body = await work(state, lm)

                def answer(session: answers.Session, body: Answer = body) -> Answer:
                    return {**session, **body} if flat else {**body, "session": session}

                keyed = None if key is None else (key, request)
                try:
                    return await self._commit(held, after, lm.usage.evaluations, answer, keyed)
                except Changed:
                    held.forget()
        raise _too_busy()

    async def _commit(
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
        meta = {**held.meta, "length": after.length, "n_calls": n_calls, "state": packed.meta}
        record = replace(
            before,
            version=before.version + 1,
            expires_at=time.time() + before.ttl,
            meta=orjson.dumps(meta),
            head=packed.head,
            trunk=packed.trunk,
            reply=None,
        )
        answered = answer(_session(record, meta))
        if keyed is not None:
            record = replace(record, reply=_kept_reply(*keyed, answered))
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

    async def _kept(
        self,
        state: SessionState,
        lm: CountingLM,
        ttl: float,
        name: str | None,
        request: str,
        *,
        n_calls: int | None = None,
        bytes_in: int | None = None,
    ) -> Answer:
        """A state as a new session."""
        packed = state.packed(b"")
        meta = {
            "kind": state.kind,
            "fingerprint": self.service.fingerprint,
            "length": state.length,
            "n_calls": lm.usage.evaluations if n_calls is None else n_calls,
            "state": packed.meta,
        }
        record = Record(
            id=_new_id(),
            owner=self.caller.key_id,
            version=1,
            ttl=ttl,
            expires_at=time.time() + ttl,
            meta=orjson.dumps(meta),
            head=packed.head,
            trunk=packed.trunk,
        )
        given = state.context_bytes if bytes_in is None else bytes_in
        answer = {**_session(record, meta), "usage": usage_of(lm, given, 0)}
        return await self._created(record, answer, name, request, state)

    async def _created(
        self,
        record: Record,
        answer: Answer,
        name: str | None,
        request: str,
        state: SessionState | None = None,
    ) -> Answer:
        """Keep a new record; the answer to it, or to the call that had the same key before."""
        reply = _reply(name, record.expires_at, request, answer)

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
            return _same(known, request)
        if state is not None:
            async with self._sessions.held.hold(record.id) as held:
                held.record, held.meta, held.state = record, orjson.loads(record.meta), state
        return answer

    async def _begun(self, call: bodies.CreateCall) -> tuple[SessionState, CountingLM]:
        given = call.context or bodies.SessionContext(text="")
        vocab = self.service.lm.vocab
        if call.kind == "byte":
            beam, lm, length = await self.service.begun(
                call, given, call.max_context_length, self.caller.cache_salt
            )
            return ByteState(beam, call.prefill, length), lm
        lm = counting(self.service.lm, self.caller.cache_salt)
        if given.tokens is not None:
            for i, token in enumerate(given.tokens):
                if token >= vocab.size:
                    raise FieldError(
                        f"token {token} is not in 0..{vocab.size - 1}", f"context.tokens[{i}]"
                    )
            tokens = list(given.tokens)
        else:
            context = await given.context(vocab, self.service.chat_template, "context")
            await self.service.limits.check_context(context, vocab, lm.max_context_tokens)
            tokens = await asyncio.to_thread(context.tokens, vocab)
        most = call.max_context_length
        state = StatefulTokenizedLM(lm, tokens if most is None else tokens[-most:], 0, most)
        check_fits(state)
        return TokenState(state, len(tokens)), lm

    async def _advanced(self, state: SessionState, by: bodies.Step, at: str = "") -> SessionState:
        with _naming(by, at):
            self._check_length(state, by, walked=True)
            return await state.advanced(by)

    def _check_length(self, state: SessionState, by: bodies.Input, walked: bool) -> None:
        added, most = text_length(by), self.settings.max_context_bytes
        if added + state.context_bytes > most:
            raise LimitExceeded(
                f"a context can have at most {most} bytes here, this one would have "
                f"{added + state.context_bytes}",
                _field(by),
            )
        if walked and state.kind == "byte":
            self.service.limits.check_walk(added)

    def _draw(self, call: Generation) -> Draw | None:
        """How to draw, checked; None for what is not drawn."""
        self.service.limits.check_generation(1, _count(call), call.steps)
        if not isinstance(call, Drawing):
            return None
        draw = Draw(call.temperature, call.top_k, call.top_p, call.min_p, call.seed)
        try:
            by_tokens(
                call.method,
                self.service.lm,
                draw,
                valid_utf8=call.valid_utf8,
                logprobs=call.logprobs,
            )
        except MethodError as error:
            raise FieldError(str(error), error.option) from error
        return draw

    def _by_tokens(self, state: SessionState) -> bool:
        return state.kind == "token"

    def _generated(self, texts: list[Grown], lm: CountingLM, *, drawn: bool) -> Answer:
        results = []
        for n, text in enumerate(texts):
            result: Answer = {"index": 0, "sample": n} if drawn else {}
            result["bytes"] = bytes_out(text.data)
            if self._by_tokens(text.state):
                result["tokens"] = list(text.tokens)
            result["logprob"], result["finish_reason"] = text.logprob, text.finish_reason
            results.append(result)
        made = sum(len(text.data) for text in texts)
        return {"results": results, "usage": usage_of(lm, 0, made)}

    def _nothing_used(self) -> Usage:
        return usage_of(counting(self.service.lm), 0, 0)

    # Retries.

    def _reply_name(self, about: str, key: str | None) -> str | None:
        """Tells the answers that are kept apart: by caller, what it is about, and key."""
        if key is None:
            return None
        parts = orjson.dumps([self.caller.key_id, about, key])
        return hashlib.sha256(parts).hexdigest()

    async def _replied(self, name: str | None, request: str) -> Answer | None:
        """The answer to the same call before; None where there was none."""
        if name is None:
            return None
        known = await self.store.reply(name, time.time())
        return None if known is None else _same(known, request)

    def _ttl(self, wanted: float | None) -> float:
        most = self.settings.max_session_ttl
        if wanted is not None and wanted > most:
            raise LimitExceeded(f"ttl can be at most {most:g} here, not {wanted:g}", "ttl")
        return min(self.settings.session_ttl, most) if wanted is None else wanted


class _Text:
    """One continuation as events."""

    def __init__(self, sample: int) -> None:
        self._sample = sample
        self._text = Text()
        self._logprob = 0.0

    def event(self, piece: Grown, tokens: bool) -> Answer:
        last = piece.finish_reason is not None
        self._logprob += piece.logprob or 0.0
        event: Answer = {
            "index": 0,
            "sample": self._sample,
            "bytes": self._text.out(piece.data, last=last),
        }
        if tokens:
            event["tokens"] = list(piece.tokens)
        if last:
            event["logprob"] = None if piece.logprob is None else self._logprob
            event["finish_reason"] = piece.finish_reason
        return event


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """The result of work that is never left half done: a cancelled caller waits for its end."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise


async def _collected(pieces: AsyncIterator[Grown]) -> Grown:
    """All pieces of a continuation as one."""
    data, tokens, logprob = bytearray(), list[int](), 0.0
    async for piece in pieces:
        data += piece.data
        tokens += piece.tokens
        logprob += piece.logprob or 0.0
    total = None if piece.logprob is None else logprob
    return piece._replace(data=bytes(data), tokens=tuple(tokens), logprob=total)


def _in_batch(detail: ErrorDetail, index: int) -> ErrorDetail:
    """The detail of one call's error, naming the field in the batch."""
    match detail["param"]:
        case None:
            place = ""
        case "id":
            place = ".id"
        case "Idempotency-Key":
            place = ".idempotency_key"
        case field:
            place = f".body.{field}"
    return ErrorDetail(
        type=detail["type"],
        message=detail["message"],
        param=f"calls[{index}]{place}",
        code=detail["code"],
    )


def _count(call: Generation) -> int:
    return call.n if isinstance(call, Drawing) else 1


def _field(by: bodies.Input) -> str:
    return next(name for name in ("bytes", "tokens", "segments") if getattr(by, name) is not None)


@contextlib.contextmanager
def _naming(by: bodies.Input, at: str = "") -> Any:
    """Errors about what was given name the field that it was given in."""
    try:
        yield
    except FieldError as error:
        error.param = f"{at}{error.param or _field(by)}"
        raise
    except ContextTooLong:
        raise
    except EmptyBeam as error:
        raise NoContinuation(str(error), at + _field(by)) from error
    except InputError as error:
        raise FieldError(str(error), at + _field(by)) from error


def _new_id() -> str:
    """Sorts by time, and nobody can guess it."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(12)}"


def _session(record: Record, meta: Answer) -> answers.Session:
    return answers.Session(
        id=record.id,
        kind=meta["kind"],
        version=record.version,
        length=meta["length"],
        n_calls=meta["n_calls"],
        expires_at=record.expires_at,
    )


def _session_of(held: Held) -> answers.Session:
    assert held.record is not None
    return _session(held.record, held.meta)


def _digest(name: str, call: Body) -> str:
    """Tells calls with the same key apart."""
    said = call.model_dump(exclude_unset=True)
    data = orjson.dumps(
        [name, said],
        default=lambda value: value.hex() if isinstance(value, bytes) else repr(value),
        option=orjson.OPT_SORT_KEYS,
    )
    return hashlib.sha256(data).hexdigest()


def _kept_reply(key: str, request: str, answer: Answer) -> bytes:
    return orjson.dumps({"key": key, "request": request, "answer": answer})


def _reply(name: str | None, expires_at: float, request: str, answer: Answer) -> Reply | None:
    if name is None:
        return None
    return Reply(name, expires_at, orjson.dumps({"request": request, "answer": answer}))


def _same(reply: bytes, request: str) -> Answer:
    kept: Answer = orjson.loads(reply)
    if kept["request"] != request:
        raise _used_key()
    answer: Answer = kept["answer"]
    return answer


def _replayed(reply: bytes | None, key: str | None, request: str) -> Answer | None:
    """The answer that is kept with a session, if this call is the one that it answers."""
    if reply is None or key is None or orjson.loads(reply)["key"] != key:
        return None
    return _same(reply, request)


def _refuse_used_key(reply: bytes | None, key: str | None) -> None:
    if reply is not None and key is not None and orjson.loads(reply)["key"] == key:
        raise _used_key()


def _used_key() -> KeyConflict:
    return KeyConflict(
        "this key was used for another call: give each call a key of its own", "Idempotency-Key"
    )


def _check_version(record: Record, wanted: int | None) -> None:
    if wanted is not None and wanted != record.version:
        raise VersionConflict(
            f"the session has version {record.version}, not {wanted}", "if_version"
        )


def _too_busy() -> VersionConflict:
    return VersionConflict("other servers keep changing the session: try again")
