"""What many evaluations leave behind: chains, forks and calls that are given up, then a count.

Used by ``bench`` with many and by a test with fewer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from bytelm.errors import EngineError
from bytelm.vllm.engine import VllmEngine

LONGEST, RESTART = 200, 20
"""A context that has more tokens than the one goes on from its first so many."""
FORKS, GIVEN_UP = 0.1, 0.05
"""How often a context goes on from another one's beginning, and a call is cancelled."""


async def work(
    engine: VllmEngine, contexts: Sequence[Sequence[int]], evaluations: int
) -> dict[str, int]:
    """Evaluates contexts that grow token by token, fork and are given up, at random.

    Args:
        engine: does it.
        contexts: where they begin.
        evaluations: how many, at least.
    """
    draw = random.Random(0)
    growing = [list(context) for context in contexts]
    before, given_up = engine.stats.evaluations, 0
    while engine.stats.evaluations - before < evaluations:
        calls = []
        for i, context in enumerate(growing):
            if draw.random() < FORKS:
                context = growing[i] = draw.choice(growing)[: draw.randrange(1, LONGEST)]
            elif len(context) > LONGEST:
                del context[RESTART:]
            context.append(draw.randrange(100, engine.vocab.size))
            calls.append(asyncio.ensure_future(engine.next_token_logprobs(context)))
        for call in calls:
            if draw.random() < GIVEN_UP:
                await asyncio.sleep(0.001)
                given_up += call.cancel()
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
    return {"evaluations": engine.stats.evaluations - before, "given_up": given_up}


def standing(engine: VllmEngine) -> int:
    """How many tasks an idle engine has."""
    return len(engine._tasks)


async def left(engine: VllmEngine, tasks: int) -> dict[str, int]:
    """What was not given back, though nothing is running and there was time for it to end.

    Clears the cache.

    Args:
        engine: did the work.
        tasks: how many it had before.
    """
    for _ in range(100):
        stats = engine.stats
        found = {
            "slots": stats.slots - stats.slots_free,
            "evaluations": stats.in_flight,
            "requests": engine._llm.get_num_unfinished_requests(),
            "tasks": standing(engine) - tasks,
        }
        if not any(found.values()):
            break
        await asyncio.sleep(0.05)
    try:
        await engine.clear_cache()
    except EngineError:
        return found | {"blocks": 1}
    return found | {"blocks": 0}
