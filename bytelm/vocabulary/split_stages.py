"""How a tokenizer splits text before it merges, as automata over sets of characters.

A *stage* cuts text by a regular expression: from each cut on, the match that a backtracking matcher
finds is a piece; what lies between matches is a piece, too. Whatever the patterns of byte-level and
tiktoken tokenizers are written with is understood: sets, groups, repetitions (possessive ones of
sets, too), and lookahead that forbids one character. A pattern with anything else is refused.

Characters are told apart only by which of a stage's sets they are in, and this is asked of the
engine that the tokenizer splits with. Knows no tokenizers and no bytes; splitting.py runs stages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import NamedTuple, Never

from bytelm.errors import VocabError

Matching = Callable[[str, str], Collection[str]]
"""Which characters of a text (the second argument) a pattern for one character matches."""

ANY = r"[\s\S]"
MATCH = 0
"""The node where a match is complete."""

_CLASS_LETTERS = frozenset("sSdDwW")
_CONTROL_LETTERS = frozenset("rntfv")


class Node(NamedTuple):
    """A place in a pattern.

    With `ways` it goes on at all of them, the first preferred. Else it takes a character of the set
    numbered `charset` (with `ahead` it only forbids that one follows) and goes on at `after`.
    """

    charset: int = -1
    after: int = -1
    ahead: bool = False
    ways: tuple[int, ...] = ()


class Stage:
    """A pattern as a nondeterministic automaton; node 0 is the match.

    With `gaps`, text that it does not match is a piece as well. A stage of `literals` finds texts
    that are tokens as they stand.
    """

    def __init__(self, gaps: bool, literals: tuple[str, ...] = ()) -> None:
        self.gaps = gaps
        self.literals = literals
        self.nodes = [Node()]
        self.start = MATCH
        self.charsets: list[Callable[[str], Collection[str]]] = []
        self._numbers: dict[str, int] = {}

    def charset(self, name: str, matched: Callable[[str], Collection[str]]) -> int:
        """The number of a set of characters, made at its first mention.

        `matched` gives the characters of a text that are in the set.
        """
        if name not in self._numbers:
            self._numbers[name] = len(self.charsets)
            self.charsets.append(matched)
        return self._numbers[name]

    def add(self, node: Node) -> int:
        """The number of a new node."""
        self.nodes.append(node)
        return len(self.nodes) - 1

    def repeat(self, charset: int, after: int) -> int:
        """A node that takes one or more characters of a set, as many as there are."""
        loop = self.add(Node())
        self.nodes[loop] = Node(ways=(self.add(Node(charset, loop)), after))
        return self.add(Node(charset, loop))

    @classmethod
    def of_pattern(
        cls, pattern: str, matched: Matching, gaps: bool, possessive_braces: bool
    ) -> Stage:
        """The stage of a regular expression. VocabError names what is not understood in it.

        Engines differ in `{1,3}+`: a possessive repetition in some, a repetition of it in others.
        """
        stage = cls(gaps)
        stage.start = _Parser(stage, pattern, matched, possessive_braces).parse()
        return stage

    @classmethod
    def of_set(cls, matched: Callable[[str], Collection[str]], single: bool) -> Stage:
        """Cuts at every character of a set (`single`) or around runs of them."""
        stage = cls(gaps=True)
        number = stage.charset("", matched)
        stage.start = stage.add(Node(number, 0)) if single else stage.repeat(number, MATCH)
        return stage

    @classmethod
    def uncut(cls) -> Stage:
        """The whole text is one piece."""
        stage = cls(gaps=False)
        stage.start = stage.repeat(stage.charset(ANY, set), MATCH)
        return stage

    @classmethod
    def words(cls) -> Stage:
        """Cuts before every space."""
        stage = cls(gaps=False)
        space = stage.charset(" ", {" "}.intersection)
        other = stage.charset("[^ ]", lambda text: set(text) - {" "})
        run = stage.repeat(other, MATCH)
        rest = stage.add(Node(ways=(run, MATCH)))
        stage.start = stage.add(Node(ways=(stage.add(Node(space, rest)), run)))
        return stage

    @classmethod
    def of_literals(cls, texts: Iterable[str]) -> Stage:
        """Finds texts, of several that begin at one place the longest."""
        stage = cls(gaps=True, literals=tuple(texts))

        def grown(texts: set[str]) -> int:
            ways = [
                stage.add(Node(stage.charset(first, {first}.intersection), grown(rests)))
                for first in sorted({text[0] for text in texts if text})
                for rests in [{text[1:] for text in texts if text[:1] == first}]
            ]
            return stage.add(Node(ways=(*ways, MATCH) if "" in texts else tuple(ways)))

        stage.start = grown(set(stage.literals))
        return stage


class _Parser:
    """Reads a regular expression into a stage's nodes, from its end to its beginning."""

    def __init__(
        self, stage: Stage, pattern: str, matched: Matching, possessive_braces: bool
    ) -> None:
        self._stage = stage
        self._pattern = pattern
        self._matched = matched
        self._possessive_braces = possessive_braces
        self._at = 0

    def parse(self) -> int:
        build = self._alternatives(ignore_case=False)
        if self._at < len(self._pattern):
            self._refuse()
        return build(MATCH)

    # Each method returns how its part is built, given the node that comes after it.

    def _alternatives(self, ignore_case: bool) -> Callable[[int], int]:
        parts = [self._sequence(ignore_case)]
        while self._take("|"):
            parts.append(self._sequence(ignore_case))
        if len(parts) == 1:
            return parts[0]
        return lambda after: self._stage.add(Node(ways=tuple(part(after) for part in parts)))

    def _sequence(self, ignore_case: bool) -> Callable[[int], int]:
        parts: list[Callable[[int], int]] = []
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            parts.append(self._repeated(ignore_case))

        def build(after: int) -> int:
            for part in reversed(parts):
                after = part(after)
            return after

        return build

    def _repeated(self, ignore_case: bool) -> Callable[[int], int]:
        start = self._at
        if self._take("$"):
            return self._not_ahead(ANY)
        if self._take("(?!"):
            build = self._not_ahead(self._charset(ignore_case) or self._refuse())
            return build if self._take(")") else self._refuse()
        if charset := self._charset(ignore_case):
            number = self._number(charset)
            part = self._one_of(number)
        else:
            number = -1
            part = self._group(ignore_case)
        low, high = self._bounds()
        if (low, high) == (1, 1):
            return part
        braces = self._pattern[self._at - 1] == "}"
        possessive = self._take("+")
        if self._pattern.startswith(("?", "*", "+", "{"), self._at):
            self._refuse()
        if possessive and (number < 0 or (braces and not self._possessive_braces)):
            self._refuse(start)
        return self._times(part, low, high, number if possessive else -1)

    def _one_of(self, number: int) -> Callable[[int], int]:
        return lambda after: self._stage.add(Node(number, after))

    def _times(
        self, part: Callable[[int], int], low: int, high: int | None, stop: int
    ) -> Callable[[int], int]:
        """`part` so many times; with a set `stop`, never fewer than there are characters of it."""
        stage = self._stage

        def build(after: int) -> int:
            leave = after if stop < 0 else stage.add(Node(stop, after, ahead=True))
            if high is None:
                entry = stage.add(Node())
                stage.nodes[entry] = Node(ways=(part(entry), leave))
            else:
                entry = after
                for _ in range(high - low):
                    entry = stage.add(Node(ways=(part(entry), leave)))
            for _ in range(low):
                entry = part(entry)
            return entry

        return build

    def _bounds(self) -> tuple[int, int | None]:
        for mark, bounds in {"?": (0, 1), "*": (0, None), "+": (1, None)}.items():
            if self._take(mark):
                return bounds
        if not self._take("{"):
            return 1, 1
        end = self._pattern.find("}", self._at)
        low, comma, high = self._pattern[self._at : max(end, 0)].partition(",")
        if not (low.isdecimal() and (high.isdecimal() or not high)):
            self._refuse()
        self._at = end + 1
        return int(low), int(high) if high else None if comma else int(low)

    def _group(self, ignore_case: bool) -> Callable[[int], int]:
        if self._take("(?i:"):
            ignore_case = True
        elif not self._take("(?:") and (
            self._pattern.startswith("(?", self._at) or not self._take("(")
        ):
            self._refuse()
        build = self._alternatives(ignore_case)
        return build if self._take(")") else self._refuse()

    def _not_ahead(self, charset: str) -> Callable[[int], int]:
        number = self._number(charset)
        return lambda after: self._stage.add(Node(number, after, ahead=True))

    def _number(self, charset: str) -> int:
        return self._stage.charset(charset, partial(self._matched, charset))

    def _charset(self, ignore_case: bool) -> str:
        """A part that takes one character, as it is written; "" where there is none."""
        start = self._at
        if self._take("["):
            depth = 1
            while depth:
                if self._at >= len(self._pattern):
                    self._refuse(start)
                mark = self._pattern[self._at]
                depth += (mark == "[") - (mark == "]")
                self._at += 2 if mark == "\\" else 1
        elif self._take("\\"):
            mark = self._pattern[self._at : self._at + 1]
            if mark in ("p", "P"):
                end = self._pattern.find("}", self._at)
                if self._pattern[self._at + 1 : self._at + 2] != "{" or end < 0:
                    self._refuse(start)
                self._at = end + 1
            elif mark in _CLASS_LETTERS | _CONTROL_LETTERS or (mark and not mark.isalnum()):
                self._at += 1
            else:
                self._refuse(start)
        elif self._at < len(self._pattern) and self._pattern[self._at] not in ".^$*+?{}[]()|":
            self._at += 1
        charset = self._pattern[start : self._at]
        return f"(?i:{charset})" if ignore_case and charset else charset

    def _take(self, text: str) -> bool:
        found = self._pattern.startswith(text, self._at)
        if found:
            self._at += len(text)
        return found

    def _refuse(self, at: int | None = None) -> Never:
        rest = self._pattern[self._at if at is None else at :]
        raise VocabError(
            f"the pattern {self._pattern!r} that splits text is not understood at {rest[:20]!r}:"
            " canonical tokenizations are not known for it"
        )
