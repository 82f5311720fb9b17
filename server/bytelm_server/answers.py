"""What calls are answered with: typed dictionaries, which document the shapes and cost nothing.

Must not know how an answer comes about.
"""

import base64
from typing import Annotated, Generic, NotRequired, TypeVar

from pydantic import Field
from typing_extensions import TypedDict

from bytelm_server.errors import ErrorDetail

LogProb = Annotated[float | None, Field(description="A natural logarithm; −inf is null.")]


class BytesOut(TypedDict):
    """Bytes; `text` is null where they are not UTF-8."""

    text: str | None
    base64: str


class Usage(TypedDict):
    """What a call took, all of its results together; a count that is not known is null.

    Calls that ask for the same at the same time share an evaluation; it counts for the first.
    """

    bytes_in: Annotated[int, Field(description="Bytes of contexts and continuations.")]
    bytes_out: Annotated[int, Field(description="Bytes that were generated.")]
    evaluations: Annotated[int, Field(description="Next-token distributions that were computed.")]
    tokens_computed: Annotated[int | None, Field(description="Tokens that the model read.")]
    tokens_cached: Annotated[int | None, Field(description="Tokens that it remembered instead.")]


class ItemError(TypedDict):
    """A context, sample or continuation that failed, in its result's place."""

    index: int
    sample: NotRequired[int]
    error: ErrorDetail


class NextBytes(TypedDict):
    """The distribution over the 256 bytes and EOS."""

    logprobs: Annotated[list[LogProb], Field(min_length=256, max_length=256)]
    eos: LogProb


class TopByte(TypedDict):
    """A byte and its log-probability."""

    byte: Annotated[int, Field(ge=0, le=255)]
    logprob: LogProb


class TopBytes(TypedDict):
    """The most probable bytes, best first, and EOS."""

    top: list[TopByte]
    eos: LogProb


class Continuation(TypedDict):
    """What follows a context, without the context."""

    bytes: BytesOut
    logprob: Annotated[
        float | None,
        Field(
            description="What the model itself gives the bytes, before any filter, and EOS where "
            "it ended them; null unless asked for."
        ),
    ]
    finish_reason: Annotated[
        str,
        Field(
            pattern="^(steps|stop|eos|length)$",
            description="Why there are no more bytes: `steps` were made, a `stop` string came, "
            "`eos` came, or the model's `length` was reached.",
        ),
    ]


class Sample(Continuation):
    """A drawn continuation: of which context, and which of its samples."""

    index: int
    sample: int


class Event(TypedDict):
    """A part of a stream: bytes that follow those of the last event with this index and sample."""

    index: int
    sample: int
    bytes: Annotated[
        BytesOut,
        Field(
            description="`text` holds incomplete characters back until they are whole; null where "
            "the bytes so far are not UTF-8."
        ),
    ]
    logprob: NotRequired[
        Annotated[float | None, Field(description="Of all bytes of this text, in its last event.")]
    ]
    finish_reason: NotRequired[
        Annotated[str, Field(description="In a text's last event: why there are no more bytes.")]
    ]
    usage: NotRequired[Annotated[Usage, Field(description="In the stream's last event.")]]


class ErrorEvent(TypedDict):
    """A part of a stream: one text failed, or, without index and sample, the whole call."""

    index: NotRequired[int]
    sample: NotRequired[int]
    error: ErrorDetail
    usage: NotRequired[Usage]


class SpanScore(TypedDict):
    """How likely a part of a continuation is, after all that is before it."""

    start: Annotated[int, Field(description="Of its first byte in the continuation.")]
    end: Annotated[int, Field(description="Of the byte behind it.")]
    bytes: BytesOut
    logprob: LogProb
    bits: Annotated[float | None, Field(description="Its surprisal; infinity is null.")]


class Score(TypedDict):
    """How likely a continuation is."""

    logprob: LogProb
    bits_per_byte: Annotated[float | None, Field(description="EOS aside; infinity is null.")]
    logprobs: NotRequired[Annotated[list[LogProb], Field(description="With `per_byte`.")]]
    top: NotRequired[
        Annotated[
            list[list[TopByte] | None],
            Field(
                description="With `top`: the most probable bytes in each byte's place, best first, "
                "and with `eos` behind the last one, too; null behind a byte of probability 0."
            ),
        ]
    ]
    spans: NotRequired[Annotated[list[SpanScore], Field(description="With `spans`, in order.")]]
    eos: NotRequired[Annotated[float | None, Field(description="With `eos`: its part.")]]
    reason: NotRequired[
        Annotated[str, Field(description="Where the log-probability is null: which byte and why.")]
    ]


Result = TypeVar("Result")


class Answer(TypedDict, Generic[Result]):
    """A result for each item, in their order."""

    results: list[Result]
    usage: Usage


class Health(TypedDict):
    """Whether the server can answer."""

    status: Annotated[str, Field(pattern="^(starting|ready|draining|dead|store_failed)$")]
    reason: NotRequired[
        Annotated[str, Field(description="What is wrong, and what to do; of store_failed only.")]
    ]


class Limits(TypedDict):
    """The most that a call may ask for; null is unlimited."""

    context_tokens: int | None
    context_bytes: int
    contexts: int
    results: int
    steps: int
    total_steps: int
    walked_bytes: int
    row_values: int
    body_bytes: int
    K: int | None


class Model(TypedDict):
    """The model behind the server, as we and as OpenAI's API have it."""

    id: Annotated[str, Field(description="The name, as OpenAI's API has it.")]
    object: Annotated[str, Field(pattern="^model$")]
    created: Annotated[int, Field(description="When the server had it ready, in seconds.")]
    owned_by: str
    name: str
    revision: str | None
    fingerprint: str
    vocab_size: int
    initial_context: list[int]
    limits: Limits


class Models(TypedDict):
    """The models that the server answers for."""

    object: Annotated[str, Field(pattern="^list$")]
    data: list[Model]


class Token(TypedDict):
    """One id of the vocabulary."""

    bytes: Annotated[str, Field(description="In base64; empty where the id has none.")]
    text: Annotated[str, Field(description="The tokenizer's own spelling.")]
    special: bool
    added: bool


class Vocab(TypedDict):
    """The model's vocabulary; the place of a token is its id."""

    fingerprint: str
    bos: int | None
    eos: list[int]
    prefix: Annotated[BytesOut, Field(description="What the tokenizer puts before a text.")]
    strips_left: Annotated[
        list[int], Field(description="Tokens that take the white space to the left with them.")
    ]
    strips_right: list[int]
    tokens: list[Token]


def bytes_out(data: bytes) -> BytesOut:
    """``data`` as the API writes it."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = None
    return BytesOut(text=text, base64=base64.b64encode(data).decode("ascii"))
