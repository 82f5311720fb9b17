"""Spans of a text: the words that it consists of.

A word ends before white space, which belongs to the word that follows, as in most tokens; white
space at the text's end is a word by itself. Punctuation belongs to the word that it touches. In
scripts that write no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese and their
kin) each character is a word, with its marks, the closing punctuation behind it and the opening
punctuation before it. So the words of a text are all of it::

    The cat sat.   →  The| cat| sat.         北京，2008年。  →  北|京，|2008|年。

Bytes that are no UTF-8 belong to the word that they are in.

Must not know what is done with the words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from bytelm.threads import go_on

_CHUNK = re.compile(r"\s*\S+|\s+")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf"
    "\u2e80-\u2fdf\u3001-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff9f\U00020000-\U0003ffff]"
)
"""What scripts without spaces are written with, their punctuation and full-width one included."""
_OPENING = {"Ps", "Pi"}
_TRAILING = {"Mn", "Mc", "Me", "Lm", "Cf", "Pc", "Pd", "Pe", "Pf", "Po"}
"""Categories of what belongs to the character before it."""
_VOWELS = "\u0e33\u0eb3"
"""The signs AM of Thai and Lao, which Unicode has as letters."""


def words(data: bytes) -> list[tuple[int, int]]:
    """The words of a text, each by the offsets of its first byte and of the byte behind it."""
    text = data.decode("utf-8", "surrogateescape")
    spans, start = [], 0
    for chunk in _CHUNK.finditer(text):
        go_on()
        for word in _words_of(chunk[0]):
            end = start + len(word.encode("utf-8", "surrogateescape"))
            spans.append((start, end))
            start = end
    return spans


def _words_of(chunk: str) -> Iterator[str]:
    """The words of a text that has white space at its beginning only."""
    begin = 0
    if _UNSPACED.search(chunk):
        for at in range(1, len(chunk)):
            if _ends_between(chunk[at - 1], chunk[at]):
                yield chunk[begin:at]
                begin = at
    yield chunk[begin:]


def _ends_between(a: str, b: str) -> bool:
    """Whether a word ends between two characters, the second of which is no white space."""
    if not (_is_unspaced(a) or _is_unspaced(b)) or a.isspace() or b in _VOWELS:
        return False
    return unicodedata.category(a) not in _OPENING and unicodedata.category(b) not in _TRAILING


def _is_unspaced(char: str) -> bool:
    return _UNSPACED.match(char) is not None and not char.isdecimal()
