"""vLLM by itself, without anything of bytelm in it: the engine that benchmarks compare with."""

from __future__ import annotations

import asyncio
import os
from typing import Any


def start(model: str, seqs: int, kv_bytes: int) -> Any:
    """An ``AsyncLLM`` with the settings that bytelm's engine has, too, and no plugins."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    os.environ.update(
        VLLM_LOGGING_LEVEL="ERROR",
        VLLM_NO_USAGE_STATS="1",
        VLLM_CPU_OMP_THREADS_BIND=cores,
        VLLM_WORKER_MULTIPROC_METHOD="spawn",
        VLLM_PLUGINS="",
        PYTHONWARNINGS="ignore::FutureWarning",
        TORCH_CPP_LOG_LEVEL="ERROR",
    )
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    class EndedAsyncLLM(AsyncLLM):
        """Without the destructor, which fails aloud at the interpreter's end."""

        def __del__(self) -> None:
            pass

    on_cpu: dict[str, Any] = {"dtype": "float32", "max_model_len": 4096, "block_size": 32}
    arguments = AsyncEngineArgs(
        model=model,
        max_num_seqs=seqs,
        kv_cache_memory_bytes=kv_bytes,
        enforce_eager=current_platform.is_cpu(),
        enable_prefix_caching=True,
        disable_log_stats=True,
        use_tqdm_on_load=False,
        **(on_cpu if current_platform.is_cpu() else {}),
    )
    return EndedAsyncLLM.from_engine_args(arguments)


async def end(llm: Any) -> None:
    """Stops what ``start`` started."""
    if llm.output_handler is not None:
        # It would log the end of its sockets as a failure.
        llm.output_handler.cancel()
    await asyncio.to_thread(llm.shutdown, 5.0)
