"""Byte LM states that live on a server: a drop-in for local ones.

``RemoteByteLM`` does what ``bytelm.ByteBeamState`` does, so that what is written for byte LMs runs
on a server: ensembles, scores, generation with a draw of one's own. Each state is a session there,
which ends when nobody refers to the state any more.

This module must not know how the server computes.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager, suppress
from types import TracebackType
from typing import Any, Literal, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from bytelm.errors import ContextTooLong, EmptyBeam, Terminated
from bytelm.generating.draws import GREEDY_BELOW, Draw
from bytelm.models.byte_lm import StatefulByteLM
from bytelm.models.logprobs import EOS, SIZE, Chart, LazyByteProbs, check_symbol, checked_bytes
from bytelm_client import AsyncClient, AsyncSession, Client
from bytelm_client.contexts import Context, Segments, Special
from bytelm_client.errors import BytelmClientError, InvalidRequest
from bytelm_client.options import SampleOptions, SessionOptions
from bytelm_client.results import Continuation

AT_ONCE = 100
"""How many sessions are ended by one call."""


class RemoteByteLM(StatefulByteLM):
    """A byte LM's state on a server; see ``initial``. An immutable value, as local states are.

    >>> async with await RemoteByteLM.initial(client) as state:  # doctest: +SKIP
    ...     state = await state.prefill(b"The capital of Fran")
    ...     (await state.logp_next()).argmax()
    99

    Leaving ``async with`` ends the sessions of all states that came of the same ``initial``.
    ``<<`` is one call. ``greedy`` and ``sample`` are one call for the whole text, too, unless the
    draw is a function of one's own.
    """

    def __init__(self, handle: _Handle, context: bytes, pruned: bool, terminated: bool) -> None:
        """For this module; users begin with ``initial``."""
        self._handle = handle
        self._context = context
        self._pruned = pruned
        self.terminated = terminated
        self._next: LazyByteProbs | None = None

    @classmethod
    async def initial(
        cls,
        client: AsyncClient | str | None = None,
        context: Context | None = None,
        **options: Unpack[SessionOptions],
    ) -> Self:
        """The state before any byte, or after a context.

        Args:
            client: the server's, or its address; None for the usual one. One that is made here is
                closed with its last state.
            context: text, segments or messages that come first.
            options: the beam's parameters and others, see ``SessionOptions``.

        Raises:
            ContextTooLong: when the context is longer than the model takes.
            BytelmClientError: when the server refuses, or does not answer.
        """
        if isinstance(client, Client):
            raise TypeError(f"a remote state is awaited: give AsyncClient({client.base_url!r})")
        keeper = _Keeper(client)
        with _as_the_library():
            try:
                session = await keeper.client.session(context, **options)
            except BaseException:
                await keeper.close()
                raise
        return cls(_Handle(session, keeper), _bytes_of(context), False, False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._handle.keeper.end_all()

    @property
    def session(self) -> AsyncSession:
        """The session that the state is on the server. Moving it breaks the state."""
        return self._handle.session

    @property
    def context(self) -> bytes:
        """The bytes consumed so far; of a chat, those behind it."""
        return self._context

    @property
    def at_limit(self) -> bool:
        """Whether the context fills the model, so that a generation ends here."""
        return not self.terminated and self.session.info.at_limit

    async def __lshift__(self, b: int) -> Self:
        b = check_symbol(b)
        self._check_open()
        if b == EOS:
            # The server has no such state, and nothing can follow it.
            if not (await self.logp_next())[EOS] > -np.inf:
                raise EmptyBeam(f"the text cannot end after {self._context[-24:]!r}")
            return type(self)(self._handle, self._context, self._pruned, True)
        with _as_the_library():
            session = await self.session.fork(bytes([b]), prune=self._pruned)
        return self._at(session, bytes([b]))

    def prune(self) -> Self:
        """The state with what is unlikely left out; the same session, which knows when to."""
        return type(self)(self._handle, self._context, True, self.terminated)

    async def logp_next(self) -> LazyByteProbs:
        """The distribution over the next byte or EOS; asked for once."""
        self._check_open()
        if self._next is None:
            with _as_the_library():
                told = await self.session.next(prune=self._pruned, drawable=True)
            assert told.drawable is not None
            kept = np.exp(_placed(told.drawable))
            self._next = LazyByteProbs(_placed(told.logprobs), kept=kept)
        return self._next

    async def prefill(
        self, bs: bytes | Iterable[int], mode: Literal["fast", "exact"] | None = None
    ) -> Self:
        """The state after bytes that are known in advance.

        Args:
            bs: bytes to consume.
            mode: how the server reads them; None: as ``initial`` was told.

        Raises:
            ContextTooLong: when they are more than the model takes.
        """
        added = checked_bytes(bs)
        self._check_open()
        if not added:
            return self
        with _as_the_library():
            session = await self.session.fork()
            state = self._at(session, added)
            await session.prefill(added, prefill=mode)
        return state

    async def rows(self, bs: bytes | Iterable[int]) -> AsyncGenerator[LazyByteProbs, None]:
        """See ``StatefulByteLM``; one call, in float32. What may be drawn is not told apart."""
        text = checked_bytes(bs)
        self._check_open()
        with _as_the_library():
            told = self.session.stream_rows(text, advance=False, prune=self._pruned)
            async with aclosing(told) as pieces:
                async for rows in pieces:
                    for row in rows:
                        yield LazyByteProbs(_placed(row))

    async def greedy(self, context: bytes | Iterable[int], steps: int) -> bytes:
        """See ``StatefulByteLM``; generated by the server in one call."""
        begin = checked_bytes(context)
        state = await self.prefill(begin)
        state._check_open()
        if not steps:
            return begin
        with _as_the_library():
            made = await state.session.greedy(steps, advance=False)
        return begin + made.bytes

    async def sample(
        self,
        context: bytes | Iterable[int],
        steps: int,
        draw: Callable[[Chart], int] | None = None,
    ) -> bytes:
        """See ``StatefulByteLM``; one call, unless ``draw`` is a function of one's own.

        The server draws from a stream of its own, seeded from that of a seeded ``Draw``: the same
        seed gives the same bytes, though not those of a local state.
        """
        if draw is not None and not isinstance(draw, Draw):
            return await super().sample(context, steps, draw)
        draw = Draw() if draw is None else draw
        if draw.temperature < GREEDY_BELOW:
            return await self.greedy(context, steps)
        begin = checked_bytes(context)
        state = await self.prefill(begin)
        state._check_open()
        if not steps:
            return begin
        options: SampleOptions = {
            "temperature": draw.temperature,
            "top_k": draw.top_k,
            "top_p": draw.top_p,
            "min_p": draw.min_p,
            "seed": draw.next_seed(),
        }
        with _as_the_library():
            made = await state.session.sample(steps, advance=False, **options)
        assert isinstance(made, Continuation)
        return begin + made.bytes

    async def cleanup(self) -> None:
        """Ends the state's session, and those of states that nobody refers to any more."""
        self._handle.release()
        await self._handle.keeper.sweep()

    def _at(self, session: AsyncSession, added: bytes) -> Self:
        handle = _Handle(session, self._handle.keeper)
        return type(self)(handle, self._context + added, False, False)

    def _check_open(self) -> None:
        if self.terminated:
            raise Terminated(f"the text ended (EOS) after {self._context[-24:]!r}")

    def __repr__(self) -> str:
        pruned = ", pruned" if self._pruned else ""
        return f"RemoteByteLM({self._context[-24:]!r}, session {self.session.id}{pruned})"


