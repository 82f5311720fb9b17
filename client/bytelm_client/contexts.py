"""What comes before, as callers write it: bytes, text, segments, or the messages of a chat.

Must not know calls.
"""

import base64
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Text: TypeAlias = str | bytes | bytearray | memoryview
"""Bytes, or text, which is sent as UTF-8."""

TEXT = (str, bytes, bytearray, memoryview)

Ids: TypeAlias = Sequence[int] | NDArray[np.integer]
"""Token ids."""


@dataclass(frozen=True)
class Special:
    """A special token by the tokenizer's name for it, such as ``<|im_start|>``."""

    name: str


@dataclass(frozen=True)
class Segments:
    """A context of texts and special tokens; see ``segments``."""

    parts: tuple[Text | Special, ...]


@dataclass(frozen=True)
class Messages:
    """A context that is a chat; see ``messages``."""

    messages: tuple[Mapping[str, str], ...]
    add_generation_prompt: bool = True


Context: TypeAlias = Text | Segments | Messages
"""What comes before: bytes, or text; segments; messages."""

Texts: TypeAlias = list[str] | list[bytes] | list[str | bytes] | tuple[str | bytes, ...]
"""Several texts; not any sequence, since a text is a sequence of texts, too."""

Contexts: TypeAlias = Texts | list[Segments] | list[Messages] | list[Context] | tuple[Context, ...]
"""Several contexts."""


def special(name: str) -> Special:
    """A special token, to be put into ``segments``.

    Args:
        name: as the tokenizer spells it.
    """
    return Special(name)


def segments(*parts: Text | Special) -> Segments:
    r"""A context of texts and special tokens in order.

    >>> context = segments(special("<|im_start|>"), "user\nHello", special("<|im_end|>"))

    Only what ``special`` made is a special token: a text stays text whatever it spells. No BOS is
    added when a special token comes first.
    """
    return Segments(parts)


def messages(
    messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
) -> Messages:
    """A chat, written by the model's own chat template.

    >>> context = messages([{"role": "user", "content": "Hello"}])

    Args:
        messages: ``role`` and ``content`` of each.
        add_generation_prompt: end with the beginning of an answer.

    Raises:
        TypeError: when they are no list of such pairs.
    """
    if isinstance(messages, Mapping | str | bytes):
        kind = type(messages).__name__
        raise TypeError(f"a chat is a list of messages, not a {kind}: put a single one in a list")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            kind = type(message).__name__
            raise TypeError(f'message {i} is no {{"role": …, "content": …}}, but a {kind}')
    return Messages(tuple(messages), add_generation_prompt)


def bytes_json(data: Text) -> str | dict[str, str]:
    """Bytes or text as the API takes them.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(data, str):
        return data
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"text or bytes are wanted here, not {data!r:.60}")
    return {"base64": base64.b64encode(data).decode("ascii")}


def context_json(context: Context) -> Any:
    """A context as the API takes it.

    Raises:
        TypeError: when it is none.
    """
    match context:
        case Segments(parts):
            return {
                "segments": [
                    {"token": part.name} if isinstance(part, Special) else bytes_json(part)
                    for part in parts
                ]
            }
        case Messages(given, prompt):
            return {"messages": [dict(m) for m in given], "add_generation_prompt": prompt}
        case str() | bytes() | bytearray() | memoryview():
            return bytes_json(context)
        case _:
            raise TypeError(
                f"a context is text, bytes, segments(…) or messages(…), not {context!r:.60}"
            )


def ids_json(ids: Ids) -> list[int]:
    """Token ids as the API takes them.

    Raises:
        TypeError: when they are none.
    """
    try:
        if isinstance(ids, TEXT):
            raise TypeError
        return [operator.index(token) for token in ids]
    except TypeError:
        raise TypeError(f"token ids are whole numbers in a row, not {ids!r:.60}") from None


def is_one(context: Context | Contexts) -> bool:
    """Whether this is one context, not several."""
    return not isinstance(context, list | tuple)
