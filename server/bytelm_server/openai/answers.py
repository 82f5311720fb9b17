"""What these calls are answered with, in OpenAI's shapes.

Must not know how an answer comes about.
"""

from typing import Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

Finish = Annotated[
    str | None,
    Field(
        pattern="^(length|stop)$",
        description="`length`: as many bytes as asked for, or as fit into the model; `stop`: a "
        "stop string, or EOS. Null where more comes.",
    ),
]


class CompletionUsage(TypedDict):
    """What a call took, in bytes; EOS and special tokens count 0."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(TypedDict):
    """An entry for each byte, and for EOS where it ended the text."""

    tokens: Annotated[
        list[str],
        Field(description="A character, or `bytes:\\xNN` for a byte that is no whole one."),
    ]
    token_logprobs: Annotated[
        list[float | None],
        Field(description="Natural logarithms; −9999.0 is −∞; null of the id 256 at the start."),
    ]
    top_logprobs: list[dict[str, float] | None]
    text_offset: Annotated[
        list[int], Field(description="In characters; the bytes of one share it.")
    ]


class CompletionChoice(TypedDict):
    """A text after a prompt; in a stream, the next part of it."""

    index: Annotated[int, Field(description="The prompt's place times `n`, plus the sample's.")]
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish


class Completion(TypedDict):
    """Texts after prompts."""

    id: str
    object: Annotated[str, Field(pattern="^text_completion$")]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: CompletionUsage


class CompletionChunk(TypedDict):
    """A part of a stream."""

    id: str
    object: Annotated[str, Field(pattern="^text_completion$")]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: NotRequired[
        Annotated[
            CompletionUsage | None,
            Field(description="With `include_usage`: null but in the last chunk."),
        ]
    ]


class TopToken(TypedDict):
    """One of the most probable."""

    token: str
    logprob: float
    bytes: Annotated[list[int] | None, Field(description="The byte; null of EOS.")]


class ChatToken(TopToken):
    """A byte, or EOS."""

    top_logprobs: list[TopToken]


class ChatLogprobs(TypedDict):
    """An entry for each byte, and for EOS where it ended the text; −9999.0 is −∞."""

    content: list[ChatToken]
    refusal: None


class ChatAnswer(TypedDict):
    """What the assistant says."""

    role: Annotated[str, Field(pattern="^assistant$")]
    content: str
    refusal: None


class Delta(TypedDict):
    """The next part of a message."""

    role: NotRequired[Annotated[str, Field(description="In the first part.")]]
    content: str


class ChatChoice(TypedDict):
    """A message, or the next part of one."""

    index: int
    message: NotRequired[Annotated[ChatAnswer, Field(description="All of it.")]]
    delta: NotRequired[Annotated[Delta, Field(description="In a stream.")]]
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(TypedDict):
    """The next message of a chat, or several to choose from."""

    id: str
    object: Annotated[str, Field(pattern="^chat.completion$")]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: CompletionUsage


class ChatChunk(TypedDict):
    """A part of a stream."""

    id: str
    object: Annotated[str, Field(pattern="^chat.completion.chunk$")]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: NotRequired[
        Annotated[
            CompletionUsage | None,
            Field(description="With `include_usage`: null but in the last chunk."),
        ]
    ]
