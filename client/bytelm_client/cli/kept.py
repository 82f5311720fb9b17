"""Scores that are kept while a long run makes them, so that a killed one can go on.

The file of ``OUTPUT`` is ``OUTPUT.scores``: a line of JSON that says of what the scores are, and
then 8 bytes for each byte that was scored, from the first on: its log-probability, a float64 with
the least significant byte first. What a killed run left of a number is cut off.

Must not know how scores are made, nor what is reported of them.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bytelm.errors import InputError
from bytelm_client.cli.files import lock

SUFFIX = ".scores"
BEGINNING = b'{"scores of": '
"""What every such file begins with."""
LONGEST = 1 << 16
"""Bytes of the first line at most."""


class Kept:
    """The scores of one run, and of those before it that were of the same.

    Args:
        sink: the file.
        path: its name.

    Attributes:
        count: how many bytes were scored so far.
    """

    def __init__(self, sink: int, path: Path) -> None:
        self.count = 0
        self._sink = sink
        self._path = path
        self._begins = 0

    @classmethod
    @contextmanager
    def opened(cls, output: Path) -> Iterator[Self]:
        """Those of an output; nobody else can open them meanwhile.

        Raises:
            InputError: when there are other things in the file, or in the output; when it cannot be
                written; when another run has it.
        """
        path = output.with_name(output.name + SUFFIX)
        is_new = not path.exists()
        if is_new and output.exists() and output.stat().st_size:
            raise InputError(
                f"{output} is there already, without {path.name}: choose another output, or remove "
                "it"
            )
        try:
            sink = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from None
        try:
            lock(sink, path)
            yield cls(sink, path)
        finally:
            os.close(sink)

    def go_on(self, of: Mapping[str, Any], size: int) -> None:
        """Look for what is kept already.

        Args:
            of: of what the scores are, by names.
            size: how many bytes are to be scored.

        Raises:
            InputError: when the scores are of something else; it names what differs.
        """
        head = os.pread(self._sink, LONGEST, 0)
        line, end, _ = head.partition(b"\n")
        if not end and line[: len(BEGINNING)] == BEGINNING[: len(line)]:
            # A new one, or one that ended right at its beginning.
            line = BEGINNING + json.dumps(of).encode() + b"}"
            os.ftruncate(self._sink, 0)
            self._write(line + b"\n", 0)
        then = "choose another output, or remove both files"
        try:
            known: Any = json.loads(line)["scores of"]
            different = [name for name in of if known[name] != of[name]]
        except (ValueError, LookupError, TypeError):
            raise InputError(f"{self._path} has no scores of bytelm: {then}") from None
        if different:
            raise InputError(f"{self._path} has scores of another {different[0]}: {then}")
        self._begins = len(line) + 1
        self.count = min((os.fstat(self._sink).st_size - self._begins) // 8, size)
        os.ftruncate(self._sink, self._begins + 8 * self.count)

    def read(self, start: int, end: int) -> NDArray[np.float64]:
        """The log-probabilities of the bytes from ``start`` on and before ``end``."""
        data = os.pread(self._sink, 8 * (end - start), self._begins + 8 * start)
        return np.frombuffer(data, "<f8").astype(np.float64, copy=False)

    def add(self, logprobs: NDArray[np.float64]) -> None:
        """Keep those of the next bytes; they are safe when this returns."""
        self._write(logprobs.astype("<f8", copy=False).tobytes(), self._begins + 8 * self.count)
        os.fsync(self._sink)
        self.count += len(logprobs)

    def _write(self, data: bytes, at: int) -> None:
        try:
            while data:
                written = os.pwrite(self._sink, data, at)
                data, at = data[written:], at + written
        except OSError as error:
            raise InputError(f"{self._path} cannot be written: {error.strerror}") from None
