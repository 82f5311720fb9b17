"""What a tokenizer does to text before it looks at it, and where such text may be spelled.

A byte LM changes no text. `vocab.encode` spells by longest match the places where the tokenizer's
tokens stand for something else than what was given: "cafe" and a combining acute accent where the
tokenizer reads "café". So tokens are other ones already before a change is seen. `may_come` tells
where that is possible: it knows the beginnings of all that a token may stand for.

Knows no tokenizers and no readings.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain


@dataclass(frozen=True)
class TextChange:
    """A normalizer.

    `apply` is what it does to a text; `spell_out` gives texts that become the same one form. Only
    characters that `takes_part` is true of become others, or part of the one before.
    """

    apply: Callable[[str], str]
    spell_out: Callable[[str], str]
    takes_part: Callable[[str], bool]

    @cached_property
    def partials(self) -> frozenset[bytes]:
        """The beginnings of characters that become others or part of others."""
        codes = chain(range(0x80, 0xD800), range(0xE000, 0x110000))
        characters = (c.encode() for c in map(chr, codes) if self.takes_part(c))
        return frozenset(c[:n] for c in characters for n in range(1, len(c)))

    def is_made(self, character: str) -> bool:
        """Whether a character may come of others."""
        return self.spell_out(character) != character or self.apply(MARK) == character


MARK = "\u2581"
"""What SentencePiece writes for a space; one of the text's own is a space afterwards."""


def composed() -> TextChange:
    """Unicode's canonical composition, NFC."""
    return TextChange(
        lambda text: unicodedata.normalize("NFC", text),
        lambda text: unicodedata.normalize("NFD", text),
        lambda c: is_absorbed(c) or not unicodedata.is_normalized("NFC", c) or c in _bases(),
    )


@cache
def _bases() -> frozenset[str]:
    """The characters that others are composed of."""
    parts = (unicodedata.decomposition(chr(code)).split() for code in range(0x110000))
    pairs = (part for part in parts if len(part) == 2 and part[0][0] != "<")
    hangul = map(chr, chain(range(0x1100, 0x1113), range(0xAC00, 0xD7A4, 28)))
    return frozenset(chr(int(first, 16)) for first, _ in pairs).union(hangul)


def marked_spaces() -> TextChange:
    """Spaces are written as marks."""

    def spaced(text: str) -> str:
        return text.replace(MARK, " ")

    return TextChange(spaced, spaced, MARK.__eq__)


def is_absorbed(character: str) -> bool:
    """Whether a character may become part of the one before it."""
    return unicodedata.category(character)[0] == "M" or "\u1160" <= character <= "\u11ff"


class Beginnings:
    """Which unchanged texts may stand before a change in what tokens are read from."""

    def __init__(self, change: TextChange, tokens: Collection[bytes]) -> None:
        self._change = change
        stems: set[str] = set()
        opens: set[str] = set()
        rests: set[str] = set()
        for data in tokens:
            text = data.decode(errors="ignore")
            made = [place for place, c in enumerate(text) if change.is_made(c)]
            stem = change.spell_out(text[: made[-1] + 1]) if made else ""
            if data[0] & 0xC0 == 0x80:
                rests.add(stem)  # begins inside a character
            elif made:
                stems.add(stem)
            if not data.endswith(text[-1:].encode() or b"\xff"):
                opens.add(change.spell_out(text))  # ends inside a character that may be made
        self._stems, self._opens, self._rests = sorted(stems), sorted(opens), sorted(rests)
        self._complete = frozenset(opens)

    def may_come(self, text: str, partial: bytes) -> bool:
        """Whether a change may come behind a text that has none, in the same tokens.

        `partial` is the beginning of a character behind it.
        """
        if partial and partial not in self._change.partials:
            # A character that stays as it is, before another one that does not.
            return text != "" and _begins(self._stems, self._change.spell_out(text), proper=True)
        last = len(text) - 1
        while last > 0 and is_absorbed(text[last]):
            last -= 1
        spelled = self._change.spell_out
        before, base = spelled(text[: max(last, 0)]), spelled(text[max(last, 0) :])[:1]
        return (
            _begins(self._stems, before + base, proper=True)
            or _begins(self._opens, before, proper=False)
            or any(
                spelled(text[:cut]) in self._complete
                and _begins(self._rests, spelled(text[cut + 1 : max(last, cut + 1)]), proper=False)
                for cut in range(len(text))
                if text[cut] > "\x7f"
            )
        )


def _begins(texts: list[str], text: str, proper: bool) -> bool:
    """Whether one of the sorted texts begins with `text`, and with `proper` goes on behind it."""
    place = bisect_right(texts, text) if proper else bisect_left(texts, text)
    return place < len(texts) and texts[place].startswith(text)
