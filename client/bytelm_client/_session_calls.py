"""The calls of a session as things to send, and what their answers say of it.

Every change carries a key, so that a call that is sent again happens once. Must not send anything.
"""

import base64
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
from bytelm_client.contexts import Context, Segments, bytes_json, context_json
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

More: TypeAlias = str | bytes | Segments | Sequence[int]
"""What a session consumes: text, bytes, segments; or, in a token session, token ids."""


def create_call(
    kind: Kind, context: Context | Sequence[int] | None, options: Mapping[str, Any]
) -> Call[SessionInfo]:
    """A new session."""
    body: dict[str, Any] = {"kind": kind, **options_json(options)}
    if context is not None:
        ids = not isinstance(context, str | bytes) and isinstance(context, Sequence)
        body["context"] = (
            {"tokens": list(cast(Sequence[int], context))} if ids else context_json(context)  # type: ignore[arg-type]
        )
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

    def get(self) -> Call[SessionInfo]:
        """What it is."""
        return self._look("", "get", self._told)

    def candidates(self) -> Call[list[Candidate]]:
        """And the tokenizations that it follows."""

        def read(answer: Any) -> list[Candidate]:
            self._told(answer)
            return [Candidate.from_json(one) for one in answer["candidates"]]

        return replace(self._look("", "get", read), params={"candidates": True})

    def next(self, prune: bool) -> Call[NextBytes]:
        """The distribution over the next byte.

        Raises:
            TypeError: in a token session.
        """
        if self.info.kind == "token":
            raise TypeError("a token session has next_tokens, not next")

        def read(answer: Any) -> NextBytes:
            self._told(answer["session"])
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
        return self._change(name, {**_more(more), **fields}, if_version, self._told)

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

    def follow(self, event: Event) -> None:
        """What an event of a stream says of it."""
        if "version" in event:
            data = base64.b64decode(event["bytes"]["base64"])
            more = len(event["tokens"] if self.info.kind == "token" else data)
            self.info = replace(
                self.info,
                version=event["version"],
                length=self.info.length + more,
                at_limit=event.get("finish_reason") == "length",
            )

    @property
    def _path(self) -> str:
        return _path(self.info.id)

    def _told(self, answer: Mapping[str, Any]) -> SessionInfo:
        self.info = SessionInfo.from_json(answer)
        return self.info

    def _continued(self, one: bool) -> Callable[[Any], Continuation | list[Continuation]]:
        read = read_results(read_continuation, one)

        def read_all(answer: Any) -> Continuation | list[Continuation]:
            self._told(answer["session"])
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
        case str() | bytes():
            return {"bytes": bytes_json(more)}
        case Segments():
            return cast(dict[str, Any], context_json(more))
        case _:
            return {"tokens": [int(token) for token in more]}


def _new_key() -> str:
    return uuid.uuid4().hex


def _next_tokens(row: Any) -> NextTokens:
    return NextTokens(np.asarray(row, np.float32).reshape(-1))
