"""The bodies that calls take, checked as far as the server's limits and the model play no part.

Unknown fields are refused.
"""

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from bytelm.generating.stop_strings import StopStrings
from bytelm_server.contexts import Body, BytesIn, ContextIn

MOST_STOPS = 16
"""Stop strings in one call."""
LONGEST_STOP = 1024
"""Bytes of one stop string."""


def keep_failure(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """What ``handler`` makes of a value, or why it cannot."""
    try:
        return handler(value)
    except ValidationError as error:
        return error


if TYPE_CHECKING:
    ContextItem = ContextIn | ValidationError
    BytesItem = BytesIn | ValidationError
else:
    ContextItem = Annotated[ContextIn, WrapValidator(keep_failure)]
    BytesItem = Annotated[BytesIn, WrapValidator(keep_failure)]
"""One of several; a malformed one fails alone, so its error takes its place."""


def _eos_token(value: Any) -> bytes | int:
    # bool is an int in Python, but no number in JSON.
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, list) and value and all(type(b) is int and 0 <= b < 256 for b in value):
        return bytes(value)
    raise PydanticCustomError(
        "eos_token", "give a token's id, or its bytes as a list of values in 0..255"
    )


EosToken = Annotated[
    bytes | int,
    PlainValidator(
        _eos_token, json_schema_input_type=list[Annotated[int, Field(ge=0, le=255)]] | int
    ),
]


class Beam(Body):
    """How many tokenizations of the context are followed, and how; absent fields are the server's.

    Wider beams and lower thresholds cost more evaluations and come closer to the exact
    distribution.
    """

    K: int | None = Field(None, ge=1, description="Most candidates; null is unlimited.")
    prune_threshold: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Tokens that end with a share of the whole below this are not evaluated; "
        "without `deferred`, candidates below it are dropped, too.",
    )
    eos_tokens: Annotated[list[EosToken], Field(fail_fast=True)] | None = Field(
        None,
        max_length=256,
        description="What ends a text: token ids, or tokens as lists of byte values (`[46]` is a "
        "full stop); null: the model's own. Those that have bytes are ordinary text in contexts.",
    )
    heal: bool = Field(
        True, description="Where no candidate can go on, look for another reading of the end."
    )
    heal_max_backoff: int | None = Field(
        None, ge=0, description="Most bytes of a token that healing takes back; null: all."
    )
    heal_max_splits: int | None = Field(
        None, ge=0, description="Most tokens that healing ends inside these; null: any number."
    )
    deferred: bool = Field(
        True,
        description="Keep the mass of what is dropped, so that no byte that the vocabulary can "
        "spell has probability 0; in place of healing. `false` divides it away, as genlm-bytes "
        "does.",
    )
    tokenizations: Literal["all", "canonical"] | None = Field(
        None,
        description="What is summed over: `all` tokenizations, or those that are `canonical`, "
        "which the tokenizer itself can give; null: the server's default.",
    )
    keep_canonical: bool | None = Field(
        None,
        description="Never drop the candidate that is the canonical tokenization of the context; "
        "null: the server's default.",
    )
    special_tokens: Literal["special", "literal"] = Field(
        "special",
        description="`special` keeps special tokens out of texts; `literal` reads them as the "
        "bytes of their names and has no EOS unless given, for comparisons.",
    )


class BeamCall(Body):
    """How every call that starts from a context gets there and goes on."""

    beam: Beam = Field(default_factory=Beam, description="The beam's parameters.")
    prefill: Literal["fast", "exact"] = Field(
        "fast",
        description="`fast` takes all but the end of the context in its canonical tokens, an "
        "approximation of bounded cost; `exact` follows the beam through all of it, byte by byte.",
    )


class ContextCall(BeamCall):
    """What every call takes that starts from one or several contexts."""

    context: ContextIn | None = Field(None, description="What comes before. This or `contexts`.")
    contexts: list[ContextItem] | None = Field(
        None, min_length=1, description="Several contexts, each with its own result, run together."
    )

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if (self.context is None) == (self.contexts is None):
            raise PydanticCustomError("one_of", "give one of context and contexts, and only one")
        return self

    @property
    def count(self) -> int:
        """How many contexts there are."""
        return len(self.contexts or [self.context])

    def place(self, index: int) -> str:
        """What errors call the context with this index."""
        return "context" if self.context is not None else f"contexts[{index}]"


class NextBytesCall(ContextCall):
    """The distribution over the next byte."""

    top: int | None = Field(
        None, ge=1, le=256, description="Only the most probable bytes, this many."
    )


def _listed(value: object) -> object:
    if value is None or isinstance(value, list):
        return value
    if not isinstance(value, str | dict | BytesIn):
        forms = 'a string, {"text": …} or {"base64": …}, or a list of these'
        raise PydanticCustomError("stop", "give {forms}", {"forms": forms})
    return [value]


def _stop_string(value: BytesIn) -> BytesIn:
    if not 1 <= len(value.data) <= LONGEST_STOP:
        raise PydanticCustomError(
            "stop", "a stop string has 1 to {most} bytes", {"most": LONGEST_STOP}
        )
    return value


