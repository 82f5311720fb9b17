"""What commands say beside their output: progress and errors, on stderr.

Must not know which commands there are.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from bytelm.errors import BytelmError, InputError


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


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the command with one line where the user, the model or the engine is at fault."""
    try:
        yield
    except BytelmError as error:
        line = " ".join(str(error).split())
        print(f"bytelm: error: {line}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, InputError) else 1) from None
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("bytelm", "bytelm_server", "bytelm_client"):
            raise
        print(
            f"bytelm: error: {error.name} is not installed: install bytelm[cpu] or bytelm[cuda]",
            file=sys.stderr,
        )
        raise typer.Exit(1) from None
