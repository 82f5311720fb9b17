"""How vLLM's scheduler takes a burst that arrives as one request, and what it tells of it."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from vllm import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.request import Request, RequestStatus

from bytelm.vllm import requests
from bytelm.vllm.burst_message import Asked, Told, reported
from bytelm.vllm.burst_scheduler import BurstAsyncScheduler, BurstScheduler, scheduler
from bytelm.vllm.capture import Flag, flag_of
from bytelm.vllm.row_params import RowParams, Tokens

BLOCK = 4
ABORTED = RequestStatus.FINISHED_ABORTED


class Base:
    """What stands in for vLLM's scheduler below."""

    def __init__(self) -> None:
        self.queued: dict[str, Request] = {}
        self.outputs: dict[int, EngineCoreOutputs] = {}

    def init(self, made, *args, **kwargs) -> None:
        made.vllm_config = SimpleNamespace(
            cache_config=SimpleNamespace(
                enable_prefix_caching=True, prefix_caching_hash_algo="sha256"
            )
        )
        made.connector = None
        made.kv_cache_config = SimpleNamespace(kv_cache_groups=[])
        made.finished_req_ids_dict = None
        made.log_stats = True

    def add(self, made, request) -> None:
        self.queued[request.request_id] = request

    def finish(self, made, names, status) -> list[Request]:
        names = list(self.queued) if names is None else names
        return [self.queued.pop(name) for name in sorted(names) if name in self.queued]


@pytest.fixture
def base(monkeypatch):
    base = Base()
    init_none_hash(get_hash_fn_by_name("sha256"))

    def put(name, method):
        monkeypatch.setattr(Scheduler, name, lambda self, *a, **k: method(self, *a, **k))

    put("__init__", base.init)
    put("add_request", base.add)
    put("finish_requests", base.finish)
    put("update_from_output", lambda *_: base.outputs)
    put("get_num_unfinished_requests", lambda _: len(base.queued))
    # What has ended is news for the workers, but nothing to compute.
    put("has_finished_requests", lambda _: True)
    return base


@pytest.fixture
def queue(base):
    return BurstScheduler(hash_block_size=BLOCK)


def asked(nonce: int, *ids: int, salt: str | None = None) -> Asked:
    return Asked(nonce, nonce + 100, np.array(ids, np.int32).tobytes(), salt)


def carrier(name: str, *burst: Asked) -> Request:
    return Request(name, [0], requests.burst_params(burst), None, client_index=3)


def ended(name: str, *, reason=FinishReason.LENGTH, cached: int = 0) -> EngineCoreOutput:
    stats = PrefillStats(num_prompt_tokens=10, num_cached_tokens=cached)
    return EngineCoreOutput(name, [7], finish_reason=reason, prefill_stats=stats)


def told(base, queue, *outputs: EngineCoreOutput) -> list[EngineCoreOutput]:
    """What goes to the clients when these are the ends of a step."""
    base.outputs = {3: EngineCoreOutputs(outputs=list(outputs))}
    return queue.update_from_output(None, None)[3].outputs


def test_an_idle_engine_has_nothing_to_do(queue):
    assert not queue.has_requests()


def test_a_request_outside_of_bursts_is_queued_as_it_is(base, queue):
    one = Request("generate-1", [1, 2], SamplingParams(extra_args={"x": 1}), None)
    queue.add_request(one)
    assert base.queued == {"generate-1": one}
    assert queue.has_requests()


def test_a_burst_is_queued_all_at_once(base, queue):
    queue.add_request(carrier("burst-1", asked(1, 5, 6), asked(2, 5, 7, 8, salt="s")))
    assert list(base.queued) == ["row-1", "row-2"]
    first, second = base.queued.values()
    assert (list(first.prompt_token_ids), list(second.prompt_token_ids)) == ([5, 6], [5, 7, 8])
    assert (first.cache_salt, second.cache_salt) == (None, "s")
    assert first.client_index == 3
    assert first.max_tokens == 1
    assert flag_of(second.sampling_params) == Flag(slot=102, nonce=2)


