"""Arrays that are written to a file row by row; the file gets its name when it is whole.

Must not know what is in them.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bytelm.errors import InputError
from bytelm_client.cli.files import DASH, check_apart, writing


@contextmanager
def array_file(
    path: Path, shape: tuple[int, ...], dtype: str, source: BinaryIO
) -> Iterator[BinaryIO]:
    """Where to write the numbers of an array, little-endian, as numpy's ``.npy`` has them.

    What is no file, such as a pipe, or ``-`` (stdout), gets them as they come.

    Args:
        path: the file.
        shape: of the whole array.
        dtype: of its numbers.
        source: what they are made of, which must be another file.

    Raises:
        InputError: when it cannot be written.
    """
    header = {
        "descr": np.dtype(dtype).newbyteorder("<").str,
        "fortran_order": False,
        "shape": shape,
    }
    try:
        with _named_when_whole(path, source) as file:
            np.lib.format.write_array_header_1_0(file, header)
            yield file
            file.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        where = "stdout" if str(path) == DASH else path
        raise InputError(f"{where} cannot be written: {error.strerror}") from None


@contextmanager
def _named_when_whole(path: Path, source: BinaryIO) -> Iterator[BinaryIO]:
    if str(path) == DASH or (path.exists() and not path.is_file()):
        with os.fdopen(writing(path), "wb") as file:
            yield file
        return
    path = path.resolve()
    if path.exists():
        with path.open("ab") as old:  # it may be overwritten
            check_apart(source, old.fileno(), path)
    new = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        with new.open("xb") as file:
            yield file
        new.replace(path)
    finally:
        with suppress(FileNotFoundError):
            new.unlink()
