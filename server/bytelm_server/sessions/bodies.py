"""The bodies that the calls of sessions take.

Unknown fields are refused. Must not know how a session is moved.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, WrapValidator, model_validator
from pydantic_core import PydanticCustomError

from bytelm_server.contexts import Body, BytesIn, ContextIn, SegmentIn
from bytelm_server.requests import (
    BeamCall,
    Drawing,
    Generation,
    KnownRows,
    Scored,
    keep_failure,
)

LONGEST_KEY = 255
"""Characters of an idempotency key."""
LAST_VERSION = 2**63 - 1
"""As far as versions are counted."""

TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]


class SessionContext(ContextIn):
    """What a session begins with: as contexts are elsewhere, or, for token sessions, token ids.

    `tokens` is the whole context: nothing is put before it.
    """

    FORMS = ("text", "base64", "tokens", "segments", "messages")
    tokens: Annotated[TokenIds, Field(min_length=1)] | None = None  # type: ignore[assignment]


class CreateCall(BeamCall):
    """A new session."""

    kind: Literal["byte", "token"] = Field(
        "byte", description="Whether it goes byte by byte or token by token."
    )
    context: SessionContext | None = Field(
        None, description="What it begins with; null: the model's initial context."
    )
    max_context_length: int | None = Field(
        None,
        ge=1,
        description="Keep so many tokens at most, the last ones; null: all, up to the model's "
        "limit, where a session ends. Byte sessions take 2 and more.",
    )
    ttl: float | None = Field(
        None, gt=0, description="Seconds without use after which it expires; null: the server's."
    )

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        if self.kind == "token":
            for name in ("beam", "prefill"):
                if name in self.model_fields_set:
                    raise PydanticCustomError("alone", f"{name} goes with byte sessions only")
        elif self.context is not None and self.context.tokens is not None:
            raise PydanticCustomError("alone", "tokens go with token sessions only")
        elif self.max_context_length == 1:
            raise PydanticCustomError("range", "max_context_length is at least 2 for bytes")
        return self


class Input(Body):
    """What a session consumes: bytes, tokens (token sessions), or bytes and special tokens."""

    bytes: BytesIn | None = Field(None, description="Bytes; token sessions read them canonically.")
    tokens: TokenIds | None = Field(None, description="Token ids; for token sessions only.")
    segments: Annotated[list[SegmentIn], Field(fail_fast=True)] | None = Field(
        None, description="Bytes and special tokens."
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if sum(value is not None for value in (self.bytes, self.tokens, self.segments)) != 1:
            raise PydanticCustomError(
                "one_of", "give one of bytes, tokens and segments, and only one"
            )
        return self


class Step(Input):
    """How a session is moved: by what it consumes."""

    prune: bool = Field(
        True, description="Prune the beam before each byte, as walks do; byte sessions only."
    )


class Changing(Body):
    """A call that changes a session."""

    if_version: int | None = Field(
        None, ge=1, le=LAST_VERSION, description="Only if the session has this version; else 409."
    )


class AdvanceCall(Step, Changing):
    """Move a session on, byte by byte."""


class PrefillCall(Input, Changing):
    """Move a session on by a long text."""

    prefill: Literal["fast", "exact"] | None = Field(
        None, description="How to read it; null: as the session was made."
    )


class ForkCall(Changing):
    """A second session at the same state; the first stays where it is."""

    advance: Step | None = Field(None, description="Move the new one on at once.")
    ttl: float | None = Field(
        None, gt=0, description="Seconds without use after which it expires; null: as the first."
    )


class SessionGreedyCall(Generation, Changing):
    """The most probable bytes or tokens after a session's state; `steps` counts what it is made of.

    Token sessions end before a token that completes a stop string.
    """

    advance: bool = Field(True, description="Move the session on behind them; else it stays.")


class SessionSampleCall(Drawing, Changing):
    """Bytes or tokens drawn after a session's state."""

    advance: bool = Field(True, description="Move the session on behind them; else it stays.")

    @model_validator(mode="after")
    def _one_way_on(self) -> Self:
        if self.n > 1 and self.advance:
            raise PydanticCustomError(
                "alone", "several samples go with advance false only: a session has one state"
            )
        return self


class SessionScoreCall(Scored, Changing):
    """How likely given bytes are after a session's state."""

    continuations: Annotated[list[BytesIn], Field(fail_fast=True)] = Field(  # type: ignore[assignment]
        min_length=1, description="The bytes to score, each on its own, right after the state."
    )
    advance: bool = Field(
        True, description="Move the session on behind the only continuation; else it stays."
    )

    @model_validator(mode="after")
    def _one_way_on(self) -> Self:
        if len(self.continuations) > 1 and self.advance:
            raise PydanticCustomError(
                "alone",
                "several continuations go with advance false only: a session has one state",
            )
        return self


class SessionRowsCall(KnownRows, Changing):
    """The distributions before each byte of a text after a session's state, and behind the last."""

    advance: bool = Field(True, description="Move the session on behind the text; else it stays.")
    prune: bool = Field(
        False, description="The first is that of the pruned state, as those behind bytes are."
    )


class NextCall(Body):
    """The distribution over what comes next."""

    top: int | None = Field(None, ge=1, description="Only the most probable, this many.")
    prune: bool = Field(False, description="That of the pruned state; byte sessions only.")
    drawable: bool = Field(
        False,
        description="With what greedy and sampling choose from: the same without what is deferred. "
        "Byte sessions only.",
    )


class GetCall(Body):
    """What a session is."""

    candidates: bool = Field(False, description="With the beam's candidates.")


class DeleteCall(Changing):
    """The end of a session."""


CALLS: dict[str, type[Body]] = {
    "get": GetCall,
    "fork": ForkCall,
    "advance": AdvanceCall,
    "prefill": PrefillCall,
    "next": NextCall,
    "greedy": SessionGreedyCall,
    "sample": SessionSampleCall,
    "score": SessionScoreCall,
    "delete": DeleteCall,
}
"""What may be called on a session, by name."""

Key = Annotated[str, Field(min_length=1, max_length=LONGEST_KEY)]


class BatchItem(Body):
    """One call of many."""

    id: str = Field(description="The session.")
    call: Literal[
        "get", "fork", "advance", "prefill", "next", "greedy", "sample", "score", "delete"
    ] = Field(description="What to do with it.")
    body: dict[str, Any] = Field(
        default_factory=dict, description="As the call by itself takes it; no streams."
    )
    idempotency_key: Key | None = Field(
        None,
        description="What the header Idempotency-Key is for a call by itself; null: the batch's, "
        "with the call's place.",
    )


if TYPE_CHECKING:
    Item = BatchItem | ValidationError
else:
    Item = Annotated[BatchItem, WrapValidator(keep_failure)]


class BatchCall(Body):
    """Calls on many sessions, run together; those on one session in their order."""

    calls: list[Item] = Field(min_length=1, description="The calls.")


class TokenLogprobsCall(Body):
    """The distribution over the token after each context."""

    contexts: list[Annotated[TokenIds, Field(min_length=1)]] = Field(
        min_length=1, fail_fast=True, description="Token ids; nothing is put before them."
    )
    top: int | None = Field(
        None,
        ge=1,
        description="Only the most probable tokens, this many. Whole rows come as bytes only: "
        "ask for `Accept: application/octet-stream`.",
    )
