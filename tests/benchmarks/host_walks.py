"""Greedy walks of one library on prebuilt rows, on one core: what ``bench_host`` measures.

The model costs nothing: a context's row is one of those in a file, picked by the hash of its ids,
which is the same number in every process, in the form in which the library's own worker hands it
out. So all the time is the library's own. Prints JSON.

``time``: for each number of states, all states walk 200 bytes each, concurrently; what they
consumed before is not timed. How long the handling of an evaluation takes (from the request for a
row until the beam can use it) is measured by itself: in genlm-bytes, which batches it, as many at a
time as there are states.

``count``: walks of so many bytes, once, for whoever counts the process's instructions.

This file runs on other revisions of bytelm, too: it may ask for nothing that they do not have.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
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
Walker = tuple[PrebuiltRows, Any, Evaluate]


async def bytelm_walker(model: Path, rows: Any, **beam: Any) -> Walker:
    """The rows, the state before any byte, and the handling of one evaluation, in bytelm."""
    from bytelm import BeamParams, ByteBeamState, ByteVocab

    config = json.loads((model / "config.json").read_text())
    # Without transformers, whose imports take longer than all walks where instructions are counted.
    vocab = ByteVocab.from_file(
        model / "tokenizer.json",
        vocab_size=rows.shape[1],
        bos_token_id=config.get("bos_token_id", config["eos_token_id"]),
    )
    lm = PrebuiltRows(list(rows), vocab=vocab, max_context_tokens=None)
    params = BeamParams(K=K, prune_threshold=THRESHOLD, special_tokens="literal", **beam)
    state = await ByteBeamState.initial(lm, params)  # type: ignore[arg-type]
    if hasattr(state.source, "ordered"):  # others' workers hand out rows by id
        lm.rows = [state.source.ordered(row) for row in rows]
    return lm, state, lambda ids: state.source.evaluate(tuple(ids))


async def genlm_walker(model: Path, rows: Any) -> Walker:
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


BEAMS: dict[str, dict[str, Any]] = {
    "bytelm": {},
    "deferred": {"deferred": True},
    "canonical": {"deferred": True, "tokenizations": "canonical"},
}
"""bytelm's beams by their names here.

On rows that do not follow from their contexts a canonical beam that defers nothing soon ends where
nothing can go on.
"""


async def walker(name: str, model: Path, rows: Any) -> Walker:
    """What walks under that name."""
    if name == "genlm":
        return await genlm_walker(model, rows)
    return await bytelm_walker(model, rows, **BEAMS[name])


async def prefilled(state: Any, text: bytes) -> Any:
    """The state after ``text``, walked."""
    for b in text:
        state = await (state.prune() << b)
    return state


async def ready(initial: Any, first: int, states: int) -> list[Any]:
    """So many states, each behind a text of its own."""
    return [await prefilled(initial, b"state %d " % i) for i in range(first, first + states)]


async def timed_walks(lm: PrebuiltRows, initial: Any, states: int, rounds: int) -> dict[str, Any]:
    """Walks of ``states`` states at a time, ``rounds`` times."""
    seconds, evaluations, texts = 0.0, 0, []
    for number in range(rounds):
        started = await ready(initial, number * states, states)
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


async def measure(name: str, model: Path, rows: Any, states: list[int]) -> dict[str, Any]:
    """All figures of one library, by number of states."""
    lm, initial, evaluate = await walker(name, model, rows)
    warm = await prefilled(initial, b"to warm up")
    await warm.greedy(b"", STEPS)
    await timed_evaluations(evaluate, rows.shape[1], 8)
    figures = {}
    for n in states:
        walked = await timed_walks(lm, initial, n, rounds=5 if n == 1 else 1)
        together = n if name == "genlm" else 1
        handling = await timed_evaluations(evaluate, rows.shape[1], together)
        figures[str(n)] = walked | {"seconds_per_evaluation": handling}
    await initial.cleanup()
    return figures


async def walk(
    name: str, model: Path, rows: Any, states: int, steps: int, begin: str
) -> dict[str, int]:
    """Walks of so many steps, once.

    Args:
        name: what walks.
        model: for its tokenizer.
        rows: float32 ``[rows, vocabulary]``.
        states: how many walk at a time.
        steps: how many bytes each walks.
        begin: a command that is run before the walks; ``{pid}`` in it is this process.
    """
    _, initial, _ = await walker(name, model, rows)
    started = await ready(initial, 0, states)
    if begin:
        run(begin.format(pid=os.getpid()))
    texts = await asyncio.gather(*[state.greedy(b"", steps) for state in started])
    return {"bytes": sum(map(len, texts))}


def run(command: str) -> None:
    """Runs a command while this process is busy: only then does valgrind hear of it."""
    with subprocess.Popen(shlex.split(command), stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            pass
    if process.returncode != 0:
        raise SystemExit(f"error: {command} failed")


def main() -> None:
    """Walks in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["time", "count"])
    parser.add_argument("name", choices=[*BEAMS, "genlm"])
    parser.add_argument("model", type=Path, help="the model's folder, for its tokenizer")
    parser.add_argument("rows", type=Path, help="float32 [rows, vocabulary], a .npy file")
    parser.add_argument("--states", type=int, nargs="+", required=True)
    parser.add_argument("--core", type=int, help="the only core it may use")
    parser.add_argument("--steps", type=int, help="count: how many bytes each state walks")
    parser.add_argument("--begin", default="", help="count: a command to run before the walks")
    given = parser.parse_args()
    if given.core is not None:
        os.sched_setaffinity(0, {given.core})
    rows = np.load(given.rows)
    if given.what == "time":
        work = measure(given.name, given.model, rows, given.states)
    else:
        (states,) = given.states
        work = walk(given.name, given.model, rows, states, given.steps, given.begin)
    print(json.dumps(asyncio.run(work)))


if __name__ == "__main__":
    main()
