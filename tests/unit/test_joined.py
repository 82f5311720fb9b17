"""Calls that several wait for, and what a walk leaves under way when it is cancelled."""

import asyncio
import gc
import random

import numpy as np
import pytest

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.beam.extending import weighed
from bytelm.generating.generation import collect, generate
from bytelm.joined import Joined, results
from bytelm.models.ensemble import Ensemble
from bytelm.models.logprobs import LazyByteProbs
from bytelm.models.testing import StubLM
from tests.unit.test_read_ahead import WORDS

HUNG = 60.0


class WatchedLM(StubLM):
    """A model that takes a while, notes what it is asked, and counts what is under way.

    Attributes:
        asked: all contexts.
        under_way: how many of them are not answered.
        fails: so many evaluations fail.
        gate: they wait for it, but for those that are ``passing``.
    """

    is_idle = True

    def __init__(self, seed=0, passes=5):
        super().__init__(WORDS, seed=seed)
        self.asked = []
        self.under_way = 0
        self.fails = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.passing = set()
        self.passes = passes

    async def next_token_logprobs(self, token_ids):
        self.asked.append(tuple(token_ids))
        self.under_way += 1
        try:
            if tuple(token_ids) not in self.passing:
                await self.gate.wait()
            for _ in range(self.passes):
                await asyncio.sleep(0)
            if self.fails:
                self.fails -= 1
                raise RuntimeError("not now")
            return await super().next_token_logprobs(token_ids)
        finally:
            self.under_way -= 1


async def passes(n=5):
    for _ in range(n):
        await asyncio.sleep(0)


def tasks():
    return asyncio.all_tasks() - {asyncio.current_task()}


PLAIN = BeamParams(5, 0.02, eos_byte_strings=())
BEAMS = [PLAIN, BeamParams(5, 0.02, eos_byte_strings=(), deferred=True)]


async def state_after(lm, text, params=PLAIN):
    """A state whose evaluations are not made yet."""
    state = await ByteBeamState.initial(lm, params)
    for b in text:
        state = await (state.prune() << b)
    return state


@pytest.mark.parametrize("params", BEAMS)
@pytest.mark.parametrize("text", [b"", b" d", b" doctor"])
async def test_calls_of_one_state_evaluate_once(text, params):
    lm = WatchedLM()
    state = await state_after(lm, text, params)
    before = len(lm.asked)
    calls = [state.logp_next() for _ in range(3)]
    *rows, moved = await asyncio.gather(*calls, state << ord("d"))
    asked = lm.asked[before:]
    assert asked
    assert len(asked) == len(set(asked))
    alone = await state_after(WatchedLM(), text, params)
    expected = (await alone.logp_next()).ps
    assert all(np.array_equal(row.ps, expected) for row in rows)
    assert repr(moved) == repr(await (alone << ord("d")))


@pytest.mark.parametrize("who", [(0,), (1,), (2,), (0, 1), (1, 2)])
@pytest.mark.parametrize("at", [0, 1, 2, 3])
async def test_a_caller_that_is_cancelled_breaks_no_other(who, at):
    lm = WatchedLM()
    state = await state_after(lm, b"")
    calls = [asyncio.ensure_future(state.logp_next()) for _ in range(3)]
    await passes(at)
    for i in who:
        calls[i].cancel()
    left = [call for i, call in enumerate(calls) if i not in who]
    rows = await asyncio.gather(*left)
    assert all(np.array_equal(row.ps, rows[0].ps) for row in rows)
    # One that makes an evaluation and is cancelled leaves it to the next.
    assert len(lm.asked) <= (1 + len(who) if 0 in who else 1)
    assert not lm.under_way
    assert all(calls[i].cancelled() for i in who)


async def test_when_all_callers_are_cancelled_the_evaluation_ends_and_the_next_call_makes_it_anew():
    lm = WatchedLM()
    lm.gate.clear()
    state = await state_after(lm, b"")
    calls = [asyncio.ensure_future(state.logp_next()) for _ in range(3)]
    await passes()
    assert lm.under_way == 1
    for call in calls:
        call.cancel()
    # One that comes before the cancelled ones have ended.
    late = asyncio.ensure_future(state.logp_next())
    await asyncio.gather(*calls, return_exceptions=True)
    lm.gate.set()
    assert np.array_equal((await late).ps, (await state.logp_next()).ps)
    assert not lm.under_way
    assert len(lm.asked) <= 2


async def test_an_evaluation_that_fails_fails_for_all_and_is_made_again():
    lm = WatchedLM()
    state = await state_after(lm, b"")
    lm.fails = 1
    failed = await asyncio.gather(*[state.logp_next() for _ in range(3)], return_exceptions=True)
    assert [str(error) for error in failed] == ["not now"] * 3
    assert len(lm.asked) == 1
    await state.logp_next()
    assert len(lm.asked) == 2
    assert not state._opening


