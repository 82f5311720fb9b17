"""bytelm as an application of Ray Serve: every replica is a whole server with an engine of its own.

``serve deploy`` imports ``build``; docker/ray/serve.yaml has everything that it is given. Replicas
share their sessions in Redis. The GPUs of a replica are on one machine.

Imports Ray; nothing imports this but Ray. Must not know how calls are answered.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bytelm.download import DEFAULT, resolve, short_name
from bytelm.errors import InputError
from bytelm.models.token_lm import AsyncTokenLM
from bytelm.settings import EngineSettings, ServerSettings
from bytelm_server import logs
from bytelm_server.app import create_app
from bytelm_server.backend import OpenLM
from bytelm_server.keys import Keys
from bytelm_server.on_ray.proxy import SESSION_HEADER, session_of

_log = logging.getLogger(__name__)

REPLICA_HEADER = "x-bytelm-server"
"""The answer's header that names the replica."""


class Arguments(BaseModel):
    """What the application is given.

    Attributes:
        model: a folder that each machine has, or a Hugging Face name.
        server: fields of ``ServerSettings``; the others come from the environment that Ray's head
            was started with.
        engine: fields of ``EngineSettings``, likewise.
    """

    model_config = ConfigDict(extra="forbid")

    model: str = DEFAULT
    server: dict[str, Any] = {}
    engine: dict[str, Any] = {}


@dataclass(frozen=True)
class OpenEngine:
    """Starts vLLM in a replica."""

    model: str
    settings: EngineSettings

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[AsyncTokenLM]:
        """A running engine, which ends with the context."""
        from bytelm.vllm.engine import VllmEngine

        folder = await asyncio.to_thread(resolve, self.model)
        engine = await VllmEngine.start(folder, self.settings)
        try:
            yield engine
        finally:
            await engine.close()


def build(args: Arguments) -> Any:
    """The application: replicas with as many GPUs as their engine is split or copied over.

    Raises:
        ValidationError: when a setting is wrong.
    """
    engine = EngineSettings(**args.engine)
    gpus = engine.tensor_parallel_size * engine.pipeline_parallel_size * engine.data_parallel_size
    if engine.device == "cpu":
        gpus = 0
    settings = ServerSettings(**{"served_model_name": short_name(args.model), **args.server})
    return application(OpenEngine(args.model, engine), settings, gpus)


def application(open_lm: OpenLM, settings: ServerSettings, gpus: int) -> Any:
    """Replicas over whatever ``open_lm`` starts in each of them."""
    deployed = serve.deployment(name="bytelm")(serve.ingress()(Replica))
    return deployed.options(ray_actor_options={"num_gpus": gpus}).bind(open_lm, settings)


class Replica:
    """A server in an actor of Ray.

    It takes calls when its model is ready. One whose engine dies fails Ray's health check, and Ray
    puts another in its place.
    """

    def __init__(self, open_lm: OpenLM, settings: ServerSettings) -> None:
        self._open_lm = open_lm
        self._settings = settings.model_copy(update={"max_engine_restarts": 0})

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application, which Ray starts and ends.

        Raises:
            InputError: when replicas could not share their sessions, or would serve everybody.
        """
        check(self._settings)
        logs.configure(self._settings.server_log_level)
        app = create_app(self._open_lm, self._settings, wait_until_ready=True)
        app.add_middleware(Named, name=serve.get_replica_context().replica_id.unique_id)
        self._backend = app.state.backend
        return app

    async def check_health(self) -> None:
        """Raises when the replica must be replaced."""
        if self._backend.status == "dead":
            raise RuntimeError("the model's engine ended")


def check(settings: ServerSettings) -> None:
    """Refuse what would not be one server, or one for everybody.

    Raises:
        InputError: one line that says why, and what to do.
    """
    if not settings.session_store.startswith(("redis://", "rediss://", "unix://")):
        raise InputError(
            f"replicas cannot share sessions in {settings.session_store!r}: let session_store be "
            "the URL of a Redis"
        )
    if not settings.allow_remote and not Keys(settings.keys_file).required:
        raise InputError(
            f"there are no API keys in {settings.keys_file} on this machine: make one with bytelm "
            "keys create and copy the file to each machine, or set allow_remote to serve everybody"
        )


class Named:
    """ASGI middleware that puts the replica's name into each answer, and warns of proxies that do
    not mark sessions.
    """

    def __init__(self, app: ASGIApp, name: str) -> None:
        self.app = app
        self._name = name
        self._has_warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on."""
        if scope["type"] == "http" and session_of(scope["path"]) is not None:
            self._look_for_the_mark(Headers(scope=scope))

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REPLICA_HEADER] = self._name
            await send(message)

        await self.app(scope, receive, named)

    def _look_for_the_mark(self, headers: Headers) -> None:
        if SESSION_HEADER in headers or self._has_warned:
            return
        self._has_warned = True
        _log.warning(
            "Ray's proxies do not mark the calls of sessions, which wander from replica to replica:"
            " start Ray by docker/ray/node"
        )
