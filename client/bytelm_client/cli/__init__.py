"""The command line, ``bytelm``: one module for each group of commands.

Exit codes: 0 when all went well; 1 when the model, its engine or the server failed, or some of
several prompts did; 2 when the command, a setting, a file, a model's name or an address was wrong;
130 after Ctrl-C; 141 when whoever reads the output has left.

The server, the engine and numpy are imported inside the commands that need them.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from bytelm_client.cli.bench import bench
from bytelm_client.cli.checks import doctor
from bytelm_client.cli.console import OUTPUT_CLOSED, leave, output_failed, ready_streams
from bytelm_client.cli.generate import greedy, sample
from bytelm_client.cli.keys import keys
from bytelm_client.cli.look import compare, next_bytes
from bytelm_client.cli.rows import rows
from bytelm_client.cli.score import score
from bytelm_client.cli.serve import serve
from bytelm_client.cli.sessions import sessions
from bytelm_client.cli.size import size

app = typer.Typer(
    help="Byte-level language models out of token-level ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (serve, greedy, sample):
    app.command()(command)
app.command("next")(next_bytes)
for command in (score, rows, compare, bench, size, doctor):
    app.command()(command)
app.add_typer(sessions, name="sessions")
app.add_typer(keys, name="keys")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"bytelm {installed_version('bytelm')}", flush=True)
        raise typer.Exit


@app.callback()
def _bytelm(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line with the process's arguments, or others."""
    ready_streams()
    try:
        app(arguments, prog_name="bytelm")
    except OSError as error:
        # Help, and what else is no command's.
        sys.exit(output_failed(error))
    except SystemExit as end:
        # What rich and typer make of a pipe that nobody reads is 1.
        if isinstance(end.__context__, BrokenPipeError):
            end.code = OUTPUT_CLOSED
        # To take apart all that vLLM has loaded would take seconds.
        if "vllm" in sys.modules and isinstance(end.code, int):
            leave(end.code)
        raise
