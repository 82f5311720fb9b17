"""Drawing from distributions.

This module must not know models or states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bytelm.errors import InputError


def sample_dict(probs: Mapping[Any, float], rng: np.random.Generator | None = None) -> Any:
    """Draws a key with probability proportional to its value.

    Args:
        probs: non-negative values by key, in the order in which they are accumulated.
        rng: the source of randomness; by default a fresh one.

    Raises:
        InputError: when no value is positive.
    """
    keys = list(probs)
    bounds = np.cumsum([probs[key] for key in keys])
    if not (len(bounds) and bounds[-1] > 0.0):
        raise InputError("cannot draw: no value is positive")
    u = (rng or np.random.default_rng()).random() * bounds[-1]
    return keys[int(np.searchsorted(bounds, u, side="right"))]
