"""What calls return."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Usage:
    """What a call took, all of its contexts together; None where the server does not know."""

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
        finish_reason: why there are no more: ``"steps"`` were made, ``"eos"`` came, or the
            context reached the model's ``"length"``.
        usage: what the whole call took.
    """

    bytes: bytes
    logprob: float | None
    finish_reason: Literal["steps", "eos", "length"]
    usage: Usage

    @property
    def text(self) -> str:
        """The bytes as UTF-8, with U+FFFD where they are not."""
        return self.bytes.decode(errors="replace")


@dataclass(frozen=True, eq=False)
class NextBytes:
    """The distribution over the next byte.

    Attributes:
        logprobs: float64 ``[257]``, natural logarithms: 256 bytes, then EOS.
        usage: what the whole call took.
    """

    logprobs: NDArray[np.float64]
    usage: Usage

    @property
    def eos(self) -> float:
        """The log-probability that the text ends here."""
        return float(self.logprobs[256])

    def top(self, k: int) -> list[tuple[bytes, float]]:
        """The ``k`` most probable bytes with their log-probabilities, best first."""
        best = np.argsort(-self.logprobs[:256], kind="stable")[:k]
        return [(bytes([b]), float(self.logprobs[b])) for b in best]


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
