"""Beams as bytes: what is kept of a state to make it again, later or elsewhere.

A beam is its candidates: tokens, the bytes of a token under way, weight. All else follows from
their rows, which can be evaluated again, one evaluation for each distinct context. Candidates begin
with the same tokens and differ in the last few, so a snapshot has two parts::

    trunk    The| capital| of| the        tokens that all candidates begin with; it only grows
    head     | little‖ to, | li|t‖tle …   what each has behind it, and its numbers

Whoever stores many snapshots of one text need not write the trunk again each time.

This module knows beams; it must not know who stores a snapshot, nor where.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bytelm.beam import BeamParams, ByteBeamState, Path, gather, kernels
from bytelm.beam.deferred import NOTHING, Deferred, Item
from bytelm.beam.judge import is_strayed, strayed
from bytelm.beam.rows import Row, RowSource
from bytelm.errors import EmptyBeam, SnapshotError
from bytelm.models.token_lm import AsyncTokenLM
from bytelm.vocabulary.trie import ROOT, TokenTrie

GROWTH = 64
"""A trunk grows by a multiple of so many tokens."""

# The second form has deferred items behind all else.
_FORMAT, _WITH_ITEMS = 1, 2
# Format, flags, length of the anchor, of the trunk, candidates, bytes of the longest partial.
_HEADER = struct.Struct("<BBIIII")
# The third flag is new: of what has it not, nobody knows.
_TERMINATED, _IS_CUT, _IS_WEIGHED = 1, 2, 4
# In the length of a path: it is known to begin no canonical tokenization. Its last tokens alone,
# which are all that a new judgement would look at, may not show that.
_STRAYED = 1 << 31
# Items, bytes of the longest one's, the remainder.
_DEFERRED = struct.Struct("<IId")


@dataclass(frozen=True)
class _Kept:
    """What a head says of each candidate; ``partial`` is the longest, others are its ends."""

    terminated: bool
    is_cut: bool
    is_weighed: bool
    anchor: int
    suffixes: list[Path]
    partials: NDArray[np.int32]
    weights: NDArray[np.float64]
    masses: NDArray[np.float64]
    partial: bytes
    deferred: Deferred  # the items' paths without the trunk


@dataclass(frozen=True)
class Snapshot:
    """A beam without its rows.

    Attributes:
        trunk: token ids that all candidates begin with.
        head: the rest, in a form of its own.
    """

    trunk: Path
    head: bytes

    @classmethod
    def of(cls, state: ByteBeamState, before: Path = ()) -> Self:
        """What there is to keep of a state.

        Args:
            state: any state.
            before: the trunk of an earlier snapshot; the new trunk begins with it if all
                candidates do.
        """
        candidates, roots = state._candidates, state._roots
        paths = [*state._paths, *(path for path, _ in roots)]
        deferred = state._deferred
        trunk = _trunk([*paths, *(item.path for item in deferred.items)], before)
        suffixes = [path[len(trunk) :] for path in paths]
        trie = state.source.trie
        below = len(roots)
        partials = np.append(trie.depth[candidates.node], np.zeros(below, np.int32))
        weights = np.append(candidates.weight, [weight for _, weight in roots])
        masses = np.append(candidates.mass, np.zeros(below))
        longest = int(partials.argmax())
        partial = trie.prefix(candidates.node[longest]) if partials[longest] else b""
        flags = _TERMINATED * state.terminated | _IS_CUT * state._is_cut
        flags |= _IS_WEIGHED * state._is_weighed
        form = _FORMAT if deferred == NOTHING else _WITH_ITEMS
        header = _HEADER.pack(form, flags, len(state._anchor), len(trunk), len(paths), len(partial))
        parts = [
            _lengths(paths, len(trunk)),
            partials.astype("<i4"),
            weights.astype("<f8"),
            masses.astype("<f8"),
            np.array([token for suffix in suffixes for token in suffix], "<u4"),
        ]
        head = [header, partial, *(part.tobytes() for part in parts)]
        if form == _WITH_ITEMS:
            head.append(_packed(deferred, len(trunk)))
        return cls(trunk, b"".join(head))

    async def restored(self, lm: AsyncTokenLM, params: BeamParams) -> ByteBeamState:
        """The state again: the same distributions wherever the model gives the same rows.

        Args:
            lm: the same model.
            params: the same parameters.

        Raises:
            SnapshotError: when the snapshot is damaged, or another vocabulary's.
            EmptyBeam: when the model gives no probability to any candidate any more.
        """
        kept = self._read()
        source = RowSource(lm, params.eos_byte_strings, params.special_tokens == "literal")
        paths = [self._whole(suffix) for suffix in kept.suffixes]
        size = source.vocab.size
        if any(token >= size for token in self.trunk) or any(
            token >= size
            for suffix in [*kept.suffixes, *(item.path for item in kept.deferred.items)]
            for token in suffix
        ):
            raise SnapshotError("the snapshot has tokens that the vocabulary has not")
        anchor = paths[0][: kept.anchor]
        state = ByteBeamState(
            source,
            params,
            anchor,
            terminated=kept.terminated,
            is_cut=kept.is_cut,
            is_weighed=kept.is_weighed,
        )
        weights = kept.weights.tolist()
        state._roots = [
            (path, weight)
            for path, weight, length in zip(paths, weights, kept.partials, strict=True)
            if not length
        ]
        whole = [i._replace(path=self._whole(i.path)) for i in kept.deferred.items]
        state._deferred = Deferred.of(whole, kept.deferred.rest)
        if under_way := [i for i, length in enumerate(kept.partials) if length]:
            await _reopen(state, [paths[i] for i in under_way], kept, under_way)
        return state

    def _whole(self, suffix: Path) -> Path:
        path = (*self.trunk, *suffix)
        return strayed(path) if is_strayed(suffix) else path

    def _read(self) -> _Kept:
        try:
            form, flags, anchor, trunk, count, length = _HEADER.unpack_from(self.head)
            at = _HEADER.size
            partial = self.head[at : at + length]
            at += length
            arrays = []
            for dtype in ("<u4", "<i4", "<f8", "<f8"):
                arrays.append(np.frombuffer(self.head, dtype, count, at))
                at += arrays[-1].nbytes
            lengths, partials, weights, masses = arrays
            suffixes, at = _suffixes(self.head, lengths, at)
            deferred = _unpacked(self.head, at) if form == _WITH_ITEMS else NOTHING
        except (struct.error, ValueError) as error:
            raise SnapshotError(f"this is no snapshot: {error}") from error
        if form not in (_FORMAT, _WITH_ITEMS) or not count or trunk != len(self.trunk):
            raise SnapshotError("this is no snapshot of this version, or it has another trunk")
        if partials.min() < 0 or partials.max() > length:
            raise SnapshotError("the snapshot has not the bytes that its candidates have")
        return _Kept(
            bool(flags & _TERMINATED),
            bool(flags & _IS_CUT),
            bool(flags & _IS_WEIGHED),
            anchor,
            suffixes,
            partials,
            weights,
            masses,
            partial,
            deferred,
        )


def _lengths(paths: Sequence[Path], trunk: int) -> NDArray[np.uint32]:
    """How many tokens of each path are behind the trunk."""
    return np.array([len(p) - trunk | _STRAYED * is_strayed(p) for p in paths], "<u4")


def _suffixes(head: bytes, lengths: NDArray[np.uint32], at: int) -> tuple[list[Path], int]:
    """The tokens of each path, which are at a place of the head, and the place behind them."""
    found: list[Path] = []
    for length in lengths.tolist():
        n = length & ~_STRAYED
        path = tuple(np.frombuffer(head, "<u4", n, at).tolist())
        found.append(strayed(path) if length & _STRAYED else path)
        at += 4 * n
    return found, at


def _packed(deferred: Deferred, trunk: int) -> bytes:
    """Items without their first ``trunk`` tokens; the bytes of each are the longest one's last."""
    items = deferred.items
    longest = max((item.since for item in items), key=len, default=b"")
    parts = [
        _lengths([item.path for item in items], trunk),
        np.array([len(item.since) for item in items], "<u4"),
        np.array([item.weight for item in items], "<f8"),
        np.array([item.share for item in items], "<f8"),
        np.array([token for item in items for token in item.path[trunk:]], "<u4"),
    ]
    header = _DEFERRED.pack(len(items), len(longest), deferred.rest)
    return b"".join([header, longest, *(part.tobytes() for part in parts)])


