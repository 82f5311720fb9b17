"""What commands say beside their output: progress and errors, on stderr.

Must not know which commands there are.
"""

import errno
import io
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import NoReturn, Self

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from bytelm.errors import BytelmError, InputError
from bytelm_client.errors import (
    BytelmClientError,
    CannotConnect,
    CannotSend,
    InvalidRequest,
    TooManyRequests,
)

INTERRUPTED = 130
"""The exit code after Ctrl-C."""
OUTPUT_CLOSED = 141
"""The exit code when whoever reads the output has left."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""What writing to stdout fails with where nothing more can be written there."""
PIPE_WIDTH = 1000
"""Columns of a table in a pipe: whoever reads it there cuts lines by himself."""
LINE_SECONDS = 10.0
"""How often a count is told where there is no terminal."""


class Progress:
    """Says on stderr what a command is doing: a moving line on a terminal, else a line a step."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._status = self.console.status("")

    def __call__(self, step: str) -> None:
        """Begin a step."""
        if self.console.is_terminal:
            self._status.update(escape(step))
            self._status.start()
        else:
            self.console.print(f"{step} …", markup=False)

    def done(self) -> None:
        """No step is under way."""
        self._status.stop()


class Count:
    """How far long work is, on stderr, with its rate and the time left.

    A moving bar on a terminal, else a line every few seconds.

    Args:
        what: the work, such as "scoring".
        total: how much there is.
        unit: of what, such as "bytes".
        done: how much was done before.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = self._before = done
        self._began = self._told = time.monotonic()
        console = Console(stderr=True, highlight=False)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:.0f} of {task.total:.0f} {task.fields[unit]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bars.add_task(what, total=total, completed=done, unit=unit, rate="")

    @property
    def rate(self) -> float:
        """How much was done in a second, so far."""
        return (self.done - self._before) / max(time.monotonic() - self._began, 1e-9)

    def add(self, n: int = 1) -> None:
        """Note that so much more is done."""
        self.done += n
        rate = f"{self.rate:.1f} {self.unit}/s"
        self._bars.update(self._task, completed=self.done, rate=rate)
        if self._bars.disable and time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            left = (self.total - self.done) / max(self.rate, 1e-9)
            line = (
                f"{self.what}: {self.done} of {self.total} {self.unit}, {rate}, {left:.0f} s left"
            )
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()


def tables() -> Console:
    """A console for tables on stdout, as wide as the terminal."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def ready_streams() -> None:
    """Write what an output's encoding lacks as escapes; where stdin or stdout were closed before,
    there is nothing to read, and writing fails like writing to a full disk.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            flags = os.O_WRONLY if name == "stderr" else os.O_RDONLY
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """One line on stderr, whatever is in it."""
    print(" ".join(line.split()), file=sys.stderr, flush=True)


def error_line(error: BaseException | str) -> None:
    """Say what went wrong, as every command does."""
    say(f"bytelm: error: {error}")


def leave(code: int) -> NoReturn:
    """End the process at once, where all is done: what it has loaded is not taken apart."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the command with one line where the user, the model, the engine or a server is at fault.

    The exit codes are those of ``bytelm_client.cli``.
    """
    try:
        yield
        # What is in Python's buffer must not fail later, when nobody looks.
        print(end="", flush=True)
    except (BytelmError, BytelmClientError) as error:
        error_line(error)
        at_fault = isinstance(error, InputError | InvalidRequest | CannotConnect | CannotSend)
        busy = isinstance(error, TooManyRequests)
        raise typer.Exit(2 if at_fault and not busy else 1) from None
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("bytelm", "bytelm_server", "bytelm_client"):
            raise
        error_line(f"{error.name} is not installed: install bytelm[cpu] or bytelm[cuda]")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except OSError as error:
        raise typer.Exit(output_failed(error)) from None


def output_failed(error: OSError) -> int:
    """What to exit with when writing to stdout has failed; all other errors are raised again."""
    is_closed = isinstance(error, BrokenPipeError)
    if not is_closed and (error.filename is not None or error.errno not in FULL):
        raise error
    # Python would complain about it once more when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if is_closed:
        return OUTPUT_CLOSED
    error_line(f"the output cannot be written: {error.strerror}")
    return 2
