"""The side of ``bench`` that is the limit: vLLM by itself, without anything of bytelm in it.

The same model and engine settings, no plugins; requests for tokens, whose bytes are counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from tests.benchmarks import plain_vllm
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
        from bytelm.vocabulary.vocab import ByteVocab

        llm = plain_vllm.start(model, SEQS, KV_BYTES)
        width = llm.model_config.get_vocab_size()
        return cls(llm, ByteVocab.from_pretrained(model, vocab_size=width))

    async def clear(self) -> None:
        """See ``Side``."""
        if not await self.llm.reset_prefix_cache():
            raise SystemExit("error: vLLM's cache could not be cleared")

    async def close(self) -> None:
        """See ``Side``."""
        await plain_vllm.end(self.llm)

    async def measure(self, case: Case, prompts: list[bytes], repetition: int) -> Figures:
        """See ``Side``."""
        if case.call == "score":
            return await self._scores(prompts)
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

    async def _scores(self, prompts: list[bytes]) -> Figures:
        """The log-probabilities of the prompts' canonical tokens, from one pass over each."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input

        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        tokens = 0

        async def score(prompt: bytes) -> None:
            nonlocal tokens
            ids = [*self.vocab.initial_context, *self.vocab.encode(prompt)]
            stream = self.llm.generate(tokens_input(ids), params, f"native-{next(self._numbers)}")
            async for output in stream:
                tokens += len(output.prompt_logprobs)

        began = time.perf_counter()
        await asyncio.gather(*map(score, prompts))
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "bytes": sum(map(len, prompts)), "evaluations": tokens}

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
