"""Adaptive token healing: another tokenization of the end of a context that no candidate continues.

A pruned beam can hold only tokenizations that cannot go on with the next byte. Then the token under
way is taken back: some of its bytes end a token earlier, the others are read anew from the root,
and where that gets stuck another token is ended. The first way that reaches the byte is taken.

This module must not know how a beam prunes or mixes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from bytelm.logprobs import EOS
from bytelm.rows import Row, RowSource
from bytelm.trie import ROOT

if TYPE_CHECKING:
    from bytelm.beam import ByteBeamState, Path

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
    token itself first.
    """
    trie = state.source.trie
    params = state.params
    for candidate in state:
        if candidate.terminated or not candidate.partial:
            continue
        partial = candidate.partial
        row = await state.source.evaluate(candidate.tokens)
        node = trie.descend(partial)
        weight = candidate.weight - row.log_mass(trie.lo[node], trie.hi[node])
        back = len(partial) if params.heal_max_backoff is None else params.heal_max_backoff
        for kept in range(len(partial), max(0, len(partial) - back) - 1, -1):
            reading = Reading(state.source, candidate.tokens, row, ROOT, weight)
            for byte in partial[:kept]:
                stepped = reading.step(byte)
                if stepped is None:
                    break
                reading = stepped
            else:
                healed = await _reread(state, reading, partial[kept:], b)
                if healed is not None:
                    if params.verbose:
                        print(f"[heal] took back {len(partial) - kept} of {partial!r}")
                    return healed
    return None


async def _reread(state: BeamT, reading: Reading, rest: bytes, b: int) -> BeamT | None:
    """Ends the reading's token, reads ``rest`` and ``b``, ending further tokens where stuck."""
    for token, weight in reading.endings():
        current = await _opened(state, reading, token, weight)
        splits = 0
        for byte in (*rest, b):
            stepped = current.step(byte)
            if stepped is None:
                if splits == state.params.heal_max_splits:
                    break
                splits += 1
                for next_token, next_weight in current.endings():
                    opened = await _opened(state, current, next_token, next_weight)
                    stepped = opened.step(byte)
                    if stepped is not None:
                        break
            if stepped is None:
                break
            current = stepped
        else:
            return state.from_reading(current)
    return None


async def _opened(state: ByteBeamState, reading: Reading, token: int, weight: float) -> Reading:
    path = (*reading.path, token)
    return Reading(state.source, path, await state.source.evaluate(path), ROOT, weight)
