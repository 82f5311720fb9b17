"""The engine's own logic, on a stand-in for vLLM whose every step the test decides."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from bytelm.errors import EngineDead, EngineError
from bytelm.ordered_rows import RowOrder
from bytelm.token_lm import Usage
from bytelm.vllm.burst_scheduler import KEY as MORE
from bytelm.vllm.capture import flag_of
from bytelm.vllm.engine import VllmEngine
from bytelm.vllm.slots import Slots, attach
from bytelm.vllm.start import Started

WIDTH = 7
ORDER = RowOrder(np.arange(WIDTH)[::-1].copy(), np.array([0, 3, WIDTH]))


class FakeLLM:
    """What the engine uses of AsyncLLM. Requests wait until the test finishes them."""

    def __init__(self, address) -> None:
        self.vllm_config = SimpleNamespace(device_config=SimpleNamespace(device_type="cpu"))
        self.model_config = SimpleNamespace(max_model_len=100)
        self.errored = False
        self.output_handler = None
        self.output_processor = SimpleNamespace(propagate_error=self.fail_all)
        self.requests: dict[str, asyncio.Future] = {}
        self.flags: dict[str, tuple[int, int]] = {}
        self.log: list[str] = []
        self.sent: list[tuple[str, bool]] = []  # evaluations, and whether more follow
        self.refused: set[str] = set()
        self.answers = asyncio.Event()
        self.answers.set()
        self.mapped = attach(address)

    def write(self, request_id: str, *, nonce: int | None = None) -> None:
        slot, own = self.flags[request_id]
        self.mapped.values[slot] = self.mapped.masses[slot] = own
        self.mapped.nonces[slot] = own if nonce is None else nonce

    def finish(self, request_id: str, reason: str = "length") -> None:
        self.requests.pop(request_id).set_result(reason)

    def fail_all(self, error: Exception) -> None:
        for request in self.requests.values():
            request.set_exception(error)
        self.requests.clear()

    def add(self, params, request_id) -> None:
        if self.errored:
            raise EngineDeadError
        if request_id in self.refused:
            raise ValueError("no such request")
        found = flag_of(params)
        if found is not None:
            self.flags[request_id] = found
        self.requests[request_id] = asyncio.get_running_loop().create_future()

    async def answer(self, request):
        part = SimpleNamespace(finish_reason=await request, token_ids=[0])
        return SimpleNamespace(outputs=[part], num_cached_tokens=0, kv_transfer_params=None)

    async def add_request(self, request_id, prompt, params):
        self.add(params, request_id)
        self.sent.append((request_id, params.extra_args[MORE]))
        request = self.requests[request_id]
        return SimpleNamespace(get=lambda: self.answer(request))

    async def generate(self, prompt, params, request_id):
        self.add(params, request_id)
        yield await self.answer(self.requests[request_id])

    async def resume_generation(self) -> None:
        self.log.append("resumed")

    async def abort(self, request_id: str) -> None:
        self.log.append(f"abort {request_id}")
        if request_id in self.requests:
            self.finish(request_id, "abort")

    async def is_paused(self) -> bool:
        self.log.append("asked")
        await self.answers.wait()
        return False

    def shutdown(self, timeout: float) -> None:
        self.log.append("shutdown")


@pytest.fixture
async def llm(tmp_path):
    slots = Slots(2, ORDER, directory=tmp_path)
    fake = FakeLLM(slots.address)
    fake.owned = slots
    return fake


@pytest.fixture
async def engine(llm):
    vocab = SimpleNamespace(size=WIDTH)
    engine = VllmEngine(Started(llm, llm.owned, vocab, "print", ()), "model")
    yield engine
    await engine.close()


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def call(engine, llm, ids, **options) -> tuple[asyncio.Task, str]:
    """A call that was sent, and its request."""
    before = set(llm.requests)
    task = asyncio.create_task(engine.next_token_logprobs(ids, **options))
    await until(lambda: set(llm.requests) - before)
    (request,) = set(llm.requests) - before
    return task, request


async def test_a_row_reaches_its_caller(engine, llm):
    task, request = await call(engine, llm, [1, 2])
    llm.write(request)
    llm.finish(request)
    np.testing.assert_array_equal(await task, np.full(WIDTH, llm.flags[request][1]))
    assert engine.stats.slots_free == 2


async def test_nonces_are_never_used_again(engine, llm):
    nonces = []
    for _ in range(4):
        task, request = await call(engine, llm, [1])
        llm.write(request)
        llm.finish(request)
        await task
        nonces.append(llm.flags[request][1])
    assert len(set(nonces)) == 4


async def test_rows_stay_as_they_are_however_many_somebody_has(engine, llm):
    rows = {}
    for number in range(7):
        task = asyncio.create_task(engine.next_row([1, number]))
        await until(lambda: llm.requests)
        (request,) = llm.requests
        llm.write(request)
        llm.finish(request)
        rows[llm.flags[request][1]] = await task
        assert engine.stats.slots_free == 2
        del task
    for nonce, row in rows.items():
        assert row.values.tolist() == [nonce] * WIDTH
        assert row.masses.tolist() == [nonce] * 2


async def test_a_row_is_not_copied_while_there_are_slots(engine, llm):
    task = asyncio.create_task(engine.next_row([1]))
    await until(lambda: llm.requests)
    (request,) = llm.requests
    llm.write(request)
    llm.finish(request)
    row = await task
    assert np.shares_memory(row.values, engine._slots._mapped.slots)


async def test_rows_outlive_the_engine_but_keep_no_slots(engine, llm):
    task = asyncio.create_task(engine.next_row([1]))
    await until(lambda: llm.requests)
    (request,) = llm.requests
    llm.write(request)
    llm.finish(request)
    row, slots = await task, engine._slots._mapped.slots
    await engine.close()
    assert row.values.tolist() == [llm.flags[request][1]] * WIDTH
    assert not np.shares_memory(row.values, slots)


async def test_another_requests_row_is_a_loud_error_and_its_slot_comes_back(engine, llm):
    task, request = await call(engine, llm, [1])
    llm.write(request, nonce=999)
    llm.finish(request)
    with pytest.raises(EngineError, match="row of request 999"):
        await task
    await until(lambda: engine.stats.slots_free == 2)
    assert engine.stats.in_flight == 0


async def test_a_row_that_was_never_written_is_a_loud_error(engine, llm):
    task, request = await call(engine, llm, [1])
    llm.finish(request)
    with pytest.raises(EngineError, match="instead of request"):
        await task


async def test_the_slot_of_an_aborted_request_waits_for_the_engines_answer(engine, llm):
    llm.answers.clear()
    task, request = await call(engine, llm, [1])
    task.cancel()
    await until(lambda: "asked" in llm.log)
    assert llm.log == [f"abort {request}", "asked"]
    await asyncio.sleep(0.02)
    assert engine.stats.slots_free == 1
    llm.answers.set()
    await until(lambda: engine.stats.slots_free == 2)


async def test_slots_aborted_meanwhile_wait_for_an_answer_of_their_own(engine, llm):
    llm.answers.clear()
    first, second = (asyncio.create_task(engine.next_token_logprobs([n])) for n in (1, 2))
    await until(lambda: len(llm.requests) == 2)
    _, late = llm.requests
    first.cancel()
    await until(lambda: "asked" in llm.log)
    second.cancel()
    await until(lambda: f"abort {late}" in llm.log)
    await asyncio.sleep(0.02)
    llm.answers.set()
    await until(lambda: engine.stats.slots_free == 2)
    assert llm.log[-1] == "asked"
    assert llm.log.count("asked") == 2


async def test_a_request_that_ends_although_its_caller_left_keeps_its_slot_in_order(engine, llm):
    task, request = await call(engine, llm, [1])
    llm.write(request)
    llm.finish(request)  # reported, but the caller leaves before it runs
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: engine.stats.slots_free == 2)


async def test_calls_of_one_moment_are_sent_as_one_burst(engine, llm):
    tasks = [asyncio.create_task(engine.next_token_logprobs([1, n])) for n in range(2)]
    await until(lambda: len(llm.sent) == 2)
    assert [more for _, more in llm.sent] == [True, False]
    for request, _ in llm.sent:
        llm.write(request)
        llm.finish(request)
    await asyncio.gather(*tasks)


async def test_a_call_that_comes_while_a_burst_is_computed_waits_for_its_first_answer(engine, llm):
    first, request = await call(engine, llm, [1])
    second = asyncio.create_task(engine.next_token_logprobs([2]))
    await asyncio.sleep(0.05)
    assert len(llm.sent) == 1
    llm.write(request)
    llm.finish(request)
    await first
    await until(lambda: len(llm.sent) == 2)
    second.cancel()


async def test_a_call_that_leaves_before_its_burst_is_sent_costs_nothing(engine, llm):
    first, request = await call(engine, llm, [1])
    second = asyncio.create_task(engine.next_token_logprobs([2]))
    await asyncio.sleep(0.05)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert engine.stats.slots_free == 1
    llm.write(request)
    llm.finish(request)
    await first
    third, request = await call(engine, llm, [3])
    assert len(llm.sent) == 2
    assert llm.log == []
    third.cancel()


async def test_a_burst_whose_last_request_fails_does_not_keep_the_engine_waiting(engine, llm):
    llm.refused.add("row-2")
    tasks = [asyncio.create_task(engine.next_token_logprobs([1, n])) for n in range(2)]
    await until(lambda: llm.log)
    assert llm.sent == [("row-1", True)]
    assert llm.log == ["resumed"]
    with pytest.raises(ValueError, match="no such request"):
        await tasks[1]
    llm.write("row-1")
    llm.finish("row-1")
    await tasks[0]


async def test_a_burst_of_which_nothing_could_be_sent_is_over(engine, llm):
    llm.refused.add("row-1")
    with pytest.raises(ValueError, match="no such request"):
        await engine.next_token_logprobs([1])
    task, request = await call(engine, llm, [2])
    llm.write(request)
    llm.finish(request)
    await task


async def test_each_waiter_leaves_alone(engine, llm):
    first, request = await call(engine, llm, [1])
    second = asyncio.create_task(engine.next_token_logprobs([1]))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert llm.log == []
    llm.write(request)
    llm.finish(request)
    assert (await second)[0] == llm.flags[request][1]


async def test_an_evaluation_counts_for_the_call_that_came_first(engine, llm):
    first, second = Usage(), Usage()
    tasks = [asyncio.create_task(engine.evaluate([1, 2, 3], usage)) for usage in (first, second)]
    await until(lambda: llm.requests)
    (request,) = llm.requests
    llm.write(request)
    llm.finish(request)
    rows = await asyncio.gather(*tasks)
    assert rows[0] is rows[1]
    assert first == Usage(evaluations=1, tokens_computed=3, tokens_cached=0)
    assert second == Usage()
    assert (engine.stats.evaluations, engine.stats.tokens_computed) == (1, 3)


async def test_a_new_call_starts_anew_while_an_aborted_one_ends(engine, llm):
    llm.answers.clear()
    left, old = await call(engine, llm, [1])
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    again, new = await call(engine, llm, [1])
    assert llm.flags[new][0] != llm.flags[old][0]
    llm.write(old)  # the step that ran when it was aborted
    llm.write(new)
    llm.finish(new)
    assert (await again)[0] == llm.flags[new][1]
    llm.answers.set()


async def test_an_abort_by_the_engine_is_an_error(engine, llm):
    task, request = await call(engine, llm, [1])
    llm.write(request)
    llm.finish(request, "abort")
    with pytest.raises(EngineError, match="'abort'"):
        await task


async def test_death_reaches_those_who_wait_for_a_row_and_for_a_slot(engine, llm):
    tasks = [asyncio.create_task(engine.next_token_logprobs([1, n])) for n in range(5)]
    await until(lambda: len(llm.requests) == 2)
    llm.errored = True
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, EngineDead)
    assert not engine.is_alive
    with pytest.raises(EngineDead):
        await engine.next_token_logprobs([1])
    await until(lambda: engine.stats.in_flight == 0)


async def test_death_reaches_slots_that_wait_for_an_answer(engine, llm):
    llm.answers.clear()
    task, _ = await call(engine, llm, [1])
    task.cancel()
    await until(lambda: "asked" in llm.log)
    llm.errored = True
    await until(lambda: engine.stats.slots_free == 2)


async def test_death_reaches_a_generation(engine, llm):
    async def generate() -> None:
        async for _ in engine.generate([1], 5):
            pass

    task = asyncio.create_task(generate())
    await until(lambda: llm.requests)
    llm.errored = True
    with pytest.raises(EngineDead):
        await task


async def test_close_answers_those_who_wait_and_may_be_repeated(engine, llm, tmp_path):
    task, _ = await call(engine, llm, [1])
    await asyncio.gather(engine.close(), engine.close())
    with pytest.raises(EngineDead, match="was closed"):
        await task
    await engine.close()
    assert llm.log.count("shutdown") == 1
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EngineDead, match="was closed"):
        await engine.next_token_logprobs([1])
    assert not engine.is_alive
