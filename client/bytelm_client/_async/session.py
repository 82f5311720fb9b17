"""Sessions: handles to states on the server, which calls move on."""

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, Unpack, overload

from bytelm_client._async.stream import AsyncStream
from bytelm_client._handle import BaseSession
from bytelm_client._rows import Dtype, Float16Rows, Float32Rows, Rows
from bytelm_client._session_calls import More
from bytelm_client.contexts import Text, Texts
from bytelm_client.errors import BytelmClientError, Gone, NotFound
from bytelm_client.options import CallOptions, GreedyOptions, PartsOptions, SampleOptions
from bytelm_client.results import (
    Candidate,
    Continuation,
    NextBytes,
    NextTokens,
    Score,
    SessionInfo,
)

if TYPE_CHECKING:
    from bytelm_client._async.client import AsyncClient
    from bytelm_client._async.opening import Opening


class AsyncSession(BaseSession):
    """A handle to a state on the server. Leaving ``async with`` ends it there.

    >>> async with client.session(b"The capital of Fran") as s:  # doctest: +SKIP
    ...     await s.advance(b"ce")
    ...     (await s.next()).top(1)
    [(b' ', -0.01)]
    """

    def __init__(self, client: "AsyncClient", info: SessionInfo) -> None:
        super().__init__(info)
        self._client = client
        self._send = client._send

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
            # Where something is wrong already, that is what to tell; the session will expire.
            if error is None:
                raise

    async def refresh(self, **options: Unpack[CallOptions]) -> SessionInfo:
        """What the session is now."""
        return await self._send(self._calls.get(options))

    async def candidates(self, **options: Unpack[CallOptions]) -> list[Candidate]:
        """The tokenizations that the session follows, best first."""
        return await self._send(self._calls.candidates(options))

    async def next(
        self, *, prune: bool = False, drawable: bool = False, **options: Unpack[CallOptions]
    ) -> NextBytes:
        """The distribution over the next byte; of the pruned state with ``prune``.

        With ``drawable`` also that which greedy and sampling choose from.

        Raises:
            TypeError: in a token session; see ``next_tokens``.
        """
        return await self._send(self._calls.next(prune, drawable, options))

    async def next_tokens(self, **options: Unpack[CallOptions]) -> NextTokens:
        """The distribution over the next token of a token session.

        Raises:
            TypeError: in a byte session; see ``next``.
        """
        return await self._send(self._calls.next_tokens(options))

    async def advance(
        self,
        more: More,
        *,
        prune: bool = True,
        if_version: int | None = None,
        **options: Unpack[CallOptions],
    ) -> SessionInfo:
        """Move on, byte by byte or token by token.

        Args:
            more: what to consume.
            prune: prune the beam before each byte, as walks do.
            if_version: only if the session has this version.
            options: see ``CallOptions``.
        """
        return await self._send(self._calls.move("advance", more, if_version, options, prune=prune))

    async def prefill(
        self,
        more: More,
        *,
        prefill: Literal["fast", "exact"] | None = None,
        if_version: int | None = None,
        **options: Unpack[CallOptions],
    ) -> SessionInfo:
        """Move on by a long text, which is read at once instead of byte by byte.

        Args:
            more: what to consume.
            prefill: how; None: as the session was made.
            if_version: only if the session has this version.
            options: see ``CallOptions``.
        """
        return await self._send(
            self._calls.move("prefill", more, if_version, options, prefill=prefill)
        )

    def fork(
        self,
        advance: More | None = None,
        *,
        prune: bool = True,
        ttl: float | None = None,
        if_version: int | None = None,
        **options: Unpack[CallOptions],
    ) -> "Opening":
        """A second session at the same state, moved on at once by ``advance``; this one stays.

        To be awaited, or entered by ``async with``.

        Args:
            advance: what the new one consumes.
            prune: prune its beam before each byte.
            ttl: seconds without use after which it expires; None: as this one.
            if_version: only if this session has this version.
            options: see ``CallOptions``.
        """
        return self._client._opening(self._calls.fork(advance, prune, ttl, if_version, options))

    async def greedy(
        self,
        steps: int,
        *,
        advance: bool = True,
        if_version: int | None = None,
        **options: Unpack[GreedyOptions],
    ) -> Continuation:
        """The most probable continuation; the session moves on behind it if ``advance``."""
        return await self._send(
            self._calls.greedy(steps, if_version, {"advance": advance, **options})
        )

    @overload
    async def sample(
        self,
        steps: int,
        *,
        n: Literal[1] = 1,
        advance: bool = True,
        if_version: int | None = None,
        **options: Unpack[SampleOptions],
    ) -> Continuation: ...
    @overload
    async def sample(
        self,
        steps: int,
        *,
        n: int,
        advance: bool = True,
        if_version: int | None = None,
        **options: Unpack[SampleOptions],
    ) -> Continuation | list[Continuation]: ...
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
        return await self._send(
            self._calls.sample(steps, if_version, {"advance": advance, "n": n, **options})
        )

    @overload
    async def score(
        self,
        continuations: Text,
        *,
        advance: bool = True,
        if_version: int | None = None,
        **options: Unpack[PartsOptions],
    ) -> Score: ...
    @overload
    async def score(
        self,
        continuations: Texts,
        *,
        advance: bool = True,
        if_version: int | None = None,
        **options: Unpack[PartsOptions],
    ) -> list[Score]: ...
    async def score(
        self,
        continuations: Text | Texts,
        *,
        advance: bool = True,
        if_version: int | None = None,
        **options: Unpack[PartsOptions],
    ) -> Score | list[Score]:
        """How likely a text is, or each of several; the session moves on behind it if ``advance``.

        Args:
            continuations: what to score: one, or without ``advance`` any number.
            advance: move on behind it.
            if_version: only if the session has this version.
            options: see ``PartsOptions``.

        Raises:
            TypeError: in a token session.
        """
        return await self._send(
            self._calls.score(continuations, if_version, {"advance": advance, **options})
        )

    @overload
    async def rows(
        self,
        text: Text,
        *,
        advance: bool = True,
        prune: bool = False,
        dtype: Literal["float32"] = "float32",
        if_version: int | None = None,
        **options: Unpack[CallOptions],
    ) -> Float32Rows: ...
    @overload
    async def rows(
        self,
        text: Text,
        *,
        advance: bool = True,
        prune: bool = False,
        dtype: Literal["float16"],
        if_version: int | None = None,
        **options: Unpack[CallOptions],
    ) -> Float16Rows: ...
    async def rows(
        self,
        text: Text,
        *,
        advance: bool = True,
        prune: bool = False,
        dtype: Dtype = "float32",
        if_version: int | None = None,
        **options: Unpack[CallOptions],
    ) -> Rows:
        """The distributions before each byte of a text, and behind the last.

        Args:
            text: the bytes to read.
            advance: move on behind them, when all rows were made.
            prune: the first is that of the pruned state.
            dtype: of the numbers; ``"float16"`` is half as much, rounded by 1/2048 at most.
            if_version: only if the session has this version.
            options: see ``CallOptions``.

        Returns:
            ``[bytes + 1, 257]``, natural logarithms: of 256 bytes, then of EOS (``EOS_INDEX``).

        Raises:
            InvalidRequest: when nothing continues with one of the bytes, or they do not fit.
            TypeError: in a token session.
        """
        return await self._send(self._calls.rows(text, advance, prune, dtype, if_version, options))

    def stream_rows(
        self,
        text: Text,
        *,
        advance: bool = True,
        prune: bool = False,
        dtype: Dtype = "float32",
        if_version: int | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncGenerator[Rows, None]:
        """The same as they come, some rows at a time; the session moves on with the last.

        Leave it early by ``aclose``: the server then ends its work, and the session stays.
        """
        call = self._calls.rows(text, advance, prune, dtype, if_version, options)
        return self._client._read_rows(call)

    def stream_greedy(
        self, steps: int, *, advance: bool = True, **options: Unpack[GreedyOptions]
    ) -> AsyncStream:
        """The most probable continuation as it comes; the session follows event by event."""
        call = self._calls.stream("greedy", steps, {"advance": advance, **options})
        return AsyncStream(self._client, call, self if advance else None)

    def stream_sample(
        self, steps: int, *, advance: bool = True, **options: Unpack[SampleOptions]
    ) -> AsyncStream:
        """A drawn continuation as it comes; the session follows event by event."""
        call = self._calls.stream("sample", steps, {"advance": advance, **options})
        return AsyncStream(self._client, call, self if advance else None)

    async def delete(self, **options: Unpack[CallOptions]) -> None:
        """End the session."""
        return await self._send(self._calls.delete(options))
