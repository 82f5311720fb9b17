"""Sessions: handles to states on the server, which calls move on.

``Plan`` writes the calls of one session; the two sessions send them, in one's own time or awaited.
Every change carries a key, so that a call that is sent again happens once.
"""

import base64
import uuid
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar, Unpack, cast

import numpy as np

from bytelm_client._base import Call, read_continuation, read_next_bytes, read_results
from bytelm_client.contexts import Context, Segments, bytes_json, context_json
from bytelm_client.errors import BytelmClientError, Gone, NotFound
from bytelm_client.options import GreedyOptions, SampleOptions, options_json
from bytelm_client.results import (
    Candidate,
    Continuation,
    NextBytes,
    NextTokens,
    SessionInfo,
    Usage,
)
from bytelm_client.streams import AsyncStream, Event, Stream

if TYPE_CHECKING:
    from bytelm_client.client import AsyncClient, Client

T = TypeVar("T")

Kind = Literal["byte", "token"]

More: TypeAlias = str | bytes | Segments | Sequence[int]
"""What a session consumes: text, bytes, segments; or, in a token session, token ids."""


def create_call(
    kind: Kind, context: "Context | Sequence[int] | None", options: Mapping[str, Any]
) -> Call[SessionInfo]:
    """A new session."""
    body: dict[str, Any] = {"kind": kind, **options_json(options)}
    if context is not None:
        ids = not isinstance(context, str | bytes) and isinstance(context, Sequence)
        body["context"] = (
            {"tokens": list(cast(Sequence[int], context))} if ids else context_json(context)  # type: ignore[arg-type]
        )
    return Call("POST", "/v1/sessions", SessionInfo.from_json, body, key=_new_key())


