"""The byte beam: sums over tokenizations, pruned to the likely ones."""

from bytelm.beam.candidates import Candidate
from bytelm.beam.deferred import POINTER, Path
from bytelm.beam.late import gather
from bytelm.beam.params import BeamParams
from bytelm.beam.state import ByteBeamState

__all__ = ["POINTER", "BeamParams", "ByteBeamState", "Candidate", "Path", "gather"]
