"""Which model a command calls: a server's, or one that the command starts itself.

Both are reached through an ``AsyncClient``, so that no command knows the difference: a model of
one's own is served in this process, on a socket that only this user can reach.
"""

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bytelm.settings import ClientSettings, EngineSettings, ServerSettings
from bytelm_client.cli.console import Progress, one_line_errors
from bytelm_client.cli.flags import read_settings

if TYPE_CHECKING:
    from bytelm.models.token_lm import AsyncTokenLM
    from bytelm_client import AsyncClient

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="A server's address; default: the model is started here. [BYTELM_URL]",
        show_default=False,
    ),
]
ServerUrl = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="The server's address; default: http://127.0.0.1:8000. [BYTELM_URL]",
        show_default=False,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", help="The key for the server. [BYTELM_API_KEY]", show_default=False),
]
Model = Annotated[
    str,
    typer.Option(
        "--model", help="What to start here: a model's folder or Hugging Face name.", metavar="NAME"
    ),
]

UNLIMITED = 1 << 40
DAY = 86400.0


@dataclass(frozen=True)
class Where:
    """Where a command's model is.

    Attributes:
        url: a server's address; None where the model is started here.
        api_key: the server's key.
        model: what to start.
    """

    url: str | None
    api_key: str | None = None
    model: str = "default"

    @classmethod
    def given(cls, url: str | None, api_key: str | None, model: str = "default") -> "Where":
        """As flags and environment have it."""
        settings = ClientSettings()
        if url is None and "url" in settings.model_fields_set:
            url = settings.url
        return cls(url, api_key, model)

    @classmethod
    def of_a_server(cls, url: str | None, api_key: str | None) -> "Where":
        """The same for commands that only make sense with a server; by default the usual one."""
        return cls(url or ClientSettings().url, api_key)


def run(where: Where, work: "Callable[[AsyncClient], Awaitable[Any]]") -> None:
    """Do a command's work; errors end it with one line, Ctrl-C without any."""

    async def whole() -> None:
        progress = Progress()
        try:
            async with client_of(where, progress) as client:
                progress.done()
                await work(client)
        finally:
            progress.done()

    with one_line_errors():
        asyncio.run(whole())


@asynccontextmanager
async def client_of(where: Where, progress: Progress) -> "AsyncIterator[AsyncClient]":
    """A client of the model."""
    if where.url is not None:
        from bytelm_client import AsyncClient

        async with AsyncClient(where.url, api_key=where.api_key) as client:
            yield client
        return
    # What can go wrong at once goes wrong before the slow steps.
    engine_settings = read_settings(EngineSettings, {})
    server_settings = unlimited()
    from bytelm.download import resolve
    from bytelm.vllm.engine import VllmEngine

    folder = await asyncio.to_thread(resolve, where.model, progress=progress)
    progress("starting the engine (about 40 seconds on CPU; with --url a server answers at once)")
    engine = await VllmEngine.start(folder, engine_settings)
    try:
        async with served_here(engine, server_settings) as client:
            yield client
    finally:
        progress("stopping the engine")
        await engine.close()


def unlimited() -> ServerSettings:
    """The settings of a server that is one's own."""
    wanted = {
        "keys_file": "none",
        "max_K": "none",
        "max_steps": UNLIMITED,
        "max_contexts": UNLIMITED,
        "max_results": UNLIMITED,
        "max_total_steps": UNLIMITED,
        "max_context_bytes": UNLIMITED,
        "max_body_bytes": UNLIMITED,
        "max_walked_bytes": UNLIMITED,
        "max_row_values": UNLIMITED,
        "call_seconds": DAY,
        "session_store": "memory",
    }
    return read_settings(ServerSettings, wanted)


@asynccontextmanager
async def served_here(lm: "AsyncTokenLM", settings: ServerSettings) -> "AsyncIterator[AsyncClient]":
    """A client of a token LM that is served in this process."""
    import httpx
    import uvicorn

    from bytelm_client import AsyncClient
    from bytelm_server.app import create_app

    with (
        tempfile.TemporaryDirectory(prefix="bytelm-") as folder,
        socket.socket(socket.AF_UNIX) as sock,
    ):
        path = str(Path(folder) / "socket")
        sock.bind(path)
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(lm, settings),
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=1,
            )
        )
        # Signals are the command's.
        server.capture_signals = nullcontext  # type: ignore[method-assign, assignment]
        serving = asyncio.create_task(server.serve([sock]))
        try:
            while not server.started:
                if serving.done():
                    serving.result()
                await asyncio.sleep(0.01)
            transport = httpx.AsyncHTTPTransport(uds=path)
            async with (
                httpx.AsyncClient(transport=transport) as http,
                AsyncClient("http://127.0.0.1", http=http) as client,
            ):
                yield client
        finally:
            server.should_exit = True
            await serving
