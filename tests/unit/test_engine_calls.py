"""The engine's own logic, on a stand-in for vLLM whose every step the test decides."""

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from bytelm.errors import EngineDead, EngineError
from bytelm.models.ordered_rows import RowOrder
from bytelm.models.token_lm import Usage
from bytelm.vllm.burst_message import Asked, Told, report, unpack
from bytelm.vllm.engine import VllmEngine
from bytelm.vllm.slots import Slots, attach
from bytelm.vllm.start import Started

WIDTH = 7
ORDER = RowOrder(np.arange(WIDTH)[::-1].copy(), np.array([0, 3, WIDTH]))


class FakeLLM:
    """What the engine uses of AsyncLLM. Evaluations and generations wait for the test to end them.

    Evaluations arrive in bursts: a carrier, whose answers are a queue.
    """

    def __init__(self, address) -> None:
        self.vllm_config = SimpleNamespace(device_config=SimpleNamespace(device_type="cpu"))
        self.model_config = SimpleNamespace(max_model_len=100)
        self.errored = False
        self.output_handler = None
        self.output_processor = SimpleNamespace(propagate_error=self.fail_all)
        self.engine_core = SimpleNamespace(abort_requests_async=self.abort_some)
        self.requests: dict[str, Any] = {}  # evaluations by nonce, generations by name
        self.asked: dict[str, Asked] = {}
        self.answers: dict[str, asyncio.Queue] = {}  # of carriers
        self.log: list[str] = []
        self.sent: list[list[str]] = []  # the evaluations of each message
        self.refused = 0  # messages, from now on
        self.replies = asyncio.Event()
        self.replies.set()
        self.accepts = asyncio.Event()
        self.accepts.set()
        self.mapped = attach(address)

    def write(self, request: str, *, nonce: int | None = None) -> None:
        own = self.asked[request].nonce
        slot = self.asked[request].slot
        self.mapped.values[slot] = self.mapped.masses[slot] = own
        self.mapped.nonces[slot] = own if nonce is None else nonce

    def finish(self, *requests: str, cached: int | None = 0) -> None:
        """Tell of the ends of evaluations of one burst, in one output."""
        (carrier,) = {self.requests[request][0] for request in requests}
        told = [Told(self.requests.pop(request)[1], cached) for request in requests]
        left = any(one[0] == carrier for one in self.requests.values())
        self.answer(carrier, list(map(report, told)), None if left else "length")

    def answer(self, carrier: str, numbers: list[int], reason: str | None) -> None:
        part = SimpleNamespace(finish_reason=reason, token_ids=numbers)
        output = SimpleNamespace(
            outputs=[part],
            finished=reason is not None,
            num_cached_tokens=0,
            kv_transfer_params=None,
        )
        queue = self.answers[carrier]
        if reason is not None:
            del self.answers[carrier]
        queue.put_nowait(output)

    def fail_all(self, error: Exception) -> None:
        for queue in self.answers.values():
            queue.put_nowait(error)
        self.answers.clear()
        self.requests.clear()

    async def add_request(self, request_id, prompt, params):
        await self.accepts.wait()
        if self.errored:
            raise EngineDeadError
        if self.refused:
            self.refused -= 1
            raise ValueError("no such request")
        names = []
        for position, asked in enumerate(unpack(params.extra_args)):
            names.append(f"row-{asked.nonce}")
            self.asked[names[-1]] = asked
            self.requests[names[-1]] = (request_id, position)
        self.sent.append(names)
        queue = self.answers[request_id] = asyncio.Queue()

        async def get():
            found = await queue.get()
            if isinstance(found, Exception):
                raise found
            return found

        return SimpleNamespace(get=get)

    async def generate(self, prompt, params, request_id):
        queue = self.answers[request_id] = asyncio.Queue()
        self.requests[request_id] = (request_id, 0)
        found = await queue.get()
        if isinstance(found, Exception):
            raise found
        yield found

    async def abort(self, request_id: str) -> None:
        if request_id not in self.answers:
            return
        self.log.append("abort " + " ".join(self._end(lambda name, of: of[0] == request_id)))
        self.answer(request_id, [], "abort")

    async def abort_some(self, request_ids: list[str]) -> None:
        self.log.append("abort " + " ".join(self._end(lambda name, of: name in request_ids)))

    def _end(self, which) -> list[str]:
        names = [name for name, of in self.requests.items() if which(name, of)]
        for name in names:
            del self.requests[name]
        return names

    async def is_paused(self) -> bool:
        self.log.append("asked")
        await self.replies.wait()
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
    np.testing.assert_array_equal(await task, np.full(WIDTH, llm.asked[request].nonce))
    assert engine.stats.slots_free == 2


