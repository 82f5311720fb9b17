"""What calls return."""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

EOS_INDEX = 256
"""The place of EOS in ``NextBytes.logprobs``. The library's arrays have another: ``bytelm.EOS``."""


@dataclass(frozen=True)
class Usage:
    """What a call took, all of its results together; None where the server does not know."""

    bytes_in: int
    bytes_out: int
    evaluations: int
    tokens_computed: int | None = None
    tokens_cached: int | None = None


@dataclass(frozen=True)
class Continuation:
    """Bytes that follow a context, without the context.

    Attributes:
        bytes: the bytes.
        logprob: the natural log-probability of the bytes, and of EOS where it ended them; None
            unless the call asked for it.
        finish_reason: why there are no more: ``"steps"`` were made, a ``"stop"`` string or
            ``"eos"`` came, or the context reached the model's ``"length"``.
        usage: what the whole call took.
        index: which of the call's contexts it follows.
        sample: which of that context's samples it is.
        tokens: the tokens that spell them, of a token session; None otherwise.
    """

    bytes: bytes
    logprob: float | None
    finish_reason: Literal["steps", "stop", "eos", "length"]
    usage: Usage
    index: int = 0
    sample: int = 0
    tokens: tuple[int, ...] | None = None

    @property
    def text(self) -> str:
        """The bytes as UTF-8, with U+FFFD where they are not."""
        return self.bytes.decode(errors="replace")


@dataclass(frozen=True, eq=False)
class NextBytes:
    """The distribution over the next byte.

    Attributes:
        logprobs: float64 ``[257]``, natural logarithms: 256 bytes, then EOS (``EOS_INDEX``).
        usage: what the whole call took.
        drawable: what greedy and sampling choose from, in the same form: the same without what
            stands in for tokenizations that nobody evaluated; None unless asked for.
    """

    logprobs: NDArray[np.float64]
    usage: Usage
    drawable: NDArray[np.float64] | None = None

    @property
    def eos(self) -> float:
        """The log-probability that the text ends here."""
        return float(self.logprobs[EOS_INDEX])

    def top(self, k: int) -> list[tuple[bytes, float]]:
        """The ``k`` most probable bytes with their log-probabilities, best first."""
        best = np.argsort(-self.logprobs[:EOS_INDEX], kind="stable")[:k]
        return [(bytes([b]), float(self.logprobs[b])) for b in best]


@dataclass(frozen=True)
class Span:
    """A part of a continuation, and how likely it is after all that is before it.

    Attributes:
        start: of its first byte in the continuation.
        end: of the byte behind it.
        bytes: the bytes.
        logprob: their natural log-probability.
        bits: their surprisal.
    """

    start: int
    end: int
    bytes: bytes
    logprob: float
    bits: float

    @property
    def text(self) -> str:
        """The bytes as UTF-8, with U+FFFD where they are not."""
        return self.bytes.decode(errors="replace")


@dataclass(frozen=True, eq=False)
class Score:
    """How likely a continuation is after its context.

    Attributes:
        logprob: the natural log-probability of the bytes, and of EOS where that was asked for.
        bits_per_byte: the mean over the bytes, in bits, EOS aside; 0 of no bytes.
        logprobs: float64 ``[bytes]``, of each byte; None unless the call asked for it.
        eos: the log-probability of EOS; None unless the call asked for it.
        usage: what the whole call took.
        spans: the words, or the spans that were given; None unless the call asked for them.
        top: the most probable bytes with their log-probabilities, best first, in each byte's place,
            and with ``eos`` behind the last one, too; None behind a byte of probability 0. None
            unless the call asked for them.
    """

    logprob: float
    bits_per_byte: float
    logprobs: NDArray[np.float64] | None
    eos: float | None
    usage: Usage
    spans: tuple[Span, ...] | None = None
    top: tuple[tuple[tuple[bytes, float], ...] | None, ...] | None = None


