"""The tokenizer routes of vLLM and llama.cpp, by which clients count tokens: bytes are ids.

Must not know HTTP.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from bytelm_server.contexts import Body
from bytelm_server.errors import LimitExceeded
from bytelm_server.openai.bodies import BEGINNING, Hint, neutral
from bytelm_server.openai.calls import checked_model
from bytelm_server.openai.spelling import eos_name
from bytelm_server.service import ByteService


class TokenizeCall(Body):
    """A text whose tokens are wanted."""

    model: str | None = None
    prompt: str | None = Field(None, description="The text. This, as in vLLM, or `content`.")
    content: str | None = Field(None, description="The text, as in llama.cpp.")
    add_special_tokens: Hint = None
    add_special: Hint = None
    parse_special: Hint = None
    return_token_strs: neutral(False) = None  # type: ignore[valid-type]
    with_pieces: neutral(False) = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prompt is None) == (self.content is None):
            raise PydanticCustomError("one_of", "give one of prompt and content, and only one")
        return self


class DetokenizeCall(Body):
    """Tokens whose text is wanted."""

    model: str | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0, le=BEGINNING)]], Field(fail_fast=True)]


class TokenizerInfo(TypedDict):
    """What clients ask of a tokenizer's configuration."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: Annotated[
        int | None,
        Field(description="In tokens of the model; a byte takes one at most. Null: no limit."),
    ]
    bos_token: Annotated[None, Field(description="A text needs none.")]
    eos_token: str | None
    pad_token: None
    unk_token: None
    chat_template: Annotated[
        None,
        Field(description="A text has no special tokens: use `/v1/chat/completions` for chats."),
    ]


class Tokens(TypedDict):
    """The tokens of a text."""

    tokens: list[int]
    count: int
    max_model_len: int | None


class Untokenized(TypedDict):
    """The text of tokens, as vLLM and as llama.cpp name it; U+FFFD where they are no UTF-8."""

    prompt: str
    content: str


def info(service: ByteService) -> TokenizerInfo:
    """The tokenizer that bytes are."""
    vocab = service.lm.vocab
    return TokenizerInfo(
        tokenizer_class="Bytes",
        vocab_size=BEGINNING + 1,
        model_max_length=service.lm.max_context_tokens,
        bos_token=None,
        eos_token=eos_name(vocab) if vocab.eos_token_ids else None,
        pad_token=None,
        unk_token=None,
        chat_template=None,
    )


def tokenized(service: ByteService, call: TokenizeCall) -> Tokens:
    """The UTF-8 bytes of a text; EOS of its name alone."""
    checked_model(service, call.model)
    field, text = ("content", call.content) if call.prompt is None else ("prompt", call.prompt)
    data = (text or "").encode()
    _check(service, len(data), field)
    vocab = service.lm.vocab
    ids = [BEGINNING] if vocab.eos_token_ids and text == eos_name(vocab) else list(data)
    return Tokens(tokens=ids, count=len(ids), max_model_len=service.lm.max_context_tokens)


def untokenized(service: ByteService, call: DetokenizeCall) -> Untokenized:
    """The text of bytes, and of EOS its name."""
    checked_model(service, call.model)
    _check(service, len(call.tokens), "tokens")
    parts, eos = [bytearray()], eos_name(service.lm.vocab)
    for token in call.tokens:
        if token == BEGINNING:
            parts.append(bytearray())
        else:
            parts[-1].append(token)
    text = eos.join(part.decode(errors="replace") for part in parts)
    return Untokenized(prompt=text, content=text)


def _check(service: ByteService, length: int, field: str) -> None:
    most = service.settings.max_context_bytes
    if length > most:
        raise LimitExceeded(f"a context can have at most {most} bytes here, not {length}", field)
