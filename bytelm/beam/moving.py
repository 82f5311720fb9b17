"""How a beam moves by a byte, or ends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate

import numpy as np

from bytelm.beam import kernels, read_ahead
from bytelm.beam.base import B, Wanted
from bytelm.beam.candidates import NONE, Candidates
from bytelm.beam.deferred import NOTHING, Deferred, Path, log_sum
from bytelm.beam.extending import (
    RESORT,
    Opened,
    canonical_of,
    extended,
    last_resort,
    open_all,
    prob_of_end,
    weighed,
)
from bytelm.beam.healing import heal
from bytelm.beam.late import Part, settle
from bytelm.beam.saying import why_empty
from bytelm.errors import EmptyBeam
from bytelm.models.logprobs import EOS, check_symbol
from bytelm.vocabulary.trie import ROOT


@read_ahead.walking
async def moved_by(beam: B, b: int) -> B:
    """The state after ``b``, however long its candidates are."""
    b = check_symbol(b)
    beam._check_open()
    trie, deferred = beam.source.trie, beam.params.deferred
    log_z, parent, *moved = kernels.advance(
        *beam._candidates, trie.lo, trie.hi, trie.first, trie.byte, b
    )
    if deferred and beam._chosen is not None:
        wanted, others = beam._chosen
    else:
        need_one = not len(parent) and not (deferred and beam._mixed().any())
        wanted, others = await weighed(beam, beam.log_weight if deferred else log_z, need_one)
    begins = b == EOS or trie.child(ROOT, b) >= 0
    opened = await open_all(beam, wanted) if begins else []
    if b == EOS:
        state = await at_eos(beam, opened, others)
    else:
        opened = [o for o in opened if o.row.root[b] > 0.0]
        paths = [beam._paths[i] for i in parent.tolist()]
        child = trie.child(ROOT, b)
        parts = [o.moved(trie, child, b) for o in opened]
        candidates = Candidates(*moved)
        if deferred:
            held = beam._deferred
            for one in wanted:
                held = held.beside(one.path) if one.key == RESORT else held
            state = await settled(beam, paths, candidates, log_z, parts, b, held, others)
        else:
            state = joined(beam, paths, candidates, parts)
    if not len(state):
        healed = await heal(beam, b) if beam.params.heal and not deferred else None
        if healed is None:
            raise EmptyBeam(why_empty(beam, b))
        state = healed
    if beam.params.verbose:
        print(f"\n{state!r}")
    return state


async def settled(
    beam: B,
    paths: list[Path],
    moved: Candidates,
    log_z: float,
    parts: list[Part],
    b: int,
    deferred: Deferred,
    others: Sequence[Wanted],
) -> B:
    """The state after ``b`` with what is deferred; empty when nothing has any probability.

    Args:
        beam: the state before it.
        paths: of the candidates that moved by ``b``.
        moved: these.
        log_z: what their weights sum to, as a log.
        parts: the evaluated extensions, moved by ``b``.
        b: the byte.
        deferred: what was deferred before it.
        others: the extensions that were not evaluated.
    """
    source, params = beam.source, beam.params
    q = float(beam._stand_in()[b])
    log_q = math.log(q) if q > 0.0 else -math.inf
    deferred = deferred.after(b, log_q, [(o.path, o.weight) for o in others])
    log_z = log_sum([log_z, *(part.weight for part in parts)])
    late, deferred = await settle(
        source, deferred, log_z, params.log_prune_threshold, beam._fits, partial(extended, beam)
    )
    if not paths and not parts and not late:
        text = beam._text + bytes([b])
        found = await canonical_of(beam, text, whole=False)
        if found is not None:
            path, weight, begun, row = found
            node = source.trie.descend(begun)
            late = [part] if (part := Part.of(path, weight, row, source.trie, node)) else []
            deferred = deferred.beside(path)
    state = joined(beam, paths, moved, [*parts, *late])
    state._deferred = deferred.settled(state.log_weight)
    return state


async def at_eos(beam: B, opened: list[Opened], others: list[Wanted]) -> B:
    """The state after EOS; empty when nothing can end here."""
    spare = sorted(others, key=lambda one: one.weight)
    while beam.params.deferred and not any(prob_of_end(beam, one) for one in opened):
        is_last = not spare
        opened = await open_all(beam, await last_resort(beam) if is_last else [spare.pop()])
        if is_last:
            break
    ended = [(o.path, o.weight + math.log(p)) for o in opened if (p := prob_of_end(beam, o)) > 0.0]
    ended.sort(key=lambda one: -one[1])
    state = beam._with((), NONE, ended, terminated=True)
    state._deferred = NOTHING
    return state


def joined(beam: B, paths: list[Path], moved: Candidates, parts: Iterable[Part | None]) -> B:
    """The beam of candidates that moved already, best first, and of others that join them."""
    joining = [part for part in parts if part is not None]
    if not joining:
        return beam._with(paths, moved)
    sizes = [len(moved.pieces), *(len(part.piece) for part in joining)]
    weight = [*moved.weight.tolist(), *(part.weight for part in joining)]
    node = [*moved.node.tolist(), *(part.node for part in joining)]
    start = [*moved.start.tolist(), *list(accumulate(sizes))[:-1]]
    mass = [*moved.mass.tolist(), *(part.mass for part in joining)]
    paths = [*paths, *(part.path for part in joining)]
    ranks = sorted(range(len(weight)), key=weight.__getitem__, reverse=True)
    candidates = Candidates(
        np.array([weight[i] for i in ranks]),
        np.array([node[i] for i in ranks], np.int32),
        np.array([start[i] for i in ranks], np.int64),
        np.array([mass[i] for i in ranks]),
        np.concatenate([moved.pieces, *(part.piece for part in joining)]),
    )
    return beam._with([paths[i] for i in ranks], candidates)
