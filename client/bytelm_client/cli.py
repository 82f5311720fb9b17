"""The command line, ``bytelm``.

Exit codes: 0 when all went well, 1 when the model or its engine failed, 2 when the command, a
setting, a model's name or the address was wrong, 130 after Ctrl-C.

The server, the engine and numpy are imported inside the commands that need them.
"""

import asyncio
import inspect
import sys
import types
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings
from rich.console import Console
from rich.markup import escape

from bytelm.errors import BytelmError, InputError
from bytelm.settings import EngineSettings, ServerSettings

if TYPE_CHECKING:
    from bytelm.token_lm import AsyncTokenLM
    from bytelm_server.service import ByteService

app = typer.Typer(
    help="Byte-level language models out of token-level ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Settings = TypeVar("Settings", bound=BaseSettings)


def _flag(name: str, field: FieldInfo, settings: type[BaseSettings]) -> inspect.Parameter:
    """A setting as a flag, whose absence leaves it to the environment."""
    kind: Any = field.annotation
    if isinstance(kind, types.UnionType):
        kinds = [k for k in get_args(kind) if k is not type(None)]
        metavar = f"{kinds[0].__name__}|none"
        kind = str
    elif get_origin(kind) is Literal:
        metavar = "|".join(get_args(kind))
        kind = str
    else:
        metavar = None
    variable = f"{settings.model_config['env_prefix']}{name.upper()}"
    default = "none" if field.default is None else str(field.default).lower()
    help_text = f"{field.description} [{variable}; default: {default}]"
    option = typer.Option(
        f"--{name.replace('_', '-')}", help=help_text, metavar=metavar, show_default=False
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _with_flags(*kinds: type[BaseSettings]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command a flag for every field of the settings; they arrive as keywords."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(command)
        parameters = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        for kind in kinds:
            parameters += [_flag(name, f, kind) for name, f in kind.model_fields.items()]
        command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _settings(kind: type[Settings], given: dict[str, Any]) -> Settings:
    """Settings from flags, where they are given, and the environment.

    Raises:
        InputError: one line about the first one that is wrong.
    """
    values = {
        name: None if value == "none" else value
        for name, value in given.items()
        if name in kind.model_fields and value is not None
    }
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        raise InputError(f"--{name.replace('_', '-')}: {first['msg']}") from None


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
def _one_line_errors() -> Any:
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


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"bytelm {installed_version('bytelm')}")
        raise typer.Exit


@app.callback()
def _bytelm(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


@app.command()
@_with_flags(ServerSettings, EngineSettings)
def serve(
    *,
    model: Annotated[
        str,
        typer.Option(help="A model's folder or Hugging Face name; default: a small one."),
    ] = "default",
    **flags: Any,
) -> None:
    """Serve a model over HTTP, until Ctrl-C.

    The flags can also be given as environment variables, named in brackets.
    """
    with _one_line_errors():
        server_settings = _settings(ServerSettings, flags)
        name = server_settings.served_model_name or _short_name(model)
        server_settings = server_settings.model_copy(update={"served_model_name": name})
        engine_settings = _settings(EngineSettings, flags)
        # What can go wrong at once goes wrong before the slow steps.
        from bytelm_server.process import listen, url_of
        from bytelm_server.process import serve as serve_until_signal

        sock = listen(server_settings)
        url = url_of(sock)
        progress = Progress()

        @asynccontextmanager
        async def open_lm() -> "AsyncIterator[AsyncTokenLM]":
            from bytelm.models import resolve
            from bytelm.vllm.engine import VllmEngine

            folder = await asyncio.to_thread(resolve, model, progress=progress)
            progress("starting the engine (about 40 seconds on CPU)")
            engine = await VllmEngine.start(folder, engine_settings)
            try:
                yield engine
            finally:
                progress("stopping the engine")
                await engine.close()

        def on_ready(service: "ByteService") -> None:
            progress.done()
            print(_ready(name, url), flush=True)

        try:
            code = serve_until_signal(open_lm, server_settings, sock, on_ready)
        finally:
            progress.done()
    raise typer.Exit(code)


def _short_name(model: str) -> str:
    """A model's name without where it is on this machine."""
    from bytelm.models import DEFAULT, DEFAULT_NAME

    if model in ("", DEFAULT):
        return DEFAULT_NAME
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


def _ready(model: str, url: str) -> str:
    return f"""\
Serving {model} at {url}

Try it in another terminal:
  curl {url}/v1/greedy -H 'content-type: application/json' \
-d '{{"context": "An apple a day keeps the ", "steps": 12}}'

All calls, to try in a browser: {url}/docs
Ctrl-C stops the server.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line with the process's arguments, or others."""
    app(arguments, prog_name="bytelm")
