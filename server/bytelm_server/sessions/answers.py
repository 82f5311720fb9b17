"""What the calls of sessions are answered with.

Must not know how an answer comes about.
"""

from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from bytelm_server.answers import (
    BytesOut,
    Continuation,
    Event,
    ItemError,
    LogProb,
    NextBytes,
    Sample,
    Score,
    TopBytes,
    Usage,
)


class Candidate(TypedDict):
    """One tokenization of the context."""

    weight: LogProb
    tokens: Annotated[list[int], Field(description="The initial context included.")]
    partial: Annotated[BytesOut, Field(description="The bytes of the token under way.")]


class Session(TypedDict):
    """What a session is."""

    id: str
    kind: Annotated[str, Field(pattern="^(byte|token)$")]
    version: Annotated[int, Field(ge=1, description="How many states it had so far.")]
    length: Annotated[
        int, Field(description="Bytes consumed, special tokens not counted; or tokens.")
    ]
    at_limit: Annotated[
        bool, Field(description="Whether that fills the model, so that nothing can be generated.")
    ]
    n_calls: Annotated[int, Field(description="Evaluations of it and those it came from.")]
    expires_at: Annotated[
        float, Field(description="When it expires if nobody uses it, in seconds since 1970.")
    ]
    candidates: NotRequired[list[Candidate]]
    deferred: NotRequired[
        Annotated[
            float,
            Field(
                ge=0,
                description="What stands in for tokenizations that nobody evaluated, as a multiple "
                "of the candidates' probability.",
            ),
        ]
    ]


class Moved(Session):
    """What a session is after a call that took the model."""

    usage: Usage


class Page(TypedDict):
    """Some sessions, oldest first."""

    data: list[Session]
    next: Annotated[str | None, Field(description="`after` for the next page; null at the end.")]


class Ended(TypedDict):
    """A session that is no more."""

    id: str
    deleted: bool


class TopToken(TypedDict):
    """A token and its log-probability."""

    token: int
    logprob: LogProb


class TopTokens(TypedDict):
    """The most probable tokens, best first."""

    top: list[TopToken]


class TokenContinuation(Continuation):
    """What follows a token session's state."""

    tokens: list[int]


class TokenSample(Sample):
    """A drawn continuation of a token session."""

    tokens: list[int]


class NextBytesHere(NextBytes):
    """The distribution after a session's state."""

    drawable: NotRequired[NextBytes]


class TopBytesHere(TopBytes):
    """Its most probable bytes."""

    drawable: NotRequired[TopBytes]


class Next(TypedDict):
    """The distribution after a session's state."""

    results: list[NextBytesHere | TopBytesHere | TopTokens]
    usage: Usage
    session: Session


class Generated(TypedDict):
    """What was generated after a session's state, and what the session is then."""

    results: list[Continuation | Sample | TokenContinuation | TokenSample | ItemError]
    usage: Usage
    session: Session


class ScoredHere(TypedDict):
    """Scores after a session's state, and what the session is then."""

    results: list[Score | ItemError]
    usage: Usage
    session: Session


class SessionEvent(Event):
    """A part of a stream; of one that moves its session, what that is with the event's bytes."""

    version: NotRequired[int]
    length: NotRequired[int]
    at_limit: NotRequired[bool]
    tokens: NotRequired[list[int]]


class Batch(TypedDict):
    """An answer for each call: what it is answered with by itself, or its error."""

    results: list[dict[str, Any]]


class TokenRows(TypedDict):
    """A result for each context."""

    results: list[TopTokens | ItemError]
    usage: Usage