def test_the_ends_of_a_step_are_told_as_one_output_for_each_burst(base, queue):
    queue.add_request(carrier("a", asked(1, 5), asked(2, 6), asked(3, 7)))
    queue.add_request(carrier("b", asked(4, 8)))
    other = EngineCoreOutput("generate-1", [9])
    ends = [ended("row-1", cached=4), other, ended("row-4"), ended("row-3", cached=2)]
    of_a, same, of_b = told(base, queue, *ends)
    assert same is other
    assert (of_a.request_id, of_a.finish_reason) == ("a", None)
    assert reported(of_a.new_token_ids) == [Told(0, 4), Told(2, 2)]
    assert (of_b.request_id, of_b.finish_reason) == ("b", FinishReason.LENGTH)
    assert reported(of_b.new_token_ids) == [Told(0, 0)]
    (last,) = told(base, queue, ended("row-2", cached=1))
    assert (last.request_id, last.finish_reason) == ("a", FinishReason.LENGTH)
    assert reported(last.new_token_ids) == [Told(1, 1)]


def test_an_evaluation_that_ends_otherwise_is_told_as_failed(base, queue):
    queue.add_request(carrier("a", asked(1, 5), asked(2, 6)))
    (output,) = told(base, queue, ended("row-2", reason=FinishReason.ERROR))
    assert reported(output.new_token_ids) == [Told(1, None)]


def test_one_of_a_burst_is_aborted_alone(base, queue):
    queue.add_request(carrier("a", asked(1, 5), asked(2, 6)))
    assert queue.finish_requests(["row-1"], ABORTED) == []
    assert list(base.queued) == ["row-2"]
    (output,) = told(base, queue, ended("row-2"))
    assert reported(output.new_token_ids) == [Told(1, 0)]
    assert output.finish_reason == FinishReason.LENGTH


@pytest.mark.parametrize("names", ["a", ["a", "row-1"], None])
def test_all_of_a_burst_is_aborted_by_its_carrier(base, queue, names):
    brought = carrier("a", asked(1, 5), asked(2, 6))
    queue.add_request(brought)
    assert queue.finish_requests(names, ABORTED) == [brought]
    assert base.queued == {}
    assert not queue._members


def test_errors_are_told_by_whoever_found_them(base, queue):
    queue.add_request(carrier("a", asked(1, 5)))
    (request,) = queue.finish_requests({"row-1"}, RequestStatus.FINISHED_ERROR)
    assert request.request_id == "row-1"
    (output,) = told(base, queue, ended("row-1", reason=FinishReason.ERROR))
    assert reported(output.new_token_ids) == [Told(0, None)]


@pytest.mark.parametrize("aborted", [False, True])
def test_who_spreads_requests_is_told_of_a_carriers_end(base, queue, aborted):
    queue.finished_req_ids_dict = {3: set()}
    queue.add_request(carrier("a", asked(1, 5)))
    if aborted:
        queue.finish_requests("a", ABORTED)
    else:
        told(base, queue, ended("row-1"))
    assert queue.finished_req_ids_dict == {3: {"a"}}


def test_vllms_own_counters_get_all_tokens_however_a_burst_is_told(base, queue):
    queue.add_request(carrier("a", *(asked(n, 5) for n in range(1, 6))))
    queue.add_request(carrier("b", asked(6, 5)))
    counted = []
    for ends in (["row-1", "row-2"], ["row-3"], ["row-4", "row-6"], ["row-5"]):
        outputs = told(base, queue, *(ended(name, cached=4) for name in ends))
        counted += [output.prefill_stats for output in outputs if output.prefill_stats]
    # Those behind the first output of the last burst wait for the next one.
    assert sum(stats.num_prompt_tokens for stats in counted) == 50
    assert sum(stats.num_cached_tokens for stats in counted) == 20
    assert len(counted) == 2


