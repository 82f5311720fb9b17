"""Distributions along a text from where a session stands, which may move on behind it.

The answer is as long as it likes, so that no store keeps it: what is kept by a key is the state
that the session had before. Sent again, the call reads the text from there once more.
"""

import base64
import contextlib
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace

from bytelm_server.counting import CountingLM, usage_of
from bytelm_server.errors import CallError, FieldError
from bytelm_server.row_stream import Pieces, RowFormat
from bytelm_server.sessions.bodies import SessionRowsCall
from bytelm_server.sessions.calls import SessionCalls
from bytelm_server.sessions.held import Held
from bytelm_server.sessions.moves import check_version, session_of
from bytelm_server.sessions.replies import Answer
from bytelm_server.sessions.states import ByteState, SessionState
from bytelm_server.text_rows import pieces


class SessionRows:
    """One such call.

    Args:
        calls: those of the caller.
        session_id: the session.
        call: what is wanted.
        key: names the call, so that it is made once.
    """

    def __init__(
        self, calls: SessionCalls, session_id: str, call: SessionRowsCall, key: str | None
    ) -> None:
        self._calls = calls
        self._session_id = session_id
        self._call = call
        self._text = call.text.data
        self._once = calls.once("rows", call, key, session_id)

    async def pieces(self) -> Pieces:
        """The body of the answer; where it ends well, the session has moved on, if it is to."""
        call, moves = self._call, self._calls.moves
        moves.service.limits.check_scoring([len(self._text)], "text")
        form = RowFormat(call.dtype)
        async with AsyncExitStack() as turn:
            held = await turn.enter_async_context(moves.turn(self._session_id))
            told = await moves.replied(self._once)
            if told is not None:
                state, lm = await moves.restored(*_read(told["before"]))
            else:
                record = await moves.find(self._session_id, held)
                check_version(record, call.if_version)
                state, lm = await moves.state(held)
                if not call.advance:
                    told = {"session": session_of(held), "before": _kept(held)}
                    await moves.remember(self._once, told, record.ttl)
            if told is not None:
                await turn.aclose()  # the state stays what it is, wherever the session goes
            state = await self._checked(state, lm)
            walk = (state.beam.prune() if call.prune else state.beam).through(self._text)
            async with aclosing(pieces(walk, self._text, lm.vocab, form)) as rows:
                async for piece in rows:
                    yield piece
            if told is None:
                consumed = state.consumed + len(self._text)
                told = await self._moved(
                    held, replace(state, beam=walk.state, consumed=consumed), lm
                )
        if not call.advance:
            with contextlib.suppress(CallError):  # it may have ended meanwhile
                async with moves.hold(self._session_id) as held:
                    await moves.looked(held, lm)
        if call.usage:
            yield form.end({"usage": usage_of(lm), "session": told["session"]})

    async def _checked(self, state: SessionState, lm: CountingLM) -> ByteState:
        if not isinstance(state, ByteState):
            raise FieldError("token sessions have no rows of bytes", "text")
        if self._call.advance:
            self._calls.check_room(state, len(self._text), "text")
        await state.beam.check_room(self._text)
        lm.bytes_in += len(self._text)
        return state

    async def _moved(self, held: Held, after: ByteState, lm: CountingLM) -> Answer:
        before = _kept(held)
        return await self._calls.moves.follow(
            held,
            after,
            lm.usage.evaluations,
            lambda session: {"session": session, "before": before},
            self._once,
        )


def _kept(held: Held) -> Answer:
    """What a session stands at, as JSON."""
    assert held.record is not None
    return {
        "meta": {name: held.meta[name] for name in ("kind", "fingerprint", "state")},
        "head": base64.b64encode(held.record.head).decode(),
        "trunk": base64.b64encode(held.record.trunk).decode(),
    }


def _read(kept: Answer) -> tuple[Answer, bytes, bytes]:
    return kept["meta"], base64.b64decode(kept["head"]), base64.b64decode(kept["trunk"])
