"""The bodies that these calls take, as OpenAI and vLLM have them, and ``beam`` and ``prefill``.

What has no meaning for bytes and would change the answer is refused by its name; neutral values of
it, and hints, are accepted.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from bytelm_server.contexts import Body
from bytelm_server.requests import BeamCall, Stopping

BEGINNING = 256
"""The id that stands for the initial context at the beginning of a prompt, and for EOS."""
MOST_LOGPROBS = 257


def neutral(*values: Any, about: str = "has no meaning for bytes") -> Any:
    """The type of a field that must be null or one of these values."""

    def check(value: Any) -> Any:
        if value is not None and not any(
            value == one and isinstance(value, bool) == isinstance(one, bool) for one in values
        ):
            # ASCII, so that the message can be sent whatever was written.
            allowed = " or ".join(json.dumps(one) for one in (*values, None))
            raise PydanticCustomError(
                "not_supported",
                "this field {about}: leave it out, or give {allowed}",
                {"about": about, "allowed": allowed},
            )
        return None

    schema = {"enum": [*values, None], "description": f"It {about}; other values are refused."}
    return Annotated[Any, AfterValidator(check), WithJsonSchema(schema)]


_HINT = {
    "type": ["string", "number", "boolean", "null"],
    "description": "A hint; it changes nothing here.",
}
Hint = Annotated[Any, WithJsonSchema(_HINT)]
"""The type of a field that may have any value and changes nothing."""

_LATER = "is not supported here"


class StreamOptions(Body):
    """What a stream tells besides."""

    include_usage: bool = Field(False, description="A last chunk has the usage of the call.")
    include_obfuscation: Hint = None
    continuous_usage_stats: neutral(False, about=_LATER) = None  # type: ignore[valid-type]


class OpenAICall(BeamCall, Stopping):
    """What completions of prompts and of chats take."""

    model: str | None = Field(
        None, description="The name in `/v1/models`, or `default`; null is that, too."
    )
    temperature: float | None = Field(
        None, ge=0, description="0 takes the most probable byte each time; null is 1."
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Keep the fewest bytes that together have this probability."
    )
    top_k: int | None = Field(
        None, ge=-1, description="Keep so many bytes (or EOS), the most probable; 0 and −1: all."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Keep those at least this times as probable as the best."
    )
    seed: int | None = Field(
        None, ge=0, lt=2**64, description="As in `/v1/sample`; null draws anew."
    )
    n: int | None = Field(None, ge=1, description="How many texts of each prompt; null is 1.")
    stream: bool | None = Field(
        None, description="Answer with server-sent events: text as it comes."
    )
    stream_options: StreamOptions | None = None

    frequency_penalty: neutral(0) = None  # type: ignore[valid-type]
    presence_penalty: neutral(0) = None  # type: ignore[valid-type]
    repetition_penalty: neutral(1) = None  # type: ignore[valid-type]
    length_penalty: neutral(1) = None  # type: ignore[valid-type]
    logit_bias: neutral({}) = None  # type: ignore[valid-type]
    use_beam_search: neutral(False) = None  # type: ignore[valid-type]
    ignore_eos: neutral(False) = None  # type: ignore[valid-type]
    min_tokens: neutral(0) = None  # type: ignore[valid-type]
    stop_token_ids: neutral([]) = None  # type: ignore[valid-type]
    allowed_token_ids: neutral([]) = None  # type: ignore[valid-type]
    bad_words: neutral([]) = None  # type: ignore[valid-type]
    include_stop_str_in_output: neutral(False) = None  # type: ignore[valid-type]
    truncate_prompt_tokens: neutral() = None  # type: ignore[valid-type]
    prompt_logprobs: neutral(about="is echo with logprobs here") = None  # type: ignore[valid-type]
    return_tokens_as_token_ids: neutral(False) = None  # type: ignore[valid-type]
    response_format: neutral({"type": "text"}, about=_LATER) = None  # type: ignore[valid-type]
    structured_outputs: neutral(about=_LATER) = None  # type: ignore[valid-type]
    guided_json: neutral(about=_LATER) = None  # type: ignore[valid-type]
    guided_regex: neutral(about=_LATER) = None  # type: ignore[valid-type]
    guided_choice: neutral(about=_LATER) = None  # type: ignore[valid-type]
    guided_grammar: neutral(about=_LATER) = None  # type: ignore[valid-type]

    user: Hint = None
    metadata: dict[str, str] | None = Field(None, description="A hint; it changes nothing here.")
    store: Hint = None
    service_tier: Hint = None
    safety_identifier: Hint = None
    prompt_cache_key: Hint = None
    request_id: Hint = None
    priority: Hint = None
    skip_special_tokens: Hint = None
    spaces_between_special_tokens: Hint = None

    @property
    def count(self) -> int:
        """How many texts there are of each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the call's usage."""
        return self.stream_options is not None and self.stream_options.include_usage


