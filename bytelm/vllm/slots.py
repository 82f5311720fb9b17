"""The shared memory in which a worker hands out rows of log-probabilities.

A file under /dev/shm begins with the order that rows are made in (:class:`RowOrder`), and is cut
into slots behind it. A slot holds one row, what its ranges sum to, and the nonce of the request
that the row belongs to::

    order   ids · bounds
    slot 0  nonce · · · | masses · · · | values · · · · · · · · ·
    slot 1  nonce · · · | masses · · · | values · · · · · · · · ·

The engine's owner creates it (:class:`Slots`), gives slots to requests (:class:`SlotPool`) and
reads rows; the worker attaches (:func:`attach`) and writes. This module must not know about
vLLM, torch or requests.

Who owns a slot when::

        owner of the engine                           worker
        ───────────────────                           ──────
    ┌─► free
    │     │ acquire()
    │     ▼
    │   lent to one request  ─────────────────────►   writes row and nonce, once per step
    │     │          │                                that the request is in
    │     │          │ the request is aborted
    │     │          ▼
    │     │        doubtful  ─────────────────────►   the step that runs may still write
    │     │          │
    │     │ the      │
    │     │ engine   │ the engine answered a question that was asked after the abort:
    │     │ reports  │ whatever it still writes here comes before the next request's row
    │     │ its end  ▼
    │     │        release() ─► free
    │     ▼
    │   held by its row
    │     │ nobody has the row any more, or slots run short: then it moves out
    └─────┘

A row that was read (:meth:`Slots.read`) is the slot itself, so that reading a few of its values
costs nothing that grows with it.
"""

import asyncio
import contextlib
import fcntl
import mmap
import os
import re
import secrets
import weakref
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bytelm.errors import EngineError
from bytelm.models.ordered_rows import OrderedRow, RowOrder
from bytelm.vllm.watchdog import Watched, is_alive, start_time

SHM = Path("/dev/shm")
LINE = 64
"""Bytes of a cache line, at which each part begins."""
FLOATS = LINE // 4
MOST_RANGES = 257
"""A range for each first byte, and the ids without bytes."""


@dataclass(frozen=True)
class SlotsAddress(Watched):
    """All that a worker needs to attach to the slots: where, how many, rows how wide.

    Attributes:
        path: the file.
        count: how many slots.
        width: values of a row, float32.
        ranges: masses of a row, float64.
    """

    path: str
    count: int
    width: int
    ranges: int = MOST_RANGES

    @property
    def masses(self) -> slice:
        """Where the masses are in a slot, in float32 values."""
        return slice(FLOATS, FLOATS + 2 * self.ranges)

    @property
    def values(self) -> slice:
        """Where the values are in a slot."""
        begin = _lines(4 * self.masses.stop) * FLOATS
        return slice(begin, begin + self.width)

    @property
    def stride(self) -> int:
        """Distance between slots, in float32 values."""
        return _lines(4 * self.values.stop) * FLOATS

    @property
    def order_bytes(self) -> int:
        """Size of the order, before the slots."""
        return _lines(8 * (self.width + self.ranges + 1)) * LINE

    @property
    def nbytes(self) -> int:
        """Size of all."""
        return self.order_bytes + self.count * self.stride * 4

    def compute_hash(self) -> str:
        """A constant: vLLM names compiled code by its configuration, and slots do not change it."""
        return "bytelm-slots"


