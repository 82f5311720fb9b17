"""The ASGI application: routes, errors and limits around one model."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from importlib.metadata import version

from fastapi import FastAPI, Request, Response, Security
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPBearer

from bytelm.models.token_lm import AsyncTokenLM
from bytelm.settings import ServerSettings
from bytelm_server import documentation, errors
from bytelm_server.backend import Backend, OpenLM
from bytelm_server.disconnect import ClientGone
from bytelm_server.doors import Doors, listed
from bytelm_server.intake import BodyLimit
from bytelm_server.keys import Keys
from bytelm_server.metrics import Metrics
from bytelm_server.observing import Observing
from bytelm_server.openai.routes import router as openai_router
from bytelm_server.routes import public, router
from bytelm_server.session_routes import router as session_router
from bytelm_server.sessions.service import Sessions
from bytelm_server.shapes import MOST_LISTS, MOST_STRINGS, MOST_VALUES
from bytelm_server.stores.chosen import store_of

_ABOUT = """\
A token-level language model, served byte by byte: distributions over the next byte, greedy
continuations and samples, wherever the context ends.

* Bytes in: a string, `{"text": "…"}` or `{"base64": "…"}`. Bytes out: both; `text` is null where
  the bytes are not UTF-8.
* Log-probabilities are natural logarithms; −inf is null.
* Errors have one shape: `{"error": {"type", "message", "param", "code"}}`. Unknown fields are
  refused.
* A context may also be segments of bytes and special tokens, or the messages of a chat. Bytes never
  become special tokens: `<|im_end|>` in a text is ten ordinary bytes.
* One bad item among several has `{"index", "error"}` in its place; the others get their results.
* Equal calls have equal results up to rounding: an engine computes what is there together, and in
  float32 that shows in the last digits (log-probabilities agree to 1e-4, usually to 3e-5). A seed
  draws the same bytes, and greedy takes the same, up to the first place where that decides.
"""


def _about() -> str:
    """What the API's documentation begins with."""
    body = (
        f"* A body has at most {MOST_STRINGS} texts (names of fields included), {MOST_LISTS} lists "
        f"and objects, and {MOST_VALUES} values.\n"
    )
    table = ["", "| error `type` | status | `code` |", "| --- | --- | --- |"]
    table += [
        f"| `{type}` | {status} | {', '.join(f'`{code}`' for code in codes)} |"
        for (type, status), codes in errors.ERRORS.items()
    ]
    return _ABOUT + body + "\n".join(table)


_BEARER = HTTPBearer(auto_error=False, description="An API key, from `bytelm keys create`.")


async def _nobody_reads(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


def create_app(
    lm: AsyncTokenLM | OpenLM,
    settings: ServerSettings | None = None,
    *,
    wait_until_ready: bool = False,
) -> FastAPI:
    """The application over a token LM that is ready, or one that it starts and ends itself.

    Args:
        lm: a token LM, whose owner closes it; or a function that gives an async context manager,
            entered in the background when the application starts, left when it stops, and left
            and entered again when the token LM's ``is_alive`` is false. The token LM's
            ``chat_template`` (a ``bytelm.prompts.context.ChatTemplate``), if it has one, renders
            messages.
        settings: limits and defaults; from the environment when not given.
        wait_until_ready: the application's start ends when the model is ready, and fails if the
            model's does; otherwise calls are answered with 503 until then.

    Raises:
        KeyFileError: when the file of API keys cannot be read.

    The application's ``state.backend`` is its ``Backend``, ``state.sessions`` its ``Sessions``,
    ``state.metrics`` its ``Metrics``, ``state.keys`` its ``Keys``.
    """
    settings = settings or ServerSettings()
    waits = wait_until_ready or isinstance(lm, AsyncTokenLM)
    if isinstance(lm, AsyncTokenLM):
        backend = Backend(lambda: nullcontext(lm), settings, can_restart=False)
    else:
        backend = Backend(lm, settings)
    sessions = Sessions(store_of(settings), settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with sessions.running(), backend.running():
            if waits:
                await backend.started()
            yield

    app = FastAPI(
        title="bytelm",
        version=version("bytelm"),
        description=_about(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.backend = backend
    app.state.sessions = sessions
    app.state.metrics = Metrics(backend)
    keys = app.state.keys = Keys(settings.keys_file)
    app.include_router(public)
    # For /docs: that calls come with a key. It is the doors that look for it.
    needs_key = [Security(_BEARER)] if keys.required else []
    app.include_router(router, dependencies=needs_key)
    app.include_router(session_router, dependencies=needs_key)
    app.include_router(openai_router, dependencies=needs_key)
    documentation.install(app)
    errors.install(app)
    app.add_exception_handler(ClientGone, _nobody_reads)
    # The last one comes first.
    app.add_middleware(
        BodyLimit,
        limit=settings.max_body_bytes,
        room=settings.max_bodies_bytes,
        seconds=settings.body_seconds,
    )
    app.add_middleware(Doors, keys=keys, settings=settings)
    if origins := listed(settings.cors_origins):
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(Observing, metrics=app.state.metrics)
    return app
