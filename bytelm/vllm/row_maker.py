"""Rows made where the logits are, in the order in which they are read.

One piece of code for logits on any device. This module knows tensors alone.
"""

from __future__ import annotations

import torch


class RowMaker:
    """Makes logits log-probabilities in an order, and sums the probabilities of its ranges.

    The sums are of float64: a running sum of float32 over the half of a vocabulary that begins with
    a space is wrong by more than the 1e-6 that a reader counts on. What is left is the rounding of
    each probability.

    Args:
        ids: int64 ``[width]``, see ``RowOrder``; on the device of the logits, as is the next.
        bounds: int64 ``[ranges + 1]``.
        most: how many rows are made at once at most.
    """

    def __init__(self, ids: torch.Tensor, bounds: torch.Tensor, most: int) -> None:
        self._ids = ids
        self._ranges = len(bounds) - 1
        # The ranges of one row behind those of the other, as if all rows were one.
        begins = torch.arange(most + 1, device=ids.device).unsqueeze(1) * len(ids)
        self._offsets = (begins + bounds[:-1]).view(-1)
        # Kept, so that no row costs memory that is new to the process, or to vLLM's reckoning.
        self._shifted = torch.empty((most, len(ids)), device=ids.device)
        self._probs = torch.empty((most, len(ids)), dtype=torch.float64, device=ids.device)

    def make(self, logits: torch.Tensor, values: torch.Tensor, masses: torch.Tensor) -> None:
        """Writes rows; where a logit is NaN or +inf, or all are -inf, NaN alone.

        Args:
            logits: ``[rows, width]``, not changed.
            values: float32 ``[rows, width]``, written: the log-probabilities.
            masses: float64 ``[rows, ranges]``, written: what they sum to, range by range.
        """
        n = len(logits)
        shifted, probs = self._shifted[:n], self._probs[:n]
        torch.index_select(logits.float(), 1, self._ids, out=shifted)
        shifted -= shifted.amax(1, keepdim=True)
        probs.copy_(torch.exp(shifted, out=values))
        # What it would check otherwise it would have to wait for.
        offsets = self._offsets[: n * self._ranges + 1]
        sums = torch.segment_reduce(probs.view(-1), "sum", offsets=offsets, unsafe=True)
        total = (sums := sums.view_as(masses)).sum(1, keepdim=True)
        torch.div(sums, total, out=masses)
        torch.sub(shifted, total.log().float(), out=values)