def _lines(size: int) -> int:
    return -(-size // LINE)


class Mapped:
    """The parts of the shared memory, which go with the last array that looks into them.

    Attributes:
        ids: int64 ``[width]``; see ``RowOrder``, as for the next.
        bounds: int64 ``[ranges + 1]``.
        slots: float32 ``[count, stride]``.
        nonces: int64 ``[count]``, within ``slots`` as are the others.
        masses: float64 ``[count, ranges]``.
        values: float32 ``[count, width]``.
    """

    def __init__(self, address: SlotsAddress, fd: int) -> None:
        memory = mmap.mmap(fd, address.nbytes)
        order = np.frombuffer(memory, np.int64, address.width + address.ranges + 1)
        self.ids, self.bounds = order[: address.width], order[address.width :]
        slots = np.frombuffer(memory, np.float32, offset=address.order_bytes)
        self.slots = slots.reshape(address.count, address.stride)
        self.nonces = self.slots.view(np.int64)[:, 0]
        self.masses = self.slots[:, address.masses].view(np.float64)
        self.values = self.slots[:, address.values]


def attach(address: SlotsAddress) -> Mapped:
    """Map the slots that another process created, for writing."""
    fd = os.open(address.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return Mapped(address, fd)
    finally:
        os.close(fd)


class Slots:
    """The owner's side of the shared memory. ``unlink`` after the workers have attached.

    Args:
        count: how many.
        order: what rows are made in.
        directory: where the file is made.

    Raises:
        OSError: there is no room for it in /dev/shm.
    """

    def __init__(self, count: int, order: RowOrder, *, directory: Path = SHM) -> None:
        pid = os.getpid()
        name = f"bytelm-{pid}-{start_time(pid)}-{secrets.token_hex(8)}"
        width, ranges = len(order.ids), order.ranges
        self.address = SlotsAddress(str(directory / name), count, width, ranges)
        self.order = order
        # Kept open for the lock: it lasts exactly as long as this process, seen from any container.
        self._fd = os.open(
            self.address.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            # Taken at once: a full /dev/shm is an error here, not a crash at the first write.
            os.posix_fallocate(self._fd, 0, self.address.nbytes)
            self._mapped = Mapped(self.address, self._fd)
        except BaseException:
            self.unlink()
            os.close(self._fd)
            raise
        self._mapped.ids[:], self._mapped.bounds[:] = order.ids, order.bounds

    def read(self, slot: int, nonce: int) -> OrderedRow:
        """The row in a slot, where it is: right for as long as nobody else writes there.

        Raises:
            EngineError: the slot holds another request's row, or none.
        """
        mapped = self._mapped
        found = int(mapped.nonces[slot])
        if found != nonce:
            raise EngineError(
                f"slot {slot} holds the row of request {found} instead of request {nonce}; "
                "the evaluation is lost, please report this"
            )
        return OrderedRow(self.order, mapped.values[slot], mapped.masses[slot])

    def unlink(self) -> None:
        """Remove the name; whoever is attached stays so, and the memory goes with the last."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.address.path)

    def close(self) -> None:
        """Remove the name and this process's mapping."""
        self.unlink()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        del self._mapped


def sweep(*, directory: Path = SHM) -> list[str]:
    """Remove this user's shared memory whose owner was killed while it started; give its names."""
    swept = []
    for path in directory.glob("bytelm-*"):
        match = re.fullmatch(r"bytelm-(\d+)-(\d+)-[0-9a-f]+", path.name)
        if match is None or is_alive(int(match[1]), int(match[2])):
            continue
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if path.lstat().st_uid != os.getuid():
                continue
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                # Its owner may run in another container, where pids mean something else.
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                swept.append(path.name)
            except BlockingIOError:
                continue
            finally:
                os.close(fd)
    return swept


class SlotPool:
    """Lends slot numbers; whoever finds none waits, first come, first served.

    Nobody waits for a slot that is held by a row: the one that is so the longest moves out.
    """

    def __init__(self, count: int) -> None:
        self._free = list(range(count))
        self._held: dict[int, weakref.ref[OrderedRow]] = {}
        # Slots of rows that nobody has any more; whichever thread came upon that.
        self._left: deque[tuple[int, weakref.ref[OrderedRow]]] = deque()
        self._waiting: deque[asyncio.Future[int]] = deque()

    def __len__(self) -> int:
        """How many slots can be had at once."""
        return len(self._free) + len(self._held)

    async def acquire(self) -> int:
        """A slot that nobody else has."""
        while self._left:
            slot, row = self._left.popleft()
            if self._held.get(slot) is row:
                self._clear(slot)
        if self._held and not self._free:
            self._clear(next(iter(self._held)))
        if self._free:
            return self._free.pop()
        waiting: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            return await waiting
        except asyncio.CancelledError:
            if not waiting.cancelled():  # lent and cancelled at the same moment
                self.release(waiting.result())
            raise

    def hold(self, slot: int, row: OrderedRow) -> None:
        """Leave the slot to the row that is in it, for as long as somebody has that."""
        if self._waiting:
            row.move()
            self.release(slot)
        else:
            self._held[slot] = weakref.ref(row, lambda gone: self._left.append((slot, gone)))

    def clear(self) -> None:
        """Let all rows move out."""
        while self._held:
            self._clear(next(iter(self._held)))

    def _clear(self, slot: int) -> None:
        row = self._held.pop(slot)()
        if row is not None:
            row.move()
        self._free.append(slot)

    def release(self, slot: int) -> None:
        """Lend the slot to the first who waits, or put it back."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.cancelled():
                waiting.set_result(slot)
                return
        self._free.append(slot)
