r"""Bytes as these routes write them: text, and a token for each byte.

Bytes below 0x80 are tokens by their character; others, which are no whole character, are named
``bytes:\xNN``; EOS by the model's own name for it. Must not know how bytes come about.
"""

import codecs
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bytelm.models.logprobs import EOS, EOT, LazyByteProbs
from bytelm.vocabulary import utf8
from bytelm.vocabulary.vocab import ByteVocab

LEAST = -9999.0
"""What stands for a log-probability of −∞."""


class Noted(NamedTuple):
    """A byte or EOS, and what the model gave it and others in its place."""

    symbol: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Token(NamedTuple):
    """A byte or EOS in a text.

    Attributes:
        name: how it is written.
        offset: at which character of the text, shared by the bytes of one.
        data: the byte; None of what is no byte.
        noted: what the model gave it; None where nobody asked the model.
    """

    name: str
    offset: int
    data: int | None
    noted: Noted | None


def noting(most: int) -> Callable[[LazyByteProbs, int], Noted]:
    """Notes the log-probability of each symbol and so many of the best in its place."""

    def note(q: LazyByteProbs, symbol: int) -> Noted:
        ps = np.maximum(q.ps, LEAST)
        ps[EOT] = -math.inf  # which no text has
        if not most:
            return Noted(symbol, float(ps[symbol]), ())
        best = np.argsort(-ps, kind="stable")[:most]
        return Noted(
            symbol, float(ps[symbol]), tuple(zip(best.tolist(), ps[best].tolist(), strict=True))
        )

    return note


def eos_name(vocab: ByteVocab) -> str:
    """What EOS is called: the name of the tokenizer's own EOS, which is the model's first."""
    ids = vocab.eos_token_ids
    return (vocab.token_text[ids[0]] if ids else "") or "<eos>"


def names_of(vocab: ByteVocab) -> list[str]:
    """How each byte and EOS is written, by its symbol."""
    names = [chr(b) if b < 0x80 else f"bytes:\\x{b:02x}" for b in range(256)]
    return [*names, "", eos_name(vocab)]


class Spelled:
    """A text that comes in pieces: a character, and its bytes' tokens, when it is complete.

    Bytes that are no UTF-8 become U+FFFD, as Python's own decoder replaces them.

    Args:
        names: how each byte and EOS is written.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._state = utf8.BOUNDARY
        self._characters = 0
        self._open: list[tuple[int, Noted | None]] = []

    def take(
        self, data: bytes, noted: Sequence[Noted | None] = (), *, last: bool = False
    ) -> tuple[str, list[Token]]:
        """What is complete with the next piece.

        Args:
            data: the bytes.
            noted: of each byte, and of EOS behind the last one; nothing where no tokens are wanted.
            last: whether there are no more.
        """
        text = self._decoder.decode(data, final=last)
        tokens: list[Token] = []
        for b, note in zip(data, noted, strict=False):
            after = utf8.NEXT[self._state][b]
            if after == utf8.REJECT and self._open:
                self._close(tokens)
                after = utf8.NEXT[utf8.BOUNDARY][b]
            self._open.append((b, note))
            if after in (utf8.REJECT, utf8.BOUNDARY):
                after = utf8.BOUNDARY
                self._close(tokens)
            self._state = after
        if last and self._open:
            self._close(tokens)
        if len(noted) > len(data):
            tokens.append(Token(self._names[EOS], self._characters, None, noted[-1]))
        return text, tokens

    def _close(self, tokens: list[Token]) -> None:
        """Give out the bytes of one character."""
        for b, note in self._open:
            tokens.append(Token(self._names[b], self._characters, b, note))
        self._open.clear()
        self._characters += 1
