"""``bytelm serve``: a model over HTTP.

The server and the engine are imported inside the command.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bytelm.download import resolve, short_name
from bytelm.settings import EngineSettings, ServerSettings
from bytelm_client.cli.console import Progress, one_line_errors
from bytelm_client.cli.flags import read_settings, with_flags

if TYPE_CHECKING:
    from bytelm.models.token_lm import AsyncTokenLM
    from bytelm_server.service import ByteService


@with_flags(ServerSettings, EngineSettings)
def serve(
    *,
    model: Annotated[
        str,
        typer.Option(
            help="A model's folder or Hugging Face name; default: a small one that is made here.",
            show_default=False,
        ),
    ] = "default",
    **flags: Any,
) -> None:
    """Serve a model over HTTP, until Ctrl-C.

    The flags can also be given as environment variables, named in brackets.
    """
    with one_line_errors():
        server_settings = read_settings(ServerSettings, flags)
        name = server_settings.served_model_name or short_name(model)
        server_settings = server_settings.model_copy(update={"served_model_name": name})
        engine_settings = read_settings(EngineSettings, flags)
        # What can go wrong at once goes wrong before the slow steps.
        from bytelm_server.app import create_app
        from bytelm_server.process import listen, url_of
        from bytelm_server.process import serve as serve_until_signal

        sock = listen(server_settings)
        url = url_of(sock)
        progress = Progress()

        @asynccontextmanager
        async def open_lm() -> "AsyncIterator[AsyncTokenLM]":
            from bytelm.vllm.engine import VllmEngine

            folder = await asyncio.to_thread(resolve, model, progress=progress)
            progress("starting the engine (about 40 seconds on CPU)")
            engine = await VllmEngine.start(folder, engine_settings)
            progress.done()
            try:
                yield engine
            finally:
                progress("stopping the engine")
                await engine.close()

        def on_ready(service: "ByteService") -> None:
            progress.done()
            print(_ready(name, url, len(app.state.keys)), flush=True)

        app = create_app(open_lm, server_settings)
        try:
            code = serve_until_signal(app, server_settings, sock, on_ready)
        finally:
            progress.done()
    raise typer.Exit(code)


def _ready(model: str, url: str, keys: int) -> str:
    to = f"{url}, for {keys} API key{'s' * (keys != 1)}" if keys else url
    header = '-H "Authorization: Bearer $BYTELM_API_KEY" ' if keys else ""
    return f"""\
Serving {model} at {to}

Try it in another terminal:
  curl {url}/v1/greedy {header}-H 'content-type: application/json' \
-d '{{"context": "An apple a day keeps the ", "steps": 12}}'

All calls, to try in a browser: {url}/docs
Ctrl-C stops the server.
"""
