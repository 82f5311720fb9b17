"""genlm-bytes on a bytelm server: its own answers, from the server's model.

Runs in genlm-bytes' venv (``tests.benchmarks.peers`` starts it, and the server).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

import numpy as np
import torch
from genlm.backend import load_model_by_name
from genlm.bytes import BeamParams, ByteBeamState

from bytelm_client import RemoteTokenLM

TEXTS = [
    b"An apple a day keeps the ",
    b"The capital of Fran",
    b"import numpy as n",
    "Le café est ".encode(),
]
STEPS = 8
FLOOR = -10.0
CLOSE = 1e-3
"""How far log-probabilities of two float32 implementations may be apart, above the floor."""


async def answers(llm: Any, text: bytes) -> tuple[np.ndarray, bytes]:
    """genlm-bytes' distribution after a text, and its greedy bytes."""
    beam = await ByteBeamState.initial(llm, BeamParams(K=5))
    state = await beam.prefill(text)
    return np.array((await state.logp_next()).ps), await beam.greedy(text, STEPS)


async def compare(model: str, url: str) -> list[str]:
    """What differs between genlm's own model and the server's."""
    options = {"hf_opts": {"torch_dtype": torch.float32, "device_map": "cpu"}}
    own = load_model_by_name(model, backend="hf", llm_opts=options)
    lm = RemoteTokenLM(url)
    remote = lm.as_genlm()
    wrong = []
    for text in TEXTS:
        want, written = await answers(own, text)
        have, there = await answers(remote, text)
        likely = np.maximum(want, have) > FLOOR
        apart = float(np.abs(want[likely] - have[likely]).max())
        print(f"{text!r}: {apart:.1e} apart; {written[len(text) :]!r}, {there[len(text) :]!r}")
        if apart > CLOSE:
            wrong.append(f"{text!r}: log-probabilities are {apart} apart")
        if written != there:
            wrong.append(f"{text!r}: {written!r} against {there!r}")
    await lm.aclose()
    return wrong


def main() -> int:
    """Compares; fails where something differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="the model's folder")
    parser.add_argument("url", help="the server's address")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    wrong = asyncio.run(compare(given.model, given.url))
    print("\n".join(wrong) if wrong else "no differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