def _unpacked(head: bytes, at: int) -> Deferred:
    count, length, rest = _DEFERRED.unpack_from(head, at)
    at += _DEFERRED.size
    longest = head[at : at + length]
    at += length
    arrays = []
    for dtype in ("<u4", "<u4", "<f8", "<f8"):
        arrays.append(np.frombuffer(head, dtype, count, at))
        at += arrays[-1].nbytes
    paths, _ = _suffixes(head, arrays[0], at)
    since, weights, shares = (array.tolist() for array in arrays[1:])
    if max(since, default=0) > len(longest):
        raise ValueError("it has not the bytes that its items have")
    items = [
        Item(path, longest[len(longest) - m :], weight, share)
        for path, m, weight, share in zip(paths, since, weights, shares, strict=True)
    ]
    return Deferred.of(items, rest)


def _trunk(paths: Sequence[Path], before: Path) -> Path:
    """What all paths begin with: ``before``, where they do, and more where there is enough."""
    n = len(before)
    if not all(path[:n] == before for path in paths):
        before, n = (), 0
    # What the first and the last in lexicographic order share, all share.
    first, last = min(paths)[n:], max(paths)[n:]
    shared = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )
    return before + first[: shared - shared % GROWTH]


async def _reopen(
    state: ByteBeamState, paths: list[Path], kept: _Kept, which: Sequence[int]
) -> None:
    """Gives ``state`` the candidates ``which`` again, whose tokens are ``paths``."""
    source = state.source
    spelling = source.spelling_eos()
    rows = await gather([source.evaluate(path) for path in paths])
    found: list[tuple[Path, float, int, kernels.Pieces, float]] = []
    for path, row, i in zip(paths, rows, which, strict=True):
        partial = kept.partial[len(kept.partial) - int(kept.partials[i]) :]
        node = source.trie.descend(partial)
        if node < 0:
            raise SnapshotError(f"no token of the vocabulary begins with {partial!r}")
        # What was read while prefilling may have counted EOS tokens as their bytes.
        readings = [row] if spelling is source else [row, spelling.read(row.made)]
        piece, mass = _piece(source.trie, readings, partial, node, float(kept.masses[i]))
        if mass > 0.0:
            found.append((path, float(kept.weights[i]), node, piece, mass))
    if not found and not state._roots:
        raise EmptyBeam("the model gives no probability to what the snapshot holds")
    if found:
        sizes = [len(piece) for _, _, _, piece, _ in found]
        state._paths = [path for path, *_ in found]
        state._candidates = state._candidates._replace(
            weight=np.array([weight for _, weight, *_ in found]),
            node=np.array([node for _, _, node, *_ in found], np.int32),
            start=np.cumsum([0, *sizes[:-1]], dtype=np.int64),
            mass=np.array([mass for *_, mass in found]),
            pieces=np.concatenate([piece for _, _, _, piece, _ in found]),
        )


