"""A beam's candidates in the shape of genlm-bytes' ``LazyTrieState``, for code that reads those.

``ByteBeamState.states`` makes them. This module must not know how a beam goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bytelm.beam.rows import RowSource
from bytelm.compat.genlm import as_given
from bytelm.errors import InputError
from bytelm.models.logprobs import EOS
from bytelm.models.token_lm import StatefulTokenizedLM
from bytelm.vocabulary.trie import ROOT

if TYPE_CHECKING:
    from bytelm.beam import Candidate


@dataclass(frozen=True)
class GenlmTrie:
    """What is read of genlm-bytes' tries; nodes are those of a ``TokenTrie``, and one for EOS."""

    source: RowSource
    root: int = ROOT

    @property
    def trie(self) -> GenlmTrie:
        """Itself: genlm-bytes wraps its trie in another."""
        return self

    @property
    def eos_node(self) -> int:
        """Where the probability of ending is."""
        return len(self.source.trie)

    @property
    def eos_token_ids(self) -> list[int]:
        """The ids that end the text."""
        return self.source.eos_ids

    @property
    def eos_byte_strings(self) -> set[bytes]:
        """Their bytes; of special tokens, the bytes of their names."""
        return {self.source.vocab.spelling(i) for i in self.source.eos_ids}

    @property
    def eos_tokens(self) -> set[bytes]:
        """An older name of ``eos_byte_strings``."""
        return self.eos_byte_strings

    def log_mass(self, probs: NDArray[np.floating], node: int) -> NDArray[np.float64]:
        """Log-probability of each node at and below ``node``, -inf elsewhere.

        Args:
            probs: of the tokens below ``node``, in the trie's order.
            node: a node of the trie.
        """
        lo, hi = self.source.trie.lo, self.source.trie.hi
        first, last, depth = lo[node], hi[node], self.source.trie.depth
        below = np.flatnonzero((lo >= first) & (hi <= last) & (depth >= depth[node]))
        bounds = np.stack([lo[below], hi[below]], axis=1).ravel() - first
        mass = np.full(self.eos_node + 1, -np.inf)
        with np.errstate(divide="ignore"):
            mass[below] = np.log(np.add.reduceat(np.append(probs, 0.0), bounds)[::2])
        return mass


@dataclass
class GenlmState:
    """One candidate.

    Attributes:
        lm_state: its tokens, on the model that the beam was begun with.
        trie: what ``node`` is a node of.
        node: where its partial token stands.
        weight: log-probability of its tokens and partial token.
        terminated: whether EOS was consumed.
        kept: probabilities of the tokens below ``node``, in the trie's order; None at the root.
    """

    lm_state: StatefulTokenizedLM
    trie: GenlmTrie
    node: int
    weight: float
    terminated: bool
    kept: NDArray[np.float32] | None = field(repr=False)

    @property
    def partial(self) -> list[int]:
        """The bytes of the token under way."""
        return [] if self.terminated else list(self.trie.source.trie.prefix(self.node))

    @cached_property
    def mass(self) -> NDArray[np.float64]:
        """Log-probability, by the model, that the next token is below each node of the trie.

        A candidate keeps what is at and below its own node: before ``materialize`` it is -inf
        elsewhere, and where its own is below 1e-30, in a unit of its own.

        Raises:
            InputError: before ``materialize``, at the root of the trie, where nothing is kept.
        """
        if self.kept is None:
            raise InputError("the state is not yet materialized: await its materialize() first")
        return self.trie.log_mass(self.kept, self.node)

    async def materialize(self) -> GenlmState:
        """Itself, with the whole of ``mass``; takes one evaluation."""
        row = await self.trie.source.evaluate(tuple(self.lm_state.context))
        mass = self.trie.log_mass(row.probs, ROOT)
        with np.errstate(divide="ignore"):
            mass[self.trie.eos_node] = np.log(row.root[EOS] * row.mass)
        mass[ROOT] = np.logaddexp(mass[ROOT], mass[self.trie.eos_node])
        self.mass = mass
        return self

    async def cleanup(self) -> None:
        """Nothing: no candidate holds anything outside this process."""

    def __lshift__(self, b: int) -> GenlmState | None:
        """The candidate after one more byte of its token, or EOS; None if that cannot be."""
        if self.terminated:
            return None
        if b == EOS:
            node = self.trie.eos_node if self.node == ROOT else -1
        else:
            node = self.trie.source.trie.child(self.node, b)
        if node < 0:
            return None
        weight = self.weight + float(self.mass[node] - self.mass[self.node])
        after = replace(self, node=node, weight=weight, terminated=b == EOS)
        after.mass = self.mass
        return after


def genlm_states(
    source: RowSource,
    candidates: Iterable[Candidate],
    nodes: Sequence[int],
    kept: Sequence[NDArray[np.float32]],
) -> list[GenlmState]:
    """The candidates of a beam.

    Args:
        source: what the beam evaluates by.
        candidates: all of them; those that stand at the root of the trie last.
        nodes: where the others stand.
        kept: the probabilities of the tokens below each of these.
    """
    trie, model = GenlmTrie(source), as_given(source.lm)
    states = []
    for c, node, probs in zip_longest(candidates, nodes, kept):
        lm_state = StatefulTokenizedLM(model, c.tokens)
        lm_state.__dict__["vocab"] = source.lm.vocab
        if node is None:
            node = trie.eos_node if c.terminated else ROOT
        states.append(GenlmState(lm_state, trie, node, c.weight, c.terminated, probs))
    return states