def test_tokens_are_to_vllm_as_a_list_would_be():
    tokens = Tokens("i", np.array([5, 6, 7], np.int32).tobytes())
    request = Request("x", tokens, RowParams.of(0, 1), None)
    request.append_output_token_ids(8)
    assert list(tokens) == [5, 6, 7]
    assert tuple(request.all_token_ids[1:]) == (6, 7, 8)
    assert list(request.all_token_ids.copy()) == [5, 6, 7, 8]
    assert list(pickle.loads(pickle.dumps(request.all_token_ids.copy()))) == [5, 6, 7, 8]


def test_tokens_are_to_workers_as_a_list_would_be():
    tokens = pickle.loads(pickle.dumps(Tokens("i", np.arange(1000, dtype=np.int32).tobytes())))
    batch = np.zeros((1, 1000), np.int32)  # of model runner V1
    batch[0, : len(tokens)] = tokens
    assert batch[0].tolist() == list(range(1000))
    staged: list[int] = []  # of model runner V2
    if tokens:
        staged.extend(tokens)
    assert staged == list(range(1000))


def test_parameters_of_an_evaluation_travel_in_a_few_bytes():
    packed = pickle.dumps(RowParams.of(5, 6))
    assert len(packed) < 100
    assert pickle.loads(packed) == RowParams.of(5, 6)


# Hashes


def hashes(one: Asked) -> list[bytes]:
    """What vLLM itself makes of a context."""
    hasher = get_request_block_hasher(BLOCK, get_hash_fn_by_name("sha256"))
    ids = np.frombuffer(one.tokens, np.int32).tolist()
    params = SamplingParams(max_tokens=1)
    return Request(
        "x", ids, params, None, cache_salt=one.cache_salt, block_hasher=hasher
    ).block_hashes


def test_hashes_are_vllms_whatever_was_known(base, queue):
    draw = np.random.default_rng(0)
    contexts: list[tuple[int, ...]] = [(1,)]
    for nonce in range(300):
        parent = contexts[draw.integers(len(contexts))]
        grown = (*parent[: draw.integers(1, 40)], *draw.integers(0, 3, draw.integers(1, 7)))
        contexts.append(tuple(map(int, grown)))
        one = asked(nonce, *contexts[-1], salt=[None, "a", "b"][draw.integers(3)])
        queue.add_request(carrier(f"burst-{nonce}", one))
        request = base.queued.pop(f"row-{nonce}")
        assert list(request.prompt_token_ids) == list(contexts[-1])
        assert request.block_hashes == hashes(one)


def test_only_what_is_new_is_hashed(base, queue):
    hashed = []
    made = queue._hasher

    def counting(request):
        found = made(request)
        hashed.append(len(found))
        return found

    queue._hasher = counting
    for nonce in range(4 * BLOCK):
        queue.add_request(carrier(f"burst-{nonce}", asked(nonce, *range(8 * BLOCK + nonce))))
    assert hashed == [8 if not nonce else int(nonce % BLOCK == 0) for nonce in range(4 * BLOCK)]


def test_what_a_request_generates_is_hashed_as_well(base, queue):
    queue.add_request(carrier("a", asked(1, *range(2 * BLOCK - 1))))
    request = base.queued["row-1"]
    assert len(request.block_hashes) == 1
    request.append_output_token_ids(9)
    assert request.block_hashes == hashes(asked(1, *range(2 * BLOCK - 1), 9))


# Which scheduler


@pytest.mark.parametrize(
    ("asynchronous", "kind", "base"),
    [(False, BurstScheduler, Scheduler), (True, BurstAsyncScheduler, AsyncScheduler)],
)
def test_the_scheduler_is_a_kind_of_the_one_that_vllm_would_take(asynchronous, kind, base):
    config = SimpleNamespace(scheduler_config=SimpleNamespace(async_scheduling=asynchronous))
    assert scheduler(config) == f"{kind.__module__}.{kind.__name__}"
    assert issubclass(kind, base)
