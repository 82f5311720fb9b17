"""Whether reading ahead would pay: what one session takes that walks alone.

A walk asks for a context when a token may end there. Of the likeliest token, shorter prefixes may
be tokens, too: " doc" on the way to " doctor". Each that weighs enough costs a step of its own. A
session that is alone could ask for all of them, and for the whole token, in one step. Here that is
tried, by a token LM between the beam and the engine: milliseconds and steps per byte, with it and
without, in turn, on the same prompts. ``python -m tests.benchmarks.read_ahead``, some 5 minutes.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bytelm import models
from bytelm.beam import BeamParams, ByteBeamState
from bytelm.generation import collect, generate
from bytelm.logprobs import LazyByteProbs
from bytelm.settings import EngineSettings
from bytelm.token_lm import AsyncTokenLM
from bytelm.trie import TokenTrie
from bytelm.vllm.engine import VllmEngine
from tests.benchmarks.texts import excerpts

PROMPTS, PROMPT_BYTES, STEPS = 12, 60, 96
BEAMS = ((5, 0.05), (5, 0.01))

Tokens = tuple[int, ...]


class Direct:
    """A token LM that counts how often its caller waits for it.

    Attributes:
        steps: how often somebody had to wait for the engine.
    """

    def __init__(self, lm: AsyncTokenLM) -> None:
        self.lm = lm
        self.vocab = lm.vocab
        self.max_context_tokens = lm.max_context_tokens
        self.steps = 0
        self._waiting = 0

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The other's answer."""
        self.steps += not self._waiting
        self._waiting += 1
        try:
            return await self._answer(tuple(token_ids))
        finally:
            self._waiting -= 1

    async def _answer(self, tokens: Tokens) -> NDArray[np.float32]:
        return await self.lm.next_token_logprobs(tokens)


class ReadAhead(Direct):
    """The same, asking for what the likeliest token's prefixes will need together."""

    def __init__(self, lm: AsyncTokenLM, threshold: float) -> None:
        super().__init__(lm)
        self._trie = TokenTrie.of(lm.vocab)
        self._threshold = threshold
        self._asked: dict[Tokens, asyncio.Future[NDArray[np.float32]]] = {}

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The other's answer; no step where it was asked for earlier and is there."""
        asked = self._asked.get(tuple(token_ids))
        if asked is not None and asked.done():
            return asked.result()
        return await super().next_token_logprobs(token_ids)

    async def _answer(self, tokens: Tokens) -> NDArray[np.float32]:
        if tokens not in self._asked:
            for context in (tokens, *self._ahead(tokens)):
                if context not in self._asked:
                    call = self.lm.next_token_logprobs(context)
                    self._asked[context] = asyncio.ensure_future(call)
        return await self._asked[tokens]

    def _ahead(self, tokens: Tokens) -> Iterator[Tokens]:
        """The contexts that end in longer prefixes of the likeliest token that goes on like this.

        Those that weigh enough among the tokens that begin like them.
        """
        before, last = tokens[:-1], self.vocab.token_bytes[tokens[-1]]
        known = self._asked.get(before)
        if known is None or not known.done() or not last:
            return
        trie, probs = self._trie, np.exp(known.result()[self._trie.order])
        node = trie.descend(last)
        lo, hi = trie.lo[node], trie.hi[node]
        likeliest = int(trie.order[lo + int(probs[lo:hi].argmax())])
        whole = self.vocab.token_bytes[likeliest]
        for length in range(len(last) + 1, len(whole) + 1):
            node = trie.descend(whole[:length])
            mass = probs[trie.lo[node] : trie.hi[node]].sum()
            for at in range(trie.lo[node], trie.end[node]):
                if length == len(whole) or probs[at] > self._threshold * mass:
                    yield (*before, int(trie.order[at]))


async def walk(lm: Direct, K: int, threshold: float, prompt: bytes) -> tuple[bytes, float]:
    """A greedy text after a prompt, and the seconds that it took, prefill aside."""
    params = BeamParams(K, threshold, eos_byte_strings=())
    state = await (await ByteBeamState.initial(lm, params)).prefill(prompt)
    lm.steps = 0
    began = time.perf_counter()
    made = await collect(generate(state, STEPS, LazyByteProbs.argmax))
    return made.data, time.perf_counter() - began


async def main() -> None:
    """Measure and print."""
    engine = await VllmEngine.start(str(models.resolve(None)), EngineSettings())
    try:
        prompts = excerpts(PROMPTS, PROMPT_BYTES)
        print("| K | threshold | | ms per byte | steps per byte | evaluations per byte |")
        print("| --: | --: | --- | --: | --: | --: |")
        for K, threshold in BEAMS:
            figures: dict[str, list[tuple[float, float, float]]] = {"alone": [], "ahead": []}
            texts: dict[str, list[bytes]] = {"alone": [], "ahead": []}
            for prompt in [prompts[0], *prompts]:
                for name in figures:
                    await engine.clear_cache()
                    lm = Direct(engine) if name == "alone" else ReadAhead(engine, threshold)
                    before = engine.stats.evaluations
                    text, seconds = await walk(lm, K, threshold, prompt)
                    took = engine.stats.evaluations - before
                    figures[name].append((1e3 * seconds / STEPS, lm.steps / STEPS, took / STEPS))
                    texts[name].append(text)
            for name, rows in figures.items():
                # The first prompt was the warm-up.
                ms, steps, took = map(statistics.median, zip(*rows[1:], strict=True))
                print(f"| {K} | {threshold} | {name} | {ms:.1f} | {steps:.3f} | {took:.3f} |")
            same = sum(a == b for a, b in zip(*texts.values(), strict=True))
            print(f"\nThe same bytes in {same} of {len(texts['alone'])} walks.\n", flush=True)
    finally:
        await engine.close()


if __name__ == "__main__":
    asyncio.run(main())