def _piece(
    trie: TokenTrie, readings: Sequence[Row], partial: bytes, node: int, mass: float
) -> tuple[kernels.Pieces, float]:
    """The piece of a row below ``node`` and its sum, cut as it was before.

    There are few ways to have cut it; the sum that it had tells which.
    """
    best = (np.zeros(0, np.float32), 0.0)
    distance = math.inf
    for row in readings:
        for cut in (_walked, _healed):
            piece, total = cut(trie, row, partial, node)
            if total == mass:
                return piece, total
            if total > 0.0 and mass > 0.0 and abs(math.log(total / mass)) < distance:
                best, distance = (piece, total), abs(math.log(total / mass))
    return best


def _walked(trie: TokenTrie, row: Row, partial: bytes, node: int) -> tuple[kernels.Pieces, float]:
    """Cut below the first byte, then narrowed by each of the others, as a walk does."""
    child = trie.child(ROOT, partial[0])
    if not row.root[partial[0]] > 0.0:
        return np.zeros(0, np.float32), 0.0
    piece, mass = row.piece(trie.lo[child], trie.hi[child], row.root[partial[0]])
    moved = (np.zeros(1), np.array([child], np.int32), np.zeros(1, np.int64), np.array([mass]))
    for b in partial[1:]:
        _, parent, weight, nodes, start, masses, piece = kernels.advance(
            *moved, piece, trie.lo, trie.hi, trie.first, trie.byte, b
        )
        if not len(parent):
            return np.zeros(0, np.float32), 0.0
        moved = (weight, nodes, start, masses)
    return piece, float(moved[3][0])


def _healed(trie: TokenTrie, row: Row, partial: bytes, node: int) -> tuple[kernels.Pieces, float]:
    """Cut where it stands, as healing does."""
    lo, hi = trie.lo[node], trie.hi[node]
    if row.log_mass(lo, hi) == -math.inf:
        return np.zeros(0, np.float32), 0.0
    return row.piece(lo, hi)
