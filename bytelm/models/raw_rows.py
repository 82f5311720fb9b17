"""A model's answer as it comes: what is taken for a row, and what is refused.

A row is one log-probability for each id of the vocabulary. Whoever reads one goes through here, or
checks the same in its own pass over the values (``bytelm.beam.rows``). This module must not know
tries.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bytelm.errors import RowError


def as_row(answer: Any, size: int, *, padded: bool = False) -> NDArray[np.float32]:
    """An answer as float32 ``[size]``; its values are not looked at.

    Args:
        answer: an array or a torch tensor, on any device, of any kind of floats.
        size: how many ids the vocabulary has.
        padded: whether it may have more values than that, which are cut off.

    Raises:
        RowError: when it is anything else.
    """
    if type(answer) is np.ndarray and answer.dtype == np.float32 and answer.shape == (size,):
        return answer
    _check_shape(answer, size, padded)
    if hasattr(answer, "detach"):
        answer = answer[:size].detach().float().cpu().numpy()
    with np.errstate(over="ignore"):  # what becomes infinite is refused by its value
        return np.asarray(answer[:size], np.float32)


def checked_row(answer: Any, size: int) -> NDArray[np.float32]:
    """As ``as_row``; its values are log-probabilities.

    Raises:
        RowError: when it is anything else, has NaN or +inf, or -inf alone.
    """
    row = as_row(answer, size)
    check_row(row, size)
    return row


def check_row(answer: Any, size: int, *, padded: bool = False) -> None:
    """Refuses what ``checked_row`` refuses, and makes nothing of the rest."""
    _check_shape(answer, size, padded)
    # The largest of values with a NaN among them is NaN, in numpy and in torch.
    top = answer[:size].max()
    if not math.isfinite(top.detach() if hasattr(top, "detach") else top):
        raise RowError(_what_is_wrong(as_row(answer, size, padded=padded)))


def no_distribution(row: NDArray[np.float32]) -> RowError:
    """The error about a row whose probabilities, of ids that get any, sum to no number above 0."""
    top = float(row.max())
    if not math.isfinite(top):
        return RowError(_what_is_wrong(row))
    if top > 1.0:
        return RowError(
            f"the model gives a log-probability of {top:.4g}: give natural logarithms of "
            "probabilities, at most 0"
        )
    return RowError("the model gives all probability to tokens that have no bytes")


def _check_shape(answer: Any, size: int, padded: bool) -> None:
    shape, dtype = getattr(answer, "shape", None), getattr(answer, "dtype", None)
    is_float = getattr(dtype, "is_floating_point", getattr(dtype, "kind", "") == "f")
    if shape is None or not is_float:
        found = f"a {type(answer).__qualname__}" + (f" of {dtype}" if dtype is not None else "")
        raise RowError(
            f"the model answers with {found} instead of float32 [{size}]: one log-probability for "
            "each id of the vocabulary, as an array or a tensor of floats"
        )
    if len(shape) != 1:
        raise RowError(
            f"the model answers with {dtype} {list(shape)} instead of float32 [{size}]: give the "
            "log-probabilities after one context, without further dimensions"
        )
    found = f"the model gives {shape[0]} log-probabilities for {size} tokens: "
    if shape[0] < size:
        raise RowError(f"{found}check that tokenizer and model belong together")
    if shape[0] > size and not padded:
        raise RowError(
            f"{found}cut off what only pads its logits, or make a vocabulary as wide as they are "
            f"(vocab_size={shape[0]})"
        )


def _what_is_wrong(row: NDArray[np.float32]) -> str:
    """Of a row whose largest value is no number."""
    wrong = np.flatnonzero(~(row < np.inf))
    if not len(wrong):
        return "the model gives no token any probability: all its log-probabilities are -inf"
    nans = int(np.isnan(row).sum())
    kinds = [f"{n} {kind}" for n, kind in ((nans, "NaN"), (len(wrong) - nans, "+inf")) if n]
    return (
        f"the model's log-probabilities have {' and '.join(kinds)} among {len(row)}, the first for "
        f"token {wrong[0]}: its weights or its number format do not suit its input"
    )