class Stopping(Body):
    """What every call takes whose texts may end early."""

    stop: Annotated[
        Annotated[
            list[Annotated[BytesIn, AfterValidator(_stop_string)]],
            Field(max_length=MOST_STOPS, fail_fast=True),
        ]
        | None,
        BeforeValidator(_listed, json_schema_input_type=BytesIn | list[BytesIn] | None),
    ] = Field(
        None,
        description=f"A string that ends the text where it is complete, or up to {MOST_STOPS} of "
        "them; they are not returned.",
    )

    @property
    def stops(self) -> list[bytes]:
        """The stop strings."""
        return [string.data for string in self.stop or ()]

    @cached_property
    def automaton(self) -> StopStrings:
        """What finds them, for all texts of the call."""
        return StopStrings(self.stops)


class Generation(Stopping):
    """What every call takes that generates."""

    steps: int = Field(ge=1, description="The most bytes to generate.")
    logprobs: bool = Field(False, description="Also give the log-probability of what is returned.")
    stream: bool = Field(
        False,
        description="Answer with server-sent events: bytes as they come, instead of all at the "
        "end.",
    )


class Drawing(Generation):
    """What every call takes that draws.

    The filters apply in the order temperature, top_k, top_p, min_p, each to what the one before
    it left.
    """

    temperature: float = Field(
        1.0, ge=0, description="Above 0; below 1 sharpens, above 1 flattens."
    )
    top_k: int | None = Field(
        None, ge=1, description="Keep so many bytes (or EOS), the most probable; null: all."
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Keep the fewest that together have this probability."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Keep those at least this times as probable as the best."
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**64,
        description="The same seed draws the same bytes, up to rounding: what an engine computes "
        "at the same time for others shows in the last digits, and once in a while that decides; "
        "null draws anew.",
    )
    n: int = Field(1, ge=1, description="How many samples of each context.")
    method: Literal["auto", "token", "byte"] = Field(
        "auto",
        description="How to draw: `byte` by byte; by `token`, which is faster and the same in "
        "distribution, but takes no filters, no temperature but 1, no `valid_utf8` and no "
        "`logprobs`; `auto`: by token wherever that is possible.",
    )
    valid_utf8: bool = Field(
        False,
        description="Draw only bytes that continue valid UTF-8, and end on a whole character.",
    )

    @field_validator("temperature")
    @classmethod
    def _not_zero(cls, value: float) -> float:
        if value == 0:
            raise PydanticCustomError(
                "temperature", "must be above 0; for no chance use /v1/greedy"
            )
        return value

    @model_validator(mode="after")
    def _stops_on_whole_characters(self) -> Self:
        if self.valid_utf8 and any(0x80 <= string[0] < 0xC0 for string in self.stops):
            raise PydanticCustomError(
                "stop", "a stop string begins inside a character, which valid_utf8 does not allow"
            )
        return self


class GreedyCall(Generation, ContextCall):
    """The most probable byte, again and again."""


class SampleCall(Drawing, ContextCall):
    """Bytes drawn from the distribution, one after another.

    The filters apply in the order temperature, top_k, top_p, min_p, each to what the one before
    it left.
    """


def _in_order(value: list[int]) -> list[int]:
    start, end = value
    if start > end:
        raise PydanticCustomError(
            "span",
            "a span does not end before it begins, as [{start}, {end}] does",
            {"start": start, "end": end},
        )
    return value


Span = Annotated[
    list[Annotated[int, Field(ge=0)]],
    Field(min_length=2, max_length=2, fail_fast=True),
    AfterValidator(_in_order),
]
"""From which byte on, and before which."""


def _words_or(value: object, handler: ValidatorFunctionWrapHandler) -> Any:
    if value == "words":
        return value
    if not isinstance(value, list):
        raise PydanticCustomError(
            "spans", 'give "words", or for each continuation a list of [start, end] in bytes'
        )
    return handler(value)


Given = Annotated[list[Annotated[list[Span], Field(fail_fast=True)]], Field(fail_fast=True)]

if TYPE_CHECKING:
    Spans = Literal["words"] | list[list[list[int]]]
else:
    Spans = Annotated[
        Given, WrapValidator(_words_or, json_schema_input_type=Literal["words"] | Given)
    ]


class Scored(Body):
    """What every call takes that scores."""

    continuations: list[BytesItem] = Field(
        min_length=1, description="The bytes to score, each on its own, right after the context."
    )
    eos: bool = Field(False, description="Score the end of the text after them, too.")
    per_byte: bool = Field(False, description="Also give each byte's log-probability.")
    top: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Also give the most probable bytes in each byte's place, this many.",
    )
    spans: Spans | None = Field(
        None,
        description="Also give the log-probability and the surprisal of parts: for each "
        "continuation a list of `[start, end]`, offsets in bytes; or `words`. A word ends before "
        "white space, which belongs to the word that follows; in scripts without spaces each "
        "character is one.",
    )


class ScoreCall(Scored, BeamCall):
    """How likely given bytes are after a context."""

    context: ContextIn = Field(description="What comes before.")


class KnownRows(Body):
    """What every call takes that gives the distributions along a text."""

    text: BytesIn = Field(description="The bytes to read.")
    dtype: Literal["float32", "float16"] = Field(
        "float32",
        description="Of each number. `float16` is rounded by 1/2048 of itself at most; what is "
        "below its least finite number, −65504, becomes that.",
    )
    usage: bool = Field(
        False, description="Tell behind the rows what the call took: NaN, then JSON with `usage`."
    )


class RowsCall(KnownRows, BeamCall):
    """The distributions before each byte of a text, and behind the last."""

    context: ContextIn = Field(description="What comes before.")
