"""The shared memory in which a worker hands out rows of log-probabilities.

A file under /dev/shm is cut into slots; a slot holds one row and the nonce of the request that the
row belongs to. The engine's owner creates it (:class:`Slots`), gives slots to requests
(:class:`SlotPool`) and reads rows; the worker attaches (:func:`attach`) and writes. This module
must not know about vLLM, torch or requests.

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
    │     │ the      │ the engine answered a question that was asked after the abort:
    │     │ engine   │ whatever it still writes here comes before the next request's row
    │     │ reports  │
    │     │ its end  │
    │     ▼          ▼
    └───  release()  release()

The row is copied out (:meth:`Slots.read`) between the reported end and ``release``.
"""

import asyncio
import contextlib
import fcntl
import mmap
import os
import re
import secrets
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bytelm.errors import EngineError
from bytelm.vllm.watchdog import Watched, is_alive, start_time

SHM = Path("/dev/shm")
# A slot begins with its nonce and goes on with its row at the next cache line.
LINE = 64
ROW_START = LINE // 4


@dataclass(frozen=True)
class SlotsAddress(Watched):
    """All that a worker needs to attach to the slots: where, how many, rows how wide (float32)."""

    path: str
    count: int
    width: int

    @property
    def stride(self) -> int:
        """Distance between slots, in float32 values."""
        return ROW_START + -(-self.width * 4 // LINE) * ROW_START

    @property
    def nbytes(self) -> int:
        """Size of all slots."""
        return self.count * self.stride * 4

    def compute_hash(self) -> str:
        """A constant: vLLM names compiled code by its configuration, and slots do not change it."""
        return "bytelm-slots"


def attach(address: SlotsAddress) -> mmap.mmap:
    """Map the slots that another process created, for writing."""
    fd = os.open(address.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return mmap.mmap(fd, address.nbytes)
    finally:
        os.close(fd)


class Slots:
    """The owner's side of the shared memory. ``unlink`` after the workers have attached.

    Raises:
        OSError: there is no room for it in /dev/shm.
    """

    def __init__(self, count: int, width: int, *, directory: Path = SHM) -> None:
        pid = os.getpid()
        name = f"bytelm-{pid}-{start_time(pid)}-{secrets.token_hex(8)}"
        self.address = SlotsAddress(str(directory / name), count, width)
        # Kept open for the lock: it lasts exactly as long as this process, seen from any container.
        self._fd = os.open(
            self.address.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            # Taken at once: a full /dev/shm is an error here, not a crash at the first write.
            os.posix_fallocate(self._fd, 0, self.address.nbytes)
            self._memory = mmap.mmap(self._fd, self.address.nbytes)
        except BaseException:
            self.unlink()
            os.close(self._fd)
            raise
        floats = np.frombuffer(self._memory, np.float32).reshape(count, self.address.stride)
        self._rows = floats[:, ROW_START : ROW_START + width]
        self._nonces = floats.view(np.int64)[:, 0]

    def read(self, slot: int, nonce: int) -> NDArray[np.float32]:
        """A read-only copy of the row in a slot, float32 [width].

        Raises:
            EngineError: the slot holds another request's row, or none.
        """
        found = int(self._nonces[slot])
        if found != nonce:
            raise EngineError(
                f"slot {slot} holds the row of request {found} instead of request {nonce}; "
                "the evaluation is lost, please report this"
            )
        row = self._rows[slot].copy()
        row.flags.writeable = False
        return row

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
        # The mapping goes with the last array that looks into it.
        del self._rows, self._nonces, self._memory


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
    """Lends slot numbers; whoever finds none waits, first come, first served."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count))
        self._waiting: deque[asyncio.Future[int]] = deque()

    def __len__(self) -> int:
        """How many slots are free."""
        return len(self._free)

    async def acquire(self) -> int:
        """A slot that nobody else has."""
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

    def release(self, slot: int) -> None:
        """Lend the slot to the first who waits, or put it back."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.cancelled():
                waiting.set_result(slot)
                return
        self._free.append(slot)
