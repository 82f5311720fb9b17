"""The calls of sessions, as one caller makes them.

Must not know HTTP, nor how a state gets into the place of another.
"""

import contextlib
import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from bytelm.errors import ContextTooLong, EmptyBeam, InputError
from bytelm.generating.draws import Draw
from bytelm.models.logprobs import SIZE
from bytelm.models.token_lm import StatefulTokenizedLM
from bytelm.settings import ServerSettings
from bytelm.threads import by_length
from bytelm_server.callers import Caller
from bytelm_server.contexts import Body
from bytelm_server.counting import CountingLM, counting, usage_of
from bytelm_server.errors import FieldError, LimitExceeded, NoContinuation
from bytelm_server.requests import Generation
from bytelm_server.scoring import Wanted
from bytelm_server.service import ByteService, concurrently
from bytelm_server.sessions import answers, bodies
from bytelm_server.sessions.continuations import (
    TextEvents,
    answer_of,
    collected,
    count_of,
    draw_of,
)
from bytelm_server.sessions.held import Held, HeldSessions
from bytelm_server.sessions.lives import Lives
from bytelm_server.sessions.moves import (
    ATTEMPTS,
    Moves,
    Serving,
    Told,
    check_version,
    finished,
    new_id,
    session_as_answer,
    session_of,
    too_busy,
)
from bytelm_server.sessions.replies import Answer, Key, Once
from bytelm_server.sessions.scores import scored
from bytelm_server.sessions.states import (
    ByteState,
    SessionState,
    TokenState,
    text_length,
)
from bytelm_server.stores import Changed, Full, SessionStore
from bytelm_server.streams import Channel, Events
from bytelm_server.token_rows import check_fits, check_ids

MOST_LISTED = 1000
"""Sessions on one page."""


