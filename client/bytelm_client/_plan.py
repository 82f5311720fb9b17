"""Made from ``_async/session.py`` by ``client/unasync.py``: change that one."""

from typing import Literal, Unpack, overload

from bytelm_client._calls import Call
from bytelm_client._rows import Dtype, Float16Rows, Float32Rows, Rows
from bytelm_client._session_calls import More, SessionCalls
from bytelm_client.contexts import Text, Texts
from bytelm_client.options import CallOptions, GreedyOptions, PartsOptions, SampleOptions
from bytelm_client.results import Candidate, Continuation, NextBytes, NextTokens, Score, SessionInfo


class Plan:
    """The calls of a session to send with others, by ``client.batch``."""

    def __init__(self, calls: SessionCalls) -> None:
        self._calls = calls

    def get(self, **options: Unpack[CallOptions]) -> Call[SessionInfo]:
        """What the session is now."""
        return self._calls.get(options)

    def candidates(self, **options: Unpack[CallOptions]) -> Call[list[Candidate]]:
        """The tokenizations that the session follows, best first."""
        return self._calls.candidates(options)

    def next(
        self, *, prune: bool = False, drawable: bool = False, **options: Unpack[CallOptions]
    ) -> Call[NextBytes]:
        """The distribution over the next byte; of the pruned state with ``prune``.

        With ``drawable`` also that which greedy and sampling choose from.

        Raises:
            TypeError: in a token session; see ``next_tokens``.
        """
        return self._calls.next(prune, drawable, options)

    def next_tokens(self, **options: Unpack[CallOptions]) -> Call[NextTokens]:
        """The distribution over the next token of a token session.

        Raises:
            TypeError: in a byte session; see ``next``.
        """
        return self._calls.next_tokens(options)

    def advance(
        self,
        more: More,
        *,
        prune: bool = True,
        if_version: int | None = None,
        **options: Unpack[CallOptions],
    ) -> Call[SessionInfo]:
        """Move on, byte by byte or token by token.

        Args:
            more: what to consume.
            prune: prune the beam before each byte, as walks do.
            if_version: only if the session has this version.
            options: see ``CallOptions``.
        """
        return self._calls.move("advance", more, if_version, options, prune=prune)

    def prefill(
        self,
        more: More,
        *,
        prefill: Literal["fast", "exact"] | None = None,
        if_version: int | None = None,
        **options: Unpack[CallOptions],
    ) -> Call[SessionInfo]:
        """Move on by a long text, which is read at once instead of byte by byte.

        Args:
            more: what to consume.
            prefill: how; None: as the session was made.
            if_version: only if the session has this version.
            options: see ``CallOptions``.
        """
        return self._calls.move("prefill", more, if_version, options, prefill=prefill)

    def fork(
        self,
        advance: More | None = None,
        *,
        prune: bool = True,
        ttl: float | None = None,
        if_version: int | None = None,
        **options: Unpack[CallOptions],
    ) -> Call[SessionInfo]:
        """A second session at the same state, moved on at once by ``advance``; this one stays.

        Args:
            advance: what the new one consumes.
            prune: prune its beam before each byte.
            ttl: seconds without use after which it expires; None: as this one.
            if_version: only if this session has this version.
            options: see ``CallOptions``.
        """
        return self._calls.fork(advance, prune, ttl, if_version, options)

    def greedy(
        self,
        steps: int,
        *,
        advance: bool = True,
        if_version: int | None = None,
        **options: Unpack[GreedyOptions],
    ) -> Call[Continuation]:
        """The most probable continuation; the session moves on behind it if ``advance``."""
        return self._calls.greedy(steps, if_version, {"advance": advance, **options})

    @overload
    def sample(
        self,
        steps: int,
        *,
        n: Literal[1] = 1,
        advance: bool = True,
        if_version: int | None = None,
        **options: Unpack[SampleOptions],
    ) -> Call[Continuation]: ...

    @overload
    def sample(
        self,
        steps: int,
        *,
        n: int,
        advance: bool = True,
        if_version: int | None = None,
        **options: Unpack[SampleOptions],
    ) -> Call[Continuation | list[Continuation]]: ...

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
        return self._calls.sample(steps, if_version, {"advance": advance, "n": n, **options})

    @overload
    def score(
        self,
        continuations: Text,
        *,
        advance: bool = True,
        if_version: int | None = None,
        **options: Unpack[PartsOptions],
    ) -> Call[Score]: ...

    @overload
    def score(
        self,
        continuations: Texts,
        *,
        advance: bool = True,
        if_version: int | None = None,
        **options: Unpack[PartsOptions],
    ) -> Call[list[Score]]: ...

    def score(
        self,
        continuations: Text | Texts,
        *,
        advance: bool = True,
        if_version: int | None = None,
        **options: Unpack[PartsOptions],
    ) -> Call[Score | list[Score]]:
        """How likely a text is, or each of several; the session moves on behind it if ``advance``.

        Args:
            continuations: what to score: one, or without ``advance`` any number.
            advance: move on behind it.
            if_version: only if the session has this version.
            options: see ``PartsOptions``.

        Raises:
            TypeError: in a token session.
        """
        return self._calls.score(continuations, if_version, {"advance": advance, **options})

    @overload
    def rows(
        self,
        text: Text,
        *,
        advance: bool = True,
        prune: bool = False,
        dtype: Literal["float32"] = "float32",
        if_version: int | None = None,
        **options: Unpack[CallOptions],
    ) -> Call[Float32Rows]: ...

    @overload
    def rows(
        self,
        text: Text,
        *,
        advance: bool = True,
        prune: bool = False,
        dtype: Literal["float16"],
        if_version: int | None = None,
        **options: Unpack[CallOptions],
    ) -> Call[Float16Rows]: ...

    def rows(
        self,
        text: Text,
        *,
        advance: bool = True,
        prune: bool = False,
        dtype: Dtype = "float32",
        if_version: int | None = None,
        **options: Unpack[CallOptions],
    ) -> Call[Rows]:
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
        return self._calls.rows(text, advance, prune, dtype, if_version, options)

    def delete(self, **options: Unpack[CallOptions]) -> Call[None]:
        """End the session."""
        return self._calls.delete(options)
