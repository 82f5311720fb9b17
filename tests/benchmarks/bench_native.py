"""The side of ``bench`` that is the limit: vLLM by itself, without anything of bytelm in it.

The same model and engine settings, no plugins; requests for tokens, whose bytes are counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from tests.benchmarks.bench_cases import KV_BYTES, SEQS, Case, Figures, Track, run_side, timed


class NativeSide:
    """A plain ``AsyncLLM``."""

    def __init__(self, llm: Any, vocab: Any) -> None:
        self.llm = llm
        self.vocab = vocab
        # Decoding must not end early, nor make tokens without bytes: bytelm does neither here.
        self.banned = [i for i, data in enumerate(vocab.token_bytes) if not data]
        self._numbers = itertools.count()

    @classmethod
    async def start(cls, model: str) -> NativeSide:
        """Start vLLM with the settings that bytelm's engine has, too."""
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

        from bytelm.vocab import ByteVocab

        class EndedAsyncLLM(AsyncLLM):
            """Without the destructor, which fails aloud at the interpreter's end."""

            def __del__(self) -> None:
                pass

        on_cpu: dict[str, Any] = {"dtype": "float32", "max_model_len": 4096, "block_size": 32}
        arguments = AsyncEngineArgs(
            model=model,
            max_num_seqs=SEQS,
            kv_cache_memory_bytes=KV_BYTES,
            enforce_eager=current_platform.is_cpu(),
            enable_prefix_caching=True,
            disable_log_stats=True,
            use_tqdm_on_load=False,
            **(on_cpu if current_platform.is_cpu() else {}),
        )
        llm = EndedAsyncLLM.from_engine_args(arguments)
        width = llm.model_config.get_vocab_size()
        return cls(llm, ByteVocab.from_pretrained(model, vocab_size=width))

    async def clear(self) -> None:
        """See ``Side``."""
        if not await self.llm.reset_prefix_cache():
            raise SystemExit("error: vLLM's cache could not be cleared")

    async def close(self) -> None:
        """See ``Side``."""
        await asyncio.to_thread(self.llm.shutdown, 5.0)

    async def measure(self, case: Case, prompts: list[bytes], repetition: int) -> Figures:
        """See ``Side``."""
        tracks = [Track() for _ in prompts]
        tokens = 0

        async def session(i: int) -> None:
            nonlocal tokens
            ids = [*self.vocab.initial_context, *self.vocab.encode(prompts[i])]
            left = case.steps
            async for made in self._tokens(ids, case):
                if not tracks[i].arrivals:
                    tracks[i].prefilled = time.perf_counter()
                tokens += len(made)
                if case.call == "rounds":
                    left -= len(made)
                    tracks[i].arrive(0)
                else:
                    size = min(left, sum(len(self.vocab.token_bytes[t]) for t in made))
                    left -= size
                    tracks[i].arrive(size)
                if left <= 0:
                    break

        began = time.perf_counter()
        await asyncio.gather(*map(session, range(len(prompts))))
        return timed(began, tracks) | {"evaluations": tokens}

    async def _tokens(self, ids: list[int], case: Case) -> AsyncIterator[Sequence[int]]:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        whole: dict[str, Any] = {"min_tokens": case.steps, "stop_token_ids": self.banned}
        params = SamplingParams(
            max_tokens=case.steps,  # a token has at least one byte
            temperature=1.0 if case.call == "token sample" else 0.0,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            **({"ignore_eos": True} if case.call == "rounds" else whole),
        )
        stream = self.llm.generate(tokens_input(ids), params, f"native-{next(self._numbers)}")
        async with contextlib.aclosing(stream):
            async for output in stream:
                yield output.outputs[0].token_ids


if __name__ == "__main__":
    run_side(NativeSide.start)
