"""Files that commands read and write, ``-`` for stdin and stdout.

Must not know what is in them.
"""

import fcntl
import os
import stat
from pathlib import Path
from typing import BinaryIO

from bytelm.errors import InputError

DASH = "-"
"""Stdin, or stdout, where a file may stand."""


def reading(path: Path) -> BinaryIO:
    """A file to read.

    Raises:
        InputError: when it cannot be read.
    """
    try:
        return os.fdopen(os.dup(0), "rb") if str(path) == DASH else path.open("rb")
    except OSError as error:
        raise InputError(f"{name_of(path)} cannot be read: {error.strerror}") from None


def writing(path: Path) -> int:
    """A file to write at its end, by its number.

    Raises:
        InputError: when it cannot be written.
    """
    if str(path) == DASH:
        return os.dup(1)
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def is_kept(sink: int, path: Path) -> bool:
    """Whether what is written there can be read back."""
    return str(path) != DASH and stat.S_ISREG(os.fstat(sink).st_mode)


def check_apart(source: BinaryIO, sink: int, path: Path) -> None:
    """Refuse an output that is the input, too.

    Raises:
        InputError: when it is.
    """
    if os.path.samestat(os.fstat(source.fileno()), os.fstat(sink)):
        raise InputError(f"{path} is the input, too: choose another output")


def lock(sink: int, path: Path) -> None:
    """Let no other run write there.

    Raises:
        InputError: when another one does.
    """
    try:
        fcntl.flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"another run is writing to {path}") from None


def name_of(path: Path) -> str:
    """What errors call an input."""
    return "stdin" if str(path) == DASH else str(path)
