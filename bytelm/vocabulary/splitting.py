r"""Where text is cut before it is merged, decided without knowing what text follows.

Stages (split_stages.py) follow each other: each sees the pieces of the one before as whole texts.
`Splitter` reads text character by character and keeps every way in which it may be cut so far, for
some text behind it:

- Inside a piece the state is the ordered list of the matcher's threads (R. Pike's simulation), so
  that it is one state for all that a backtracking matcher may still try.
- A cut is a guess: it is right when every thread that the matcher prefers fails in what follows.
  These threads go along behind the cut as *traps*; a guess is dropped when one of them matches.

So nothing is assumed of a pattern, and preferences may be settled many characters later: GPT-2's
`\s+(?!\S)` splits a run of spaces only when something else follows, o200k's `[A-Z]*[a-z]+` joins
a character without case to capitals only when a small letter follows them.

Knows no tokenizers and no bytes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from functools import cached_property
from itertools import chain, product
from typing import NamedTuple

from bytelm.vocabulary.split_stages import MATCH, Node, Stage

_REMEMBERED = 1 << 17
_FARTHER = (0x4E00, 0x9FA5, 0xAC00, 0xE000, 0xFF21, 0x1F600, 0x10FFFF)


class Leaf(NamedTuple):
    """A thread that waits for a character.

    None of the sets in the bit mask `unless` may have it; then `node` takes it, or is the match.
    """

    unless: int
    node: int


class _State(NamedTuple):
    """Where a stage stands: `kind`, the threads inside a match, and the traps of earlier cuts."""

    kind: int
    threads: tuple[Leaf, ...]
    traps: frozenset[Leaf]


# Kinds: at a cut; at the cut behind a gap, where a match has to follow; in a match; in a gap.
_CUT, _CUT_GAP, _MATCHING, _GAP = range(4)


class _Machine:
    """One stage as an automaton over bit masks: which of its sets a character is in."""

    def __init__(self, stage: Stage) -> None:
        self._nodes = list(stage.nodes)
        self._gaps = stage.gaps
        self._forbidden: dict[int, int] = {}
        self._known: dict[int, tuple[Leaf, ...]] = {}
        self.first = self._leaves(stage.start)
        self.fresh = _State(_CUT, (), frozenset())

    def _leaves(self, node: int) -> tuple[Leaf, ...]:
        """The threads at a node, the preferred first; nothing comes behind a certain match."""
        if node in self._known:
            return self._known[node]
        found: dict[Leaf, None] = {}

        def walk(node: int, unless: int, path: tuple[int, ...]) -> bool:
            here = self._nodes[node]
            if node in path:
                return False
            if here.ahead:
                return walk(here.after, unless | 1 << here.charset, (*path, node))
            if here.charset >= 0 or node == MATCH:
                found.setdefault(Leaf(unless, node))
                return node == MATCH and not unless
            return any(walk(way, unless, (*path, node)) for way in here.ways)

        walk(node, 0, ())
        self._known[node] = tuple(found)
        return self._known[node]

    def _after(self, leaf: Leaf, bits: int) -> tuple[Leaf, ...]:
        """The threads that a thread becomes when it takes a character."""
        here = self._nodes[leaf.node]
        if leaf.unless & bits or leaf.node == MATCH or not bits >> here.charset & 1:
            return ()
        return self._leaves(here.after)

    def _trapped(self, traps: Iterable[Leaf], bits: int) -> frozenset[Leaf] | None:
        """The traps after a character; None when one of them matches."""
        left: set[Leaf] = set()
        for leaf in traps:
            if leaf.node == MATCH and not leaf.unless & bits:
                return None
            left.update(self._after(leaf, bits))
        return None if Leaf(0, MATCH) in left else frozenset(left)

    def _threads(self, threads: tuple[Leaf, ...], bits: int) -> tuple[Leaf, ...]:
        found: dict[Leaf, None] = {}
        for leaf in threads:
            if leaf.node == MATCH and not leaf.unless & bits:
                break
            found.update(dict.fromkeys(self._after(leaf, bits)))
            if Leaf(0, MATCH) in found:
                break
        return tuple(found)

    def step(self, state: _State, bits: int) -> Iterable[_State]:
        """The states after a character that belongs to the piece under way, or begins one."""
        if state.kind != _GAP:
            threads = state.threads if state.kind == _MATCHING else self.first
            traps = self._trapped(state.traps, bits)
            if traps is not None and (inside := self._threads(threads, bits)):
                yield _State(_MATCHING, inside, traps)
        if self._gaps and state.kind in (_CUT, _GAP):
            traps = self._trapped((*state.traps, *self.first), bits)
            if traps is not None:
                yield _State(_GAP, (), traps)

    def cut(self, state: _State) -> Iterable[_State]:
        """The states with a cut here."""
        if state.kind == _GAP:
            yield _State(_CUT_GAP, (), state.traps)
        for place, leaf in enumerate(state.threads):
            if leaf.node == MATCH:
                unless = [Leaf(0, self._forbid(i)) for i in _ones(leaf.unless)]
                yield _State(_CUT, (), state.traps.union(state.threads[:place], unless))

    def _forbid(self, charset: int) -> int:
        """A node that matches where a character of the set follows."""
        if charset not in self._forbidden:
            self._nodes.append(Node(charset, MATCH))
            self._forbidden[charset] = len(self._nodes) - 1
        return self._forbidden[charset]

    @staticmethod
    def ends(state: _State) -> bool:
        """Whether the text may end here."""
        matches = any(leaf.node == MATCH for leaf in state.threads)
        trapped = any(leaf.node == MATCH for leaf in state.traps)
        return not trapped and (state.kind != _MATCHING or matches)


def _ones(bits: int) -> Iterable[int]:
    return (place for place in range(bits.bit_length()) if bits >> place & 1)


class Splitter:
    """Stages one after another, as an automaton over classes of characters.

    States and classes are small integers; `start` is the state where no text is yet, or where it
    was cut for certain. `spells` says which characters can be in a text at all.
    """

    start = 0

    def __init__(self, stages: tuple[Stage, ...], spells: Callable[[str], bool]) -> None:
        self._stages = stages
        self._machines = [_Machine(stage) for stage in stages]
        self._literals = bool(stages[0].literals)
        fresh = tuple(machine.fresh for machine in self._machines)
        self._states: list[tuple[_State, ...]] = [fresh]
        self._numbers = {fresh: 0}
        self._classes: dict[tuple[int, ...], int] = {}
        self._masks: list[tuple[int, ...]] = []
        self._class_of: dict[str, int] = {}
        self._steps: dict[tuple[int, int], tuple[int, ...]] = {}
        self._cuts: dict[int, tuple[int, ...]] = {}
        self._lives: dict[int, bool] = {}
        self.known_classes = sorted({self.class_of(c) for c in _samples() if spells(c)})

    def class_of(self, character: str) -> int:
        """The class of a character."""
        if character not in self._class_of:
            if len(self._class_of) > _REMEMBERED:
                self._class_of.clear()
            first = ord(character) & ~63
            self._classify("".join(map(chr, range(first, first + 64))))
        return self._class_of[character]

    def _classify(self, text: str) -> None:
        """Learn the classes of all characters of a text, which costs little more than one's."""
        bits = {character: [0] * len(self._stages) for character in text}
        for place, stage in enumerate(self._stages):
            for number, matched in enumerate(stage.charsets):
                for character in matched(text):
                    bits[character][place] |= 1 << number
        for character, masks in bits.items():
            number = self._classes.setdefault(tuple(masks), len(self._masks))
            if number == len(self._masks):
                self._masks.append(tuple(masks))
            self._class_of[character] = number

    def step(self, state: int, number: int) -> tuple[int, ...]:
        """The states after a character of a class, in the piece under way or as the first of one.

        Literals are not read so: see `literal`.
        """
        found = self._steps.get((state, number))
        if found is None:
            found = tuple(filter(self._alive, self._stepped(state, number)))
            self._steps[state, number] = found
        return found

    def read(self, state: int, classes: Iterable[int]) -> set[int]:
        """The states after characters that are in one piece."""
        states = {state}
        for number in classes:
            states = {after for one in states for after in self.step(one, number)}
        return states

    def cut(self, state: int) -> tuple[int, ...]:
        """The states with a cut behind what was read, each on its own condition."""
        found = self._cuts.get(state)
        if found is None:
            found = self._cuts[state] = tuple(filter(self._alive, self._cut(state)))
        return found

    def goes_on(self, state: int, classes: Iterable[int]) -> bool:
        """Whether a character of one of the classes may follow in the piece under way."""
        return any(self.step(state, number) for number in classes)

    def literal(self, state: int, text: str) -> tuple[int, ...]:
        """The states behind a literal that begins at a cut."""
        first, *others = self._states[state]
        if not all(
            machine.ends(one) for machine, one in zip(self._machines[1:], others, strict=True)
        ):
            return ()
        machine, ways = self._machines[0], [first]
        for character in text:
            bits = self._masks[self.class_of(character)][0]
            ways = [
                after
                for one in ways
                for after in machine.step(one, bits)
                if after.kind == _MATCHING
            ]
        return self._numbered(
            (cut, *self._states[0][1:]) for one in ways for cut in machine.cut(one)
        )

    def ends(self, state: int) -> bool:
        """Whether the text may end here."""
        return all(
            machine.ends(one)
            for machine, one in zip(self._machines, self._states[state], strict=True)
        )

    @property
    def has_gaps(self) -> bool:
        """Whether the last stage may leave out text that is no match."""
        return any(
            self._states[after][-1].kind == _GAP
            for number in self.known_classes
            for after in self.step(self.start, number)
        )

    def cuts_between(self, left: int, right: int) -> bool:
        """Whether text is cut between two characters of these classes, wherever they are found."""
        fresh = self.step(self.start, right)
        return all(
            not self.step(one, right)
            and all(self.step(cut, right) in ((), fresh) for cut in self.cut(one))
            for state in self._everywhere
            for one in self.step(state, left)
        )

    def forgets(self, right: int) -> bool:
        """Whether a character of a class leads to the same states, whatever is before it."""
        fresh = self.step(self.start, right)
        return all(self.step(state, right) in ((), fresh) for state in self._everywhere)

    @cached_property
    def _everywhere(self) -> list[int]:
        """All states."""
        found = [self.start]
        for state in found:  # which grows
            steps = [self.step(state, number) for number in self.known_classes]
            literals = [self.literal(state, text) for text in self._stages[0].literals]
            new = chain(self.cut(state), *steps, *literals)
            found += [one for one in dict.fromkeys(new) if one not in found]
        return found

    def _alive(self, state: int) -> bool:
        """Whether the text may end here, or behind some characters more."""
        if state not in self._lives:
            reached, seen = [state], {state}
            while reached and not self.ends(reached[-1]):
                one = reached.pop()
                ways = [self._cut(one), *(self._stepped(one, n) for n in self.known_classes)]
                fresh = set(chain.from_iterable(ways)) - seen
                seen |= fresh
                reached += fresh
            self._lives.update({state: True} if reached else dict.fromkeys(seen, False))
        return self._lives[state]

    def _stepped(self, state: int, number: int) -> tuple[int, ...]:
        machines = zip(self._machines, self._states[state], self._masks[number], strict=True)
        ways = [list(machine.step(one, bits)) for machine, one, bits in machines]
        if self._literals:
            ways[0] = [one for one in ways[0] if one.kind == _GAP]
        return self._numbered(product(*ways))

    def _cut(self, state: int) -> tuple[int, ...]:
        stages, fresh = self._states[state], self._states[self.start]
        ways: list[tuple[_State, ...]] = []
        for place, machine in enumerate(self._machines):
            inner = zip(self._machines[place + 1 :], stages[place + 1 :], strict=True)
            if all(one.ends(piece) for one, piece in inner):
                cuts = machine.cut(stages[place])
                ways += [(*stages[:place], cut, *fresh[place + 1 :]) for cut in cuts]
        return self._numbered(ways)

    def _numbered(self, states: Iterable[tuple[_State, ...]]) -> tuple[int, ...]:
        numbers = []
        for state in states:
            number = self._numbers.setdefault(state, len(self._states))
            if number == len(self._states):
                self._states.append(state)
            numbers.append(number)
        return tuple(dict.fromkeys(numbers))


def _samples() -> Iterable[str]:
    """Characters of every kind: all of Latin-1, and some of each Unicode category and script."""
    seen: dict[str, int] = {}
    for code in chain(range(0x3100), _FARTHER):
        category = unicodedata.category(chr(code))
        seen[category] = seen.get(category, 0) + 1
        if code < 0x100 or seen[category] < 4 or code >= 0x3000:
            yield chr(code)
