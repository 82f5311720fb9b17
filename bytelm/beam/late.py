"""Evaluations that come late: deferred items whose time has come, and the last resort.

What a beam deferred is evaluated when it weighs enough beside what is kept, or when nothing else is
left; see ``bytelm.beam.reference``. When nothing is left at all, the canonical tokenization is
evaluated: always with its exact weight, which follows from that of a candidate that begins alike::

    known     The| capital| sep‖ara          weight w
    back      The| capital‖                  w − log p(" sep") − log of the mass of "ara"
    wanted    The| capital| separ‖ab         … + log p(" separ") + log of the mass of "ab"

This module knows beams and rows; it must not know how a beam prunes or mixes.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple, Self

from bytelm.beam import kernels
from bytelm.beam.deferred import Deferred, Item, Path, log_sum
from bytelm.beam.ration import LATE
from bytelm.beam.rows import Row, RowSource
from bytelm.errors import VocabError
from bytelm.threads import by_length
from bytelm.vocabulary.trie import TokenTrie
from bytelm.vocabulary.vocab import ByteVocab

MOST = 64
"""So many evaluations are made for a last resort at most; else it keeps more of a candidate."""
KEPT = 4
"""Then all but so many of the candidate's tokens are kept."""

Extended = Callable[[Path, int], Path | None]
"""A candidate's tokens and one more that has ended; None where it may not."""


class Part(NamedTuple):
    """A candidate below the root that joins a beam; see ``kernels``."""

    path: Path
    weight: float
    node: int
    mass: float
    piece: kernels.Pieces

    @classmethod
    def of(cls, path: Path, weight: float, row: Row, trie: TokenTrie, node: int) -> Self | None:
        """Tokens of this weight with what leads to ``node`` behind them, if that has any mass."""
        lo, hi = trie.lo[node], trie.hi[node]
        log_mass = row.log_mass(lo, hi) if node >= 0 else -math.inf
        if log_mass == -math.inf:
            return None
        piece, mass = row.piece(lo, hi)
        return cls(path, weight + log_mass, node, mass, piece)


async def settle(
    source: RowSource,
    deferred: Deferred,
    log_z: float,
    log_threshold: float,
    fits: Callable[[int], bool],
    extended: Extended,
) -> tuple[list[Part], Deferred]:
    """Evaluates the items whose time has come.

    Args:
        source: evaluates contexts.
        deferred: what is deferred, the byte consumed included.
        log_z: the log of what is kept.
        log_threshold: the share of all from which on an item is evaluated, as a log.
        fits: whether so many tokens can be evaluated.
        extended: adds a token.

    Returns:
        The candidates that they became, and what is still deferred.
    """
    least = log_sum([log_z, deferred.log_mass]) + log_threshold
    if log_z > -math.inf and not any(share > least for share in deferred.shares):
        return [], deferred
    items, found = list(deferred.items), list[Part]()
    left = LATE if source.is_prepared else sys.maxsize
    while items and left:
        due = sorted((i for i in items if i.share > least), key=lambda i: -i.share)[:left]
        if not due and not found and log_z == -math.inf and not source.is_prepared:
            due = [max(items, key=lambda item: item.share)]
        if not due:
            break
        left -= len(due)
        taken = {id(item) for item in due}  # whatever their length
        items = [item for item in items if id(item) not in taken]
        rows = await gather([source.evaluate(item.path) for item in due])
        for item, row in zip(due, rows, strict=True):
            node = source.trie.descend(item.since)
            part = Part.of(item.path, item.weight, row, source.trie, node)
            found += [part] if part is not None else []
            items += _ended_since(source, item, row, fits, extended)
    return found, Deferred.of(items, deferred.rest)


