"""What a beam keeps: its parameters.

This module must not know vocabularies, rows or candidates.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from bytelm.errors import BeamError, EosGivenTwice

LISTED = 16
"""How many deferred items a beam lists at most; the others share one remainder."""


@dataclass(frozen=True)
class BeamParams:
    """What a beam keeps; immutable: ``dataclasses.replace`` gives others.

    Args:
        K: how many candidates ``prune`` keeps at most; None for any number.
        prune_threshold: extensions whose share of the beam's probability is not above this are not
            evaluated, and candidates, unless ``deferred``, dropped; in [0, 1).
        verbose: print the beam after each byte.
        eos_byte_strings: what ends a text: tokens as byte strings (special ones by their names),
            as ids or as genlm ``Token``s; None for the model's own EOS tokens. Those that have
            bytes count as ordinary bytes while prefilling.
        heal: when no candidate can go on with a byte, look for another tokenization of the end of
            the context that can.
        heal_max_backoff: how many bytes of a partial token healing may take back; None for all.
        heal_max_splits: how many tokens healing may end inside these bytes; None for any number.
        eos_tokens: a deprecated name of ``eos_byte_strings``.
        special_tokens: ``"special"`` keeps special tokens out of texts; ``"literal"`` reads them
            as the bytes of their names and has no EOS unless given, for comparisons.
        max_context_length: how many tokens a context has at most, at least 2. A state that reaches
            it goes on with the last half of them, from a word's end on, behind the first token
            (BOS). None for the model's limit, at which a text ends.
        deferred: keep the mass of what is dropped, so that no byte that the vocabulary can spell
            there has probability zero; see ``bytelm.beam.reference``. It takes the place of
            healing.
        tokenizations: what is summed over: ``"all"``, or ``"canonical"`` for those that the
            tokenizer itself can give.
        keep_canonical: ``prune`` keeps the candidate that is the canonical tokenization of the
            context, whatever its rank, where that is known for the vocabulary.

    Raises:
        BeamError: when a value is outside its range.
    """

    K: int | None
    prune_threshold: float = 0.0
    verbose: bool = False
    eos_byte_strings: Iterable[bytes | int] | None = None
    heal: bool = True
    heal_max_backoff: int | None = None
    heal_max_splits: int | None = None
    eos_tokens: Iterable[bytes | int] | None = None
    special_tokens: str = "special"
    max_context_length: int | None = None
    deferred: bool = False
    tokenizations: Literal["all", "canonical"] = "all"
    keep_canonical: bool = False
    log_prune_threshold: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.K is not None and self.K < 1:
            raise BeamError(f"K must be at least 1, or None for unlimited, got {self.K}")
        if not 0.0 <= self.prune_threshold < 1.0:
            raise BeamError(f"prune_threshold must be in [0, 1), got {self.prune_threshold}")
        for name in ("heal_max_backoff", "heal_max_splits"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise BeamError(f"{name} must not be negative, got {value}")
        if self.special_tokens not in ("special", "literal"):
            raise BeamError(
                f'special_tokens is "special" or "literal", got {self.special_tokens!r}'
            )
        if self.tokenizations not in ("all", "canonical"):
            raise BeamError(f'tokenizations is "all" or "canonical", got {self.tokenizations!r}')
        if self.max_context_length is not None and self.max_context_length < 2:
            raise BeamError(
                f"max_context_length must be at least 2 for bytes, got {self.max_context_length}"
            )
        if self.eos_tokens is not None:
            if self.eos_byte_strings is not None:
                raise EosGivenTwice(
                    "Cannot specify both 'eos_byte_strings' and the deprecated 'eos_tokens': "
                    "give the first alone"
                )
            message = "'eos_tokens' is deprecated, use 'eos_byte_strings' instead."
            warnings.warn(message, DeprecationWarning, stacklevel=3)
            object.__setattr__(self, "eos_byte_strings", self.eos_tokens)
            object.__setattr__(self, "eos_tokens", None)
        if isinstance(self.eos_byte_strings, (bytes, str)):
            raise BeamError(f"eos_byte_strings is a list of tokens, not {self.eos_byte_strings!r}")
        if self.eos_byte_strings is not None:
            object.__setattr__(self, "eos_byte_strings", frozenset(self.eos_byte_strings))
        threshold = math.log(self.prune_threshold) if self.prune_threshold > 0.0 else -math.inf
        object.__setattr__(self, "log_prune_threshold", threshold)
