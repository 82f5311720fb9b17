"""The trunk of a context: the tokens that need no walk.

Bytes that are known in advance are tokenized canonically. All tokens before the last few words are
the *trunk*; the beam walks only the bytes behind it, where other tokenizations than the canonical
one still matter for what follows::

    The capital of Fran| ce is a city call        at least two word ends and some bytes are walked
    -------trunk-------|-------walk-------

How much is walked is bounded whatever the text. The trunk ends with a word where one ends near
enough: there no later byte can change it (see ``places``). In runs, blobs and scripts without
spaces none may; then it ends at the place that the least speaks against.

This module knows vocabularies; it must not know beams or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from bytelm.beam.places import Places, Risk
from bytelm.errors import ContextTooLong
from bytelm.threads import by_length
from bytelm.vocabulary.trie import TokenTrie
from bytelm.vocabulary.vocab import ByteVocab

TAIL = 2
"""How many word ends are walked past by default; see the accuracy benchmark."""
LEAST_BYTES, LEAST_TOKENS = 16, 12
"""So many bytes are walked at least, or through so many canonical tokens, if there are as many."""
MOST_BYTES, MOST_TOKENS = 48, 16
"""No more bytes are walked, but to the end of a token behind the least; nor more tokens."""

LONG = 4096
"""Bytes of a text whose tokens are not all counted where some are enough."""
JOINED = 16
"""Tokens that a text may have less behind another one than by itself, amply."""
USUAL = 6
"""More bytes than the tokens of ordinary texts have."""


@dataclass(frozen=True)
class Trunk:
    """A context as known tokens and bytes to walk.

    Attributes:
        tokens: the trunk's token ids.
        rest: the bytes behind it.
        rest_tokens: the canonical ids of ``rest``.
        is_certain: whether the tokens are canonical whatever follows.
    """

    tokens: tuple[int, ...]
    rest: bytes
    rest_tokens: tuple[int, ...]
    is_certain: bool = True


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

    def find(self, text: bytes, tail: int = TAIL) -> Trunk:
        """The trunk of ``text``; empty where all of it is to be walked.

        Args:
            text: bytes, the tokenizer's own prefix included.
            tail: how many word ends to leave to the walk, at least 1, as far as ``MOST_BYTES`` and
                ``MOST_TOKENS`` allow.

        Raises:
            VocabError: when the vocabulary cannot spell a byte.
        """
        ids = self._vocab.encode(text)
        places = self._places(text)
        found: list[tuple[Risk, int, int]] = []
        cut = len(text)
        for n in range(len(ids) - 1, -1, -1):
            cut -= len(self._vocab.token_bytes[ids[n]])
            walked, tokens = len(text) - cut, len(ids) - n
            if found and (walked > MOST_BYTES or tokens > MOST_TOKENS):
                break
            if not n:
                return Trunk((), text, tuple(ids))
            is_end = places.is_word_end(cut)
            tail -= is_end
            if walked >= LEAST_BYTES or tokens >= LEAST_TOKENS:
                found.append((places.risk(cut), cut, n))
                if is_end and tail <= 0:
                    break
        if not found:
            return Trunk((), text, tuple(ids))
        _, cut, n = min(found)
        return Trunk(tuple(ids[:n]), text[cut:], tuple(ids[n:]), places.is_certain(cut))

    def _places(self, text: bytes) -> Places:
        return Places(TokenTrie.of(self._vocab), self._longest, text)

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
            places = self._places(text)
            near = min((most - before) * USUAL, len(text) // 2)
            for at in range(near, min(near + self._longest, len(text))):
                if places.is_word_end(at):
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
        cut, places = start, self._places(text)
        for length in lengths[len(ids) - tokens : len(ids) - tokens // 2]:
            if places.is_word_end(cut):
                return text[cut:]
            cut += length
        return text[start:]


class _NoTrunks(TrunkFinder):
    """Finds none; the longest tokens stand for the canonical ones."""

    def find(self, text: bytes, tail: int = TAIL) -> Trunk:
        """See ``TrunkFinder``."""
        return Trunk((), text, tuple(self._vocab.encode(text)))
