"""What a beam drops: candidates beyond K, and unlikely ones.

This module must not know evaluations to come.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bytelm.beam.base import B, Beam
from bytelm.beam.deferred import log_sum


def prune(beam: B) -> B:
    """At most K candidates, and always the best.

    Those alone whose share is above the threshold, unless what is dropped is deferred: what
    was evaluated already costs nothing, and matters as soon as a surprising byte comes.
    """
    weight = beam._candidates.weight
    if len(weight) <= 1:
        return beam
    most = len(weight) if beam.params.K is None else min(beam.params.K, len(weight))
    if beam.params.deferred:
        if most == len(weight):
            return beam
    else:
        least = beam.log_weight + beam.params.log_prune_threshold
        most = min(most, max(1, int(np.count_nonzero(weight > least))))
    kept = list(range(most))
    if beam.params.keep_canonical and most < len(weight):
        kept += [i for i in range(most, len(weight)) if is_canonical(beam, i)]
    return keeping(beam, kept)


def keeping(beam: B, kept: Sequence[int]) -> B:
    """Some of the candidates below the root alone; the others are dropped."""
    weight = beam._candidates.weight
    if len(kept) == len(weight):
        return beam
    candidates = beam._candidates.chosen(np.array(kept))
    places = {i: place for place, i in enumerate(kept)}
    rows = {(places[i], t): row for (i, t), row in beam._rows.items() if i in places}
    state = beam._with([beam._paths[i] for i in kept], candidates, rows=rows)
    if beam._extended_by is not None:
        found = [one for one in beam._extended_by if one.key[0] in places]
        state._extended_by = [one._replace(key=(places[one.key[0]], one.key[1])) for one in found]
    if beam.params.deferred:
        dropped = log_sum([w for i, w in enumerate(weight.tolist()) if i not in places])
        state._deferred = beam._deferred.without(dropped)
    return state


def is_canonical(beam: Beam, which: int) -> bool:
    """Whether a candidate is the canonical tokenization of the text."""
    tokens = beam.source.trie.tokens_at(beam._candidates.node[which]).tolist()
    return beam._judge is not None and beam._judge.is_canonical(
        beam._paths[which], tokens, len(beam._anchor)
    )