@dataclass(frozen=True)
class Prompt:
    """What comes before a completion.

    Attributes:
        data: its bytes.
        begins: whether the id that stands for the initial context was given, too.
    """

    data: bytes
    begins: bool = False


def _prompt(value: Any, of: str = "") -> Prompt:
    if isinstance(value, str):
        return Prompt(value.encode())
    if not isinstance(value, list):
        raise PydanticCustomError("prompt", "give a text or a list of ids{of}", {"of": of})
    begins = bool(value) and type(value[0]) is int and value[0] == BEGINNING
    ids = value[1:] if begins else value
    # bool is an int in Python, but no number in JSON.
    if set(map(type, ids)) <= {int}:
        with suppress(ValueError):
            return Prompt(bytes(ids), begins)
    i = next(i for i, b in enumerate(ids) if type(b) is not int or not 0 <= b < BEGINNING)
    raise PydanticCustomError(
        "prompt",
        "id {i}{of} is {value}: ids are bytes, 0 to 255; 256 stands for the initial context, at "
        "the beginning only",
        {"of": of, "i": i + begins, "value": json.dumps(ids[i])[:40]},
    )


def _prompts(value: Any) -> Any:
    if value == []:
        raise PydanticCustomError("prompt", "give a text, ids, or a list of these")
    if isinstance(value, list) and isinstance(value[0], str | list):
        return [_prompt(one, f" of prompt {i}") for i, one in enumerate(value)]
    return [_prompt(value)]


_Text = Annotated[str, Field()]
_Ids = list[Annotated[int, Field(ge=0, le=BEGINNING)]]


class CompletionCall(OpenAICall):
    """Text after prompts; a token is a byte."""

    prompt: Annotated[
        list[Any],
        BeforeValidator(
            _prompts,
            json_schema_input_type=_Text
            | Annotated[list[_Text], Field(min_length=1)]
            | Annotated[_Ids, Field(min_length=1)]
            | Annotated[list[_Ids], Field(min_length=1)],
        ),
    ] = Field(
        description="A text, several, ids, or several lists of ids: bytes, 0 to 255. 256 at the "
        "beginning stands for the initial context, which is there without it, too."
    )
    max_tokens: int | None = Field(None, ge=0, description="The most bytes to make; null is 16.")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MOST_LOGPROBS,
        description="Also give each byte's log-probability, and so many of the most probable in "
        "its place.",
    )
    echo: bool | None = Field(
        None,
        description="Give the prompt, too; with `logprobs` it is scored byte by byte, from the "
        "initial context.",
    )
    best_of: neutral(1) = None  # type: ignore[valid-type]
    suffix: neutral("") = None  # type: ignore[valid-type]
    add_special_tokens: neutral(True) = None  # type: ignore[valid-type]

    @property
    def prompts(self) -> list[Prompt]:
        """What to complete."""
        return self.prompt

    @property
    def steps(self) -> int:
        """How many bytes to make at most."""
        return 16 if self.max_tokens is None else self.max_tokens