class Plan:
    """The calls of one session, as things to send: with others, by ``client.batch``.

    Args:
        session: the session; it learns from the answers what it is then.
    """

    def __init__(self, session: "BaseSession") -> None:
        self._session = session

    def get(self) -> Call[SessionInfo]:
        """What the session is."""
        return self._call("GET", "", "get", self._session._is)

    def candidates(self) -> Call[list[Candidate]]:
        """The tokenizations that the session follows, best first."""

        def read(answer: Any) -> list[Candidate]:
            self._session._is(answer)
            return [Candidate.from_json(one) for one in answer["candidates"]]

        return self._call("GET", "", "get", read, params={"candidates": True})

    def next(self, *, prune: bool = False) -> Call[NextBytes | NextTokens]:
        """The distribution over what comes next; of the pruned state with ``prune``."""
        if self._session.kind == "token":
            return self._call("GET", "/next", "next", _next_tokens, octets=True)

        def read(answer: Any) -> NextBytes:
            self._session._is(answer["session"])
            return read_next_bytes(answer["results"][0], Usage(**answer["usage"]), 0)

        return self._call("GET", "/next", "next", read, params={"prune": prune} if prune else None)

    def advance(
        self, more: More, *, prune: bool = True, if_version: int | None = None
    ) -> Call[SessionInfo]:
        """Move the session on, byte by byte or token by token."""
        body = {**_more(more), **({} if prune else {"prune": False})}
        return self._change("advance", body, self._session._is, if_version)

    def prefill(
        self,
        more: More,
        *,
        prefill: Literal["fast", "exact"] | None = None,
        if_version: int | None = None,
    ) -> Call[SessionInfo]:
        """Move the session on by a long text, which is read at once."""
        body = {**_more(more), **({} if prefill is None else {"prefill": prefill})}
        return self._change("prefill", body, self._session._is, if_version)

    def fork(
        self,
        advance: More | None = None,
        *,
        prune: bool = True,
        ttl: float | None = None,
        if_version: int | None = None,
    ) -> Call[SessionInfo]:
        """A second session at the same state, moved on at once by ``advance``."""
        body: dict[str, Any] = {} if ttl is None else {"ttl": ttl}
        if advance is not None:
            body["advance"] = {**_more(advance), **({} if prune else {"prune": False})}
        return self._change("fork", body, SessionInfo.from_json, if_version)

    def greedy(
        self,
        steps: int,
        *,
        advance: bool = True,
        if_version: int | None = None,
        **options: Unpack[GreedyOptions],
    ) -> Call[Continuation]:
        """The most probable continuation; the session moves on behind it if ``advance``."""
        body = self._generation(steps, advance, options)
        read = cast(Callable[[Any], Continuation], self._results(one=True))
        return self._change("greedy", body, read, if_version)

    def sample(
        self,
        steps: int,
        *,
        n: int = 1,
        advance: bool = True,
        if_version: int | None = None,
        **options: Unpack[SampleOptions],
    ) -> Call[Continuation | list[Continuation]]:
        """A drawn continuation; or, without ``advance``, a list of ``n``."""
        body = {**self._generation(steps, advance, options), "n": n}
        return self._change("sample", body, self._results(one=n == 1), if_version)

    def delete(self) -> Call[None]:
        """End the session."""
        path = f"/v1/sessions/{self._session.id}"
        batched = (self._session.id, "delete")
        return Call("DELETE", path, _nothing, key=_new_key(), batched=batched)

    def _generation(self, steps: int, advance: bool, options: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "steps": steps,
            **options_json(options),
            **({} if advance else {"advance": False}),
        }

    def _results(self, one: bool) -> Callable[[Any], Continuation | list[Continuation]]:
        read = read_results(read_continuation, one)

        def read_all(answer: Any) -> Continuation | list[Continuation]:
            self._session._is(answer["session"])
            return read(answer)

        return read_all

    def _call(
        self,
        method: str,
        path: str,
        name: str,
        read: Callable[[Any], T],
        params: Mapping[str, Any] | None = None,
        octets: bool = False,
    ) -> Call[T]:
        whole = f"/v1/sessions/{self._session.id}{path}"
        return Call(
            method,
            whole,
            read,
            params=params,
            octets=octets,
            batched=None if octets else (self._session.id, name),
        )

    def _change(
        self,
        name: str,
        body: Mapping[str, Any],
        read: Callable[[Any], T],
        if_version: int | None,
    ) -> Call[T]:
        if if_version is not None:
            body = {**body, "if_version": if_version}
        path = f"/v1/sessions/{self._session.id}/{name}"
        batched = (self._session.id, name)
        return Call("POST", path, read, body, key=_new_key(), batched=batched)

    def _stream(
        self, name: str, steps: int, advance: bool, options: Mapping[str, Any]
    ) -> Call[None]:
        body = {**self._generation(steps, advance, options), "stream": True}
        path = f"/v1/sessions/{self._session.id}/{name}"
        return Call("POST", path, _nothing, body, once=advance)


class BaseSession:
    """What both sessions know of theirs: ``info``, as the last answer had it."""

    def __init__(self, info: SessionInfo) -> None:
        self.info = info
        self.plan = Plan(self)

    @property
    def id(self) -> str:
        """Its name, by which any client with the same key can resume it."""
        return self.info.id

    @property
    def kind(self) -> Kind:
        """Whether it goes byte by byte or token by token."""
        return self.info.kind

    @property
    def version(self) -> int:
        """How many states it had so far; a change can be made to depend on it."""
        return self.info.version

    @property
    def length(self) -> int:
        """Bytes or tokens consumed."""
        return self.info.length

    def __repr__(self) -> str:
        unit = f"{self.kind}{'' if self.length == 1 else 's'}"
        return f"{type(self).__name__}({self.id!r}, {self.length} {unit}, version {self.version})"

    def _is(self, answer: Mapping[str, Any]) -> SessionInfo:
        self.info = SessionInfo.from_json(answer)
        return self.info

    def _follow(self, event: Event) -> None:
        """What an event of a stream says of the session."""
        if "version" in event:
            data = base64.b64decode(event["bytes"]["base64"])
            more = len(event["tokens"] if self.kind == "token" else data)
            self.info = replace(
                self.info,
                version=event["version"],
                length=self.info.length + more,
                at_limit=event.get("finish_reason") == "length",
            )


