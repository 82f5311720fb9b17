"""The calls of a session as things to send, and what their answers say of it.

Every change carries a key, so that a call that is sent again happens once. Must not send anything.
"""

import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import NoneType
from typing import Any, Literal, TypeAlias, TypeVar, cast
from urllib.parse import quote

import httpx

from bytelm_client._calls import (
    Call,
    nothing,
    read_continuation,
    read_next_bytes,
    read_results,
    read_score,
    timeout_alone,
    timeout_of,
)
from bytelm_client._events import Event
from bytelm_client._rows import Dtype, Numbers, Rows
from bytelm_client.contexts import (
    TEXT,
    Context,
    Ids,
    Messages,
    Segments,
    Text,
    Texts,
    bytes_json,
    context_json,
    ids_json,
)
from bytelm_client.errors import CannotSend
from bytelm_client.options import CallOptions, options_json, score_json
from bytelm_client.results import (
    Candidate,
    Continuation,
    NextBytes,
    NextTokens,
    Score,
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
    read, timeout = SessionInfo.from_json, timeout_of(options)
    return Call("POST", "/v1/sessions", read, body, key=_new_key(), timeout=timeout)


def resume_call(session_id: str, options: CallOptions) -> Call[SessionInfo]:
    """A session that there is already."""
    if not isinstance(session_id, str) or not session_id:
        raise TypeError(f"a session's id is a text, as session.id has it, not {session_id!r:.60}")
    return Call("GET", _path(session_id), SessionInfo.from_json, timeout=timeout_alone(options))


class SessionCalls:
    """The calls of one session; their answers say what it is.

    Attributes:
        info: what it is, as the last answer had it.
    """

    def __init__(self, info: SessionInfo) -> None:
        self.info = info
        self._learning = threading.Lock()

    def get(self, options: CallOptions) -> Call[SessionInfo]:
        """What it is."""
        return self._look("", "get", self._learner(), options)

    def standing(self) -> Call[SessionInfo]:
        """What it is when the calls before this one have ended."""
        return replace(self.get({}), params={"wait": True})

    def candidates(self, options: CallOptions) -> Call[list[Candidate]]:
        """And the tokenizations that it follows."""
        told = self._learner()

        def read(answer: Any) -> list[Candidate]:
            told(answer)
            return [Candidate.from_json(one) for one in answer["candidates"]]

        return replace(self._look("", "get", read, options), params={"candidates": True})

    def next(self, prune: bool, drawable: bool, options: CallOptions) -> Call[NextBytes]:
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

        asked = {"prune": prune, "drawable": drawable}
        params = {name: value for name, value in asked.items() if value} or None
        return replace(self._look("/next", "next", read, options), params=params)

    def next_tokens(self, options: CallOptions) -> Call[NextTokens]:
        """The distribution over the next token.

        Raises:
            TypeError: in a byte session.
        """
        if self.info.kind == "byte":
            raise TypeError("a byte session has next, not next_tokens")
        return replace(self._look("/next", "next", _next_tokens, options), octets=True)

    def move(
        self,
        name: str,
        more: More,
        if_version: int | None,
        options: CallOptions,
        **fields: Any,
    ) -> Call[SessionInfo]:
        """It moves on by what is given."""
        body, timeout = {**_more(more), **fields}, timeout_alone(options)
        return self._change(name, body, if_version, self._learner(), timeout)

    def fork(
        self,
        advance: More | None,
        prune: bool,
        ttl: float | None,
        if_version: int | None,
        options: CallOptions,
    ) -> Call[SessionInfo]:
        """Another session at the same state, or moved on from it."""
        body: dict[str, Any] = {} if ttl is None else {"ttl": ttl}
        if advance is not None:
            body["advance"] = {**_more(advance), "prune": prune}
        timeout = timeout_alone(options)
        return self._change("fork", body, if_version, SessionInfo.from_json, timeout)

    def greedy(
        self, steps: int, if_version: int | None, options: Mapping[str, Any]
    ) -> Call[Continuation]:
        """The most probable continuation."""
        read = cast(Callable[[Any], Continuation], self._continued(one=True))
        body = {"steps": steps, **options_json(options)}
        return self._change("greedy", body, if_version, read, timeout_of(options))

    def sample(
        self, steps: int, if_version: int | None, options: Mapping[str, Any]
    ) -> Call[Continuation | list[Continuation]]:
        """A drawn continuation, or several."""
        body = {"steps": steps, **options_json(options)}
        read = self._continued(one=options["n"] == 1)
        return self._change("sample", body, if_version, read, timeout_of(options))

    def score(
        self, continuations: Text | Texts, if_version: int | None, options: Mapping[str, Any]
    ) -> Call[Score | list[Score]]:
        """How likely given texts are.

        Raises:
            TypeError: in a token session.
        """
        if self.info.kind == "token":
            raise TypeError("a token session has no scores of bytes")
        body, one = score_json(continuations, options)
        read = self._telling(read_results(read_score, one))
        return self._change("score", body, if_version, read, timeout_of(options))

    def rows(
        self,
        text: Text,
        advance: bool,
        prune: bool,
        dtype: Dtype,
        if_version: int | None,
        options: CallOptions,
    ) -> Call[Rows]:
        """The distributions along a text.

        Raises:
            TypeError: in a token session.
        """
        if self.info.kind == "token":
            raise TypeError("a token session has no rows of bytes")
        told = self._learner()

        def read(numbers: Numbers) -> Rows:
            told(numbers.end["session"])
            return numbers.rows

        body = {"text": bytes_json(text), "dtype": dtype, "usage": True}
        body |= {"advance": advance, "prune": prune}
        call = self._change("rows", body, if_version, read, timeout_alone(options))
        return replace(call, octets=True, batched=None)

    def stream(self, name: str, steps: int, options: Mapping[str, Any]) -> Call[None]:
        """A continuation as it comes."""
        body = {"steps": steps, **options_json(options), "stream": True}
        path, timeout = f"{self._path}/{name}", timeout_of(options)
        return Call("POST", path, nothing, body, once=body["advance"], timeout=timeout)

    def delete(self, options: CallOptions) -> Call[None]:
        """Its end."""
        return Call(
            "DELETE",
            self._path,
            nothing,
            key=_new_key(),
            batched=(self.info.id, "delete"),
            timeout=timeout_alone(options),
        )

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
        return self._telling(read_results(read_continuation, one))

    def _telling(self, read: Callable[[Any], T]) -> Callable[[Any], T]:
        """The same, which also learns what the answer says of the session."""
        told = self._learner()

        def read_all(answer: Any) -> T:
            told(answer["session"])
            return read(answer)

        return read_all

    def _look(
        self, path: str, name: str, read: Callable[[Any], T], options: CallOptions
    ) -> Call[T]:
        batched, timeout = (self.info.id, name), timeout_alone(options)
        return Call("GET", self._path + path, read, batched=batched, timeout=timeout)

    def _change(
        self,
        name: str,
        body: Mapping[str, Any],
        if_version: int | None,
        read: Callable[[Any], T],
        timeout: httpx.Timeout | None,
    ) -> Call[T]:
        return Call(
            "POST",
            f"{self._path}/{name}",
            read,
            body if if_version is None else {**body, "if_version": if_version},
            key=_new_key(),
            batched=(self.info.id, name),
            timeout=timeout,
        )


def _path(session_id: str) -> str:
    try:
        return f"/v1/sessions/{quote(session_id, safe='')}"
    except UnicodeEncodeError as error:
        raise CannotSend(f"a session's id cannot be sent: {error}") from error


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


def _next_tokens(numbers: Numbers) -> NextTokens:
    return NextTokens(numbers.rows.reshape(-1))
