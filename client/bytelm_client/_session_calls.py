"""The calls of a session as things to send, and what their answers say of it.

Every change carries a key, so that a call that is sent again happens once. Must not send anything.
"""

import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import NoneType
from typing import Any, Literal, TypeAlias, TypeVar, cast

import numpy as np

from bytelm_client._calls import (
    Call,
    nothing,
    read_continuation,
    read_next_bytes,
    read_results,
)
from bytelm_client._events import Event
from bytelm_client.contexts import (
    TEXT,
    Context,
    Ids,
    Messages,
    Segments,
    Text,
    bytes_json,
    context_json,
    ids_json,
)
from bytelm_client.options import options_json
from bytelm_client.results import (
    Candidate,
    Continuation,
    NextBytes,
    NextTokens,
    SessionInfo,
    Usage,
)

T = TypeVar("T")

Kind = Literal["byte", "token"]

More: TypeAlias = Text | Segments | Ids
"""What a session consumes: text, bytes, segments; or, in a token session, token ids."""


def create_call(
    kind: Kind, context: Context | Ids | None, options: Mapping[str, Any]
) -> Call[SessionInfo]:
    """A new session."""
    body: dict[str, Any] = {"kind": kind, **options_json(options)}
    if kind == "token" and not isinstance(context, (*TEXT, Segments, Messages, NoneType)):
        body["context"] = {"tokens": ids_json(context)}
    elif context is not None:
        body["context"] = context_json(cast(Context, context))
    return Call("POST", "/v1/sessions", SessionInfo.from_json, body, key=_new_key())


def resume_call(session_id: str) -> Call[SessionInfo]:
    """A session that there is already."""
    return Call("GET", _path(session_id), SessionInfo.from_json)


class SessionCalls:
    """The calls of one session; their answers say what it is.

    Attributes:
        info: what it is, as the last answer had it.
    """

    def __init__(self, info: SessionInfo) -> None:
        self.info = info
        self._learning = threading.Lock()

    def get(self) -> Call[SessionInfo]:
        """What it is."""
        return self._look("", "get", self._learner())

    def candidates(self) -> Call[list[Candidate]]:
        """And the tokenizations that it follows."""
        told = self._learner()

        def read(answer: Any) -> list[Candidate]:
            told(answer)
            return [Candidate.from_json(one) for one in answer["candidates"]]

        return replace(self._look("", "get", read), params={"candidates": True})

    def next(self, prune: bool) -> Call[NextBytes]:
        """The distribution over the next byte.

        Raises:
            TypeError: in a token session.
        """
        if self.info.kind == "token":
            raise TypeError("a token session has next_tokens, not next")

        told = self._learner()

        def read(answer: Any) -> NextBytes:
            told(answer["session"])
            return read_next_bytes(answer["results"][0], Usage(**answer["usage"]), 0)

        params = {"prune": prune} if prune else None
        return replace(self._look("/next", "next", read), params=params)

    def next_tokens(self) -> Call[NextTokens]:
        """The distribution over the next token.

        Raises:
            TypeError: in a byte session.
        """
        if self.info.kind == "byte":
            raise TypeError("a byte session has next, not next_tokens")
        return replace(self._look("/next", "next", _next_tokens), octets=True, batched=None)

    def move(
        self,
        name: str,
        more: More,
        if_version: int | None,
        **fields: Any,
    ) -> Call[SessionInfo]:
        """It moves on by what is given."""
        return self._change(name, {**_more(more), **fields}, if_version, self._learner())

    def fork(
        self, advance: More | None, prune: bool, ttl: float | None, if_version: int | None
    ) -> Call[SessionInfo]:
        """Another session at the same state, or moved on from it."""
        body: dict[str, Any] = {} if ttl is None else {"ttl": ttl}
        if advance is not None:
            body["advance"] = {**_more(advance), "prune": prune}
        return self._change("fork", body, if_version, SessionInfo.from_json)

    def greedy(
        self, steps: int, if_version: int | None, options: Mapping[str, Any]
    ) -> Call[Continuation]:
        """The most probable continuation."""
        read = cast(Callable[[Any], Continuation], self._continued(one=True))
        body = {"steps": steps, **options_json(options)}
        return self._change("greedy", body, if_version, read)

    def sample(
        self, steps: int, if_version: int | None, options: Mapping[str, Any]
    ) -> Call[Continuation | list[Continuation]]:
        """A drawn continuation, or several."""
        body = {"steps": steps, **options_json(options)}
        return self._change("sample", body, if_version, self._continued(one=options["n"] == 1))

    def stream(self, name: str, steps: int, options: Mapping[str, Any]) -> Call[None]:
        """A continuation as it comes."""
        body = {"steps": steps, **options_json(options), "stream": True}
        return Call("POST", f"{self._path}/{name}", nothing, body, once=body["advance"])

    def delete(self) -> Call[None]:
        """Its end."""
        batched = (self.info.id, "delete")
        return Call("DELETE", self._path, nothing, key=_new_key(), batched=batched)

    def follower(self) -> Callable[[Event], None]:
        """Learns from the events of one stream."""
        since = self.info

        def follow(event: Event) -> None:
            nonlocal since
            if "version" in event:
                stands = {name: event[name] for name in ("version", "length", "at_limit")}
                info = replace(self.info, **stands)
                if self._take(info, since):
                    since = info

        return follow

    @property
    def _path(self) -> str:
        return _path(self.info.id)

    def _learner(self) -> Callable[[Mapping[str, Any]], SessionInfo]:
        """Reads what an answer to be asked for says of it."""
        since = self.info

        def told(answer: Mapping[str, Any]) -> SessionInfo:
            info = SessionInfo.from_json(answer)
            self._take(info, since)
            return info

        return told

    def _take(self, info: SessionInfo, since: SessionInfo) -> bool:
        """Take the newest answer; ``since`` is what was known when it was asked for.

        Answers may come in another order than the server made them in. A version that goes back
        is believed only where nothing else was told since: then the server has lost some.
        """
        with self._learning:
            old = self.info
            newest = (info.version, info.expires_at) >= (old.version, old.expires_at)
            if newest or old is since:
                self.info = info
            return self.info is info

    def _continued(self, one: bool) -> Callable[[Any], Continuation | list[Continuation]]:
        read, told = read_results(read_continuation, one), self._learner()

        def read_all(answer: Any) -> Continuation | list[Continuation]:
            told(answer["session"])
            return read(answer)

        return read_all

    def _look(self, path: str, name: str, read: Callable[[Any], T]) -> Call[T]:
        return Call("GET", self._path + path, read, batched=(self.info.id, name))

    def _change(
        self,
        name: str,
        body: Mapping[str, Any],
        if_version: int | None,
        read: Callable[[Any], T],
    ) -> Call[T]:
        if if_version is not None:
            body = {**body, "if_version": if_version}
        batched = (self.info.id, name)
        return Call("POST", f"{self._path}/{name}", read, body, key=_new_key(), batched=batched)


def _path(session_id: str) -> str:
    return f"/v1/sessions/{session_id}"


def _more(more: More) -> dict[str, Any]:
    match more:
        case str() | bytes() | bytearray() | memoryview():
            return {"bytes": bytes_json(more)}
        case Segments():
            return cast(dict[str, Any], context_json(more))
        case _:
            return {"tokens": ids_json(more)}


def _new_key() -> str:
    return uuid.uuid4().hex


def _next_tokens(row: Any) -> NextTokens:
    return NextTokens(np.asarray(row, np.float32).reshape(-1))