class Session(BaseSession):
    """A handle to a state on the server. Leaving ``with`` ends it there.

    >>> with client.session(b"The capital of Fran") as s:  # doctest: +SKIP
    ...     s.advance(b"ce")
    ...     s.next().top(1)
    [(b' ', -0.01)]
    """

    def __init__(self, client: "Client", info: SessionInfo) -> None:
        super().__init__(info)
        self._client = client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.delete()
        except (NotFound, Gone):
            pass  # ended already
        except BytelmClientError:
            # Where something is wrong already, that is what to tell; the session will expire.
            if error is None:
                raise

    def refresh(self) -> SessionInfo:
        """What the session is now."""
        return self._client._send(self.plan.get())

    def candidates(self) -> list[Candidate]:
        """The tokenizations that the session follows, best first."""
        return self._client._send(self.plan.candidates())

    def next(self, *, prune: bool = False) -> NextBytes:
        """The distribution over the next byte; of the pruned state with ``prune``.

        Raises:
            TypeError: in a token session; see ``next_tokens``.
        """
        return _bytes_only(self._client._send(self.plan.next(prune=prune)))

    def next_tokens(self) -> NextTokens:
        """The distribution over the next token of a token session."""
        return _tokens_only(self._client._send(self.plan.next()))

    def advance(
        self, more: More, *, prune: bool = True, if_version: int | None = None
    ) -> SessionInfo:
        """Move on, byte by byte or token by token.

        Args:
            more: what to consume.
            prune: prune the beam before each byte, as walks do.
            if_version: only if the session has this version.
        """
        return self._client._send(self.plan.advance(more, prune=prune, if_version=if_version))

    def prefill(
        self,
        more: More,
        *,
        prefill: Literal["fast", "exact"] | None = None,
        if_version: int | None = None,
    ) -> SessionInfo:
        """Move on by a long text, which is read at once instead of byte by byte."""
        call = self.plan.prefill(more, prefill=prefill, if_version=if_version)
        return self._client._send(call)

    def fork(
        self,
        advance: More | None = None,
        *,
        prune: bool = True,
        ttl: float | None = None,
        if_version: int | None = None,
    ) -> "Session":
        """A second session at the same state, moved on at once by ``advance``; this one stays."""
        call = self.plan.fork(advance, prune=prune, ttl=ttl, if_version=if_version)
        return Session(self._client, self._client._send(call))

    def greedy(
        self,
        steps: int,
        *,
        advance: bool = True,
        if_version: int | None = None,
        **options: Unpack[GreedyOptions],
    ) -> Continuation:
        """The most probable continuation; the session moves on behind it if ``advance``."""
        call = self.plan.greedy(steps, advance=advance, if_version=if_version, **options)
        return self._client._send(call)

    def sample(
        self,
        steps: int,
        *,
        n: int = 1,
        advance: bool = True,
        if_version: int | None = None,
        **options: Unpack[SampleOptions],
    ) -> Continuation | list[Continuation]:
        """A drawn continuation; or, without ``advance``, a list of ``n``."""
        call = self.plan.sample(steps, n=n, advance=advance, if_version=if_version, **options)
        return self._client._send(call)

    def stream_greedy(
        self, steps: int, *, advance: bool = True, **options: Unpack[GreedyOptions]
    ) -> Stream:
        """The most probable continuation as it comes; the session follows event by event."""
        call = self.plan._stream("greedy", steps, advance, options)
        return self._client._streamed(call, self._follow)

    def stream_sample(
        self, steps: int, *, advance: bool = True, **options: Unpack[SampleOptions]
    ) -> Stream:
        """A drawn continuation as it comes; the session follows event by event."""
        call = self.plan._stream("sample", steps, advance, options)
        return self._client._streamed(call, self._follow)

    def delete(self) -> None:
        """End the session."""
        self._client._send(self.plan.delete())


