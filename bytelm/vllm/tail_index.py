"""Which tails there are: finds the one that begins most like a context goes on.

A tail is a block of the KV cache and the tokens in it, filed under its *parent*: the hash of all
that stands before it. The KV of a token depends on the tokens before it only, so a tail serves
every context that has the same parent and begins with some of the same tokens: all of them, or
those up to the first that differs.

This module must not know vLLM: of a block it uses ``block_id`` and ``block_hash``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

Tokens = tuple[int, ...]

REPORT = "bytelm_tails"


class TailCounts(NamedTuple):
    """What the tails did since the start.

    Attributes:
        hits: requests that began with a tail.
        misses: requests that found none, though some of their last block had been of use.
        tokens: tokens that did not have to be computed, thanks to tails alone.
        evictions: tails that were lost because their block was needed, as far as noticed.
    """

    hits: int = 0
    misses: int = 0
    tokens: int = 0
    evictions: int = 0

    @classmethod
    def sum(cls, counts: Iterable[TailCounts]) -> TailCounts:
        """The counts of several engine cores together."""
        return cls(*map(sum, zip(*counts, strict=True)))

    def report(self, core: int) -> dict[str, list[int]]:
        """What a request's last output carries: an engine core's number and counts."""
        return {REPORT: [core, *self]}

    @classmethod
    def reported(cls, params: dict[str, Any]) -> tuple[int, TailCounts]:
        """The number and counts that :meth:`report` put there."""
        core, *counts = params[REPORT]
        return core, cls(*counts)


class Holder(Protocol):
    """Whoever writes behind a tail's tokens, in the tail's own block."""

    @property
    def holds(self) -> bool:
        """Whether the block is still in its hands."""
        ...


@dataclass(eq=False, slots=True)
class Tail:
    """Tokens whose KV lies in a block, from the block's beginning.

    Attributes:
        parent: stands for everything before the block; equal only where that is equal.
        tokens: as many as there are places in the block, at most.
        block: where their KV is.
        mark: the very object that ``block.block_hash`` was when the tail was made. Whoever fills
            the block anew sets another one, even if it is equal.
        holder: who goes on in the block; None while nobody does.
    """

    parent: Hashable
    tokens: Tokens
    block: Any
    mark: object
    holder: Holder | None = None

    @property
    def is_intact(self) -> bool:
        """Whether the block still holds these tokens."""
        if self.holder is not None:
            return self.holder.holds
        return self.block.block_hash is self.mark


class TailIndex:
    """All tails that are worth having: none whose tokens are the beginning of another's.

    Blocks are taken away without notice. A tail that lost its block is dropped when it is come
    across; since a block belongs to one tail at most, they never outnumber the blocks.
    """

    def __init__(self) -> None:
        # Of all strings, those next to another in sorted order have most of their beginning in
        # common with it. Tokens differ, so that tails themselves are never compared.
        self._siblings: dict[Hashable, list[tuple[Tokens, Tail]]] = {}
        self._of_block: dict[int, Tail] = {}
        self.lost = 0

    def __len__(self) -> int:
        return len(self._of_block)

    def longest(self, parent: Hashable, tokens: Tokens) -> tuple[Tail, int] | None:
        """The tail that begins most like ``tokens``, and how many they share; None without one."""
        near = [(tail, common(tail.tokens, tokens)) for tail in self._near(parent, tokens)]
        best = max(near, key=lambda found: found[1], default=None)
        return best if best is not None and best[1] > 0 else None

    def add(self, tail: Tail) -> Tail | None:
        """File a tail, unless :meth:`longest` finds all of its tokens already.

        Returns:
            the tail that is of no use any more: its tokens are the beginning of this one's.
        """
        before = self._of_block.get(tail.block.block_id)
        if before is not None:
            grown = (before.parent, before.tokens) == (
                tail.parent,
                tail.tokens[: len(before.tokens)],
            )
            (self.remove if grown else self._lose)(before)
        superseded = None
        for near in self._near(tail.parent, tail.tokens):
            shared = common(near.tokens, tail.tokens)
            assert shared < len(tail.tokens)
            if shared == len(near.tokens):
                superseded = near
        if superseded is not None:
            self.remove(superseded)
        siblings = self._siblings.setdefault(tail.parent, [])
        siblings.insert(bisect_left(siblings, (tail.tokens,)), (tail.tokens, tail))
        self._of_block[tail.block.block_id] = tail
        return superseded

    def __contains__(self, tail: Tail) -> bool:
        return self._of_block.get(tail.block.block_id) is tail

    def clear(self) -> None:
        """Forget all tails."""
        self._siblings.clear()
        self._of_block.clear()

    def _near(self, parent: Hashable, tokens: Tokens) -> list[Tail]:
        """The intact tails right before and right behind ``tokens``, in sorted order."""
        while siblings := self._siblings.get(parent):
            at = bisect_left(siblings, (tokens,))
            near = [tail for _, tail in siblings[max(at - 1, 0) : at + 1]]
            lost = [tail for tail in near if not tail.is_intact]
            if not lost:
                return near
            for tail in lost:
                self._lose(tail)
        return []

    def _lose(self, tail: Tail) -> None:
        self.lost += 1
        self.remove(tail)

    def remove(self, tail: Tail) -> None:
        """Take a tail out."""
        del self._of_block[tail.block.block_id]
        siblings = self._siblings[tail.parent]
        del siblings[bisect_left(siblings, (tail.tokens,))]
        if not siblings:
            del self._siblings[tail.parent]


def common(one: Tokens, other: Tokens) -> int:
    """How many tokens two strings have in common from their beginning."""
    for n, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return n
    return min(len(one), len(other))