async def test_nonces_are_never_used_again(engine, llm):
    nonces = []
    for _ in range(4):
        task, request = await call(engine, llm, [1])
        llm.write(request)
        llm.finish(request)
        await task
        nonces.append(llm.asked[request].nonce)
    assert len(set(nonces)) == 4


async def test_rows_stay_as_they_are_however_many_somebody_has(engine, llm):
    rows = {}
    for number in range(7):
        task = asyncio.create_task(engine.next_row([1, number]))
        await until(lambda: llm.requests)
        (request,) = llm.requests
        llm.write(request)
        llm.finish(request)
        rows[llm.asked[request].nonce] = await task
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
    assert row.values.tolist() == [llm.asked[request].nonce] * WIDTH
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
    llm.replies.clear()
    task, request = await call(engine, llm, [1])
    task.cancel()
    await until(lambda: "asked" in llm.log)
    assert llm.log == [f"abort {request}", "asked"]
    await asyncio.sleep(0.02)
    assert engine.stats.slots_free == 1
    llm.replies.set()
    await until(lambda: engine.stats.slots_free == 2)


async def test_slots_aborted_meanwhile_wait_for_an_answer_of_their_own(engine, llm):
    llm.replies.clear()
    first, second = (asyncio.create_task(engine.next_token_logprobs([n])) for n in (1, 2))
    await until(lambda: len(llm.requests) == 2)
    _, late = llm.requests
    first.cancel()
    await until(lambda: "asked" in llm.log)
    second.cancel()
    await until(lambda: f"abort {late}" in llm.log)
    await asyncio.sleep(0.02)
    llm.replies.set()
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
    await until(lambda: llm.sent)
    ((first, second),) = llm.sent
    llm.write(first)
    llm.write(second)
    llm.finish(first, second)
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


async def test_each_call_of_a_burst_is_answered_as_soon_as_its_end_is_told(engine, llm):
    tasks = [asyncio.create_task(engine.next_token_logprobs([1, n])) for n in range(2)]
    await until(lambda: llm.sent)
    ((first, second),) = llm.sent
    llm.write(second)
    llm.finish(second)
    assert (await tasks[1])[0] == llm.asked[second].nonce
    assert not tasks[0].done()
    assert engine.stats.slots_free == 1
    llm.write(first)
    llm.finish(first)
    assert (await tasks[0])[0] == llm.asked[first].nonce


async def test_one_of_a_burst_is_given_up_and_the_others_go_on(engine, llm):
    tasks = [asyncio.create_task(engine.next_token_logprobs([1, n])) for n in range(2)]
    await until(lambda: llm.sent)
    ((first, second),) = llm.sent
    tasks[0].cancel()
    await until(lambda: engine.stats.slots_free == 1)
    assert llm.log == [f"abort {first}", "asked"]
    llm.write(second)
    llm.finish(second)
    await tasks[1]
    await until(lambda: engine.stats.slots_free == 2)
    assert engine.stats.in_flight == 0


async def test_nothing_is_left_when_the_last_of_a_burst_is_given_up(engine, llm):
    tasks = [asyncio.create_task(engine.next_token_logprobs([1, n])) for n in range(2)]
    await until(lambda: llm.sent)
    for task in tasks:
        task.cancel()
    await until(lambda: engine.stats.slots_free == 2)
    assert (llm.requests, llm.answers) == ({}, {})
    await until(lambda: len(engine._tasks) == 2)  # the bursts' and the watch over the engine


async def test_nothing_is_left_when_one_is_given_up_while_the_last_end_is_told(engine, llm):
    tasks = [asyncio.create_task(engine.next_token_logprobs([1, n])) for n in range(2)]
    await until(lambda: llm.sent)
    ((_, second),) = llm.sent
    (carrier,) = llm.answers
    llm.write(second)
    # The engine core tells of one, and does not know of the other's abort.
    llm.answer(carrier, [report(Told(llm.requests.pop(second)[1], 0))], None)
    tasks[0].cancel()
    await tasks[1]
    await until(lambda: engine.stats.slots_free == 2)
    assert (llm.requests, llm.answers) == ({}, {})
    await until(lambda: len(engine._tasks) == 2)


