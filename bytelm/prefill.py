"""The trunk of a context: the tokens that need no walk.

Bytes that are known in advance are tokenized canonically. All tokens before the last few word ends
are the *trunk*; the beam walks only the bytes behind it, where other tokenizations than the
canonical one still matter for what follows. The cut is made where no later byte can change the
canonical tokenization of what lies before it:

    The capital| of Fran        tail 2: the last two word ends, "capital" and "of", are walked past
    ----trunk---|---walk---

A place between two characters is such a *word end* when a token ends there, the left one is a
letter or digit, the right one is white space, punctuation or a symbol, and no token of the
vocabulary has a letter or digit before this right one inside it: then no merge can ever cross it,
and no pre-tokenizer's pattern looks further.

This module knows vocabularies; it must not know beams or models.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property

from bytelm.errors import ContextTooLong
from bytelm.threads import by_length
from bytelm.utf8 import LONGEST
from bytelm.vocab import ByteVocab

TAIL = 2
"""How many word ends are walked past by default; see the accuracy benchmark."""

LONG = 4096
"""Bytes of a text whose tokens are not all counted where some are enough."""
USUAL = 6
"""More bytes than the tokens of ordinary texts have."""

# Behind a letter or digit: bytes that are part of a character, or a character of another kind.
_INSIDE = re.compile("(?<=[^\\W_])(?:[\udc80-\udcff]+|[\\W_])")


@dataclass(frozen=True)
class Trunk:
    """A context as known tokens and bytes to walk.

    Attributes:
        tokens: the trunk's token ids.
        rest: the bytes behind it.
        rest_tokens: the canonical ids of ``rest``.
    """

    tokens: tuple[int, ...]
    rest: bytes
    rest_tokens: tuple[int, ...]


class TrunkFinder:
    """Finds trunks for one vocabulary."""

    def __init__(self, vocab: ByteVocab) -> None:
        self._vocab = vocab

    @classmethod
    def of(cls, vocab: ByteVocab) -> TrunkFinder:
        """The finder of a vocabulary, made at the first call and kept with the vocabulary."""
        finder: TrunkFinder | None = vocab.__dict__.get("_trunk_finder")
        if finder is None:
            finder = vocab.__dict__["_trunk_finder"] = cls(vocab)
        return finder

    @staticmethod
    def give_up(vocab: ByteVocab) -> None:
        """Let all texts of a vocabulary be walked: how it tokenizes is not known here."""
        vocab.__dict__["_trunk_finder"] = _NoTrunks(vocab)

    @cached_property
    def _crossed(self) -> frozenset[bytes]:
        """What some token has right behind a letter or digit: characters, or the first bytes."""
        return frozenset(
            found.encode(errors="surrogateescape")
            for data in self._vocab.token_bytes
            for found in _INSIDE.findall(data.decode(errors="surrogateescape"))
        )

    def find(self, text: bytes, tail: int = TAIL) -> Trunk:
        """The trunk of ``text``; empty where there is no place to cut.

        Args:
            text: bytes, the tokenizer's own prefix included.
            tail: how many word ends to leave to the walk, at least 1.

        Raises:
            VocabError: when the vocabulary cannot spell a byte.
        """
        ids = self._vocab.encode(text)
        token_bytes = self._vocab.token_bytes
        cut = len(text)
        for n in range(len(ids) - 1, 0, -1):
            cut -= len(token_bytes[ids[n]])
            if self._is_word_end(text, cut):
                tail -= 1
                # Holds by construction; checked since a trunk that is not canonical would be
                # wrong without a sign of it.
                if tail <= 0 and self._vocab.encode(text[:cut]) == ids[:n]:
                    return Trunk(tuple(ids[:n]), text[cut:], tuple(ids[n:]))
        return Trunk((), text, tuple(ids))

    async def found(self, text: bytes, tail: int = TAIL) -> Trunk:
        """The same, while other tasks go on where the text is long."""
        return await by_length(len(text), self.find, text, tail)

    async def check_fits(self, before: int, text: bytes, most: int | None) -> None:
        """Refuse a text that does not fit behind so many tokens; reads no more than it must.

        Args:
            before: how many tokens there are.
            text: as ``find``.
            most: how many tokens the model takes; None for any number.

        Raises:
            ContextTooLong: when the canonical tokens do not fit.
            VocabError: when the vocabulary cannot spell a byte, as far as it was read.
        """
        if most is not None and before + len(text) > most:
            await by_length(len(text), self._check_fits, before, text, most)

    def check_length(self, before: int, length: int, most: int) -> None:
        """Refuse a long text of so many bytes that cannot fit, whatever it is; ContextTooLong."""
        least = before - (-length // self._longest)
        if length > LONG and least > most:
            raise ContextTooLong.of(most, least, at_least=True)

    def _check_fits(self, before: int, text: bytes, most: int) -> None:
        self.check_length(before, len(text), most)
        if len(text) > LONG:
            # A beginning that ends with a word has the tokens there that it has within the text.
            near = min((most - before) * USUAL, len(text) // 2)
            for at in range(near, min(near + self._longest, len(text))):
                if self._is_word_end(text, at):
                    length = before + len(self._vocab.encode(text[:at]))
                    if length > most:
                        raise ContextTooLong.of(most, length, at_least=True)
                    break
        length = before + len(self._vocab.encode(text))
        if length > most:
            raise ContextTooLong.of(most, length)

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._vocab.token_bytes))

    def last(self, text: bytes, tokens: int) -> bytes:
        """The end of ``text``, of at most so many canonical tokens.

        It begins at a word end where there is one in the first half of them: from there on its own
        canonical tokenization is that within ``text``.
        """
        ids = self._vocab.encode(text)
        if len(ids) <= tokens:
            return text
        lengths = [len(self._vocab.token_bytes[i]) for i in ids]
        start = sum(lengths[: len(ids) - tokens])
        cut = start
        for length in lengths[len(ids) - tokens : len(ids) - tokens // 2]:
            if self._is_word_end(text, cut):
                return text[cut:]
            cut += length
        return text[start:]

    def _is_word_end(self, text: bytes, at: int) -> bool:
        left = _last_character(text[max(at - LONGEST, 0) : at])
        right = _first_character(text[at : at + LONGEST])
        return (
            left.isalnum()
            and right != ""
            and (right.isspace() or unicodedata.category(right)[0] in "PSZ")
            and not any(right.encode()[:n] in self._crossed for n in range(1, LONGEST + 1))
        )


class _NoTrunks(TrunkFinder):
    """Finds none; the longest tokens stand for the canonical ones."""

    def find(self, text: bytes, tail: int = TAIL) -> Trunk:
        """See ``TrunkFinder``."""
        return Trunk((), text, tuple(self._vocab.encode(text)))


def _first_character(data: bytes) -> str:
    """The first character of UTF-8 bytes, or "" where they begin with something else."""
    for length in range(1, LONGEST + 1):
        try:
            return data[:length].decode() if data else ""
        except UnicodeDecodeError:
            continue
    return ""


def _last_character(data: bytes) -> str:
    """The last character of UTF-8 bytes, or "" where they end with something else."""
    for length in range(1, min(LONGEST, len(data)) + 1):
        try:
            return data[-length:].decode()
        except UnicodeDecodeError:
            continue
    return ""
