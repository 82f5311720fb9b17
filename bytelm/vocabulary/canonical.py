"""Canonical tokenization of bytes: the ids a tokenizer gives to a text, exact to the byte.

A tokenizer takes text and may change it (Unicode normalization, unknown characters, spellings of
special tokens); a byte LM is given bytes and may change none. `CanonicalEncoder` asks the
tokenizer first, compares what its ids spell with what was given, and spells the places that
differ by longest match over the vocabulary.

Knows nothing of tokenizer libraries (families.py reads those) or of models.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

from bytelm.errors import VocabError
from bytelm.vocabulary.pipeline import Pipeline

_UNDECODABLE = re.compile("([\udc80-\udcff]+)")


class Span(NamedTuple):
    """A token and the characters [start, end) of the text that it stands for."""

    token_id: int
    start: int
    end: int


class TextTokenizer(Protocol):
    """A tokenizer as it treats text in the middle of a context.

    No BOS, no dummy prefix space; special tokens' spellings are read as text. Its ids need not
    spell the text exactly.
    """

    def ids(self, text: str) -> list[int]:
        """The token ids of `text`."""

    def spans(self, text: str) -> list[Span]:
        """The same ids with their places in `text`, in order; bytes of one character share it."""

    def pipeline(self) -> Pipeline:
        """How the ids are made. VocabError where that is not known exactly."""


class LongestMatch:
    """Spells bytes with a vocabulary: at each place the longest token that fits, from the left.

    Where that leads to a byte that no token starts with, shorter tokens before it are tried, so
    that every spellable string is spelled. Of several ids with the same bytes the lowest is taken.
    """

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._ids: dict[bytes, int] = {}
        for token_id, data in enumerate(token_bytes):
            if data:
                self._ids.setdefault(data, token_id)
        lengths: dict[int, set[int]] = {}
        for data in self._ids:
            lengths.setdefault(data[0], set()).add(len(data))
        self._lengths = {first: sorted(some, reverse=True) for first, some in lengths.items()}

    def encode(self, data: bytes, offset: int = 0) -> list[int]:
        """Ids that spell `data`.

        VocabError names the byte, counted from `offset`, that no token covers.
        """
        ids: list[int] = []
        ends = [0]
        dead: set[int] = set()
        while (start := ends[-1]) < len(data):
            for length in self._lengths.get(data[start], ()):
                end = start + length
                if end > len(data) or end in dead:
                    continue
                token_id = self._ids.get(data[start:end])
                if token_id is not None:
                    ids.append(token_id)
                    ends.append(end)
                    break
            else:
                dead.add(start)
                if not ids:
                    at = max(dead)
                    raise VocabError(
                        f"no tokenization reaches past byte 0x{data[at]:02X} at offset"
                        f" {offset + at}: the vocabulary has no token for it there, and no byte"
                        " fallback; leave the byte out, or use a model that has byte tokens"
                    )
                ids.pop()
                ends.pop()
        return ids


class CanonicalEncoder:
    """Bytes → ids that spell exactly these bytes, canonical wherever the tokenizer allows it.

    Valid UTF-8 runs go through the tokenizer; invalid bytes, and places where the tokenizer's ids
    do not spell the text, are spelled by longest match. All of it is local: what is appended to
    the data changes the ids near its end only, as far as that is so for the tokenizer.
    Without a tokenizer everything is longest match.
    """

    def __init__(self, token_bytes: tuple[bytes, ...], tokenizer: TextTokenizer | None) -> None:
        self._token_bytes = token_bytes
        self.tokenizer = tokenizer

    def encode(self, data: bytes) -> list[int]:
        """Ids whose bytes concatenate to `data`. VocabError where no token covers a byte."""
        if self.tokenizer is None:
            return self.longest_match.encode(data)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            ids = self._encode_broken(data, self.tokenizer)
        else:
            ids = self._encode_text(text, data, 0, self.tokenizer)
        if self._spelled(ids) != data:
            raise AssertionError(f"tokens {ids} do not spell {data!r}")
        return ids

    def _encode_broken(self, data: bytes, tokenizer: TextTokenizer) -> list[int]:
        ids: list[int] = []
        at = 0
        runs = _UNDECODABLE.split(data.decode(errors="surrogateescape"))
        for place, run in enumerate(runs):
            raw = run.encode(errors="surrogateescape")
            if place % 2:
                ids += self.longest_match.encode(raw, at)
            else:
                ids += self._encode_text(run, raw, at, tokenizer)
            at += len(raw)
        return ids

    def _encode_text(
        self, text: str, data: bytes, offset: int, tokenizer: TextTokenizer
    ) -> list[int]:
        if not text:
            return []
        ids = tokenizer.ids(text)
        if self._spelled(ids) == data:
            return ids
        return self._encode_around_changes(text, tokenizer.spans(text), offset)

    def _encode_around_changes(self, text: str, spans: list[Span], offset: int) -> list[int]:
        ids: list[int] = []
        done = 0
        for group, start, end in _grouped(spans):
            given = text[start:end].encode()
            if start < done or not given or self._spelled(group) != given:
                continue
            if start > done:
                missing = text[done:start].encode()
                ids += self.longest_match.encode(missing, offset)
                offset += len(missing)
            ids += group
            offset += len(given)
            done = end
        return ids + self.longest_match.encode(text[done:].encode(), offset)

    def _spelled(self, ids: list[int]) -> bytes | None:
        """The ids' bytes; None when one of them is beyond the model's vocabulary."""
        if ids and max(ids) >= len(self._token_bytes):
            return None
        token_bytes = self._token_bytes
        return b"".join([token_bytes[token_id] for token_id in ids])

    @cached_property
    def longest_match(self) -> LongestMatch:
        """What spells the places that the tokenizer does not."""
        return LongestMatch(self._token_bytes)


def _grouped(spans: list[Span]) -> list[tuple[list[int], int, int]]:
    """The ids and characters of spans; those that overlap (bytes of one character) together.

    A span without characters belongs to what follows it: SentencePiece gives a character to the
    last of its bytes.
    """
    groups: list[tuple[list[int], int, int]] = []
    ids: list[int] = []
    first = last = 0
    for token_id, start, end in spans:
        if ids and start >= last and first < last:
            groups.append((ids, first, last))
            ids = []
        if not ids:
            first = last = start
        ids.append(token_id)
        if end > last:
            last = end
    if ids:
        groups.append((ids, first, last))
    return groups
