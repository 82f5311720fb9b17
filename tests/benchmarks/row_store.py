"""Evaluations kept on disk by context, so that benchmarks share them and a killed one goes on.

This module knows token LMs; it must not know what is measured with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bytelm.models.token_lm import AsyncTokenLM
from bytelm.vocabulary.vocab import ByteVocab

ENTRY = np.dtype([("name", "V16"), ("written", "<u8")])
NOTHING = np.zeros(1, ENTRY).tobytes()


class RowStore:
    """Rows in one file of bounded size; when it is full, the oldest make room.

    Beside it an index has, for each place, the name of the row there and when it was written
    (1, 2, …; 0: nothing). A row is written before its name, so what a kill leaves is whole.

    Args:
        path: the file of rows; the index is beside it.
        width: values in a row.
        max_bytes: how large the file may become.

    Raises:
        SystemExit: another process has the store open.
    """

    def __init__(self, path: Path, width: int, max_bytes: int) -> None:
        self._width = width
        self._places = max(1, max_bytes // (4 * width))
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT
        self._rows = os.open(path, flags, 0o644)
        self._index = os.open(path.with_suffix(".index"), flags, 0o644)
        try:
            fcntl.flock(self._index, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"error: another process has {path} open; wait for it") from None
        if os.fstat(self._rows).st_size > self._places * 4 * width:
            os.ftruncate(self._rows, self._places * 4 * width)
        os.ftruncate(self._index, self._places * ENTRY.itemsize)
        entries = np.frombuffer(os.pread(self._index, self._places * ENTRY.itemsize, 0), ENTRY)
        written = entries["written"]
        used = np.flatnonzero(written)
        self._names = [
            bytes(entries["name"][i]) if written[i] else b"" for i in range(len(written))
        ]
        self._place = {self._names[i]: int(i) for i in used}
        self._written = int(written.max())
        self._next = (int(written.argmax()) + 1) % self._places if len(used) else 0

    def __len__(self) -> int:
        return len(self._place)

    def load(self, context: Sequence[int]) -> NDArray[np.float32] | None:
        """The row of a context, float32 ``[width]``, if it is there."""
        place = self._place.get(_name(context))
        if place is None:
            return None
        size = 4 * self._width
        return np.frombuffer(os.pread(self._rows, size, place * size), np.float32)

    def save(self, context: Sequence[int], row: NDArray[np.float32]) -> None:
        """Keep the row of a context."""
        name, place = _name(context), self._next
        if name in self._place:
            return
        self._place.pop(self._names[place], None)
        os.pwrite(self._index, NOTHING, place * ENTRY.itemsize)
        os.pwrite(self._rows, row.astype(np.float32).tobytes(), place * 4 * self._width)
        self._written += 1
        entry = np.array([(name, self._written)], ENTRY)
        os.pwrite(self._index, entry.tobytes(), place * ENTRY.itemsize)
        self._names[place] = name
        self._place[name] = place
        self._next = (place + 1) % self._places

    def close(self) -> None:
        """Close the files and let other processes open the store."""
        os.close(self._rows)
        os.close(self._index)


def _name(context: Sequence[int]) -> bytes:
    return hashlib.blake2b(np.asarray(context, "<i8").tobytes(), digest_size=16).digest()


class ClosableLM(AsyncTokenLM, Protocol):
    """A token LM that holds something to be let go of."""

    async def close(self) -> None: ...


class StoredLM:
    """An ``AsyncTokenLM`` that asks another one for what is new.

    Equal contexts under way share one evaluation, which goes on when nobody waits any more: it is
    kept for the next who asks.

    Args:
        vocab: the other LM's vocabulary.
        max_context_tokens: the other LM's limit.
        store: where rows are kept.
        start: makes the other LM; called when something new is asked for.

    Attributes:
        evaluated: calls that went to the other LM.
        remembered: calls that the store answered.
    """

    def __init__(
        self,
        vocab: ByteVocab,
        max_context_tokens: int | None,
        store: RowStore,
        start: Callable[[], Awaitable[ClosableLM]],
    ) -> None:
        self.vocab = vocab
        self.max_context_tokens = max_context_tokens
        self.evaluated = self.remembered = 0
        self._store = store
        self._start = start
        self._starting: asyncio.Task[ClosableLM] | None = None
        self._under_way: dict[tuple[int, ...], asyncio.Task[NDArray[np.float32]]] = {}

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """See ``AsyncTokenLM``."""
        context = tuple(token_ids)
        row = self._store.load(context)
        if row is not None:
            self.remembered += 1
            return row
        task = self._under_way.get(context)
        if task is None:
            task = self._under_way[context] = asyncio.create_task(self._evaluate(context))
            task.add_done_callback(lambda done: self._ended(context, done))
        return await asyncio.shield(task)

    async def _evaluate(self, context: tuple[int, ...]) -> NDArray[np.float32]:
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
        lm = await asyncio.shield(self._starting)
        row = await lm.next_token_logprobs(context)
        self.evaluated += 1
        self._store.save(context, row)
        return row

    def _ended(self, context: tuple[int, ...], task: asyncio.Task[NDArray[np.float32]]) -> None:
        del self._under_way[context]
        if not task.cancelled():
            task.exception()  # whoever still waits raises it

    async def close(self) -> None:
        """End what is under way, the other LM, and the store."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._starting is not None:
            if not self._starting.done():
                self._starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await self._starting).close()
        self._store.close()


class CountedLM:
    """A token LM that counts what an algorithm asks of another one, whoever answers.

    Attributes:
        calls: calls of ``next_token_logprobs`` so far.
    """

    def __init__(self, lm: AsyncTokenLM) -> None:
        self.vocab = lm.vocab
        self.max_context_tokens = lm.max_context_tokens
        self.calls = 0
        self._lm = lm

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """See ``AsyncTokenLM``."""
        self.calls += 1
        return await self._lm.next_token_logprobs(token_ids)
