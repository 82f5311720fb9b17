"""Next-token rows of a real model in real text, for benchmarks in which no model may run.

The contexts are from Python's own language reference (``pydoc_data``), which every Python carries.
Needs torch and transformers; runs in genlm-bytes' venv.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

from bytelm.compat.hf import HuggingFaceLM


async def evaluate(model: str, count: int) -> np.ndarray:
    """Rows after 16 to 79 tokens each, float32 ``[count, vocabulary]``."""
    lm = HuggingFaceLM.from_pretrained(model)
    reference = "\n\n".join(text for _, text in sorted(topics.items())).encode()
    rows = []
    for i in range(count):
        start = i * (len(reference) // count)
        ids = lm.vocab.encode(reference[start : start + 1000])[: 16 + i % 64]
        rows.append(await lm.next_token_logprobs([*lm.vocab.initial_context, *ids]))
    return np.stack(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="the model's folder")
    parser.add_argument("rows", type=Path, help="the .npy file to write")
    parser.add_argument("--count", type=int, default=64)
    given = parser.parse_args()
    np.save(given.rows, asyncio.run(evaluate(given.model, given.count)))
