"""The vocabulary as a trie of ranges.

Sort the ids of a vocabulary by their bytes. Every trie node is then a contiguous range ``[lo, hi)``
of the sorted order::

    order     a   ab   ab   abc   b         ids sorted by their bytes, duplicates side by side
    root     [0 ------------------- 5)
    "a"      [0 ------------- 4)            tokens [lo, end) = [0, 1) end here
    "ab"          [1 ------- 4)             tokens [1, 3) end here: two ids with the same bytes
    "abc"                [3 - 4)
    "b"                          [4 - 5)

so the mass of a node is a sum over a slice, and the children of a node are consecutive sub-slices
behind the tokens that end at it. Nodes are numbered breadth first, which makes the children of one
node consecutive too.

This module knows vocabularies and arrays; it must not know beams or models.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bytelm.compiled import compiled
from bytelm.models.ordered_rows import RowOrder

if TYPE_CHECKING:
    from bytelm.vocabulary.vocab import ByteVocab

ROOT = 0

# Sums may be reordered (several accumulators, vector lanes); nothing else may be assumed of floats.
REORDER = {"reassoc", "contract", "nsz"}


@compiled(fastmath=REORDER)
def sum_range(values: NDArray[np.float32], start: int, stop: int) -> float:
    """The sum of ``values[start:stop]``, right to 1e-6 relative for non-negative values.

    Blocks of 64 are summed in float32, where reordering lets vector lanes work, and the blocks in
    float64.
    """
    total = 0.0
    i = start
    while i + 64 <= stop:
        block = np.float32(0.0)
        for j in range(64):
            block += values[i + j]
        total += float(block)
        i += 64
    while i < stop:
        total += values[i]
        i += 1
    return total


@compiled()
def find_child(first: NDArray[np.int32], byte: NDArray[np.uint8], node: int, b: int) -> int:
    """The child of ``node`` along ``b``, or -1. Children are sorted by byte."""
    lo = first[node]
    hi = first[node + 1]
    while lo < hi:
        mid = (lo + hi) // 2
        if byte[mid] < b:
            lo = mid + 1
        else:
            hi = mid
    if lo < first[node + 1] and byte[lo] == b:
        return lo
    return -1


@compiled()
def _build(
    text: NDArray[np.uint8], offset: NDArray[np.int64]
) -> tuple[
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.uint8],
    NDArray[np.int32],
]:
    tokens = offset.size - 1
    most = text.size + 1
    lo = np.empty(most, np.int32)
    hi = np.empty(most, np.int32)
    end = np.empty(most, np.int32)
    first = np.empty(most + 1, np.int32)
    byte = np.zeros(most, np.uint8)
    depth = np.zeros(most, np.int32)
    lo[0] = 0
    hi[0] = tokens
    count = 1
    node = 0
    while node < count:
        d = depth[node]
        i = lo[node]
        while i < hi[node] and offset[i + 1] - offset[i] == d:
            i += 1
        end[node] = i
        first[node] = count
        while i < hi[node]:
            b = text[offset[i] + d]
            lo[count] = i
            while i < hi[node] and text[offset[i] + d] == b:
                i += 1
            hi[count] = i
            byte[count] = b
            depth[count] = d + 1
            count += 1
        node += 1
    first[count] = count
    return (
        lo[:count].copy(),
        hi[:count].copy(),
        end[:count].copy(),
        first[: count + 1].copy(),
        byte[:count].copy(),
        depth[:count].copy(),
    )


class TokenTrie:
    """The tokens of a vocabulary that have bytes, as a trie over ranges of a sorted order.

    Attributes:
        order: uint32 ``[n]``, token ids sorted by (bytes, id); ids without bytes are left out.
        lo, hi: int32 ``[nodes]``, the range of ``order`` below a node.
        end: int32 ``[nodes]``; the tokens ``order[lo:end]`` end at the node.
        first: int32 ``[nodes + 1]``; the children of node x are nodes ``first[x]`` to
            ``first[x + 1] - 1``, sorted by byte.
        byte: uint8 ``[nodes]``, the last byte on the way to a node (0 for the root).
        depth: int32 ``[nodes]``, how many bytes lead to a node.
        root_bounds: int32 ``[children of the root + 1]``, the consecutive ranges of these children.
        root_bytes: int64 ``[children of the root]``, their bytes.
    """

    def __init__(self, token_bytes: tuple[bytes, ...] | list[bytes]) -> None:
        ids = [i for i, b in enumerate(token_bytes) if b]
        ids.sort(key=lambda i: token_bytes[i])
        self.token_bytes = token_bytes
        self.order = np.array(ids, np.uint32)
        offset = np.zeros(len(ids) + 1, np.int64)
        np.cumsum([len(token_bytes[i]) for i in ids], out=offset[1:])
        text = np.frombuffer(b"".join([token_bytes[i] for i in ids]), np.uint8)
        self.lo, self.hi, self.end, self.first, self.byte, self.depth = _build(text, offset)
        children = slice(self.first[ROOT], self.first[ROOT + 1])
        self.root_bounds = np.append(self.lo[children], self.hi[ROOT]).astype(np.int32)
        self.root_bytes = self.byte[children].astype(np.int64)

    @classmethod
    def of(cls, vocab: ByteVocab) -> TokenTrie:
        """The trie of a vocabulary, built at the first call and kept with the vocabulary."""
        trie: TokenTrie | None = vocab.__dict__.get("_trie")
        if trie is None:
            trie = vocab.__dict__["_trie"] = cls(vocab.token_bytes)
        return trie

    @cached_property
    def row_order(self) -> RowOrder:
        """The order of rows: ids without bytes stand behind ``order``.

        The ranges that are summed are those of the root's children, and what is behind.
        """
        behind = [i for i, b in enumerate(self.token_bytes) if not b]
        ids = np.concatenate([self.order, np.array(behind, np.uint32)]).astype(np.int64)
        return RowOrder(ids, np.append(self.root_bounds, len(ids)).astype(np.int64))

    def __len__(self) -> int:
        """How many nodes there are."""
        return len(self.lo)

    def child(self, node: int, b: int) -> int:
        """The child of ``node`` along byte ``b``, or -1."""
        return int(find_child(self.first, self.byte, node, b))

    def descend(self, data: bytes) -> int:
        """The node that ``data`` leads to from the root, or -1."""
        node = ROOT
        for b in data:
            node = self.child(node, b)
            if node < 0:
                return -1
        return node

    def prefix(self, node: int) -> bytes:
        """The bytes that lead from the root to ``node``."""
        return self.token_bytes[self.order[self.lo[node]]][: self.depth[node]]

    def tokens_at(self, node: int) -> NDArray[np.uint32]:
        """The ids of the tokens that end exactly at ``node``."""
        return self.order[self.lo[node] : self.end[node]]
