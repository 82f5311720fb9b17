"""Bytes one after another from a state, and the ways to choose each.

Must not know HTTP or the shape of a call.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bytelm.beam import ByteBeamState
from bytelm.errors import ContextTooLong, EmptyBeam
from bytelm.logprobs import EOS

Choose = Callable[[NDArray[np.float64]], int]
"""From the log-probabilities of 256 bytes, EOT and EOS (float64 ``[258]``) to 0..255 or 257."""


@dataclass(frozen=True)
class Generated:
    """Bytes that were generated, their log-probability (with EOS where it ended them), and why
    there are no more.
    """

    data: bytes
    logprob: float
    finish_reason: Literal["steps", "eos", "length"]


async def generate(state: ByteBeamState, steps: int, choose: Choose) -> Generated:
    """Up to ``steps`` bytes after ``state``, each chosen from the distribution before it."""
    data = bytearray()
    logprob = 0.0
    while len(data) < steps:
        # A model that answers without waiting must not keep the others from their turn.
        await asyncio.sleep(0)
        try:
            ps = (await state.logp_next()).ps
            symbol = choose(ps)
            logprob += float(ps[symbol])
            if symbol == EOS:
                return Generated(bytes(data), logprob, "eos")
            state = await (state.prune() << symbol)
        except (ContextTooLong, EmptyBeam):
            if not _is_full(state):
                raise
            return Generated(bytes(data), logprob, "length")
        data.append(symbol)
    return Generated(bytes(data), logprob, "steps")


def _is_full(state: ByteBeamState) -> bool:
    """Whether the best candidate has as many tokens as the model takes."""
    most = state.source.lm.max_context_tokens
    best = max(state, key=lambda candidate: candidate.weight, default=None)
    return most is not None and best is not None and len(best.tokens) >= most


def greedy_choice(ps: NDArray[np.float64]) -> int:
    """The most probable symbol; the lowest of equals."""
    return int(ps.argmax())


def seeded_draw(temperature: float, seed: int | None, index: int, sample: int) -> Choose:
    """A draw in proportion to ``exp(ps / temperature)``.

    Its randomness depends on the seed, the context's place in the call and the sample's number,
    on nothing else; without a seed it comes from the system.
    """
    source = np.random.SeedSequence(seed, spawn_key=(index, sample))
    rng = np.random.Generator(np.random.Philox(source))

    def draw(ps: NDArray[np.float64]) -> int:
        sums = np.exp((ps - ps.max()) / temperature).cumsum()
        return int(sums.searchsorted(rng.random() * sums[-1], side="right"))

    return draw
