"""Candidates: tokenizations of a context, as users see them and as arrays.

This module must not know how they are pruned or mixed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bytelm.beam import kernels
from bytelm.beam.deferred import Path
from bytelm.models.logprobs import escape
from bytelm.models.token_lm import StatefulTokenizedLM


class Candidate(NamedTuple):
    """One tokenization of the context.

    Attributes:
        weight: log-probability of tokens and partial token.
        tokens: token ids, the initial context included.
        partial: the bytes of the token under way.
        terminated: whether EOS was consumed.
        lm_state: the tokens as a state of the token LM.

    Its ``repr`` is ``weight: token|token‖partial``.
    """

    weight: float
    tokens: Path
    partial: bytes
    terminated: bool
    lm_state: StatefulTokenizedLM

    def __repr__(self) -> str:
        end = "<EOS>" if self.terminated else ""
        return f"{self.weight:.2f}: {self.lm_state!r}‖{escape(self.partial)}{end}"


class Candidates(NamedTuple):
    """Candidates below the root, best first, as ``kernels`` describes them."""

    weight: kernels.F64
    node: kernels.I32
    start: kernels.I64
    mass: kernels.F64
    pieces: kernels.Pieces

    def chosen(self, which: slice | kernels.I64) -> Candidates:
        """Some of them; the pieces stay."""
        weight, node, start, mass, pieces = self
        return Candidates(weight[which], node[which], start[which], mass[which], pieces)


NONE = Candidates(
    np.empty(0), np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0), np.empty(0, np.float32)
)
