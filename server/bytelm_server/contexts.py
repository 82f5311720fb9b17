"""Bytes and contexts as callers write them, and the library's contexts made of them."""

import base64
import binascii
from typing import Annotated, Any, ClassVar, Protocol, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue, SkipJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError

from bytelm.errors import InputError, VocabError
from bytelm.prompts.context import ChatTemplate, Context, Special, Text, messages_to_context
from bytelm.threads import in_thread
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server.errors import FieldError


class Body(BaseModel):
    """A JSON object with known fields of exact types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _refuse(value: object) -> None:
    if value is not None and value is not False:
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


Base64 = Annotated[
    bytes,
    BeforeValidator(_decode, json_schema_input_type=str),
    Field(json_schema_extra={"contentEncoding": "base64"}),
]


class BytesIn(Body):
    """Bytes: a plain string is text, `{"text": …}` is text in UTF-8, `{"base64": …}` any bytes."""

    FORMS: ClassVar[tuple[str, ...]] = ("text", "base64")
    text: str | None = None
    base64: Base64 | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_string(cls, value: object) -> object:
        if isinstance(value, str):
            return {"text": value}
        if not isinstance(value, dict | BytesIn):
            *others, last = (f'{{"{form}": …}}' for form in cls.FORMS)
            forms = f"{', '.join(others)} or {last}"
            raise PydanticCustomError("bytes", "give a string, {forms}", {"forms": forms})
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(getattr(self, form) is not None for form in self.FORMS) != 1:
            *others, last = self.FORMS
            forms = f"{', '.join(others)} and {last}"
            raise PydanticCustomError(
                "one_of", "give one of {forms}, and only one", {"forms": forms}
            )
        return self

    @property
    def data(self) -> bytes:
        """The bytes that were given."""
        return self.base64 if self.base64 is not None else (self.text or "").encode()

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        reference = handler(schema)
        whole = handler.resolve_ref_schema(reference)
        properties = whole.pop("properties")
        kinds: dict[str, Any] = {form: properties.pop(form)["anyOf"][0] for form in cls.FORMS}

        def only(form: str) -> dict[str, Any]:
            return {
                "type": "object",
                "properties": {
                    form: kinds[form],
                    **(properties if form == cls.FORMS[-1] else {}),
                },
                "required": [form],
                "additionalProperties": False,
            }

        forms = [{"type": "string", "title": "Text"}, *map(only, cls.FORMS)]
        whole.pop("type")
        whole.pop("additionalProperties")
        whole["anyOf"] = forms
        return reference


class SegmentIn(BytesIn):
    """A part of a context: bytes, or a special token by its name, `{"token": "<|im_start|>"}`."""

    FORMS = ("text", "base64", "token")
    token: str | None = None

    def segment(self, vocab: ByteVocab) -> Text | Special:
        """The segment; VocabError where there is no such special token."""
        return Text(self.data) if self.token is None else Special.named(self.token, vocab)


class MessageIn(Body):
    """A message of a chat; a role is text, too, and one of the usual ones or written as it is."""

    role: str
    content: str


class Given(Protocol):
    """A context as a caller wrote it, whatever the shape."""

    async def context(self, vocab: ByteVocab, template: ChatTemplate, place: str) -> Context:
        """The library's context; FieldError names what is wrong under ``place``."""


class ContextIn(BytesIn):
    """What comes before: bytes, segments of bytes and special tokens, or the messages of a chat.

    Bytes are text whatever they spell; only `{"token": …}` and the chat template's own special
    tokens are special tokens. Beside one that takes white space with it, which some tokenizers'
    do, the template's own white space is left out; a message's content keeps its own.
    `add_generation_prompt` (true by default) ends a chat with the beginning of an answer.
    """

    FORMS: ClassVar[tuple[str, ...]] = ("text", "base64", "segments", "messages")
    segments: Annotated[list[SegmentIn], Field(fail_fast=True)] | None = None
    messages: Annotated[list[MessageIn], Field(min_length=1, fail_fast=True)] | None = None
    add_generation_prompt: bool = True
    tokens: NotSupported = None

    @model_validator(mode="after")
    def _prompt_of_a_chat(self) -> Self:
        if "add_generation_prompt" in self.model_fields_set and self.messages is None:
            raise PydanticCustomError("alone", "add_generation_prompt goes with messages only")
        return self

    async def context(self, vocab: ByteVocab, template: ChatTemplate, place: str) -> Context:
        """The library's context.

        Args:
            vocab: the model's vocabulary.
            template: the model's chat template.
            place: what errors call this context, such as ``contexts[2]``.

        Raises:
            FieldError: a special token that the model does not have, or messages that its
                template does not take.
        """
        if self.messages is not None:
            messages = [message.model_dump() for message in self.messages]
            try:
                return await in_thread(
                    messages_to_context, messages, template, vocab, self.add_generation_prompt
                )
            except InputError as error:
                raise FieldError(str(error), f"{place}.messages") from error
        if self.segments is None:
            return Context([Text(self.data)])
        segments = []
        for i, segment in enumerate(self.segments):
            try:
                segments.append(segment.segment(vocab))
            except VocabError as error:
                raise FieldError(str(error), f"{place}.segments[{i}].token") from error
        return Context(segments)
