"""The full blocks of contexts that were evaluated lately: their hashes, and where they were.

vLLM names each full block of a context by a chain of hashes over all tokens before it, and looks
for each of them in its cache. A context that goes on where another one ended has the other's: only
what is new is hashed, and blocks are looked for only where they have moved, so that either takes
next to no time, however long the context is. This module must not know vLLM.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

ID_BYTES = 4
MOST_BYTES = 32 << 20
"""Of tokens whose blocks are kept; those of 128 contexts of 32,000 take half."""
EACH = 512
"""Bytes that a context takes however few tokens it has."""

Prefix = tuple[bytes, str | None]


class Block(Protocol):
    """A block of vLLM's: whoever fills it anew sets another hash, or none."""

    block_hash: Any


@dataclass(eq=False, slots=True)
class Beginning:
    """The full blocks at the beginning of a context.

    Attributes:
        hashes: of each block.
        blocks: where they were found last; fewer, or none, where they were not.
        marks: the hashes that these had then.
    """

    hashes: Sequence[Any] = ()
    blocks: Sequence[Block] = ()
    marks: Sequence[Any] = ()

    def found(self, blocks: Sequence[Block]) -> None:
        """Note where they are."""
        self.blocks, self.marks = blocks, [block.block_hash for block in blocks]

    def still(self, count: int) -> Sequence[Block] | None:
        """The first so many blocks, if they are still where they were found."""
        blocks, marks = self.blocks[:count], self.marks[:count]
        if len(blocks) == count and [block.block_hash for block in blocks] == marks:
            return blocks
        return None


class KnownBlocks:
    """Hashes of full blocks by the tokens in them and the salt; those that were used last.

    Args:
        block_size: tokens in a block.
        most: how many bytes it keeps.
    """

    def __init__(self, block_size: int, most: int = MOST_BYTES) -> None:
        self._step = block_size * ID_BYTES
        self._most = most
        self._known: OrderedDict[Prefix, Beginning] = OrderedDict()
        self._bytes = 0

    def longest(self, tokens: bytes, cache_salt: str | None) -> Beginning:
        """What is known of a context's full blocks: of all, all but the last, or none.

        Args:
            tokens: the context, int32.
            cache_salt: its salt.
        """
        full = len(tokens) // self._step * self._step
        for end in (full, full - self._step):
            prefix = (tokens[:end], cache_salt)
            if end > 0 and (known := self._known.get(prefix)) is not None:
                self._known.move_to_end(prefix)
                return known
        return Beginning()

    def add(
        self, tokens: bytes, cache_salt: str | None, hashes: Sequence[Any], before: Beginning
    ) -> Beginning:
        """Keep the hashes of a context's full blocks, of which there is one at least.

        Args:
            tokens: the context, int32.
            cache_salt: its salt.
            hashes: of the blocks.
            before: what :meth:`longest` knew of them.
        """
        prefix = (tokens[: len(hashes) * self._step], cache_salt)
        if (known := self._known.get(prefix)) is not None:
            return known
        added = self._known[prefix] = Beginning(tuple(hashes), before.blocks, before.marks)
        self._bytes += len(prefix[0]) + EACH
        while self._bytes > self._most:
            (lost, _), _ = self._known.popitem(last=False)
            self._bytes -= len(lost) + EACH
        return added
