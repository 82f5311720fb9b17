"""Drawing the next byte: temperature, filters and reproducible randomness.

This module must not know models or states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bytelm.errors import DrawError
from bytelm.models.logprobs import EOS, EOT, Chart, LazyByteProbs, check_symbol

GREEDY_BELOW = 1e-5
"""Temperatures below this count as 0; dividing by them would only overflow."""

Choose = Callable[[LazyByteProbs], int]
"""From a distribution in log space to 0..255 or 257 (EOS)."""


@dataclass(eq=False)
class Draw:
    """Draws a byte or EOS from a distribution; one stream of randomness.

    The filters apply in the order of the fields, each to what the one before it left, as in
    transformers; the rest is renormalised over 256 bytes and EOS. (vLLM applies ``min_p`` before
    ``top_k`` and ``top_p``.) EOT is never drawn. Each draw takes one uniform number of the stream,
    so a stream should serve one text: ``spawn`` gives texts side by side their own.

    Args:
        temperature: log-probabilities are divided by this; 0 takes the most likely symbol, the
            smallest of equals.
        top_k: keep so many symbols, the most likely, the smallest of equals first.
        top_p: keep the fewest of the most likely symbols that have at least this mass; in (0, 1].
        min_p: keep symbols at least this times as likely as the most likely one; in [0, 1].
        seed: the same seed draws the same symbols from the same distributions; None for a seed
            from the system.
        key: the stream's place among those of one seed; see ``spawn``.

    Attributes:
        is_seeded: whether the caller gave the seed, and so wants the same draws again.

    Raises:
        DrawError: when a value is outside its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    key: tuple[int, ...] = ()
    is_seeded: bool = field(init=False, repr=False)
    _rng: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < math.inf:
            raise DrawError(f"temperature must be 0 or more and finite, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise DrawError(f"top_k must be at least 1, or None for all, got {self.top_k}")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise DrawError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.min_p is not None and not 0.0 <= self.min_p <= 1.0:
            raise DrawError(f"min_p must be in [0, 1], got {self.min_p}")
        self.is_seeded = self.seed is not None
        if self.seed is None:
            self.seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
        if self.seed < 0 or any(place < 0 for place in self.key):
            raise DrawError(f"a seed must not be negative, got {self.seed} with key {self.key}")
        sequence = np.random.SeedSequence(self.seed, spawn_key=self.key)
        self._rng = np.random.Generator(np.random.Philox(sequence))

    def spawn(self, *key: int) -> Draw:
        """The same Draw on a stream of its own, from its beginning.

        Args:
            key: numbers that tell the streams of one seed apart, such as (context, sample); the
                same ones give the same stream.
        """
        spawned = replace(self, key=key)
        spawned.is_seeded = self.is_seeded
        return spawned

    def __call__(self, distribution: LazyByteProbs | Mapping[Any, float]) -> int:
        """A byte (0..255), or 257 for EOS.

        Args:
            distribution: a LazyByteProbs, or probabilities keyed by 0..255, None (EOT) and 257.

        Raises:
            DrawError: when no byte nor EOS has probability.
        """
        return self.among(_log_probs(distribution))

    def among(self, logps: NDArray[np.floating]) -> int:
        """The index of one of any number of outcomes, such as tokens.

        Args:
            logps: natural logarithms of what their probabilities are in proportion to.

        Raises:
            DrawError: when none has probability.
        """
        bounds = self._weights(logps).cumsum()
        return int(bounds.searchsorted(self.uniform() * bounds[-1], side="right"))

    def uniform(self) -> float:
        """The stream's next number, in [0, 1)."""
        return float(self._rng.random())

    def next_seed(self) -> int | None:
        """A seed for who draws in this one's place, below 2**53; None where this one has none."""
        return int(self.uniform() * (1 << 53)) if self.is_seeded else None

    def probs(self, distribution: LazyByteProbs | Mapping[Any, float]) -> NDArray[np.float64]:
        """The probabilities that symbols are drawn with: float64 ``[258]``, EOT's 0."""
        weights = self._weights(_log_probs(distribution))
        return weights / weights.sum()

    def _weights(self, logps: NDArray[np.floating]) -> NDArray[np.float64]:
        """What the probabilities are in proportion to, float64; the largest is 1."""
        logps = logps.astype(np.float64, copy=False)
        best = int(logps.argmax())
        if not logps[best] > -math.inf:
            raise DrawError("cannot draw: no token, no byte nor EOS has probability")
        if self.temperature < GREEDY_BELOW:
            weights = np.zeros(len(logps))
            weights[best] = 1.0
            return weights
        logps = logps - logps[best]
        if self.temperature != 1.0:
            logps /= self.temperature
        weights = np.exp(logps)
        if self.top_k is not None or (self.top_p is not None and self.top_p < 1.0):
            ranks = np.argsort(-logps, kind="stable")[: self.top_k]
            if self.top_p is not None and self.top_p < 1.0:
                mass = weights[ranks].cumsum()
                ranks = ranks[: mass.searchsorted(self.top_p * mass[-1]) + 1]
            kept = np.zeros(len(logps))
            kept[ranks] = weights[ranks]
            weights = kept
        if self.min_p is not None:
            weights[weights < self.min_p] = 0.0
        return weights


def chooser(draw: Callable[[Chart], int]) -> Choose:
    """Any draw as a choice from log-probabilities.

    Args:
        draw: a Draw; or any function from a Chart of probabilities, keyed by 0..255, None (EOT,
            always 0) and 257 (EOS), to one of its keys.
    """
    if isinstance(draw, Draw):
        return draw

    def choose(q: LazyByteProbs) -> int:
        symbol = draw(LazyByteProbs(np.exp(q.ps), log_space=False).materialize())
        return check_symbol(symbol)

    return choose


def sample_dict(probs: Mapping[Any, float], rng: np.random.Generator | None = None) -> Any:
    """Draws a key with probability proportional to its value.

    Args:
        probs: non-negative values by key, in the order in which they are accumulated.
        rng: the source of randomness; by default a fresh one.

    Raises:
        DrawError: when no value is positive.
    """
    keys = list(probs)
    bounds = np.cumsum([probs[key] for key in keys])
    if not (len(bounds) and bounds[-1] > 0.0):
        raise DrawError("cannot draw: no value is positive")
    u = (rng or np.random.default_rng()).random() * bounds[-1]
    return keys[int(np.searchsorted(bounds, u, side="right"))]


def _log_probs(distribution: LazyByteProbs | Mapping[Any, float]) -> NDArray[np.float64]:
    """Log-probabilities, float64 ``[258]``; EOT has none."""
    if isinstance(distribution, LazyByteProbs):
        ps, log_space = distribution.ps, distribution.log_space
    else:
        symbols = (*range(256), None, EOS)
        ps = np.array([distribution.get(b, 0.0) for b in symbols], np.float64)
        log_space = False
    if not log_space:
        with np.errstate(divide="ignore"):
            ps = np.log(ps)
    if ps[EOT] > -math.inf:
        ps = ps.copy()
        ps[EOT] = -math.inf
    return ps
