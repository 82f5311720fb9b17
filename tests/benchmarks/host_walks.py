"""Greedy walks of one library on prebuilt rows, on one core: what ``bench_host`` measures.

The model costs nothing: a context's row is one of those in a file, picked by the hash of its ids,
which is the same number in every process. So all the time is the library's own. Prints JSON.

For each number of states: all states walk 200 bytes each, concurrently; what they consumed before
is not timed. How long the handling of an evaluation takes (from the request for a row until the
beam can use it) is measured by itself: in genlm-bytes, which batches it, as many at a time as there
are states.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

STEPS = 200
EVALUATIONS = 512
K, THRESHOLD = 5, 0.05


class PrebuiltRows:
    """What both libraries need of a model; the libraries' own attributes are set on it."""

    def __init__(self, rows: Sequence[Any], **attributes: Any) -> None:
        self.evaluations = 0
        self.rows = rows
        self.__dict__.update(attributes)

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> Any:
        """The row that the context picks."""
        self.evaluations += 1
        return self.rows[hash(tuple(token_ids)) % len(self.rows)]


Evaluate = Callable[[list[int]], Awaitable[Any]]


async def bytelm_walker(model: str, rows: Any) -> tuple[PrebuiltRows, Any, Evaluate]:
    """The rows, the state before any byte, and the handling of one evaluation, in bytelm."""
    from bytelm import BeamParams, ByteBeamState, ByteVocab

    vocab = ByteVocab.from_pretrained(model)
    lm = PrebuiltRows(list(rows), vocab=vocab, max_context_tokens=None)
    params = BeamParams(K=K, prune_threshold=THRESHOLD, special_tokens="literal")
    state = await ByteBeamState.initial(lm, params)  # type: ignore[arg-type]
    return lm, state, lambda ids: state.source.evaluate(tuple(ids))


async def genlm_walker(model: str, rows: Any) -> tuple[PrebuiltRows, Any, Evaluate]:
    """The same in genlm-bytes."""
    import torch
    from genlm.backend import decode_vocab
    from genlm.bytes import BeamParams, ByteBeamState, LazyTrieState, StatefulTokenizedLM
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tensors = [torch.from_numpy(row.copy()) for row in rows]
    lm = PrebuiltRows(tensors, tokenizer=tokenizer, byte_vocab=decode_vocab(tokenizer)[0])
    state = await ByteBeamState.initial(lm, BeamParams(K=K, prune_threshold=THRESHOLD))
    trie = state.states[0].trie

    def evaluate(ids: list[int]) -> Awaitable[Any]:
        fresh = LazyTrieState(StatefulTokenizedLM(lm, ids), trie, trie.trie.root, 0.0)
        return fresh.materialize()

    return lm, state, evaluate


WALKERS = {"bytelm": bytelm_walker, "genlm": genlm_walker}


async def prefilled(state: Any, text: bytes) -> Any:
    """The state after ``text``, walked."""
    for b in text:
        state = await (state.prune() << b)
    return state


async def timed_walks(lm: PrebuiltRows, initial: Any, states: int, rounds: int) -> dict[str, Any]:
    """Walks of ``states`` states at a time, ``rounds`` times."""
    seconds, evaluations, texts = 0.0, 0, []
    for number in range(rounds):
        prompts = [b"state %d " % (number * states + i) for i in range(states)]
        started = [await prefilled(initial, prompt) for prompt in prompts]
        before = lm.evaluations
        began = time.perf_counter()
        texts += await asyncio.gather(*[state.greedy(b"", STEPS) for state in started])
        seconds += time.perf_counter() - began
        evaluations += lm.evaluations - before
    size = sum(map(len, texts))
    return {
        "bytes": size,
        "seconds": seconds,
        "evaluations": evaluations,
        "texts": [text.hex() for text in texts],
    }


async def timed_evaluations(evaluate: Evaluate, vocab_size: int, at_a_time: int) -> float:
    """Seconds that the handling of one evaluation takes, on contexts that were never asked for."""
    contexts = np.random.default_rng(at_a_time).integers(vocab_size, size=(EVALUATIONS, 24))
    lists = contexts.tolist()
    began = time.perf_counter()
    for i in range(0, EVALUATIONS, at_a_time):
        if at_a_time == 1:
            await evaluate(lists[i])
        else:
            await asyncio.gather(*[evaluate(ids) for ids in lists[i : i + at_a_time]])
    return (time.perf_counter() - began) / EVALUATIONS


async def measure(library: str, model: str, rows_file: str, states: list[int]) -> dict[str, Any]:
    """All figures of one library, by number of states."""
    rows = np.load(rows_file)
    lm, initial, evaluate = await WALKERS[library](model, rows)
    warm = await prefilled(initial, b"to warm up")
    await warm.greedy(b"", STEPS)
    await timed_evaluations(evaluate, rows.shape[1], 8)
    figures = {}
    for n in states:
        walked = await timed_walks(lm, initial, n, rounds=5 if n == 1 else 1)
        together = n if library == "genlm" else 1
        handling = await timed_evaluations(evaluate, rows.shape[1], together)
        figures[str(n)] = walked | {"seconds_per_evaluation": handling}
    await initial.cleanup()
    return figures


def main() -> None:
    """Measures in this process, on one core."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=sorted(WALKERS))
    parser.add_argument("model", help="the model's folder, for its tokenizer")
    parser.add_argument("rows", help="float32 [rows, vocabulary], a .npy file")
    parser.add_argument("--states", type=int, nargs="+", required=True)
    parser.add_argument("--core", type=int, required=True)
    given = parser.parse_args()
    os.sched_setaffinity(0, {given.core})
    figures = asyncio.run(measure(given.library, given.model, given.rows, given.states))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
