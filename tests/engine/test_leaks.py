"""Nothing is left behind by evaluations, on the real engine; ``make bench`` does more of them."""

from tests.benchmarks import leaks


async def test_evaluations_leave_no_slot_task_request_or_block_behind(engine):
    contexts = [[1, 100 + n] for n in range(24)]
    tasks = leaks.standing(engine)
    done = await leaks.work(engine, contexts, 400)
    assert done["evaluations"] >= 400
    assert done["given_up"] > 0
    assert set((await leaks.left(engine, tasks)).values()) == {0}


async def test_what_is_still_running_is_found(engine):
    tasks = leaks.standing(engine)
    stream = engine.generate([1], 1000)
    await anext(stream)
    found = await leaks.left(engine, tasks)
    assert found["requests"] == 1
    assert found["blocks"] == 1
    await stream.aclose()
