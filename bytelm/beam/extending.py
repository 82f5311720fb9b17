"""Extending a beam's candidates: which are evaluated, and their evaluations.

This module must not know what a beam does with them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import NamedTuple

from bytelm.beam import kernels, read_ahead
from bytelm.beam.base import Beam, Wanted
from bytelm.beam.deferred import Path, log_sum
from bytelm.beam.late import Known, Part, canonical, gather
from bytelm.beam.rows import Row
from bytelm.models.logprobs import EOS
from bytelm.vocabulary.trie import ROOT, TokenTrie

RESORT = (-2, 0)
"""The key of the last resort."""


class Opened(NamedTuple):
    """A candidate at the root of the trie, with the evaluation of its tokens."""

    path: Path
    weight: float
    row: Row

    def moved(self, trie: TokenTrie, child: int, b: int) -> Part:
        """One byte on, which leads to ``child``."""
        share = self.row.root[b]
        piece, mass = self.row.piece(trie.lo[child], trie.hi[child], share)
        return Part(self.path, self.weight + math.log(share), child, mass, piece)


def extensions_of(beam: Beam) -> list[Wanted]:
    """All that may end here, as long as it may be; kept with the state."""
    if beam._extended_by is None:
        trie = beam.source.trie
        ended = kernels.extensions(*beam._candidates, trie.lo, trie.end, trie.order)
        beam._extended_by = [
            Wanted((i, t), path, w)
            for i, t, w in zip(*(array.tolist() for array in ended), strict=True)
            if (path := extended(beam, beam._paths[i], t)) is not None
        ]
    return beam._extended_by


def extended(beam: Beam, path: Path, token: int) -> Path | None:
    """``path`` and a token that ended behind it; None if it may not."""
    if beam._judge is None:
        return (*path, token)
    return beam._judge.extended(path, token, len(beam._anchor))


async def weighed(beam: Beam, log_z: float, need_one: bool) -> tuple[list[Wanted], list[Wanted]]:
    """The candidates at the root with the extensions that weigh enough, and the others.

    Args:
        beam: the state.
        log_z: what the extensions' weights are added to before they are compared with it.
        need_one: take the heaviest extension if none weighs enough.
    """
    found = extensions_of(beam)
    if found and not beam._fits(beam._longest + 1):
        found = [one for one in found if beam._fits(len(one.path))]
    wanted: list[Wanted] = []
    others: list[Wanted] = []
    if found:
        least = log_sum([log_z, *(one.weight for one in found)])
        least += beam.params.log_prune_threshold
        for one in found:
            # What was asked for in advance costs nothing.
            enough = one.weight > least or beam.source.knows(one.path)
            (wanted if enough else others).append(one)
    if beam._roots:
        roots = [Wanted((-1, i), *root) for i, root in enumerate(beam._roots)]
        wanted = wanted + [one for one in roots if beam._fits(len(one.path))]
    if not wanted and need_one:
        others.sort(key=lambda one: -one.weight)
        wanted, others = others[:1], others[1:]
        if not wanted and beam.params.deferred:
            wanted = await last_resort(beam)
    return wanted, others


async def last_resort(beam: Beam) -> list[Wanted]:
    """The canonical tokenization of the text, where nothing else can go on."""
    found = await canonical_of(beam, beam._text, whole=True)
    if found is None:
        return []
    path, weight, _, beam._rows[RESORT] = found
    return [Wanted(RESORT, path, weight)]


async def canonical_of(
    beam: Beam, text: bytes, whole: bool
) -> tuple[Path, float, bytes, Row] | None:
    """See ``late.canonical``."""
    nodes = beam._candidates.node.tolist()
    known = [
        Known(path, float(weight), node)
        for path, weight, node in zip(beam._paths, beam._candidates.weight, nodes, strict=True)
    ]
    known += [Known(path, weight, ROOT) for path, weight in beam._roots]
    return await canonical(beam.source, len(beam._anchor), text, whole, known, beam._fits)


def prob_of_end(beam: Beam, one: Opened) -> float:
    """The probability that the text ends behind tokens that ended."""
    may_end = beam._judge is None or beam._judge.may_end(one.path, len(beam._anchor))
    return float(one.row.root[EOS]) if may_end else 0.0


async def open_all(beam: Beam, wanted: Sequence[Wanted]) -> list[Opened]:
    """Evaluates what was not evaluated yet."""
    missing = [one for one in wanted if one.key not in beam._rows]
    if missing:
        if not beam.source.is_prepared and read_ahead.is_idle(beam.source.lm):
            ask_ahead(beam, missing)
        await gather([row_of(beam, one) for one in missing])
        beam._ahead = beam._ahead.without(one.path for one in missing)
    return [Opened(one.path, one.weight, beam._rows[one.key]) for one in wanted]


async def row_of(beam: Beam, one: Wanted) -> Row:
    """Its evaluation: the first call that wants it makes it, the others wait for that.

    They fail if it fails; if the first one was cancelled, the next makes it.
    """
    while (row := beam._rows.get(one.key)) is None:
        opening = beam._opening.get(one.key)
        if opening is not None:
            await asyncio.wait([opening])
            if opening.cancelled():
                continue
            return opening.result()
        opening = beam._opening[one.key] = asyncio.get_running_loop().create_future()
        try:
            row = beam._rows[one.key] = await evaluate(beam, one)
            opening.set_result(row)
        except Exception as error:
            opening.set_exception(error)
            opening.exception()  # there may be no others
            raise
        finally:
            del beam._opening[one.key]
            opening.cancel()
    return row


async def evaluate(beam: Beam, one: Wanted) -> Row:
    """Its evaluation, which may have been asked for in advance."""
    which, token = one.key
    answer = beam._ahead.find(beam._paths[which], token) if which >= 0 else None
    if answer is None:
        return await beam.source.evaluate(one.path)
    return beam.source.read(await answer)


def ask_ahead(beam: Beam, missing: Sequence[Wanted]) -> None:
    """Begin evaluations that will probably be asked for after those that are missing now."""
    trie, (_, nodes, starts, _, pieces) = beam.source.trie, beam._candidates
    threshold = beam.params.prune_threshold
    soon: list[tuple[Path, int]] = []
    for i in dict.fromkeys(one.key[0] for one in missing):
        if i >= 0 and beam._fits(len(beam._paths[i]) + 1):
            size = trie.hi[nodes[i]] - trie.lo[nodes[i]]
            piece = pieces[starts[i] : starts[i] + size]
            coming = read_ahead.coming(trie, int(nodes[i]), piece, threshold)
            soon += [(beam._paths[i], token) for token in coming]
    beam._ahead = beam._ahead.asking(beam.source.lm, soon[: read_ahead.MOST])