@dataclass(frozen=True)
class Vocab:
    """The vocabulary of the model behind a server; the place of a token is its id.

    Attributes:
        token_bytes: of each token; empty where it has none.
        token_text: the tokenizer's own spelling of each.
        special_ids: the special tokens.
        added_ids: the tokens that were added to the tokenizer.
        bos: the id that begins a text, or None.
        eos: the ids that end one.
        prefix: what the tokenizer puts before a text.
        strips_left: tokens that take the white space to the left with them.
        strips_right: tokens that take the white space to the right with them.
        fingerprint: equal for vocabularies that read bytes alike.
    """

    token_bytes: tuple[bytes, ...]
    token_text: tuple[str, ...]
    special_ids: frozenset[int]
    added_ids: frozenset[int]
    bos: int | None
    eos: tuple[int, ...]
    prefix: bytes
    strips_left: frozenset[int]
    strips_right: frozenset[int]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.token_bytes)

    def __repr__(self) -> str:
        return f"Vocab({len(self)} tokens, bos={self.bos}, eos={self.eos})"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Vocab":
        """The vocabulary that an answer has."""
        tokens = data["tokens"]
        return cls(
            token_bytes=tuple(base64.b64decode(token["bytes"]) for token in tokens),
            token_text=tuple(token["text"] for token in tokens),
            special_ids=frozenset(i for i, token in enumerate(tokens) if token["special"]),
            added_ids=frozenset(i for i, token in enumerate(tokens) if token["added"]),
            bos=data["bos"],
            eos=tuple(data["eos"]),
            prefix=base64.b64decode(data["prefix"]["base64"]),
            strips_left=frozenset(data["strips_left"]),
            strips_right=frozenset(data["strips_right"]),
            fingerprint=data["fingerprint"],
        )


@dataclass(frozen=True)
class Model:
    """The model behind a server.

    Attributes:
        name: as the server was told.
        revision: of the model's files, where it is known.
        fingerprint: equal for models with the same answers.
        vocab_size: how many tokens it has.
        initial_context: the token ids before any text.
        limits: the most that a call may ask for; None is unlimited.
    """

    name: str
    revision: str | None
    fingerprint: str
    vocab_size: int
    initial_context: tuple[int, ...]
    limits: Mapping[str, int | None]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Model":
        """The model that an answer describes."""
        return cls(
            name=data["name"],
            revision=data["revision"],
            fingerprint=data["fingerprint"],
            vocab_size=data["vocab_size"],
            initial_context=tuple(data["initial_context"]),
            limits=dict(data["limits"]),
        )


@dataclass(frozen=True, eq=False)
class NextTokens:
    """The distribution over the next token.

    Attributes:
        logprobs: float32 ``[vocab size]``, natural logarithms, as the model gives them.
    """

    logprobs: NDArray[np.float32]

    def top(self, k: int) -> list[tuple[int, float]]:
        """The ``k`` most probable tokens' ids with their log-probabilities, best first."""
        best = np.argsort(-self.logprobs, kind="stable")[:k]
        return [(int(i), float(self.logprobs[i])) for i in best]


@dataclass(frozen=True)
class Candidate:
    """One tokenization of a session's context.

    Attributes:
        weight: its log-probability.
        tokens: its token ids, the initial context included.
        partial: the bytes of the token under way.
    """

    weight: float
    tokens: tuple[int, ...]
    partial: bytes

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Candidate":
        """The candidate that an answer has."""
        weight = data["weight"]
        return cls(
            weight=-math.inf if weight is None else weight,
            tokens=tuple(data["tokens"]),
            partial=base64.b64decode(data["partial"]["base64"]),
        )


@dataclass(frozen=True)
class SessionInfo:
    """What a session is.

    Attributes:
        id: its name.
        kind: whether it goes byte by byte or token by token.
        version: how many states it had so far.
        length: bytes or tokens consumed; special tokens in a text do not count.
        at_limit: whether that fills the model, so that nothing can be generated.
        n_calls: evaluations that led here.
        expires_at: when it expires if nobody uses it, in seconds since 1970.
    """

    id: str
    kind: Literal["byte", "token"]
    version: int
    length: int
    at_limit: bool
    n_calls: int
    expires_at: float

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SessionInfo":
        """The session that an answer describes."""
        return cls(**{field.name: data[field.name] for field in fields(cls)})
