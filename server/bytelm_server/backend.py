"""The model behind the server, from its start to its end.

::

       ┌──── again, after a while ────┐
       ▼                              │
    starting ──► ready ──► dead ──────┘
        │          │
        └────┬─────┘
             ▼
         draining

The model starts while the server already answers ``/health``. One that dies is started again; so
many deaths in a row are final. Must not know HTTP.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, get_args

from bytelm.models.token_lm import AsyncTokenLM
from bytelm.settings import ServerSettings
from bytelm_server.admission import Admission
from bytelm_server.deadlines import Deadlines
from bytelm_server.errors import Unavailable
from bytelm_server.service import ByteService

_log = logging.getLogger(__name__)

SOUND_SECONDS = 600.0
"""A model that lived for so long did not die of its start."""
LONGEST_PAUSE = 60.0
"""Seconds before another start, at most."""
DEATH_POLL_SECONDS = 0.1

OpenLM = Callable[[], AbstractAsyncContextManager[AsyncTokenLM]]
"""Starts a token LM, and ends it when the context is left."""

Status = Literal["starting", "ready", "draining", "dead"]
STATUSES: tuple[Status, ...] = get_args(Status)

_REASONS = {
    "starting": "the model is still starting; try again in a few seconds",
    "draining": "the server is stopping and takes no new calls",
    "dead": "the model's engine ended; if it is not back in a minute, look at the server's log",
}


class Backend:
    """Opens a token LM in the background and gives the service over it once it is there.

    Args:
        open_lm: starts it, and may start it again.
        settings: the server's.
        can_restart: whether ``open_lm`` starts another one when the first has died.

    Attributes:
        admission: whose turn it is.
        deadlines: of the work that goes on.
        restarts: how often the model was started again.
    """

    def __init__(
        self, open_lm: OpenLM, settings: ServerSettings, *, can_restart: bool = True
    ) -> None:
        self.settings = settings
        self.admission = Admission(settings.max_running_calls, settings.max_waiting_calls)
        self.deadlines = Deadlines()
        self.restarts = 0
        self._open_lm = open_lm
        self._first: asyncio.Future[ByteService] | None = None
        self._now: ByteService | None = None
        self._most_restarts = settings.max_engine_restarts if can_restart else 0
        self._is_dead = False  # for good, or until it is started again
        self._draining = False

    @property
    def status(self) -> Status:
        """Where the model is in its life."""
        if self._draining:
            return "draining"
        if self._is_dead:
            return "dead"
        if self._now is None:
            return "starting"
        return "ready" if _is_alive(self._now.lm) else "dead"

    @property
    def engine_stats(self) -> Any:
        """What the model counts (as ``bytelm.vllm.engine.EngineStats`` has it), if it does."""
        return None if self._now is None else getattr(self._now.lm, "stats", None)

    @property
    def service(self) -> ByteService:
        """The calls.

        Raises:
            Unavailable: unless the status is ``ready``.
        """
        status = self.status
        if status != "ready" or self._now is None:
            raise Unavailable(status, _REASONS[status])
        return self._now

    def drain(self) -> None:
        """Take no new calls, and give those that wait for their turn up."""
        self._draining = True
        self.admission.close(Unavailable("draining", _REASONS["draining"]))

    def give_up(self) -> None:
        """End all calls that still run; each is answered that it was."""
        self.deadlines.end(Unavailable("draining", "the server stopped before the call was done"))

    async def started(self) -> ByteService:
        """The service as soon as it is there; raises what kept the model from starting."""
        return await asyncio.shield(self._starting())

    def _starting(self) -> asyncio.Future[ByteService]:
        if self._first is None:
            self._first = asyncio.get_running_loop().create_future()
        return self._first

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the model in the background; on leaving, end it, started or not."""
        # One task opens and closes it: a context must be left by the task that entered it.
        leave = asyncio.Event()
        life = asyncio.create_task(self._live(leave), name="model")
        try:
            yield
        finally:
            self.drain()
            leave.set()
            if self._now is None:
                life.cancel()  # a start, or the wait before it, need not come to its end
            await asyncio.gather(life, return_exceptions=self._now is None)

    async def _live(self, leave: asyncio.Event) -> None:
        """Start the model, and start it again when it has died, until ``leave`` is set."""
        first, deaths = self._starting(), 0
        while not leave.is_set():
            if deaths:
                await asyncio.sleep(self._pause(deaths))
                self._is_dead = False
                self.restarts += 1
                _log.warning("the model is started again, for the %d. time", self.restarts)
            began = time.monotonic()
            try:
                async with self._open_lm() as lm:
                    made = ByteService(lm, self.settings, self.admission.running)
                    await made.warm_up()
                    self._now = made
                    if not first.done():
                        first.set_result(made)
                    await _end_of(lm, leave)
                    if leave.is_set():
                        return
                    _log.error("the model's engine died")
                    self._now, self._is_dead = None, True
            except Exception as error:
                self._now, self._is_dead = None, True
                if not first.done():
                    first.set_exception(error)
                    return
                if leave.is_set():
                    raise
                _log.exception("the model did not start, or did not end in order")
            deaths = deaths + 1 if time.monotonic() - began < SOUND_SECONDS else 1
            if deaths > self._most_restarts:
                _log.error("the model is not started again")
                return

    def _pause(self, deaths: int) -> float:
        """Seconds to wait before the next start: twice as long each time."""
        return min(self.settings.engine_restart_seconds * 2.0 ** (deaths - 1), LONGEST_PAUSE)


def _is_alive(lm: AsyncTokenLM) -> bool:
    return bool(getattr(lm, "is_alive", True))


async def _end_of(lm: AsyncTokenLM, leave: asyncio.Event) -> None:
    """Returns when the model is dead, or ``leave`` is set."""
    leaving = asyncio.create_task(leave.wait())
    try:
        while _is_alive(lm) and not leaving.done():
            await asyncio.wait({leaving}, timeout=DEATH_POLL_SECONDS)
    finally:
        leaving.cancel()
