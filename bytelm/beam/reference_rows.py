"""What the plain beam of ``reference.py`` asks of a token LM: rows and masses.

Nothing here is fast, and nothing else of the package imports it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bytelm.models.logprobs import EOS, SIZE
from bytelm.vocabulary.stand_in import StandIn
from bytelm.vocabulary.vocab import ByteVocab

Path = tuple[int, ...]


class Canonical(Protocol):
    """Which tokens can be canonical; see ``bytelm.vocabulary.canonical_paths``."""

    def begins(self, tokens: Path) -> bool:
        """Whether tokens can be the beginning of the canonical tokenization of some text."""

    def is_whole(self, tokens: Path) -> bool:
        """Whether tokens are the canonical tokenization of their bytes."""


class Model:
    """The rows of a token LM, in the order of the tokens' bytes, special tokens left out.

    Args:
        row: the distribution after a context: log-probabilities over ids.
        vocab: the vocabulary.
        canonical: what can be canonical; needed for ``tokenizations="canonical"``.
        initial: the tokens before any text.
        most: how many tokens a context can have; None for any number.
    """

    def __init__(
        self,
        row: Callable[[Sequence[int]], NDArray[np.float32]],
        vocab: ByteVocab,
        canonical: Canonical | None = None,
        initial: Sequence[int] | None = None,
        most: int | None = None,
    ) -> None:
        self.vocab, self.canonical, self.most = vocab, canonical, most
        self.initial = tuple(vocab.initial_context if initial is None else initial)
        self.ids = sorted((i for i, b in enumerate(vocab.token_bytes) if b), key=self._bytes)
        self.spelled = [self._bytes(i) for i in self.ids]
        self.stand_in = StandIn.of(vocab)
        self._row = row
        self._rows: dict[Path, tuple[NDArray[np.float64], float]] = {}

    def _bytes(self, token: int) -> bytes:
        return self.vocab.token_bytes[token]

    def fits(self, path: Path) -> bool:
        """Whether the tokens can be evaluated."""
        return self.most is None or len(self.initial) + len(path) <= self.most

    def evaluate(self, path: Path) -> tuple[NDArray[np.float64], float]:
        """Probabilities of the tokens in order, and of EOS; together they are 1."""
        if path not in self._rows:
            row = np.exp(self._row((*self.initial, *path)).astype(np.float64))
            probs, eos = row[self.ids], float(sum(row[i] for i in self.vocab.eos_token_ids))
            total = probs.sum() + eos
            self._rows[path] = probs / total, eos / total
        return self._rows[path]

    def below(self, partial: bytes) -> tuple[int, int]:
        """The places of the tokens that begin with ``partial``."""
        end = partial.rstrip(b"\xff")
        after = end[:-1] + bytes([end[-1] + 1]) if end else None
        last = len(self.ids) if after is None else bisect_left(self.spelled, after)
        return bisect_left(self.spelled, partial), last

    def mass(self, path: Path, partial: bytes) -> float:
        """Probability that the token after ``path`` begins with ``partial``; EOS counts as b""."""
        probs, eos = self.evaluate(path)
        first, last = self.below(partial)
        return float(probs[first:last].sum()) + (0.0 if partial else eos)

    def tokens(self, path: Path, data: bytes) -> list[tuple[int, float]]:
        """The tokens that are ``data`` and may follow ``path``, with their log-probabilities."""
        probs, _ = self.evaluate(path)
        first = bisect_left(self.spelled, data)
        found = []
        while first < len(self.ids) and self.spelled[first] == data:
            if probs[first] > 0.0 and self.fits((*path, self.ids[first])):
                found.append((self.ids[first], math.log(probs[first])))
            first += 1
        return found

    def following(self, path: Path, partial: bytes) -> NDArray[np.float64]:
        """Probabilities of ``partial`` and one more symbol: float64 ``[258]``."""
        probs, eos = self.evaluate(path)
        total = np.zeros(SIZE)
        first, last = self.below(partial)
        for place in range(first, last):
            if len(self.spelled[place]) > len(partial):
                total[self.spelled[place][len(partial)]] += probs[place]
        total[EOS] = 0.0 if partial else eos
        return total

    def can_follow(self, text: bytes) -> NDArray[np.bool_]:
        """Which bytes can follow a text in some tokenization: bool ``[258]``; EOS always can."""
        reach = {b""}
        for b in text:
            ended = {b""} if reach & {b"", *self.spelled} else set()
            grown = {partial + bytes([b]) for partial in reach | ended}
            reach = {g for g in grown if self.below(g)[0] < self.below(g)[1]}
        allowed = np.zeros(SIZE, bool)
        allowed[EOS] = bool(self.vocab.eos_token_ids)
        for partial in reach | ({b""} if reach & set(self.spelled) else set()):
            first, last = self.below(partial)
            longer = [d for d in self.spelled[first:last] if len(d) > len(partial)]
            allowed[[d[len(partial)] for d in longer]] = True
        return allowed