@pytest.mark.parametrize("params", BEAMS)
async def test_walks_that_are_cancelled_at_random_leave_nothing_under_way(params):
    lm, draw = WatchedLM(), random.Random(0)
    before = tasks()
    parents = [await state_after(lm, text, params) for text in (b"", b" d", b" doc", b" do dog")]

    async def walk(state):
        if draw.random() < 0.3:
            state = await state.prefill(b" doctor do dog doc"[draw.randrange(8) :])
        await collect(generate(state, 30, LazyByteProbs.argmax))

    walks = [asyncio.ensure_future(walk(draw.choice(parents))) for _ in range(500)]
    waiting = list(walks)
    draw.shuffle(waiting)
    while waiting:
        await passes(draw.randrange(4))
        for _ in range(min(len(waiting), draw.randrange(8))):
            waiting.pop().cancel()
    await asyncio.gather(*walks, return_exceptions=True)
    await passes()
    assert sum(one.cancelled() for one in walks) > 200
    # The walks are still there, and with them what their errors refer to.
    assert lm.under_way == 0
    assert tasks() == before
    for state in parents:
        again = [await state.logp_next() for _ in range(2)]
        fresh = await state_after(WatchedLM(), state.context, params)
        assert np.array_equal(again[0].ps, (await fresh.logp_next()).ps)


async def ahead_of(lm, state):
    """Moves a state while the evaluations that it reads ahead are kept under way."""
    lm.gate.clear()
    call = asyncio.ensure_future(state.logp_next())
    await passes()
    assert lm.under_way > 1
    return call


async def test_what_is_read_ahead_ends_with_the_walk():
    lm = WatchedLM(seed=6)
    state = await state_after(lm, b" d")
    call = await ahead_of(lm, state)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await passes(2)
    assert lm.under_way == 0


async def test_what_is_read_ahead_ends_with_the_last_state_that_refers_to_it():
    lm = WatchedLM(seed=6)
    state = await state_after(lm, b" d")
    lm.gate.clear()
    wanted, _ = await weighed(state, state.logZ, need_one=False)
    lm.passing = {one.path for one in wanted}
    await state.logp_next()
    assert lm.under_way > 0
    child = await (state << ord("o"))
    del state
    await passes()
    assert lm.under_way > 0
    del child
    await passes()
    assert lm.under_way == 0


async def test_a_sibling_evaluates_again_what_another_gave_up():
    lm = WatchedLM(seed=6)
    state = await state_after(lm, b" d")
    expected = await state_after(WatchedLM(seed=6), b" d")
    call = await ahead_of(lm, state)
    sibling = asyncio.ensure_future(state << ord("o"))
    await passes(3)
    call.cancel()
    lm.gate.set()
    moved = await sibling
    other = await (expected << ord("o"))
    for b in b"ctor dog":
        assert np.array_equal((await moved.logp_next()).ps, (await other.logp_next()).ps)
        moved, other = await (moved.prune() << b), await (other.prune() << b)
    assert lm.under_way == 0


async def test_what_nobody_refers_to_any_more_ends():
    lm = WatchedLM()
    lm.gate.clear()
    call = Joined(lm.next_token_logprobs((0,)))
    await passes()
    assert lm.under_way == 1
    del call
    await passes(2)
    assert lm.under_way == 0


async def test_in_a_cycle_it_ends_when_that_is_collected():
    lm = WatchedLM()
    lm.gate.clear()
    cycle = [Joined(lm.next_token_logprobs((0,)))]
    cycle.append(cycle)
    await passes()
    del cycle
    await asyncio.to_thread(gc.collect)
    await passes(2)
    assert lm.under_way == 0


async def test_of_several_the_first_error_is_raised_at_once_and_the_others_end():
    lm = WatchedLM()

    async def fail():
        raise ValueError("no")

    lm.gate.clear()
    slow, shared = (Joined(lm.next_token_logprobs((i,))) for i in range(2))
    other = asyncio.ensure_future(results([shared]))
    await passes()
    with pytest.raises(ValueError, match="no"):
        await asyncio.wait_for(results([slow, Joined(fail()), shared]), HUNG)
    assert (slow.is_over, shared.is_over) == (True, False)
    assert lm.under_way == 1
    lm.gate.set()
    assert len((await other)[0]) == WORDS.size


async def test_an_error_that_nobody_waits_for_is_not_told(caplog):
    async def fail():
        raise ValueError("no")

    call = Joined(fail())
    await passes()
    assert call.has_failed
    assert call.result is None
    del call
    gc.collect()
    assert not caplog.records


def test_one_that_is_freed_after_its_loop_is_no_matter(recwarn, capsys):
    async def begin():
        return Joined(asyncio.get_running_loop().create_future())

    loop = asyncio.new_event_loop()
    call = loop.run_until_complete(begin())
    loop.close()
    del call
    gc.collect()
    assert not capsys.readouterr().err


async def test_calls_of_one_ensemble_ask_each_model_once():
    lms = [WatchedLM(seed=1), WatchedLM(seed=2)]
    both = Ensemble([await state_after(lm, b"") for lm in lms])
    calls = [asyncio.ensure_future(both.logp_next()) for _ in range(3)]
    await passes(3)
    calls[1].cancel()
    rows = await asyncio.gather(calls[0], calls[2])
    assert np.array_equal(rows[0].ps, rows[1].ps)
    assert [len(lm.asked) for lm in lms] == [1, 1]
    again = Ensemble([await state_after(lm, b"") for lm in lms])
    lms[0].fails = 1
    failed = await asyncio.gather(*[again.logp_next() for _ in range(2)], return_exceptions=True)
    assert [str(error) for error in failed] == ["not now"] * 2
    assert np.array_equal((await again.logp_next()).ps, rows[0].ps)