class _Handle:
    """A session that ends when this object does."""

    def __init__(self, session: AsyncSession, keeper: _Keeper) -> None:
        self.session = session
        self.keeper = keeper
        self._end = weakref.finalize(self, keeper.forget, session)
        # At exit there is no time left; the session expires by itself.
        self._end.atexit = False
        keeper.living.add(self)

    def release(self) -> None:
        """End the session now."""
        self.keeper.living.discard(self)
        self._end()


class _Keeper:
    """Ends sessions that nobody refers to any more, many by one call.

    Attributes:
        client: what they are reached by.
        living: those that somebody refers to.
    """

    def __init__(self, client: AsyncClient | str | None) -> None:
        self._closes = not isinstance(client, AsyncClient)
        self.client = client if isinstance(client, AsyncClient) else AsyncClient(client)
        self.living: weakref.WeakSet[_Handle] = weakref.WeakSet()
        self._loop = asyncio.get_running_loop()
        self._forgotten: list[AsyncSession] = []
        self._sweeping: asyncio.Task[None] | None = None

    async def end_all(self) -> None:
        """End all sessions."""
        for handle in list(self.living):
            handle.release()
        await self.sweep()

    async def close(self) -> None:
        """Close a client that was made here and is of no more use."""
        if self._closes and not self.living:
            await self.client.aclose()

    def forget(self, session: AsyncSession) -> None:
        """Note that a session is to end; from any thread, at any time."""
        self._forgotten.append(session)
        with suppress(RuntimeError):  # the loop is closed: it expires by itself
            self._loop.call_soon_threadsafe(self._start)

    async def sweep(self) -> None:
        """Wait until those forgotten so far have ended."""
        self._start()
        if self._sweeping is not None:
            await asyncio.shield(self._sweeping)
        await self.close()

    def _start(self) -> None:
        if self._forgotten and (self._sweeping is None or self._sweeping.done()):
            self._sweeping = self._loop.create_task(self._sweep())

    async def _sweep(self) -> None:
        while self._forgotten:
            some = self._forgotten[:AT_ONCE]
            del self._forgotten[:AT_ONCE]
            # Those that it fails for have ended already, or will expire by themselves.
            with suppress(BytelmClientError, RuntimeError):
                await self.client.batch([session.plan.delete() for session in some])


@contextmanager
def _as_the_library() -> Iterator[None]:
    """Errors about bytes that cannot follow, and the like, as local states raise them."""
    try:
        yield
    except InvalidRequest as error:
        match error.code:
            case "no_continuation":
                raise EmptyBeam(str(error)) from error
            case "context_too_long":
                raise ContextTooLong(str(error)) from error
        raise


def _bytes_of(context: Context | None) -> bytes:
    match context:
        case str():
            return context.encode()
        case bytes() | bytearray() | memoryview():
            return bytes(context)
        case Segments(parts):
            return b"".join(_bytes_of(part) for part in parts if not isinstance(part, Special))
        case _:
            return b""


def _placed(logprobs: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Float64 ``[258]`` of the client's ``[257]``: EOS is at 257 instead of at 256."""
    ps = np.full(SIZE, -np.inf)
    ps[:256], ps[EOS] = logprobs[:256], logprobs[256]
    return ps