class AsyncSession(BaseSession):
    """The same, awaited; leaving ``async with`` ends it."""

    def __init__(self, client: "AsyncClient", info: SessionInfo) -> None:
        super().__init__(info)
        self._client = client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.delete()
        except (NotFound, Gone):
            pass  # ended already
        except BytelmClientError:
            if error is None:
                raise

    async def refresh(self) -> SessionInfo:
        """What the session is now."""
        return await self._client._send(self.plan.get())

    async def candidates(self) -> list[Candidate]:
        """The tokenizations that the session follows, best first."""
        return await self._client._send(self.plan.candidates())

    async def next(self, *, prune: bool = False) -> NextBytes:
        """The distribution over the next byte; of the pruned state with ``prune``.

        Raises:
            TypeError: in a token session; see ``next_tokens``.
        """
        return _bytes_only(await self._client._send(self.plan.next(prune=prune)))

    async def next_tokens(self) -> NextTokens:
        """The distribution over the next token of a token session."""
        return _tokens_only(await self._client._send(self.plan.next()))

    async def advance(
        self, more: More, *, prune: bool = True, if_version: int | None = None
    ) -> SessionInfo:
        """Move on, byte by byte or token by token; see ``Session.advance``."""
        call = self.plan.advance(more, prune=prune, if_version=if_version)
        return await self._client._send(call)

    async def prefill(
        self,
        more: More,
        *,
        prefill: Literal["fast", "exact"] | None = None,
        if_version: int | None = None,
    ) -> SessionInfo:
        """Move on by a long text, which is read at once instead of byte by byte."""
        call = self.plan.prefill(more, prefill=prefill, if_version=if_version)
        return await self._client._send(call)

    def fork(
        self,
        advance: More | None = None,
        *,
        prune: bool = True,
        ttl: float | None = None,
        if_version: int | None = None,
    ) -> "Opening":
        """A second session at the same state, moved on at once by ``advance``; this one stays.

        To be awaited, or entered by ``async with``.
        """
        call = self.plan.fork(advance, prune=prune, ttl=ttl, if_version=if_version)
        return Opening(self._client, call)

    async def greedy(
        self,
        steps: int,
        *,
        advance: bool = True,
        if_version: int | None = None,
        **options: Unpack[GreedyOptions],
    ) -> Continuation:
        """The most probable continuation; the session moves on behind it if ``advance``."""
        call = self.plan.greedy(steps, advance=advance, if_version=if_version, **options)
        return await self._client._send(call)

    async def sample(
        self,
        steps: int,
        *,
        n: int = 1,
        advance: bool = True,
        if_version: int | None = None,
        **options: Unpack[SampleOptions],
    ) -> Continuation | list[Continuation]:
        """A drawn continuation; or, without ``advance``, a list of ``n``."""
        call = self.plan.sample(steps, n=n, advance=advance, if_version=if_version, **options)
        return await self._client._send(call)

    def stream_greedy(
        self, steps: int, *, advance: bool = True, **options: Unpack[GreedyOptions]
    ) -> AsyncStream:
        """The most probable continuation as it comes; the session follows event by event."""
        call = self.plan._stream("greedy", steps, advance, options)
        return self._client._streamed(call, self._follow)

    def stream_sample(
        self, steps: int, *, advance: bool = True, **options: Unpack[SampleOptions]
    ) -> AsyncStream:
        """A drawn continuation as it comes; the session follows event by event."""
        call = self.plan._stream("sample", steps, advance, options)
        return self._client._streamed(call, self._follow)

    async def delete(self) -> None:
        """End the session."""
        await self._client._send(self.plan.delete())


class Opening(Awaitable[AsyncSession]):
    """A session that is being made: await it, or enter it by ``async with``."""

    def __init__(self, client: "AsyncClient", call: Call[SessionInfo]) -> None:
        self._client, self._call = client, call
        self._session: AsyncSession | None = None

    def __await__(self) -> Generator[Any, None, AsyncSession]:
        return self._open().__await__()

    async def _open(self) -> AsyncSession:
        return AsyncSession(self._client, await self._client._send(self._call))

    async def __aenter__(self) -> AsyncSession:
        self._session = await self._open()
        return self._session

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.__aexit__(kind, error, traceback)


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


def _nothing(answer: Any) -> None:
    """There is nothing to know."""


def _next_tokens(row: Any) -> NextTokens:
    return NextTokens(np.asarray(row, np.float32).reshape(-1))


def _bytes_only(found: NextBytes | NextTokens) -> NextBytes:
    if isinstance(found, NextTokens):
        raise TypeError("a token session has next_tokens, not next")
    return found


def _tokens_only(found: NextBytes | NextTokens) -> NextTokens:
    if isinstance(found, NextBytes):
        raise TypeError("a byte session has next, not next_tokens")
    return found
