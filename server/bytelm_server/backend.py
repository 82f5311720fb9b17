"""The model behind the server, from its start to its end.

::

    starting ──► ready ──► draining
        │          │
        └────┬─────┘
             ▼
            dead

The model starts while the server already answers ``/health``. Must not know HTTP.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, get_args

from bytelm.settings import ServerSettings
from bytelm.token_lm import AsyncTokenLM
from bytelm_server.admission import Admission
from bytelm_server.errors import Unavailable
from bytelm_server.service import ByteService

OpenLM = Callable[[], AbstractAsyncContextManager[AsyncTokenLM]]
"""Starts a token LM, and ends it when the context is left."""

Status = Literal["starting", "ready", "draining", "dead"]
STATUSES: tuple[Status, ...] = get_args(Status)

_REASONS = {
    "starting": "the model is still starting; try again in a few seconds",
    "draining": "the server is stopping and takes no new calls",
    "dead": "the model's engine ended; the server must be started again",
}


class Backend:
    """Opens a token LM in the background and gives the service over it once it is there."""

    def __init__(self, open_lm: OpenLM, settings: ServerSettings) -> None:
        self.settings = settings
        self.admission = Admission(settings.max_running_calls, settings.max_waiting_calls)
        self._open_lm = open_lm
        self._service: asyncio.Future[ByteService] | None = None
        self._draining = False

    @property
    def status(self) -> Status:
        """Where the model is in its life."""
        if self._draining:
            return "draining"
        if self._service is None or not self._service.done():
            return "starting"
        if self._service.cancelled() or self._service.exception() is not None:
            return "dead"
        return "ready" if getattr(self._service.result().lm, "is_alive", True) else "dead"

    @property
    def engine_stats(self) -> Any:
        """What the model counts (as ``bytelm.vllm.engine.EngineStats`` has it), if it does."""
        return getattr(self.service.lm, "stats", None) if self.status == "ready" else None

    @property
    def service(self) -> ByteService:
        """The calls.

        Raises:
            Unavailable: unless the status is ``ready``.
        """
        status = self.status
        if status != "ready" or self._service is None:
            raise Unavailable(status, _REASONS[status])
        return self._service.result()

    def drain(self) -> None:
        """Take no new calls, and give those that wait for their turn up."""
        self._draining = True
        self.admission.close(Unavailable("draining", _REASONS["draining"]))

    async def started(self) -> ByteService:
        """The service as soon as it is there; raises what kept the model from starting."""
        if self._service is None:
            self._service = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._service)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the model in the background; on leaving, end it, started or not."""
        service = self._service = self._service or asyncio.get_running_loop().create_future()
        # One task opens and closes it: a context must be left by the task that entered it.
        leave = asyncio.Event()

        async def live() -> None:
            try:
                async with self._open_lm() as lm:
                    made = ByteService(lm, self.settings)
                    await made.warm_up()
                    service.set_result(made)
                    await leave.wait()
            except Exception as error:
                if service.done():
                    raise
                service.set_exception(error)

        life = asyncio.create_task(live(), name="model")
        try:
            yield
        finally:
            self.drain()
            leave.set()
            if not service.done():
                life.cancel()
            await asyncio.gather(life, return_exceptions=not service.done())
