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

from bytelm.logprobs import EOS
from bytelm.rows import Row, RowSource
from bytelm.trie import ROOT

if TYPE_CHECKING:
    from bytelm.beam import ByteBeamState, Candidate, Path

BeamT = TypeVar("BeamT", bound="ByteBeamState")


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

    def endings(self) -> list[tuple[int, float]]:
        """The tokens that may end here, each with the weight of the candidate that it makes."""
        trie = self.source.trie
        here = self._log_mass(self.node)
        found = []
        for position in range(trie.lo[self.node], trie.end[self.node]):
            log_p = self.row.log_mass(position, position + 1)
            if log_p > -math.inf and self.source.fits(len(self.path) + 1):
                found.append((int(trie.order[position]), self.weight + log_p - here))
        return found

    def _log_mass(self, node: int) -> float:
        trie = self.source.trie
        return 0.0 if node == ROOT else self.row.log_mass(trie.lo[node], trie.hi[node])


async def heal(state: BeamT, b: int) -> BeamT | None:
    """The state after ``b`` by the first tokenization that healing finds, or None.

    Candidates are tried from the best on; of each, the longest part of its partial token that is a
    token itself first. Further tokens end only where reading gets stuck; if no candidate gets
    through that way, they may end anywhere.
    """
    for anywhere in (False, True):
        for which, candidate in enumerate(state):
            if candidate.terminated or not candidate.partial:
                continue
            healed = await _Rereading(state, b, anywhere).of(candidate, which)
            if healed is not None:
                return healed
    return None


class _Rereading(Generic[BeamT]):
    """Reads the partial token of a candidate and ``b`` anew, as several tokens."""

    def __init__(self, state: BeamT, b: int, anywhere: bool) -> None:
        self.state = state
        self.b = b
        self.anywhere = anywhere
        # How many bytes were left, and how many tokens had been ended, where it got nowhere: what
        # can be read from there on does not depend on how it got there, zeros of a model aside.
        self.dead: set[tuple[int, int]] = set()

    async def of(self, candidate: Candidate, which: int) -> BeamT | None:
        """The state that some reading leads to; ``which`` is the candidate's place in the beam."""
        source, params = self.state.source, self.state.params
        partial = candidate.partial
        row = await source.evaluate(candidate.tokens)
        if self.state.spells_eos(which):
            row = source.spelling_eos().read(row.logprobs)
        node = source.trie.descend(partial)
        weight = candidate.weight - row.log_mass(source.trie.lo[node], source.trie.hi[node])
        back = len(partial) if params.heal_max_backoff is None else params.heal_max_backoff
        for kept in range(len(partial), max(0, len(partial) - back) - 1, -1):
            reading = Reading(source, candidate.tokens, row, ROOT, weight)
            for byte in partial[:kept]:
                stepped = reading.step(byte)
                if stepped is None:
                    break
                reading = stepped
            else:
                healed = await self._split(reading, (*partial[kept:], self.b), 0)
                if healed is not None:
                    if params.verbose:
                        print(f"[heal] took back {len(partial) - kept} of {partial!r}")
                    return healed
        return None

    async def _split(self, reading: Reading, rest: tuple[int, ...], splits: int) -> BeamT | None:
        """Ends the reading's token, and reads ``rest``, for which ``splits`` tokens were ended."""
        if (len(rest), splits) in self.dead:
            return None
        source = self.state.source
        for token, weight in reading.endings():
            path = (*reading.path, token)
            row = await source.evaluate(path)
            opened = Reading(source, path, row, ROOT, weight)
            healed = await self._read(opened, rest, splits)
            if healed is not None:
                return healed
            self.dead.add((len(rest), splits))
        return None

    async def _read(self, reading: Reading, rest: tuple[int, ...], splits: int) -> BeamT | None:
        """Reads ``rest``; where it gets stuck, or before, ends another token."""
        trail = [reading]
        for byte in rest:
            stepped = trail[-1].step(byte)
            if stepped is None:
                break
            trail.append(stepped)
        else:
            return self.state.from_reading(trail[-1])
        if splits == self.state.params.heal_max_splits:
            return None
        last = len(trail) - 1
        for read in range(last, 0 if self.anywhere else last - 1, -1):
            healed = await self._split(trail[read], rest[read:], splits + 1)
            if healed is not None:
                return healed
        return None
