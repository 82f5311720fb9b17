"""The bodies of the API: what each call takes and answers, and nothing of how it is done.

Requests are pydantic models that refuse unknown fields; answers are typed dictionaries, which
document the shape and cost nothing when a body is written.
"""

import base64
import binascii
from typing import TYPE_CHECKING, Annotated, Any, Generic, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue, SkipJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError
from typing_extensions import TypedDict

from bytelm_server.errors import ErrorDetail


class Body(BaseModel):
    """A JSON object with known fields of exact types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _refuse(value: object) -> None:
    if value is not None:
        raise PydanticCustomError("not_supported", "this field is not supported yet")


NotSupported = Annotated[SkipJsonSchema[None], BeforeValidator(_refuse)]
"""A field of the API that this version refuses."""


def _decode(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PydanticCustomError(
            "base64", "this is not base64 ({why})", {"why": str(error)}
        ) from None


class BytesIn(Body):
    """Bytes: a plain string is text, `{"text": …}` is text in UTF-8, `{"base64": …}` any bytes."""

    text: str | None = None
    base64: Annotated[bytes | None, BeforeValidator(_decode)] = None
    segments: NotSupported = None
    messages: NotSupported = None
    tokens: NotSupported = None

    @model_validator(mode="before")
    @classmethod
    def _plain_string(cls, value: object) -> object:
        return {"text": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.text is None) == (self.base64 is None):
            raise PydanticCustomError("one_of", "give one of text and base64, and only one")
        return self

    @property
    def data(self) -> bytes:
        """The bytes that were given."""
        return self.base64 if self.base64 is not None else (self.text or "").encode()

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        text = {"type": "string"}
        encoded = {"type": "string", "contentEncoding": "base64"}

        def only(name: str, kind: dict[str, str]) -> dict[str, Any]:
            return {
                "type": "object",
                "properties": {name: kind},
                "required": [name],
                "additionalProperties": False,
            }

        forms = [{**text, "title": "Text"}, only("text", text), only("base64", encoded)]
        return {"title": "Bytes", "description": cls.__doc__, "anyOf": forms}


def _keep_failure(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError as error:
        return error


if TYPE_CHECKING:
    Item = BytesIn | ValidationError
else:
    Item = Annotated[BytesIn, WrapValidator(_keep_failure)]
"""One of several contexts; a malformed one fails alone, so its error takes its place."""


class Beam(Body):
    """How many tokenizations of the context are followed; absent fields are the server's."""

    K: int | None = Field(None, ge=1, description="Most candidates; null is unlimited.")
    prune_threshold: float | None = Field(
        None, ge=0, lt=1, description="Candidates below this share of the whole are dropped."
    )
    eos_tokens: NotSupported = None
    heal: NotSupported = None
    heal_max_backoff: NotSupported = None
    heal_max_splits: NotSupported = None
    special_tokens: NotSupported = None


class ContextCall(Body):
    """What every call takes that starts from a context."""

    context: BytesIn | None = Field(None, description="The bytes before. Give this or `contexts`.")
    contexts: list[Item] | None = Field(
        None, min_length=1, description="Several contexts, each with its own result, run together."
    )
    beam: Beam = Field(default_factory=Beam, description="The beam's parameters.")
    prefill: NotSupported = None

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if (self.context is None) == (self.contexts is None):
            raise PydanticCustomError("one_of", "give one of context and contexts, and only one")
        return self


class NextBytesCall(ContextCall):
    """The distribution over the next byte."""

    top: int | None = Field(
        None, ge=1, le=256, description="Only the most probable bytes, this many."
    )


class GreedyCall(ContextCall):
    """The most probable byte, again and again."""

    steps: int = Field(ge=1, description="The most bytes to generate.")
    logprobs: bool = Field(False, description="Also give the log-probability of what is returned.")
    stop: NotSupported = None
    stream: NotSupported = None


class SampleCall(GreedyCall):
    """Bytes drawn from the distribution, one after another."""

    temperature: float = Field(
        1.0, ge=0, description="Above 0; below 1 sharpens, above 1 flattens."
    )
    seed: int | None = Field(
        None, ge=0, lt=2**64, description="The same seed draws the same bytes; null draws anew."
    )
    top_k: NotSupported = None
    top_p: NotSupported = None
    min_p: NotSupported = None
    n: NotSupported = None
    method: NotSupported = None
    valid_utf8: NotSupported = None

    @field_validator("temperature")
    @classmethod
    def _not_zero(cls, value: float) -> float:
        if value == 0:
            raise PydanticCustomError(
                "temperature", "must be above 0; for no chance use /v1/greedy"
            )
        return value


LogProb = Annotated[float | None, Field(description="A natural logarithm; −inf is null.")]


class BytesOut(TypedDict):
    """Bytes; `text` is null where they are not UTF-8."""

    text: str | None
    base64: str


class Usage(TypedDict):
    """What a call took; a count that is not known is null."""

    bytes_in: int
    bytes_out: int
    evaluations: int
    tokens_computed: int | None
    tokens_cached: int | None


class ItemError(TypedDict):
    """An item that failed, in its result's place."""

    index: int
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
    logprob: LogProb
    finish_reason: Annotated[str, Field(pattern="^(steps|stop|eos|length)$")]


class Sample(Continuation):
    """A drawn continuation: of which context, and which of its samples."""

    index: int
    sample: int


Result = TypeVar("Result")


class Answer(TypedDict, Generic[Result]):
    """A result for each context, in their order."""

    results: list[Result]
    usage: Usage


class Health(TypedDict):
    """Whether the server can answer."""

    status: Annotated[str, Field(pattern="^(starting|ready|draining|dead)$")]


class Limits(TypedDict):
    """The most that a call may ask for; null is unlimited."""

    context_tokens: int | None
    context_bytes: int
    contexts: int
    steps: int
    body_bytes: int
    K: int | None


class Model(TypedDict):
    """The model behind the server."""

    name: str
    revision: str | None
    fingerprint: str
    vocab_size: int
    initial_context: list[int]
    limits: Limits


class Models(TypedDict):
    """The models that the server answers for."""

    data: list[Model]


def bytes_out(data: bytes) -> BytesOut:
    """``data`` as the API writes it."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = None
    return BytesOut(text=text, base64=base64.b64encode(data).decode("ascii"))
