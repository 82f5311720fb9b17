"""The parts of a text that scores are told of: its lines, or its words.

A text comes in pieces, which end anywhere; a part is told when nothing can be added to it any more.
Must not know how parts are shown.
"""

import codecs
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NATS_PER_BIT = math.log(2.0)

Cut = Callable[[bytes], list[tuple[int, int]]]
"""From a text to the offsets of its parts."""


@dataclass(frozen=True)
class Part:
    """A part of a text, or all of it.

    Attributes:
        number: which one it is, from 1 on.
        start: of its first byte in the text.
        data: its bytes.
        logprob: their natural log-probability.
    """

    number: int
    start: int
    data: bytes
    logprob: float

    @property
    def end(self) -> int:
        """Of the byte behind it."""
        return self.start + len(self.data)

    @property
    def bits(self) -> float:
        """Its surprisal."""
        return bits_of(self.logprob)


class Parts:
    """Cuts a text that comes in pieces.

    Args:
        cut: how; where a part ends depends on what is next to there alone.
    """

    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._number = 0
        self._start = 0
        self._data = b""
        self._logprobs = np.zeros(0)

    def take(
        self, data: bytes, logprobs: NDArray[np.float64], last: bool = False
    ) -> Iterator[Part]:
        """The parts that end with the next piece.

        Args:
            data: the piece.
            logprobs: of its bytes.
            last: whether there are no more.
        """
        data = self._data + data
        logprobs = np.concatenate([self._logprobs, logprobs])
        spans = self._cut(data if last else data[: len(data) - _unfinished(data)])
        done = 0
        for start, done in spans if last else spans[:-1]:
            self._number += 1
            logprob = math.fsum(logprobs[start:done])
            yield Part(self._number, self._start + start, data[start:done], logprob)
        self._start += done
        self._data, self._logprobs = data[done:], logprobs[done:]


def lines(data: bytes) -> list[tuple[int, int]]:
    """The lines of a text, ends included."""
    spans, start = [], 0
    for line in data.splitlines(keepends=True):
        spans.append((start, start + len(line)))
        start += len(line)
    return spans


def bits_of(logprob: float) -> float:
    """A log-probability as surprisal in bits."""
    return -logprob / NATS_PER_BIT + 0.0


def _unfinished(data: bytes) -> int:
    """How many bytes at the end begin a character that is not whole."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data[-3:])
    return len(decoder.getstate()[0])
