"""How many evaluations the walk behind a trunk takes, whatever the text.

The canonical ones are asked for in advance; of others, each byte of the walk has its share. Where
ambiguous bytes took more than theirs, the walk goes on narrow until its share has grown again: it
takes what was asked for, and of others the one that has more than half of the probability, if any.

This module must not know beams.
"""

from __future__ import annotations

from dataclasses import replace

from bytelm.beam.params import BeamParams

RATION = 24
"""Evaluations of one walk, those in advance included."""
MOST = 25
"""With so many evaluations, those in advance included, a walk ends: only the canonical goes on."""
LATE = 4
"""Evaluations that may come late at one byte: of deferred items, and of a last resort."""
NARROW = 0.5
"""The threshold of a walk that took more than its share."""


def narrowed(own: BeamParams) -> BeamParams:
    """A beam's parameters in a walk that took more; of one without a threshold, its own."""
    if not own.prune_threshold:
        return own
    return replace(own, prune_threshold=max(own.prune_threshold, NARROW))
