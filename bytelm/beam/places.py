"""The places between the bytes of a text, and where its tokens can be parted.

A place is *certain* when no token of the vocabulary spans it, so that every tokenization parts
there, and the tokenizer's pattern sees on both sides all that it looks at: then no later byte
changes the canonical tokens before it. Elsewhere a place is the better the fewer tokens span it::

    The capital of Fran      certain before each space, where no token has "l o" inside
    aaaaaaaaaaaa             spanned everywhere, by "aaaa" and others

This module knows vocabularies; it must not know what the places are for.
"""

from __future__ import annotations

import unicodedata

from bytelm.vocabulary.trie import ROOT, TokenTrie
from bytelm.vocabulary.utf8 import LONGEST

ZERO_WIDTH_JOINER = "\u200d"
SKIN_TONES = "\U0001f3fb", "\U0001f3ff"

Risk = tuple[bool, bool, bool, bool, int]
"""No word end, not certain, inside a character, before a mark, how many tokens span it."""


class Places:
    """The places of one text.

    Args:
        trie: the vocabulary.
        longest: how many bytes its longest token has.
        text: the text.
    """

    def __init__(self, trie: TokenTrie, longest: int, text: bytes) -> None:
        self._trie = trie
        self._longest = longest
        self._text = text
        self._reaches: dict[int, int] = {}

    def is_certain(self, at: int) -> bool:
        """Whether every tokenization parts here, and the canonical one is known to the left."""
        left, right = self._around(at)
        # Of white space on both sides it matters where it ends.
        seen = left != "" and right != "" and not (left.isspace() and right.isspace())
        return seen and not _is_joined(left, right) and not self._spans(at)

    def is_word_end(self, at: int) -> bool:
        """Whether it is certain, and a word or number ends here."""
        left, right = self._around(at)
        return (
            (left.isalnum() or _category(left)[0] == "M")
            and (right.isspace() or _category(right)[0] in "PSZ")
            and self.is_certain(at)
        )

    def risk(self, at: int) -> Risk:
        """What speaks against parting a text here, the heaviest first."""
        left, right = self._around(at)
        return (
            not self.is_word_end(at),
            not self.is_certain(at),
            left == "" or right == "",
            _is_joined(left, right),
            self._spans(at),
        )

    def _around(self, at: int) -> tuple[str, str]:
        """The characters left and right of a place, "" where there is none."""
        left = _last_character(self._text[max(at - LONGEST, 0) : at])
        return left, _first_character(self._text[at : at + LONGEST])

    def _spans(self, at: int) -> int:
        """From how many places before this one a token reaches behind it."""
        first = max(0, at - self._longest + 1)
        return sum(self._reach(start) > at for start in range(first, at))

    def _reach(self, start: int) -> int:
        """Where the longest token ends that begins here, in this text or a longer one."""
        if start not in self._reaches:
            trie, text, node, end = self._trie, self._text, ROOT, start
            for at in range(start, len(text)):
                node = trie.child(node, text[at])
                if node < 0:
                    break
                if trie.end[node] > trie.lo[node]:
                    end = at + 1
            else:
                end = len(text) + 1
            self._reaches[start] = end
        return self._reaches[start]


def _is_joined(left: str, right: str) -> bool:
    """Whether a character goes with the one before it: a mark, a tone, or what joins two."""
    first, last = SKIN_TONES
    is_mark = _category(right) in ("Mn", "Mc", "Me", "Cf")
    return is_mark or left == ZERO_WIDTH_JOINER or first <= right <= last


def _category(character: str) -> str:
    """Unicode's general category; of no character that of unassigned ones."""
    return unicodedata.category(character) if character else "Cn"


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