class Part(Body):
    """A part of a content."""

    type: Literal["text"]
    text: str


def _parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise PydanticCustomError("content", "give a text, or a list of parts of type text")
    return value


class ChatMessage(Body):
    """A message of a chat; parts of its content are one text, with nothing between them."""

    role: str
    content: Annotated[list[Part], BeforeValidator(_parts, json_schema_input_type=str | list[Part])]
    type: neutral("text") = None  # type: ignore[valid-type]
    name: neutral() = None  # type: ignore[valid-type]
    refusal: neutral() = None  # type: ignore[valid-type]
    annotations: neutral([]) = None  # type: ignore[valid-type]
    audio: neutral() = None  # type: ignore[valid-type]
    function_call: neutral() = None  # type: ignore[valid-type]
    tool_calls: neutral([]) = None  # type: ignore[valid-type]
    tool_call_id: neutral() = None  # type: ignore[valid-type]

    @property
    def text(self) -> str:
        """What it says."""
        return "".join(part.text for part in self.content)


class ChatCall(OpenAICall):
    """The next message of a chat; a token is a byte."""

    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)
    max_tokens: int | None = Field(
        None, ge=0, description="The most bytes to make; null: as many as the server gives."
    )
    max_completion_tokens: int | None = Field(
        None, ge=0, description="The same under its newer name, which comes first."
    )
    logprobs: bool | None = Field(None, description="Also give each byte's log-probability.")
    top_logprobs: int | None = Field(
        None,
        ge=0,
        le=MOST_LOGPROBS,
        description="With `logprobs`: also so many of the most probable in its place.",
    )
    add_generation_prompt: bool | None = Field(
        None, description="End the chat with the beginning of an answer; null: yes."
    )
    continue_final_message: bool | None = Field(
        None, description="Go on with the last message, the assistant's, instead of a new one."
    )
    tools: neutral([], about=_LATER) = None  # type: ignore[valid-type]
    tool_choice: neutral("none", "auto", about=_LATER) = None  # type: ignore[valid-type]
    functions: neutral([], about=_LATER) = None  # type: ignore[valid-type]
    function_call: neutral("none", "auto", about=_LATER) = None  # type: ignore[valid-type]
    modalities: neutral(["text"], about=_LATER) = None  # type: ignore[valid-type]
    audio: neutral(about=_LATER) = None  # type: ignore[valid-type]
    prediction: neutral(about=_LATER) = None  # type: ignore[valid-type]
    web_search_options: neutral(about=_LATER) = None  # type: ignore[valid-type]
    reasoning_effort: neutral(about=_LATER) = None  # type: ignore[valid-type]
    verbosity: neutral(about=_LATER) = None  # type: ignore[valid-type]
    chat_template: neutral(about=_LATER) = None  # type: ignore[valid-type]
    chat_template_kwargs: neutral({}, about=_LATER) = None  # type: ignore[valid-type]
    documents: neutral([], about=_LATER) = None  # type: ignore[valid-type]
    echo: neutral(False) = None  # type: ignore[valid-type]
    add_special_tokens: neutral(False) = None  # type: ignore[valid-type]
    parallel_tool_calls: Hint = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("alone", "top_logprobs goes with logprobs only")
        if self.continue_final_message:
            if self.add_generation_prompt:
                raise PydanticCustomError(
                    "alone", "continue_final_message leaves no place for add_generation_prompt"
                )
            if self.messages[-1].role != "assistant":
                raise PydanticCustomError(
                    "role", "continue_final_message needs a last message of the assistant"
                )
        return self

    @property
    def prompts_answer(self) -> bool:
        """Whether the chat ends with the beginning of an answer."""
        return self.add_generation_prompt is not False and not self.continue_final_message

    @property
    def limit(self) -> tuple[str, int | None]:
        """The field that has the most bytes to make, and their number."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    @property
    def most(self) -> int | None:
        """How many of the best to tell for each byte; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None
