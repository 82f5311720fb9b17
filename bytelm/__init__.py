"""bytelm: byte-level language models out of token-level ones.

The public names are loaded when they are first asked for: ``import bytelm`` costs nothing, and a
client that never computes anything never loads numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bytelm.beam import BeamParams, ByteBeamState
    from bytelm.byte_lm import StatefulByteLM
    from bytelm.context import Context, begin
    from bytelm.draws import Draw
    from bytelm.ensemble import Ensemble
    from bytelm.generation import collect, generate
    from bytelm.logprobs import EOS, Chart, LazyByteProbs
    from bytelm.token_lm import StatefulTokenizedLM
    from bytelm.vocab import ByteVocab

__all__ = [
    "EOS",
    "BeamParams",
    "ByteBeamState",
    "ByteVocab",
    "Chart",
    "Context",
    "Draw",
    "Ensemble",
    "LazyByteProbs",
    "StatefulByteLM",
    "StatefulTokenizedLM",
    "begin",
    "collect",
    "generate",
]

_HOME_OF = {
    "EOS": "bytelm.logprobs",
    "BeamParams": "bytelm.beam",
    "ByteBeamState": "bytelm.beam",
    "ByteVocab": "bytelm.vocab",
    "Chart": "bytelm.logprobs",
    "Context": "bytelm.context",
    "Draw": "bytelm.draws",
    "Ensemble": "bytelm.ensemble",
    "LazyByteProbs": "bytelm.logprobs",
    "StatefulByteLM": "bytelm.byte_lm",
    "StatefulTokenizedLM": "bytelm.token_lm",
    "begin": "bytelm.context",
    "collect": "bytelm.generation",
    "generate": "bytelm.generation",
}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'bytelm' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
