"""A process that owns an engine, for tests that kill it or its engine.

``python owner.py MODEL`` prints a line of JSON for each thing that happens.
"""

import asyncio
import json
import sys
import time

import bytelm.beam  # noqa: F401 (a program may import numba, which a worker of vLLM must not see)
from bytelm.errors import EngineDead
from bytelm.settings import EngineSettings
from bytelm.vllm.engine import VllmEngine


def say(**event: object) -> None:
    print(json.dumps(event), flush=True)


async def outcome(call) -> str:
    try:
        await call
    except EngineDead as error:
        return f"EngineDead: {error}"
    return "answered"


async def stream(engine: VllmEngine) -> None:
    async for _ in engine.generate([1], 1000):
        pass


async def main() -> None:
    engine = await VllmEngine.start(
        sys.argv[1], EngineSettings(max_model_len=1024, kv_cache_memory_bytes=1 << 28, slots=4)
    )
    say(event="ready")
    # More than there are slots, so that some wait for one; and a generation.
    calls = [engine.next_token_logprobs([1, n] * 400) for n in range(12)]
    waiting = [asyncio.create_task(outcome(c)) for c in [stream(engine), *calls]]
    await asyncio.sleep(0.3)
    say(event="waiting")
    outcomes = await asyncio.gather(*waiting)
    say(event="outcomes", outcomes=outcomes)
    later = [await outcome(engine.next_token_logprobs([1])), await outcome(stream(engine))]
    say(event="later", outcomes=later, is_alive=engine.is_alive)
    began = time.monotonic()
    await engine.close()
    say(event="closed", seconds=time.monotonic() - began)
    sys.stdin.readline()


# Without a guard on purpose: the engine's processes must not run this.
asyncio.run(main())
