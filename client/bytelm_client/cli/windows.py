"""A long text through windows: what is read by one call, and what it has before it.

A window begins at every ``stride`` bytes and is ``window`` bytes long; each byte is scored in the
first window that has it, so that all but the first bytes of the text have at least window − stride
bytes before them. A window whose text has more tokens than the model takes loses its beginning.

Must not know what becomes of the scores.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from bytelm.errors import InputError
from bytelm_client.cli.source import Source
from bytelm_client.errors import InvalidRequest, TookTooLong

if TYPE_CHECKING:
    from bytelm_client import AsyncClient

T = TypeVar("T")

Ask = Callable[[bytes, bytes], Awaitable[int]]
"""From the bytes before a text, and the text, to how many bytes of it are done with."""

PIECE = 256
"""Bytes that one call reads at most. Longer ones take more evaluations, where all tokenizations
count, and are no faster: while a call waits for a wave, others compute."""
BYTES_PER_TOKEN = 2
"""So many at least are in most texts; a window of more tokens than that is cut."""


@dataclass(frozen=True)
class Piece:
    """Bytes to score, and those before them that the model sees."""

    begin: int
    start: int
    end: int


@dataclass(frozen=True)
class Windows:
    """How a text is read.

    Attributes:
        window: bytes of a window; None for all of the text.
        stride: bytes between the beginnings of two.
        piece: bytes that one call scores at most.
    """

    window: int | None
    stride: int | None
    piece: int = PIECE

    @classmethod
    def of(cls, limits: Mapping[str, int | None], window: int | None, stride: int | None) -> Self:
        """By the server's limits, where they are not given.

        Raises:
            InputError: when they leave gaps.
        """
        if window is None and limits["context_tokens"] is not None:
            window = BYTES_PER_TOKEN * limits["context_tokens"]
        most = limits.get("context_bytes")
        if most is not None:
            window = min(window or most, most)
        if window is not None and stride is not None and stride > window:
            raise InputError(f"--stride is at most the window, {window} bytes, not {stride}")
        if window is not None and stride is None:
            stride = max(1, window // 2)
        scored = [limits.get("total_steps"), limits.get("row_values")]
        return cls(window, stride, min([PIECE, *filter(None, scored)]))

    def pieces(self, size: int) -> Iterator[Piece]:
        """A text of ``size`` bytes in pieces, each with the beginning of its window."""
        window = self.window or size
        stride = self.stride or window
        begin, start = 0, 0
        while start < size:
            while start >= begin + window:
                begin += stride
            end = min(start + self.piece, begin + window, size)
            yield Piece(begin, start, end)
            start = end


async def logprobs_of(
    client: "AsyncClient", source: Source, options: dict[str, Any], piece: Piece
) -> NDArray[np.float64]:
    """The log-probability of each byte of a piece."""
    found: list[NDArray[np.float64]] = []

    async def score(context: bytes, text: bytes) -> int:
        # How long a call may take is the server's to say.
        told = await client.score(context, text, per_byte=True, timeout=None, **options)
        assert told.logprobs is not None
        impossible = np.isneginf(told.logprobs)
        # Nothing was followed behind such a byte: go on as if it had been there all along.
        count = int(impossible.argmax()) + 1 if impossible.any() else len(text)
        found.append(told.logprobs[:count])
        return count

    await through(source, piece, score)
    return np.concatenate(found)


async def through(source: Source, piece: Piece, ask: Ask) -> None:
    """Asks about all bytes of a piece, in order; once, if they fit into the model.

    Raises:
        InvalidRequest: what ``ask`` raises, unless less at a time or less before it would do.
    """
    begin, start, size = piece.begin, piece.start, piece.end - piece.start
    while start < piece.end:
        context = source.read(begin, start)
        text = source.read(start, min(start + size, piece.end))
        try:
            start += await ask(context, text)
        except TookTooLong:
            if len(text) < 2:
                raise
            size = len(text) // 2
        except InvalidRequest as error:
            if error.code != "context_too_long" or len(context) + len(text) < 2:
                raise
            # More tokens than the model takes: the window loses half of its beginning; where there
            # is none, fewer bytes are asked about at a time.
            begin += (len(context) + 1) // 2
            size = size if context else max(1, len(text) // 2)


async def in_order(
    work: Callable[[Piece], Awaitable[T]], pieces: Iterator[Piece], at_once: int
) -> AsyncGenerator[tuple[Piece, T], None]:
    """Pieces in their order with what ``work`` makes of each, so many at the same time.

    What is done early waits for those before it, but not for more than are under way.
    """
    turn = asyncio.Semaphore(at_once)

    async def made(piece: Piece) -> tuple[Piece, T]:
        async with turn:
            return piece, await work(piece)

    tasks: deque[asyncio.Task[tuple[Piece, T]]] = deque()
    try:
        for piece in pieces:
            tasks.append(asyncio.create_task(made(piece)))
            if len(tasks) == 2 * at_once:
                yield await tasks[0]
                tasks.popleft()
        while tasks:
            yield await tasks[0]
            tasks.popleft()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