async def test_who_leaves_while_a_burst_is_being_sent_is_given_up_behind_it(engine, llm):
    llm.accepts.clear()
    task = asyncio.create_task(engine.next_token_logprobs([1]))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.sleep(0.05)
    assert engine.stats.slots_free == 1
    assert llm.log == []
    llm.accepts.set()
    await until(lambda: engine.stats.slots_free == 2)
    assert llm.log == ["abort row-2", "asked"]


async def test_a_burst_that_could_not_be_sent_is_over(engine, llm):
    llm.refused = 1
    tasks = [asyncio.create_task(engine.next_token_logprobs([1, n])) for n in range(2)]
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, ValueError)
    await until(lambda: engine.stats.slots_free == 2)
    task, request = await call(engine, llm, [2])
    llm.write(request)
    llm.finish(request)
    await task
    assert engine.stats.evaluations == 1


async def test_what_finds_no_slot_goes_with_the_next_burst(engine, llm):
    tasks = [asyncio.create_task(engine.next_token_logprobs([1, n])) for n in range(3)]
    await until(lambda: llm.sent)
    ((first, second),) = llm.sent
    llm.write(first)
    llm.finish(first)
    await until(lambda: len(llm.sent) == 2)
    (third,) = llm.sent[1]
    for request in (second, third):
        llm.write(request)
        llm.finish(request)
    await asyncio.gather(*tasks)


async def test_evaluations_are_spread_over_engine_cores_one_by_one(llm):
    vocab = SimpleNamespace(size=WIDTH)
    started = Started(llm, llm.owned, vocab, "print", (), together=False)
    engine = VllmEngine(started, "model")
    tasks = [asyncio.create_task(engine.next_token_logprobs([1, n])) for n in range(2)]
    await until(lambda: len(llm.sent) == 2)
    assert [len(names) for names in llm.sent] == [1, 1]
    tasks[0].cancel()
    ((first,), (second,)) = llm.sent
    await until(lambda: engine.stats.slots_free == 1)
    assert llm.log == [f"abort {first}", "asked"]
    llm.write(second)
    llm.finish(second)
    await tasks[1]
    await engine.close()


async def test_each_waiter_leaves_alone(engine, llm):
    first, request = await call(engine, llm, [1])
    second = asyncio.create_task(engine.next_token_logprobs([1]))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert llm.log == []
    llm.write(request)
    llm.finish(request)
    assert (await second)[0] == llm.asked[request].nonce


async def test_an_evaluation_counts_for_the_call_that_came_first(engine, llm):
    first, second = Usage(), Usage()
    tasks = [asyncio.create_task(engine.evaluate([1, 2, 3], usage)) for usage in (first, second)]
    await until(lambda: llm.requests)
    (request,) = llm.requests
    llm.write(request)
    llm.finish(request, cached=2)
    rows = await asyncio.gather(*tasks)
    assert rows[0] is rows[1]
    assert first == Usage(evaluations=1, tokens_computed=1, tokens_cached=2)
    assert second == Usage()
    assert (engine.stats.evaluations, engine.stats.tokens_computed) == (1, 1)


async def test_a_new_call_starts_anew_while_an_aborted_one_ends(engine, llm):
    llm.replies.clear()
    left, old = await call(engine, llm, [1])
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    again, new = await call(engine, llm, [1])
    assert llm.asked[new].slot != llm.asked[old].slot
    llm.write(old)  # the step that ran when it was aborted
    llm.write(new)
    llm.finish(new)
    assert (await again)[0] == llm.asked[new].nonce
    llm.replies.set()


async def test_an_abort_by_the_engine_is_an_error(engine, llm):
    task, request = await call(engine, llm, [1])
    llm.write(request)
    await llm.abort(next(iter(llm.answers)))
    with pytest.raises(EngineError, match="'abort'"):
        await task
    await until(lambda: engine.stats.slots_free == 2)


async def test_an_evaluation_that_failed_is_an_error(engine, llm):
    task, request = await call(engine, llm, [1])
    llm.finish(request, cached=None)
    with pytest.raises(EngineError, match="failed on an evaluation"):
        await task
    await until(lambda: engine.stats.slots_free == 2)
    assert engine.stats.in_flight == 0


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
    llm.replies.clear()
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
