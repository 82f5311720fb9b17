"""bytelm: byte-level language models out of token-level ones.

The public names are loaded when they are first asked for: ``import bytelm`` costs nothing, and a
client that never computes anything never loads numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bytelm.beam import BeamParams, ByteBeamState
    from bytelm.generating.draws import Draw
    from bytelm.generating.generation import collect, generate
    from bytelm.models.byte_lm import StatefulByteLM
    from bytelm.models.ensemble import Ensemble
    from bytelm.models.logprobs import EOS, Chart, LazyByteProbs
    from bytelm.models.token_lm import StatefulTokenizedLM
    from bytelm.prompts.context import Context, begin
    from bytelm.vocabulary.vocab import ByteVocab

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
    "EOS": "bytelm.models.logprobs",
    "BeamParams": "bytelm.beam",
    "ByteBeamState": "bytelm.beam",
    "ByteVocab": "bytelm.vocabulary.vocab",
    "Chart": "bytelm.models.logprobs",
    "Context": "bytelm.prompts.context",
    "Draw": "bytelm.generating.draws",
    "Ensemble": "bytelm.models.ensemble",
    "LazyByteProbs": "bytelm.models.logprobs",
    "StatefulByteLM": "bytelm.models.byte_lm",
    "StatefulTokenizedLM": "bytelm.models.token_lm",
    "begin": "bytelm.prompts.context",
    "collect": "bytelm.generating.generation",
    "generate": "bytelm.generating.generation",
}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'bytelm' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
