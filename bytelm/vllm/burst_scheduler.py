"""vLLM's scheduler, made to wait until all of a burst has arrived.

The requests of a burst (``bursts.py``) reach the engine core one after another; as soon as it has
one, it would start a step. :func:`more_follow` marks all but the last of them, and between a marked
request and the next one the schedulers here say that there is nothing to do yet: the engine core
then goes on reading what arrives. Who sends must therefore finish a burst, or say so by
``resume_scheduler``.

vLLM takes a scheduler class by configuration (``scheduler_cls``), without promising that the
interface stays. This module must not know about bytes or about slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.interface import PauseState
    from vllm.v1.request import Request

KEY = "bytelm_more"


def more_follow(whether: bool) -> dict[str, Any]:
    """The ``extra_args`` of a request of a burst: whether it is not the last."""
    return {KEY: whether}


def scheduler(config: VllmConfig) -> str | None:
    """The scheduler for a configuration, as vLLM wants it named; None where bursts are split.

    That is so where requests are spread over several engine cores, each of which would wait.
    """
    if config.parallel_config.data_parallel_size > 1:
        return None
    kind = BurstAsyncScheduler if config.scheduler_config.async_scheduling else BurstScheduler
    return f"{kind.__module__}.{kind.__name__}"


class BurstScheduler(Scheduler):
    """For runs without async scheduling (CPU)."""

    _more_follow = False

    def add_request(self, request: Request) -> None:
        """Queue a request, noting whether more of its burst follow."""
        super().add_request(request)
        extra = request.sampling_params.extra_args if request.sampling_params else None
        if extra is not None and KEY in extra:
            self._more_follow = extra[KEY]

    def set_pause_state(self, pause_state: PauseState) -> None:
        """Pause or resume; either way nothing is waited for any more."""
        super().set_pause_state(pause_state)
        self._more_follow = False

    def has_requests(self) -> bool:
        """Whether there is something to compute now.

        Workers learn with the next step what has ended, not in a step of its own.
        """
        return not self._more_follow and self.has_unfinished_requests()


class BurstAsyncScheduler(BurstScheduler, AsyncScheduler):
    """For runs with async scheduling (CUDA)."""
