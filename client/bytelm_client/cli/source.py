"""A text to read anywhere, however long it is: a file, or a copy of what comes only once.

Must not know what it is read for.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Self

from bytelm.errors import InputError
from bytelm_client.cli.files import DASH, name_of, reading

BLOCK = 1 << 20
"""Bytes that are read at once."""


class Source:
    """A text.

    Args:
        file: the file.
        path: what the user called it.

    Attributes:
        size: how many bytes it has.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file = file
        self._path = path
        self.size = os.fstat(file.fileno()).st_size

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator[Self]:
        """The text of a file; ``-`` is stdin.

        Raises:
            InputError: when it cannot be read, or is empty.
        """
        with reading(path) as file, tempfile.TemporaryFile() as copy:
            if str(path) == DASH or not file.seekable():
                shutil.copyfileobj(file, copy)
                copy.flush()
                file = copy
            source = cls(file, path)
            if not source.size:
                raise InputError(f"{name_of(path)} is empty")
            yield source

    def read(self, start: int, end: int) -> bytes:
        """Its bytes from ``start`` on and before ``end``.

        Raises:
            InputError: when there are not so many any more.
        """
        try:
            data = os.pread(self.file.fileno(), end - start, start)
        except OSError as error:
            raise InputError(f"{name_of(self._path)} cannot be read: {error.strerror}") from None
        if len(data) < end - start:
            raise InputError(f"{name_of(self._path)} has become shorter while it was read")
        return data

    def digest(self) -> str:
        """Names its bytes."""
        digest = hashlib.sha256()
        for start in range(0, self.size, BLOCK):
            digest.update(self.read(start, min(start + BLOCK, self.size)))
        return digest.hexdigest()