def _ended_since(
    source: RowSource, item: Item, row: Row, fits: Callable[[int], bool], extended: Extended
) -> Iterable[Item]:
    """An item's bytes as a token that ended meanwhile, and the bytes since that one."""
    if not fits(len(item.path) + 1):
        return
    trie = source.trie
    for cut in range(1, len(item.since)):
        node = trie.descend(item.since[:cut])
        if node < 0:
            return
        since = item.since[cut:]
        stands = source.stand_in.log_of(since, item.since[:cut])
        for place in range(trie.lo[node], trie.end[node]):
            log_p = row.log_mass(place, place + 1)
            path = extended(item.path, int(trie.order[place])) if log_p > -math.inf else None
            if path is not None:
                weight = item.weight + log_p
                yield Item(path, since, weight, weight + stands)


class Known(NamedTuple):
    """A candidate whose weight is known; its partial token is what leads to ``node``."""

    path: Path
    weight: float
    node: int


async def canonical(
    source: RowSource,
    anchor: int,
    text: bytes,
    whole: bool,
    known: Sequence[Known],
    fits: Callable[[int], bool],
) -> tuple[Path, float, bytes, Row] | None:
    """The canonical tokenization of a text, its last token ended or under way.

    Args:
        source: evaluates contexts.
        anchor: how many tokens are before the text.
        text: the text.
        whole: whether its last token has ended.
        known: the candidates of the state that it is wanted for, at least one.
        fits: whether so many tokens can be evaluated.

    Returns:
        Its tokens, their log-probability, the partial token, and the row after the tokens; None if
        it has no probability, does not fit, or does not exist.
    """
    spelled = await by_length(len(text), spell, source.vocab, source.trie, text, whole)
    if spelled is None:
        return None
    tokens, partial = spelled
    paths = [(*one.path[:anchor], *tokens) for one in known]
    alike = [_alike(one.path, path) for one, path in zip(known, paths, strict=True)]
    costs = [len(k.path) + len(p) - 2 * n for k, p, n in zip(known, paths, alike, strict=True)]
    nearest = min(range(len(known)), key=costs.__getitem__)
    base, path, n = known[nearest], paths[nearest], alike[nearest]
    if costs[nearest] > (LATE if source.is_prepared else MOST):
        n = max(anchor, len(base.path) - KEPT)
        before = source.vocab.decode(base.path[anchor:n])
        rest = text[len(before) :]
        spelled = await by_length(len(rest), spell, source.vocab, source.trie, rest, whole)
        if spelled is None:
            return None
        path, partial = (*base.path[:n], *spelled[0]), spelled[1]
        n = _alike(base.path, path)
    if not fits(len(path)):
        return None
    contexts = [base.path[:m] for m in range(n, len(base.path) + 1)]
    contexts += [path[:m] for m in range(n + 1, len(path) + 1)]
    rows = dict(zip(contexts, await gather([source.evaluate(c) for c in contexts]), strict=True))
    trie = source.trie
    weight = base.weight
    if base.node:
        weight -= rows[base.path].log_mass(trie.lo[base.node], trie.hi[base.node])
    for m in range(n, len(base.path)):
        weight -= rows[base.path[:m]].log_prob(base.path[m])
    for m in range(n, len(path)):
        weight += rows[path[:m]].log_prob(path[m])
    return None if weight == -math.inf else (path, weight, partial, rows[path])


def spell(vocab: ByteVocab, trie: TokenTrie, text: bytes, whole: bool) -> tuple[Path, bytes] | None:
    """The canonical tokens of a text, and what is left of it as the last one's beginning.

    Where not every byte is a token, of as much of the text as has some.
    """
    shortest = len(text) if whole else max(0, len(text) - int(trie.depth.max()))
    for cut in range(len(text), shortest - 1, -1):
        if trie.descend(text[cut:]) < 0:
            continue
        try:
            tokens = tuple(vocab.encode(text[:cut]))
        except VocabError:
            continue
        if whole or cut < len(text) or not tokens:
            return tokens, text[cut:]
        return tokens[:-1], vocab.token_bytes[tokens[-1]]
    return None


def _alike(one: Path, other: Path) -> int:
    """How many tokens two paths begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


async def gather(calls: Sequence[Awaitable[Row]]) -> list[Row]:
    """The results of all calls, run concurrently; if one fails or is cancelled, all end."""
    if len(calls) == 1:
        return [await calls[0]]
    if not calls:
        return []
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