class SessionCalls:
    """The calls of one caller; they raise what ``failures`` has, and what all calls raise.

    Args:
        store: has all sessions.
        held: those in memory.
        lives: how long they live.
        settings: limits and defaults.
        serving: has the model; what needs none is answered without.
        caller: who calls; nobody else's sessions are reached.
    """

    def __init__(
        self,
        store: SessionStore,
        held: HeldSessions,
        lives: Lives,
        settings: ServerSettings,
        serving: Serving,
        caller: Caller,
    ) -> None:
        self.store = store
        self.held = held
        self.lives = lives
        self.settings = settings
        self.caller = caller
        self._values = 0
        self.moves = Moves(store, held, lives, serving, caller)

    @property
    def service(self) -> ByteService:
        """The model's, while there is one."""
        return self.moves.service

    @contextlib.contextmanager
    def using(self, session_ids: Iterable[str]) -> Iterator[None]:
        """Sessions that calls are going to work on do not expire until they are answered."""
        with contextlib.ExitStack() as stack:
            for session_id in set(session_ids):
                stack.enter_context(self.held.using((self.caller.key_id, session_id)))
            yield

    # One session.

    async def create(self, call: bodies.CreateCall, key: Key | None = None) -> Answer:
        """A new session after a context."""
        once = self.once("create", call, key)
        if known := await self.moves.replied(once):
            return known
        ttl = self._ttl(call.ttl)
        state, lm = await self._begun(call)
        return await self.moves.keep(state, lm, ttl, once)

    async def page(self, after: str, limit: int) -> answers.Page:
        """The caller's sessions, oldest first."""
        limit = min(limit, MOST_LISTED)
        records = await self.store.page(self.caller.key_id, after, limit + 1, time.time())
        listed = [
            session_as_answer(record, orjson.loads(record.meta)) for record in records[:limit]
        ]
        following = records[limit - 1].id if len(records) > limit else None
        return answers.Page(data=listed, next=following)

    async def look(self, session_id: str) -> Answer:
        """What a session is, whoever works on it."""
        record = await self.lives.look((self.caller.key_id, session_id))
        return dict(session_as_answer(record, orjson.loads(record.meta)))

    async def get(self, session_id: str, call: bodies.GetCall, key: Key | None = None) -> Answer:
        """What a session is, after the calls before this one."""

        async def work(held: Held) -> Answer:
            answer: Answer = dict(session_of(held))
            if call.candidates:
                state, lm = await self.moves.state(held)
                self._answering(state.tokens, "candidates")
                answer["candidates"] = state.candidates()
                answer["deferred"] = state.deferred
                await self.moves.looked(held, lm)
            return answer

        return await self.moves.stay(session_id, self.once("get", call, key, session_id), work)

    async def fork(self, session_id: str, call: bodies.ForkCall, key: Key | None = None) -> Answer:
        """A second session at the same state, or moved on from it."""
        once = self.once("fork", call, key, session_id)
        async with self.moves.turn(session_id) as held:
            if known := await self.moves.replied(once):
                return known
            record = await self.moves.find(session_id, held)
            check_version(record, call.if_version)
            ttl = record.ttl if call.ttl is None else self._ttl(call.ttl)
            if call.advance is None:
                child = replace(
                    record, id=new_id(), version=1, ttl=ttl, expires_at=time.time() + ttl
                )
                answer = {
                    **session_as_answer(child, held.meta),
                    "usage": usage_of(counting(self.service.lm)),
                }
                return await self.moves.created(child, answer, once, held.state, record.ttl)
            state, lm = await self.moves.state(held)
            before = held.meta["n_calls"]
        # What follows concerns the new session alone.
        state = await self._advanced(state, lm, call.advance, "advance.")
        n_calls = before + lm.usage.evaluations
        return await self.moves.keep(state, lm, ttl, once, n_calls=n_calls, replies_ttl=record.ttl)

    async def advance(
        self, session_id: str, call: bodies.AdvanceCall, key: Key | None = None
    ) -> Answer:
        """Move a session on, step by step."""

        async def work(state: SessionState, lm: CountingLM) -> tuple[SessionState, Told]:
            return await self._advanced(state, lm, call), _session_and(lm)

        once = self.once("advance", call, key, session_id)
        return await self.moves.change(session_id, call.if_version, once, work)

    async def prefill(
        self, session_id: str, call: bodies.PrefillCall, key: Key | None = None
    ) -> Answer:
        """Move a session on by a long text."""

        async def work(state: SessionState, lm: CountingLM) -> tuple[SessionState, Told]:
            with _naming(call):
                exact = isinstance(state, ByteState) and (call.prefill or state.mode) == "exact"
                self._check_length(state, call, walked=exact)
                lm.bytes_in += text_length(call)
                after = await state.prefilled(call, call.prefill)
            return after, _session_and(lm)

        once = self.once("prefill", call, key, session_id)
        return await self.moves.change(session_id, call.if_version, once, work)

    async def next(self, session_id: str, call: bodies.NextCall, key: Key | None = None) -> Answer:
        """The distribution over what comes next."""
        self._answering(call.top or SIZE, "top")

        async def work(held: Held) -> Answer:
            state, lm = await self.moves.state(held)
            result = await state.next(call)
            await self.moves.looked(held, lm)
            return {"results": [result], "usage": usage_of(lm), "session": session_of(held)}

        return await self.moves.stay(session_id, self.once("next", call, key, session_id), work)

    def _answering(self, values: int, param: str) -> None:
        """Count what an answer will have, all calls of a batch together; LimitExceeded."""
        self.service.limits.check_values(self._values + values, param)
        self._values += values

    async def row(self, session_id: str) -> NDArray[np.float32]:
        """A token session's whole distribution, float32 ``[vocab.size]``."""
        async with self.moves.hold(session_id) as held:
            state, lm = await self.moves.state(held)
            if not isinstance(state, TokenState):
                raise FieldError("only token sessions give rows of bytes: ask for JSON", "accept")
            row = await state.row()
            await self.moves.looked(held, lm)
            return row

    async def generate(
        self,
        session_id: str,
        call: bodies.SessionGreedyCall | bodies.SessionSampleCall,
        key: Key | None = None,
    ) -> Answer:
        """The most probable continuation, or drawn ones; the session moves on behind it."""
        draw = draw_of(call, self.service)
        once = self.once("greedy" if draw is None else "sample", call, key, session_id)

        async def moving(state: SessionState, lm: CountingLM) -> tuple[SessionState, Told]:
            own = None if draw is None else draw.spawn(0, 0)
            grown = await collected(state.grown(call, own), lm)
            answer = answer_of([grown], lm, drawn=draw is not None)
            return grown.state, lambda session: {**answer, "session": session}

        async def staying(held: Held) -> Answer:
            assert held.record is not None
            check_version(held.record, call.if_version)
            state, lm = await self.moves.state(held)
            texts = await concurrently(
                collected(state.grown(call, None if draw is None else draw.spawn(0, n)), lm)
                for n in range(count_of(call))
            )
            answer = answer_of(texts, lm, drawn=draw is not None)
            await self.moves.looked(held, lm)
            return {**answer, "session": session_of(held)}

        if call.advance:
            return await self.moves.change(session_id, call.if_version, once, moving)
        return await self.moves.stay(session_id, once, staying)

    async def score(
        self, session_id: str, call: bodies.SessionScoreCall, key: Key | None = None
    ) -> Answer:
        """How likely given bytes are; the session moves on behind them."""
        wanted = await Wanted.of(call, self.service.limits)
        self._answering(wanted.values, "continuations")
        once = self.once("score", call, key, session_id)

        async def moving(state: SessionState, lm: CountingLM) -> tuple[SessionState, Told]:
            self.check_room(state, wanted.length, "continuations[0]")
            after, answer = await scored(state, lm, wanted, advance=True)
            return after, lambda session: {**answer, "session": session}

        async def staying(held: Held) -> Answer:
            assert held.record is not None
            check_version(held.record, call.if_version)
            state, lm = await self.moves.state(held)
            _, answer = await scored(state, lm, wanted, advance=False)
            await self.moves.looked(held, lm)
            return {**answer, "session": session_of(held)}

        if call.advance:
            return await self.moves.change(session_id, call.if_version, once, moving)
        return await self.moves.stay(session_id, once, staying)

    async def events(
        self, session_id: str, call: bodies.SessionGreedyCall | bodies.SessionSampleCall
    ) -> Events:
        """The same as it comes: ``answers.SessionEvent``; a version is stored before it is told."""
        draw = draw_of(call, self.service)
        async with self.moves.hold(session_id) as held:
            assert held.record is not None
            check_version(held.record, call.if_version)
            state, lm = await self.moves.state(held)
            if call.advance:
                told = self._moving(held, state, lm, call, draw)
            else:
                told = self._staying(state, lm, call, draw)
            async with aclosing(told):
                async for event in told:
                    yield event
            if not call.advance:
                await self.moves.looked(held, lm)

    async def _moving(
        self,
        held: Held,
        state: SessionState,
        lm: CountingLM,
        call: Generation,
        draw: Draw | None,
    ) -> AsyncGenerator[Answer, None]:
        """The events of a continuation that the session follows."""
        text, counted = TextEvents(0), 0
        grown = state.grown(call, None if draw is None else draw.spawn(0, 0))
        async with aclosing(grown) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                lm.bytes_out += len(piece.data)
                event = text.event(piece)
                if piece.finish_reason is not None:
                    event["usage"] = usage_of(lm)
                used, counted = lm.usage.evaluations - counted, lm.usage.evaluations
                await self.moves.follow(held, piece.state, used, dict, None)
                stands = session_of(held)
                yield {
                    **event,
                    **{name: stands[name] for name in ("version", "length", "at_limit")},
                }

    async def _staying(
        self, state: SessionState, lm: CountingLM, call: Generation, draw: Draw | None
    ) -> AsyncGenerator[Answer, None]:
        """The events of continuations that the session does not follow."""
        channel, left = Channel(), count_of(call)

        async def one(n: int) -> None:
            nonlocal left
            text = TextEvents(n)
            async for piece in state.grown(call, None if draw is None else draw.spawn(0, n)):
                lm.bytes_out += len(piece.data)
                event = text.event(piece)
                if piece.finish_reason is not None:
                    left -= 1
                    if not left:
                        event["usage"] = usage_of(lm)
                await channel.put(event)

        async def all_of_them() -> None:
            await concurrently(one(n) for n in range(count_of(call)))

        async with aclosing(channel.of(all_of_them())) as events:
            async for event in events:
                yield dict(event)

    async def delete(
        self, session_id: str, call: bodies.DeleteCall, key: Key | None = None
    ) -> Answer:
        """End a session."""
        once = self.once("delete", call, key, session_id)
        answer: Answer = dict(answers.Ended(id=session_id, deleted=True))
        async with self.moves.turn(session_id) as held:
            for _ in range(ATTEMPTS):
                if known := await self.moves.replied(once):
                    return known
                record = await self.moves.find(session_id, held)
                check_version(record, call.if_version)
                expires_at = time.time() + record.ttl
                reply = None if once is None else once.reply(answer, expires_at)
                held.forget()
                with contextlib.suppress(Changed):
                    try:
                        await finished(self.store.delete(session_id, record.version, reply))
                    except Full:
                        await finished(self.store.delete(session_id, record.version, None))
                    return answer
        raise too_busy()

    # What calls ask for.

    def once(
        self, what: str, call: Body, key: Key | None, session_id: str | None = None
    ) -> Once | None:
        """A call of this caller that has a key."""
        return Once.of(self.caller.key_id, key, what, call, session_id)

    async def _begun(self, call: bodies.CreateCall) -> tuple[SessionState, CountingLM]:
        given = call.context or bodies.SessionContext(text="")
        vocab = self.service.lm.vocab
        if call.kind == "byte":
            beam, lm, length = await self.service.begun(
                call, given, call.max_context_length, self.caller.cache_salt
            )
            return ByteState(beam, call.prefill, length), lm
        lm = counting(self.service.lm, self.caller.cache_salt, self.service.shares)
        most = call.max_context_length
        if given.tokens is not None:
            tokens = given.tokens
            check_fits(tokens, lm, most)
            check_ids(tokens, vocab, "context.tokens")
        else:
            context = await given.context(vocab, self.service.chat_template, "context")
            self.service.limits.check_context(context)
            fits = None if most is not None else lm.max_context_tokens
            tokens = await by_length(context.length, context.tokens, vocab, fits)
        state = StatefulTokenizedLM(lm, tokens if most is None else tokens[-most:], 0, most)
        return TokenState(state, len(tokens)), lm

    async def _advanced(
        self, state: SessionState, lm: CountingLM, by: bodies.Step, at: str = ""
    ) -> SessionState:
        with _naming(by, at):
            self._check_length(state, by, walked=True)
            lm.bytes_in += text_length(by)
            return await state.advanced(by)

    def _check_length(self, state: SessionState, by: bodies.Input, walked: bool) -> None:
        added = text_length(by)
        self.check_room(state, added, _field(by))
        if walked and state.kind == "byte":
            self.service.limits.check_walk(added)

    def check_room(self, state: SessionState, added: int, param: str) -> None:
        """Whether a session may have so many more bytes; LimitExceeded, naming the field."""
        most = self.settings.max_context_bytes
        if added + state.context_bytes > most:
            raise LimitExceeded(
                f"a context can have at most {most} bytes here, this one would have "
                f"{added + state.context_bytes}",
                param,
            )

    def _ttl(self, wanted: float | None) -> float:
        most = self.settings.max_session_ttl
        if wanted is not None and wanted > most:
            raise LimitExceeded(f"ttl can be at most {most:g} here, not {wanted:g}", "ttl")
        return min(self.settings.session_ttl, most) if wanted is None else wanted


def _session_and(lm: CountingLM) -> Told:
    """An answer that is the session and what the call took."""
    return lambda session: {**session, "usage": usage_of(lm)}


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
