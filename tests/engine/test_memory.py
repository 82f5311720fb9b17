"""What the engine's worker frees does not stay with it for good."""

import asyncio
import random

from tests.benchmarks.resident import resident

MUCH = 20 << 20
"""Less than a step of two thousand tokens takes, and gives back to the heap, in one layer."""


async def test_what_a_long_prompt_took_goes_back_to_the_system(engine):
    draw = random.Random(0)
    prompt = [draw.randrange(100, engine.vocab.size) for _ in range(2000)]
    call = asyncio.ensure_future(engine.next_token_logprobs(prompt))
    most = dict.fromkeys(engine._processes, 0)
    while True:
        for process in most:
            heap = resident(process).heap
            if call.done() and heap < most[process] - MUCH:
                return
            most[process] = max(most[process], heap)
        await asyncio.sleep(0.2)
