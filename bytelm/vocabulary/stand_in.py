"""The stand-in: what is taken for the next byte of what nobody evaluated.

A beam that drops a tokenization drops its mass, too, unless something says where that mass would
have gone. A stand-in says so at no cost: the probability of a byte given the one before it, as the
vocabulary itself suggests. Token ids of BPE vocabularies are in the order of their merges, so that
the weight of a token is taken to be 1 / (its rank + ``FLATNESS``) (Zipf). It is a constant of the
vocabulary, so each report of a beam depends on its prefix alone, and a stored state restores bit
for bit.

This module knows vocabularies; it must not know beams or models.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bytelm.models.logprobs import EOS, SIZE
from bytelm.vocabulary.trie import ROOT, TokenTrie

if TYPE_CHECKING:
    from bytelm.vocabulary.vocab import ByteVocab

FLATNESS = 50
"""Ranks are counted from here on: the first tokens are no more frequent than that."""
FLOOR = 0.1
"""The share of every distribution that is even over all bytes that begin a token."""
ENDING = 1e-3
"""The probability of EOS at every place."""
START = 256
"""Stands for the byte before a text."""


class StandIn:
    """Distributions over the next byte that cost nothing.

    Attributes:
        probs: float64 ``[257, 258]``: of each symbol, after each byte and at the start of a text;
            zero for bytes that no token has.
        endless: the same where nothing ends a text.
        token_logprobs: float32 ``[vocab.size]``: of each token by its rank alone.
        is_closed: whether each byte of a token is a token, so that any bytes that the vocabulary
            can spell at all can follow each other.
    """

    def __init__(self, vocab: ByteVocab) -> None:
        tokens = [data for data in vocab.token_bytes if data]
        weights = 1.0 / (np.arange(len(tokens)) + FLATNESS)
        self.token_logprobs = np.full(vocab.size, -np.inf, np.float32)
        self.token_logprobs[np.flatnonzero(vocab.sizes)] = np.log(weights / weights.sum())
        first, last, anywhere = np.zeros(256), np.zeros(256), np.zeros(256)
        pairs = np.zeros((START + 1, 256))
        for data, weight in zip(tokens, weights, strict=True):
            codes = np.frombuffer(data, np.uint8)
            first[codes[0]] += weight
            last[codes[-1]] += weight
            np.add.at(anywhere, codes, weight)
            np.add.at(pairs, (codes[:-1], codes[1:]), weight)
        singles = {data[0] for data in tokens if len(data) == 1}
        self.is_closed = not anywhere[[b for b in range(256) if b not in singles]].any()
        spelled = anywhere > 0.0
        anywhere = (1.0 - FLOOR) * anywhere / anywhere.sum() + FLOOR * spelled / spelled.sum()
        pairs[:256] += last[:, None] * first / first.sum()
        pairs[START] = first
        sums = pairs.sum(axis=1, keepdims=True)
        known = np.divide(pairs, sums, out=np.tile(anywhere, (START + 1, 1)), where=sums > 0.0)
        self.probs = np.zeros((START + 1, SIZE))
        self.probs[:, :256] = (1.0 - FLOOR) * known + FLOOR * anywhere
        self.endless = self.probs.copy()
        self.probs[:, EOS] = ENDING

    @classmethod
    def of(cls, vocab: ByteVocab) -> StandIn:
        """The stand-in of a vocabulary, made at the first call and kept with the vocabulary."""
        made: StandIn | None = vocab.__dict__.get("_stand_in")
        if made is None:
            made = vocab.__dict__["_stand_in"] = cls(vocab)
        return made

    def after(self, text: bytes) -> NDArray[np.float64]:
        """The distribution after a text, float64 ``[258]``, EOS included; a view."""
        return self.probs[text[-1] if text else START]

    def log_of(self, data: bytes, before: bytes) -> float:
        """The log-probability of bytes after others."""
        total = 0.0
        for last, b in zip(
            before[-1:] + data[:-1] if before else (START, *data), data, strict=False
        ):
            total += math.log(self.probs[last, b])
        return total


def can_follow(trie: TokenTrie, text: bytes, ends: bool) -> NDArray[np.bool_]:
    """Which bytes can follow a text in some tokenization: bool ``[258]``; EOS if it ``ends``.

    Args:
        trie: the vocabulary.
        text: the text, from where some token begins.
        ends: whether anything can end a text.
    """
    reach = {ROOT}
    for b in text:
        starts = {ROOT} if any(trie.end[node] > trie.lo[node] for node in reach) else set()
        reach = {child for node in reach | starts if (child := trie.child(node, b)) >= 0}
    if any(trie.end[node] > trie.lo[node] for node in reach):
        reach.add(ROOT)
    allowed = np.zeros(SIZE, bool)
    for node in reach:
        allowed[trie.byte[trie.first[node] : trie.first[node + 1]]] = True
    allowed[EOS] = ends
    return allowed
