"""Every error that bytelm raises on purpose.

::

    BytelmError (Exception)
    ├── InputError (ValueError)          something a caller gave is wrong
    │   ├── VocabError                   a tokenizer whose bytes cannot be known, an unknown token
    │   │   └── RowError                 a model's answer that is no distribution over its tokens
    │   ├── ByteError                    a byte outside 0..255 (or 257, EOS)
    │   ├── BeamError                    beam parameters outside their range
    │   │   └── EosGivenTwice (TypeError)  eos_byte_strings, and its deprecated name, too
    │   ├── EmptyBeam                    no tokenization continues with the byte that was given
    │   ├── Terminated                   a state after EOS cannot go on
    │   ├── DrawError                    parameters of a draw outside their range, nothing to draw
    │   ├── MethodError                  an option that the wanted way of drawing cannot keep
    │   ├── Utf8Error                    no byte that is likely at all continues valid UTF-8
    │   ├── UnknownModel                 a model path or name that cannot be loaded
    │   ├── SnapshotError                bytes that are no snapshot of a state on this model
    │   └── ContextTooLong               more tokens than the model can take
    └── EngineError (RuntimeError)       the machinery failed, not the caller
        ├── EngineDead                   an engine process ended; no call can be answered
        └── EngineStartError             the engine could not be started
"""

from typing import Self


class BytelmError(Exception):
    """The root of all errors raised by bytelm."""


class InputError(BytelmError, ValueError):
    """Something that the caller gave is wrong; the message says what, and what to do."""


class VocabError(InputError):
    """The bytes of a vocabulary cannot be known, or a token is not in it."""


class RowError(VocabError):
    """A model's answer is no distribution over its vocabulary: of another shape, NaN, +inf."""


class ByteError(InputError):
    """A byte value outside 0..255 that is not EOS (257) either."""


class BeamError(InputError):
    """Beam parameters outside their range."""


class EosGivenTwice(BeamError, TypeError):
    """``eos_byte_strings`` and its deprecated name, both given; a TypeError as in genlm-bytes."""


class EmptyBeam(InputError):
    """No candidate, extension or healed tokenization continues with the byte that was given."""


class Terminated(InputError):
    """The state has consumed EOS; nothing can follow."""


class DrawError(InputError):
    """Parameters of a draw outside their range, or a distribution without any probability."""


class MethodError(InputError):
    """A text cannot be drawn by tokens; ``option`` names what stands against it."""

    def __init__(self, message: str, option: str) -> None:
        super().__init__(message)
        self.option = option

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        # An exception is made again of its message alone, unless it is told otherwise.
        return type(self), (str(self), self.option)


class Utf8Error(InputError):
    """No byte that has probability continues valid UTF-8, or too few bytes are left to do so."""


class UnknownModel(InputError):
    """A model path or name that cannot be loaded."""


class SnapshotError(InputError):
    """Bytes that are no snapshot of a state, or of one with another vocabulary."""


class ContextTooLong(InputError):
    """A context that has more tokens than the model can take."""

    @classmethod
    def of(cls, most: int | None, length: int, *, at_least: bool = False) -> Self:
        """The error about a context of ``length`` tokens, or more where not all were counted."""
        known = "at least " if at_least else ""
        return cls(
            f"the context is {known}{length} tokens long, the model takes at most {most}: "
            "shorten it"
        )


class EngineError(BytelmError, RuntimeError):
    """The machinery failed; the call was not at fault."""


class EngineDead(EngineError):
    """An engine process ended: waiting and later calls cannot be answered."""


class EngineStartError(EngineError):
    """The engine could not be started; the message says why."""
