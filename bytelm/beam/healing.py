"""Adaptive token healing: another tokenization of the end of a context that no candidate continues.

A pruned beam can hold only tokenizations that cannot go on with the next byte. Then the token under
way is taken back: some of its bytes end a token earlier, the others are read anew from the root,
and where that gets stuck another token is ended. The first way that reaches the byte is taken.

This module must not know how a beam prunes or mixes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from bytelm.beam.rows import Row, RowSource
from bytelm.models.logprobs import EOS
from bytelm.vocabulary.trie import ROOT

if TYPE_CHECKING:
    from bytelm.beam import Candidate, Path
    from bytelm.beam.base import Beam

BeamT = TypeVar("BeamT", bound="Beam")


@dataclass(frozen=True)
class Reading:
    """A single candidate with its whole row, so that any part of its token can be weighed."""

    source: RowSource
    path: Path
    row: Row
    node: int
    weight: float
    ended: bool = False

    def step(self, b: int) -> Reading | None:
        """The reading after byte ``b`` or EOS, or None."""
        if self.ended:
            return None
        if b == EOS:
            if self.node != ROOT or not self.row.root[EOS] > 0.0:
                return None
            weight = self.weight + math.log(self.row.root[EOS])
            return Reading(self.source, self.path, self.row, ROOT, weight, ended=True)
        child = self.source.trie.child(self.node, b)
        if child < 0:
            return None
        weight = self.weight + self._log_mass(child) - self._log_mass(self.node)
        if weight == -math.inf:
            return None
        return Reading(self.source, self.path, self.row, child, weight)

    def ending(self) -> tuple[Path, float] | None:
        """The likeliest token that may end here, as the path and weight that it makes, or None."""
        trie = self.source.trie
        if not self.source.fits(len(self.path) + 1):
            return None
        here = self._log_mass(self.node)
        tokens = [
            (self.row.log_mass(position, position + 1), int(trie.order[position]))
            for position in range(trie.lo[self.node], trie.end[self.node])
        ]
        log_p, token = max(tokens, default=(-math.inf, -1))
        return ((*self.path, token), self.weight + log_p - here) if log_p > -math.inf else None

    def _log_mass(self, node: int) -> float:
        trie = self.source.trie
        return 0.0 if node == ROOT else self.row.log_mass(trie.lo[node], trie.hi[node])


async def heal(state: BeamT, b: int) -> BeamT | None:
    """The state after ``b`` by the first tokenization that healing finds, or None.

    Candidates are tried from the best on; of each, the longest part of its partial token that is a
    token itself first. Further tokens end only where reading gets stuck; if no candidate gets
    through that way, they may end anywhere.

    What the vocabulary cannot spell costs no evaluation. Else a candidate costs one, and one for
    each token that is ended: no place is tried twice, so that these are no more than the bytes of
    its partial token. Only a model that gives no probability at all to tokens makes more
    tries necessary.
    """
    for anywhere in (False, True):
        for which, candidate in enumerate(state):
            if candidate.terminated or not candidate.partial:
                continue
            healed = await _Rereading(state, candidate.partial, b, anywhere).of(candidate, which)
            if healed is not None:
                return healed
    return None


class _Rereading(Generic[BeamT]):
    """Reads a partial token and ``b`` anew, as several tokens.

    Places are between the bytes of the partial token: 0 before the first, ``end`` before ``b``.
    """

    def __init__(self, state: BeamT, partial: bytes, b: int, anywhere: bool) -> None:
        self.state = state
        self.anywhere = anywhere
        self.end = len(partial)
        self.text = (*partial, b)
        self.splits = self._splits()

    def _splits(self) -> list[float]:
        """For each place, how many tokens must be ended behind it to read on through ``b``.

        Infinite where the vocabulary has no way.
        """
        splits = [math.inf] * (self.end + 1)
        for place in range(self.end, -1, -1):
            reached, ends = self._reach(place)
            if not self.anywhere:
                ends = [end for end in ends if end == reached]
            splits[place] = 1 + min((splits[end] for end in ends), default=math.inf)
            if reached > self.end:
                splits[place] = 0
        return splits

    def _reach(self, place: int) -> tuple[int, list[int]]:
        """How far a token can be read from a place, and the places where one may end."""
        trie, node = self.state.source.trie, ROOT
        ends: list[int] = []
        for at in range(place, self.end + 1):
            b = self.text[at]
            if b == EOS:
                return at + (node == ROOT), ends
            node = trie.child(node, b)
            if node < 0:
                return at, ends
            if at < self.end and trie.end[node] > trie.lo[node]:
                ends.append(at + 1)
        return self.end + 1, ends

    async def of(self, candidate: Candidate, which: int) -> BeamT | None:
        """The state that some reading leads to; ``which`` is the candidate's place in the beam."""
        source, params = self.state.source, self.state.params
        back = self.end if params.heal_max_backoff is None else params.heal_max_backoff
        first = max(1, self.end - back)
        ways = [self.splits[place] for place in self._reach(0)[1] if place >= first]
        if not self._may_go_on(min(ways, default=math.inf)):
            return None
        row = await source.evaluate(candidate.tokens)
        if self.state.spells_eos(which):
            row = source.spelling_eos().read(row.made)
        node = source.trie.descend(candidate.partial)
        weight = candidate.weight - row.log_mass(source.trie.lo[node], source.trie.hi[node])
        trail = self._read(Reading(source, candidate.tokens, row, ROOT, weight), 0)
        # Where a token is ended next, the reading there, and how many were ended to get there.
        ends = range(first, min(len(trail), self.end + 1))
        pending = [(place, trail[place], 0) for place in ends]
        tried: set[int] = set()
        while pending:
            place, reading, ended = pending.pop()
            ending = reading.ending()
            if ending is None or place in tried or not self._may_go_on(ended + self.splits[place]):
                continue
            tried.add(place)
            path, weight = ending
            row = await source.evaluate(path)
            trail = self._read(Reading(source, path, row, ROOT, weight), place)
            stuck = place + len(trail) - 1
            if stuck > self.end:
                if params.verbose:
                    taken = self.end - len(source.trie.token_bytes[path[len(candidate.tokens)]])
                    print(f"[heal] took back {taken} of {candidate.partial!r}")
                return self.state.from_reading(trail[-1])
            ends = range(place + 1 if self.anywhere else max(stuck, place + 1), stuck + 1)
            pending += [(end, trail[end - place], ended + 1) for end in ends]
        return None

    def _may_go_on(self, splits: float) -> bool:
        most = self.state.params.heal_max_splits
        return splits < math.inf if most is None else splits <= most

    def _read(self, reading: Reading, place: int) -> list[Reading]:
        """The readings at ``place``, where it stands, and behind each byte until it gets stuck."""
        trail = [reading]
        for b in self.text[place:]:
            stepped = trail[-1].step(b)
            if stepped is None:
                break
            trail.append(stepped)
        return trail
