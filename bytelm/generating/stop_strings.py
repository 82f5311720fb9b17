"""Stop strings: where a text that is given byte by byte first has one of them.

This module must not know what gives the bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from bytelm.errors import InputError

Stop: TypeAlias = "bytes | Iterable[bytes] | StopStrings"
"""One string or several; made into an automaton once, where many texts have the same."""


class StopStrings:
    """Finds the first end of any of several strings in a text that is given byte by byte.

    An automaton (Aho and Corasick 1975) whose nodes are the beginnings of the strings; the text
    is at the longest one that it ends with.

    Attributes:
        begun: by node, the length of that beginning.
        ended: by node, the length of the longest string that the text ends with; 0 for none.
    """

    def __init__(self, stop: bytes | Iterable[bytes], valid_utf8: bool = False) -> None:
        self._children: list[dict[int, int]] = [{}]
        self._shorter = [0]
        self.begun = [0]
        self.ended = [0]
        for string in [stop] if isinstance(stop, bytes) else stop:
            if not isinstance(string, bytes) or not string:
                raise InputError(f"a stop string has at least one byte, as bytes; got {string!r}")
            if valid_utf8 and 0x80 <= string[0] < 0xC0:
                raise InputError(
                    f"the stop string {string!r} begins inside a character: with valid_utf8 it "
                    "must begin with a whole one"
                )
            self._add(string)
        self._link()

    @classmethod
    def of(cls, stop: Stop, valid_utf8: bool = False) -> StopStrings:
        """Those strings, made into an automaton unless somebody did that already."""
        return stop if isinstance(stop, StopStrings) else cls(stop, valid_utf8)

    def __bool__(self) -> bool:
        return len(self.begun) > 1

    def follow(self, node: int, b: int) -> int:
        """The node after one more byte."""
        while b not in self._children[node]:
            if not node:
                return 0
            node = self._shorter[node]
        return self._children[node][b]

    def _add(self, string: bytes) -> None:
        node = 0
        for b in string:
            if b not in self._children[node]:
                self._children[node][b] = len(self.begun)
                self._children.append({})
                self._shorter.append(0)
                self.begun.append(self.begun[node] + 1)
                self.ended.append(0)
            node = self._children[node][b]
        self.ended[node] = len(string)

    def _link(self) -> None:
        """Finds each node's longest proper suffix that is a node, shorter nodes first."""
        level = list(self._children[0].values())
        while level:
            below = []
            for node in level:
                for b, child in self._children[node].items():
                    self._shorter[child] = self.follow(self._shorter[node], b)
                    self.ended[child] = self.ended[child] or self.ended[self._shorter[child]]
                    below.append(child)
            level = below
