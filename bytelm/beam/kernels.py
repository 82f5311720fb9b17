"""The beam's inner loops, compiled.

The candidates of a beam are arrays of one length n, best first:

    weight  float64  log-probability of the candidate's tokens and partial token
    node    int32    where the partial token stands in the trie, always below the root
    start   int64    where the candidate's piece of its row begins in ``pieces``
    mass    float64  the sum of that piece
    pieces  float32  the pieces of all candidates: probabilities of the tokens below each node,
                     in the trie's order, each piece in a scale of its own; float64 where
                     one of them needs it

This module knows arrays alone.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bytelm.compiled import compiled
from bytelm.models.logprobs import SIZE
from bytelm.vocabulary.trie import find_child, sum_range

F64 = NDArray[np.float64]
Pieces = NDArray[np.floating]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]


@compiled()
def log_sum_exp(weight: F64) -> float:
    """log(sum(exp(weight))); -inf when empty."""
    top = -math.inf
    for w in weight:
        top = max(top, w)
    if top == -math.inf:
        return top
    total = 0.0
    for w in weight:
        total += math.exp(w - top)
    return top + math.log(total)


@compiled()
def mix_children(
    weight: F64,
    node: I32,
    start: I64,
    mass: F64,
    pieces: Pieces,
    lo: I32,
    hi: I32,
    first: I32,
    byte: U8,
    top: float,
) -> F64:
    """The candidates' next bytes, mixed by weight: float64 ``[258]``, in units of exp(top)."""
    total = np.zeros(SIZE)
    for i in range(weight.size):
        x = node[i]
        scale = math.exp(weight[i] - top) / mass[i]
        at = start[i] - lo[x]
        for c in range(first[x], first[x + 1]):
            total[byte[c]] += scale * sum_range(pieces, at + lo[c], at + hi[c])
    return total


@compiled()
def extensions(
    weight: F64,
    node: I32,
    start: I64,
    mass: F64,
    pieces: Pieces,
    lo: I32,
    end: I32,
    order: U32,
) -> tuple[I64, I64, F64]:
    """The tokens that may end at the candidates' nodes.

    Returns:
        Candidate index, token id and weight of each.
    """
    most = 0
    for i in range(weight.size):
        most += end[node[i]] - lo[node[i]]
    parent = np.empty(most, np.int64)
    token = np.empty(most, np.int64)
    extended = np.empty(most, np.float64)
    n = 0
    for i in range(weight.size):
        x = node[i]
        for j in range(end[x] - lo[x]):
            p = pieces[start[i] + j]
            if p > 0.0:
                parent[n] = i
                token[n] = order[lo[x] + j]
                extended[n] = weight[i] + math.log(p / mass[i])
                n += 1
    return parent[:n], token[:n], extended[:n]


@compiled()
def advance(
    weight: F64,
    node: I32,
    start: I64,
    mass: F64,
    pieces: Pieces,
    lo: I32,
    hi: I32,
    first: I32,
    byte: U8,
    b: int,
) -> tuple[float, I64, F64, I32, I64, F64, Pieces]:
    """Moves every candidate by byte ``b``; those that cannot are dropped.

    Returns:
        The survivors' summed log-weight; of each, best first, the index that it had, and its new
        weight, node, start, mass and pieces.
    """
    n = weight.size
    parent = np.empty(n, np.int64)
    new_node = np.empty(n, np.int32)
    new_start = np.empty(n, np.int64)
    kept = 0
    size = 0
    for i in range(n):
        c = find_child(first, byte, node[i], b)
        if c >= 0:
            parent[kept] = i
            new_node[kept] = c
            new_start[kept] = size
            size += hi[c] - lo[c]
            kept += 1
    new_weight = np.empty(kept, np.float64)
    new_mass = np.empty(kept, np.float64)
    new_pieces = np.empty(size, pieces.dtype)
    alive = 0
    for k in range(kept):
        i = parent[k]
        c = new_node[k]
        at = start[i] - lo[node[i]]
        m = sum_range(pieces, at + lo[c], at + hi[c])
        if m > 0.0:
            new_pieces[new_start[k] : new_start[k] + hi[c] - lo[c]] = pieces[
                at + lo[c] : at + hi[c]
            ]
            parent[alive] = i
            new_node[alive] = c
            new_start[alive] = new_start[k]
            new_mass[alive] = m
            new_weight[alive] = weight[i] + math.log(m / mass[i])
            alive += 1
    for k in range(1, alive):
        w, i, c, at, m = new_weight[k], parent[k], new_node[k], new_start[k], new_mass[k]
        j = k
        while j and new_weight[j - 1] < w:
            new_weight[j], parent[j] = new_weight[j - 1], parent[j - 1]
            new_node[j], new_start[j] = new_node[j - 1], new_start[j - 1]
            new_mass[j] = new_mass[j - 1]
            j -= 1
        new_weight[j], parent[j], new_node[j], new_start[j], new_mass[j] = w, i, c, at, m
    return (
        log_sum_exp(new_weight[:alive]),
        parent[:alive],
        new_weight[:alive],
        new_node[:alive],
        new_start[:alive],
        new_mass[:alive],
        new_pieces,
    )


def warm_up() -> None:
    """Compiles what only beams with float64 pieces need: seconds, where nothing is cached."""
    one, none = np.ones(1), np.zeros(1, np.int32)
    candidates = one, none, np.zeros(1, np.int64), one, one
    nodes, byte = np.zeros(2, np.int32), np.zeros(1, np.uint8)
    mix_children(*candidates, none, none, nodes, byte, 0.0)
    extensions(*candidates, none, none, np.zeros(1, np.uint32))
    advance(*candidates, none, none, nodes, byte, 0)
