"""The byte beam: sums over tokenizations, pruned to the likely ones."""

from bytelm.beam.params import BeamParams
from bytelm.beam.state import POINTER, ByteBeamState, Candidate, Path, gather

__all__ = ["POINTER", "BeamParams", "ByteBeamState", "Candidate", "Path", "gather"]
