"""What makes the memory of vLLM's CPU worker grow, and what bounds it.

The growth needs no engine: ``matmuls`` are those of one layer, for another number of tokens each
time, through vLLM's oneDNN kernels, in a process for each of several settings. ``engine`` sends
prompts that nobody has sent before, and splits the worker's resident memory.
``python -m tests.benchmarks.engine_memory`` prints both as rows of Markdown tables.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import time
from typing import Any

import psutil

from bytelm import download as models
from bytelm import memory
from bytelm.settings import EngineSettings
from tests.benchmarks.resident import resident

LAYER = [(960, 576), (576, 576), (3072, 576), (576, 1536)]
"""Width out and in of each matrix of a layer of the default model."""
TOKENS, STEPS, TRIM_EVERY = 2000, 300, 20
NOVEL_TOKENS = 500

OURS = {
    "MALLOC_MMAP_THRESHOLD_": str(memory.MMAP_THRESHOLD),
    "MALLOC_TRIM_THRESHOLD_": str(memory.TRIM_THRESHOLD),
}
CASES: dict[str, tuple[dict[str, str], list[str]]] = {
    "bytelm's thresholds": (OURS, []),
    "glibc's own thresholds": ({}, []),
    "arrays from 256 KiB on by mmap": (OURS | {"MALLOC_MMAP_THRESHOLD_": str(1 << 18)}, []),
    "a cache of no primitives": (OURS | {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"}, []),
    "the same number of tokens each time": (OURS, ["--same"]),
    f"given back every {TRIM_EVERY} steps": (OURS, ["--trim"]),
}


def one_case(*, same: bool, trim: bool) -> str:
    """Steps of changing sizes in this process; a row of the table."""
    import torch
    import vllm.platforms  # noqa: F401 (loads the kernels)
    from vllm import _custom_ops as ops

    process = psutil.Process()
    torch.set_num_threads(1)
    draw = random.Random(0)
    inputs = {width: torch.randn(TOKENS, width) for _, width in LAYER}
    handlers = [(ops.create_onednn_mm(torch.randn(n, k).t(), 32), k) for n, k in LAYER]

    def step(tokens: int) -> None:
        for handler, width in handlers:
            ops.onednn_mm(handler, inputs[width][:tokens], None)

    step(TOKENS)
    before, began, trims = process.memory_info().rss, time.thread_time(), []
    for done in range(STEPS):
        step(TOKENS if same else draw.randint(1, TOKENS))
        if trim and done % TRIM_EVERY == TRIM_EVERY - 1:
            at = time.thread_time()
            memory.give_back()
            trims.append(time.thread_time() - at)
    took, grown = time.thread_time() - began, process.memory_info().rss - before
    memory.give_back()
    left = process.memory_info().rss - before
    each = f"{1000 * sum(trims) / len(trims):.0f} ms" if trims else ""
    return f"{grown / 2**20:.0f} | {left / 2**20:.0f} | {took:.1f} | {each} |"


def matmuls() -> None:
    """All cases, each in a process of its own."""
    print("| | MiB grown | MiB after `malloc_trim` | s of CPU | a `malloc_trim` |")
    print("| --- | --: | --: | --: | --: |", flush=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "ONEDNN_"))}
    for name, (environment, flags) in CASES.items():
        command = [sys.executable, "-m", "tests.benchmarks.engine_memory", "case", *flags]
        done = subprocess.run(
            command, env=clean | environment, stdout=subprocess.PIPE, text=True, check=True
        )
        print(f"| {name} | {done.stdout.splitlines()[-1]}", flush=True)


async def engine(options: Any) -> None:
    """Novel prompts for a while; a row every few seconds."""
    from bytelm.vllm.engine import VllmEngine
    from bytelm.vllm.start import CPU_KV_CACHE_BYTES

    lm = await VllmEngine.start(options.model or models.resolve(None), EngineSettings())
    try:
        _, worker = sorted(lm._processes, key=lambda p: p.memory_info().rss)
        draw = random.Random(0)
        began = time.monotonic()
        shown = -options.seconds
        print("| s | tokens computed | heap | KV | slots | other, MiB |")
        print("| --: | --: | --: | --: | --: | --: |")
        while (now := time.monotonic() - began) < options.seconds:
            if now - shown >= options.seconds / 20:
                shown = now
                found = resident(worker, CPU_KV_CACHE_BYTES)
                parts = [found.heap, found.kv, found.shared, found.other]
                sizes = " | ".join(f"{part / 2**20:.0f}" for part in parts)
                print(f"| {now:.0f} | {lm.stats.tokens_computed} | {sizes} |", flush=True)
            prompts = [
                [draw.randrange(100, lm.vocab.size) for _ in range(draw.randint(1, NOVEL_TOKENS))]
                for _ in range(draw.randint(1, 16))
            ]
            await asyncio.gather(*map(lm.next_token_logprobs, prompts))
    finally:
        await lm.close()


def main() -> None:
    """Both parts, or one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=("both", "matmuls", "engine", "case"))
    parser.add_argument("--model", help="a model's folder; the default model, if left out")
    parser.add_argument("--seconds", type=float, default=300.0, help="of the engine's part")
    parser.add_argument("--same", action="store_true", help="of a case")
    parser.add_argument("--trim", action="store_true", help="of a case")
    options = parser.parse_args()
    if options.part == "case":
        print(one_case(same=options.same, trim=options.trim))
        return
    if options.part != "engine":
        matmuls()
    if options.part != "matmuls":
        asyncio.run(engine(options))


if __name__ == "__main__":
    main()
