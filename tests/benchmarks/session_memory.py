"""What a byte session takes: in the store, and in memory while it is in use.

Each text is walked with the server's default beam. At every byte two things are noted: how long
the snapshot is that goes into the store, and how much memory the state holds when it was only moved
(``advance``) and when it was asked for a distribution too (``next``), which keeps its evaluations.
``python -m tests.benchmarks.session_memory`` writes ``results/session_memory.json``; evaluations
are shared with the accuracy benchmarks.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import numpy as np

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.beam.snapshot import Snapshot
from tests.benchmarks import accuracy
from tests.benchmarks.accuracy import Bench
from tests.benchmarks.texts import Text
from tests.served import served_params

SAMPLE_BYTES = 256
TOKEN_BYTES = 4
"""Of a token in the store."""


async def measure(bench: Bench, params: BeamParams, text: Text) -> list[dict[str, int]]:
    """What there is to note after each byte of a text."""
    state = await ByteBeamState.initial(bench.lm, params)
    noted = []
    for b in text.data:
        state = await (state.prune() << b)
        snapshot = Snapshot.of(state)
        candidates = len(state)
        tokens = max(len(candidate.tokens) for candidate in state)
        moved = state.nbytes
        await state.logp_next()
        noted.append(
            {
                "candidates": candidates,
                "tokens": tokens,
                "trunk": TOKEN_BYTES * len(snapshot.trunk),
                "head": len(snapshot.head),
                "moved": moved,
                "asked": state.nbytes,
            }
        )
    return noted


def summary(noted: list[dict[str, int]]) -> dict[str, dict[str, float]]:
    """Mean and largest of everything."""
    return {
        name: {
            "mean": round(float(np.mean([one[name] for one in noted])), 1),
            "largest": max(one[name] for one in noted),
        }
        for name in noted[0]
    }


async def main(options: Any) -> None:
    """The whole benchmark."""
    params = served_params()
    async with accuracy.opened(options, options.bytes or SAMPLE_BYTES) as bench:
        each: list[list[dict[str, int]]] = [[] for _ in bench.texts]

        async def one(place: int, text: Text) -> None:
            each[place] = await measure(bench, params, text)

        calls = [partial(one, place, text) for place, text in enumerate(bench.texts)]
        await accuracy.all_of(calls, options.concurrency)
        report = {
            "model": bench.model,
            "vocabulary": bench.lm.vocab.size,
            "K": params.K,
            "prune_threshold": params.prune_threshold,
            "texts": accuracy.sources(bench.texts),
            "bytes_per_token": round(
                sum(len(text.data) for text in bench.texts)
                / sum(noted[-1]["tokens"] for noted in each),
                3,
            ),
            "all": summary([one for noted in each for one in noted]),
            **{text.name: summary(noted) for text, noted in zip(bench.texts, each, strict=True)},
        }
        await asyncio.to_thread(
            accuracy.write,
            options.results / "session_memory.json",
            json.dumps(report, indent=1) + "\n",
        )


if __name__ == "__main__":
    accuracy.run(main(accuracy.parser(str(__doc__)).parse_args()))
