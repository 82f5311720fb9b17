"""When vLLM's engine core finds that there is something to compute."""

from types import SimpleNamespace

import pytest
from vllm import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler

from bytelm.vllm.burst_scheduler import (
    BurstAsyncScheduler,
    BurstScheduler,
    more_follow,
    scheduler,
)


@pytest.fixture
def queue(monkeypatch):
    """A burst scheduler of whose base there is a queue only."""
    made = BurstScheduler.__new__(BurstScheduler)
    made.queued = []
    monkeypatch.setattr(Scheduler, "add_request", lambda self, one: self.queued.append(one))
    monkeypatch.setattr(Scheduler, "set_pause_state", lambda self, state: None)
    monkeypatch.setattr(Scheduler, "get_num_unfinished_requests", lambda self: len(self.queued))
    # What has ended is news for the workers, but nothing to compute.
    monkeypatch.setattr(Scheduler, "has_finished_requests", lambda self: True)
    return made


def request(more: bool | None = None) -> SimpleNamespace:
    extra = None if more is None else more_follow(more)
    return SimpleNamespace(sampling_params=SamplingParams(extra_args=extra))


def test_an_idle_engine_has_nothing_to_do(queue):
    assert not queue.has_requests()


def test_a_request_outside_of_bursts_is_something_to_do(queue):
    queue.add_request(request())
    assert queue.has_requests()


def test_a_burst_is_something_to_do_when_its_last_request_is_there(queue):
    for more in (True, True, False):
        assert not queue.has_requests()
        queue.add_request(request(more))
    assert queue.has_requests()


def test_requests_outside_do_not_end_a_burst(queue):
    queue.add_request(request(True))
    queue.add_request(request())
    assert not queue.has_requests()
    queue.add_request(request(False))
    assert queue.has_requests()


def test_who_cannot_finish_a_burst_resumes_the_scheduler(queue):
    queue.add_request(request(True))
    queue.set_pause_state(PauseState.UNPAUSED)
    assert queue.has_requests()


def config(*, asynchronous=False, engines=1) -> SimpleNamespace:
    return SimpleNamespace(
        parallel_config=SimpleNamespace(data_parallel_size=engines),
        scheduler_config=SimpleNamespace(async_scheduling=asynchronous),
    )


@pytest.mark.parametrize(
    ("asynchronous", "kind", "base"),
    [(False, BurstScheduler, Scheduler), (True, BurstAsyncScheduler, AsyncScheduler)],
)
def test_the_scheduler_is_a_kind_of_the_one_that_vllm_would_take(asynchronous, kind, base):
    assert scheduler(config(asynchronous=asynchronous)) == f"{kind.__module__}.{kind.__name__}"
    assert issubclass(kind, base)


def test_bursts_are_split_where_several_engines_would_wait_for_their_ends():
    assert scheduler(config(engines=2)) is None
