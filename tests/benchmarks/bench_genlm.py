"""The side of ``bench`` that is genlm-bytes, on transformers; runs in its own venv.

All sessions share one model and one trie. Prompts are walked as genlm-bytes' ``prefill`` walks
them, bytes are made as its ``greedy`` makes them, but with a look at the clock after each byte. A
case that is not finished in time is extrapolated: seconds against bytes walked, per session, are
fitted by a·n + b·n², since each evaluation computes its whole context.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np

from tests.benchmarks.bench_cases import Case, Figures, run_side

BATCH, TIMEOUT = 64, 0.001
"""Evaluations that are computed together at most, and how long the last one of them waits; better
than the defaults, 20 and 0.02, for it."""


class GenlmSide:
    """genlm-bytes' states over its transformers backend."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    @classmethod
    async def start(cls, model: str) -> GenlmSide:
        """Load the model."""
        import torch
        from genlm.backend import load_model_by_name

        torch.set_grad_enabled(False)
        options = {
            "hf_opts": {"torch_dtype": torch.float32, "device_map": "cpu"},
            "batch_size": BATCH,
            "timeout": TIMEOUT,
        }
        return cls(load_model_by_name(model, backend="hf", llm_opts=options))

    async def clear(self) -> None:
        """See ``Side``."""
        self.llm.clear_cache()

    async def close(self) -> None:
        """See ``Side``."""

    async def measure(self, case: Case, prompts: list[bytes], repetition: int) -> Figures:
        """See ``Side``."""
        from genlm.bytes import BeamParams, ByteBeamState

        params = BeamParams(K=case.K, prune_threshold=case.threshold)
        initial = await ByteBeamState.initial(self.llm, params)
        steps = 0 if case.call in ("prefill", "score") else case.steps
        clock = Clock(len(prompts), case.seconds)
        prefilled = []

        async def session(prompt: bytes) -> None:
            state = initial
            for b in prompt:
                if clock.is_over:
                    return
                if case.call == "score":
                    await state.logp_next()
                state = await (state.prune() << b)
                clock.advance()
            prefilled.append(clock.seconds)
            for _ in range(steps):
                if clock.is_over:
                    return
                b = (await state.logp_next()).materialize().argmax()
                state = await (state.prune() << b)
                clock.advance()

        try:
            await asyncio.gather(*map(session, prompts))
        finally:
            await initial.cleanup()
        per_session = case.prompt + steps
        made = {
            "bytes": len(prompts) * (steps or case.prompt),
            "walked": clock.walked,
            "measured_seconds": clock.seconds,
            "curve": clock.curve,
        }
        if clock.walked == len(prompts) * per_session:
            return made | {"seconds": clock.seconds, "prefill_seconds": max(prefilled)}
        a, b = fit(clock.curve)
        return made | {
            "seconds": a * per_session + b * per_session**2,
            "prefill_seconds": a * case.prompt + b * case.prompt**2,
            "extrapolated": {"a": a, "b": b},
        }


class Clock:
    """How many bytes all sessions have walked, and when.

    Args:
        sessions: how many there are.
        limit: seconds after which it is over; None for never.
    """

    def __init__(self, sessions: int, limit: float | None) -> None:
        self.walked = 0
        self.curve: list[tuple[float, float]] = []
        self._sessions = sessions
        self._limit = limit
        self._began = time.perf_counter()

    def advance(self) -> None:
        """A session has walked a byte."""
        self.walked += 1
        if self.walked % self._sessions == 0:
            self.curve.append((self.walked / self._sessions, self.seconds))

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._began

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return self._limit is not None and self.seconds > self._limit


def fit(curve: list[tuple[float, float]]) -> tuple[float, float]:
    """Least squares of seconds by a·n + b·n² with a and b not negative.

    Args:
        curve: (n, seconds).
    """
    n, seconds = np.array(curve).T
    a, b = np.linalg.lstsq(np.stack([n, n**2], axis=1), seconds, rcond=None)[0]
    if b < 0:
        return float(n @ seconds / (n @ n)), 0.0
    if a < 0:
        return 0.0, float(n**2 @ seconds / (n**2 @ n**2))
    return float(a), float(b)


if __name__ == "__main__":
    run_side(GenlmSide.start)
