"""Contexts made of bytes and special tokens, and chat messages as such contexts.

A context is a sequence of segments. A text is bytes and stays text whatever it spells; a special
token is there because somebody put it there, by its id or name: an intervention, no part of what
the byte LM assigns probability to.

This module knows vocabularies and how a state begins; it must not know tries, engines or HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.beam.prefill import LONG, TAIL, TrunkFinder
from bytelm.compat.genlm import BackendLM, as_token_lm
from bytelm.errors import ContextTooLong, InputError, VocabError
from bytelm.frames import Field, framed
from bytelm.models.token_lm import AsyncTokenLM
from bytelm.threads import by_length, go_on
from bytelm.vocabulary import families
from bytelm.vocabulary.vocab import ByteVocab

Message = Mapping[str, str]
"""``role`` and ``content`` of one message of a chat."""

Renderer = Callable[[list[dict[str, str]], bool, datetime], str]
"""Messages, whether to add a generation prompt, and what time it is → the chat as one string."""

USUAL_ROLES = frozenset(
    {"system", "developer", "user", "assistant", "model", "tool", "function", "ipython"}
    | {"observation", "tool_response"}
)
"""Roles that templates know by name, and may write otherwise than as they stand."""

# Unicode's, which is what the tokenizers strip; str.strip alone knows more.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
_WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"


@dataclass(frozen=True)
class Text:
    """Bytes that are text, even where they spell a special token."""

    data: bytes


@dataclass(frozen=True)
class Special:
    """One special token."""

    token_id: int

    @classmethod
    def named(cls, name: str, vocab: ByteVocab) -> Self:
        """The special token that the tokenizer spells ``name``.

        Raises:
            VocabError: when there is none, or ``name`` is an ordinary token.
        """
        specials = _Specials.of(vocab).ids
        if name in specials:
            return cls(specials[name])
        if name and name in vocab.token_text:
            raise VocabError(f"{name!r} is an ordinary token, no special one: give it as text")
        some = ", ".join(repr(text) for text in list(specials)[:5])
        advice = f"use one that it has, such as {some}" if some else "it has none, give text only"
        raise VocabError(f"{name!r} is no special token of this model: {advice}")


@dataclass(frozen=True)
class Context:
    """What a state begins with: texts and special tokens in order. Adjacent texts are one."""

    segments: tuple[Text | Special, ...] = ()

    def __init__(self, segments: Iterable[Text | Special] = ()) -> None:
        joined: list[Text | Special] = []
        for segment in segments:
            if isinstance(segment, Text) and joined and isinstance(joined[-1], Text):
                joined[-1] = Text(joined[-1].data + segment.data)
            elif segment != Text(b""):
                joined.append(segment)
        object.__setattr__(self, "segments", tuple(joined))

    @classmethod
    def of(cls, text: bytes | str) -> Self:
        """A context of text alone.

        Raises:
            InputError: when a string has half of a surrogate pair, which has no bytes.
        """
        return cls([Text(_utf8(text) if isinstance(text, str) else bytes(text))])

    @property
    def length(self) -> int:
        """How many bytes of text it has; special tokens count 0."""
        return sum(len(segment.data) for segment in self.segments if isinstance(segment, Text))

    def tokens(self, vocab: ByteVocab, most: int | None = None) -> list[int]:
        """The canonical token ids: BOS, unless a special token comes first, then the segments.

        What the tokenizer puts before a text stands behind BOS only, whether BOS was added here
        or is the only segment before the text.

        Args:
            vocab: the model's vocabulary.
            most: as many tokens as the model takes; None for any number.

        Raises:
            VocabError: when a special token is not one of the vocabulary's, a byte cannot be
                spelled, or there is neither BOS nor EOS to begin with.
            ContextTooLong: when there are more than ``most``; not all need be counted for that.
        """
        starts_special = bool(self.segments) and isinstance(self.segments[0], Special)
        return self.tokens_after([] if starts_special else vocab.initial_context, vocab, most)

    def tokens_after(
        self, before: Sequence[int], vocab: ByteVocab, most: int | None = None
    ) -> list[int]:
        """The tokens ``before`` and the canonical ones of the segments.

        Raises:
            VocabError: as ``tokens``.
            ContextTooLong: as ``tokens``.
        """
        ids = list(before)
        is_long = self.length > LONG
        if most is not None:
            TrunkFinder.of(vocab).check_length(len(ids), self.length, most)
        for segment in self.segments:
            go_on()
            if isinstance(segment, Text):
                ids += _spelled(segment.data, ids, vocab)
            elif segment.token_id in vocab.special_ids:
                ids.append(segment.token_id)
            else:
                raise VocabError(
                    f"token {segment.token_id} is no special token of this model: "
                    "give ordinary tokens as text"
                )
            if most is not None and is_long and len(ids) > most:
                raise ContextTooLong.of(most, len(ids), at_least=True)
        if most is not None and len(ids) > most:
            raise ContextTooLong.of(most, len(ids))
        return ids

    def split(self) -> tuple[Context, bytes]:
        """Everything up to the last special token, and the text behind it."""
        if self.segments and isinstance(self.segments[-1], Text):
            return Context(self.segments[:-1]), self.segments[-1].data
        return self, b""


async def begin(
    lm: AsyncTokenLM | BackendLM,
    params: BeamParams,
    context: Context,
    *,
    mode: str = "fast",
    tail: int = TAIL,
) -> ByteBeamState:
    """The state after a context.

    All up to the last special token is taken as its canonical tokens, which costs no evaluation;
    the text behind is prefilled.

    Args:
        lm: the token LM.
        params: the beam's parameters.
        context: what to begin with.
        mode: how to prefill the last text, see ``ByteBeamState.prefill``.
        tail: as ``mode``.

    Raises:
        VocabError: as ``Context.tokens``.
        BeamError: when ``mode`` or ``tail`` is no valid value.
        ContextTooLong: before any evaluation, when the model takes fewer tokens, and there is no
            ``max_context_length`` that leaves the first ones out.
    """
    lm = as_token_lm(lm)
    vocab, most = lm.vocab, lm.max_context_tokens
    head, text = context.split()
    if params.max_context_length is not None:
        most = None
    anchor = await by_length(head.length, head.tokens, vocab, most)
    prefix = vocab.prefix if text and _is_start(anchor, vocab) else b""
    await TrunkFinder.of(vocab).check_fits(len(anchor), prefix + text, most)
    # Without an explicit context the state also has what the tokenizer puts before a text.
    explicit = None if _is_start(anchor, vocab) else anchor
    state = await ByteBeamState.initial(lm, params, initial_context=explicit)
    return await state.prefill(text, mode, tail)


class ChatTemplate:
    """A model's way of writing a chat as one string.

    Args:
        renderer: writes a chat; None for a model that has no chat template.
    """

    def __init__(self, renderer: Renderer | None) -> None:
        self._renderer = renderer

    @classmethod
    def from_pretrained(cls, path: str | Path, *, trust_remote_code: bool = False) -> Self:
        """The template of a model in Hugging Face layout: a directory, or a name on the hub.

        A model without one is an error only when it is rendered. Needs transformers. With
        ``trust_remote_code``, code that comes with the model may run.

        Raises:
            UnknownModel: when there is no tokenizer, or it is damaged.
        """
        if families.lone_file(Path(path)):
            return cls(None)
        return cls.from_tokenizer(
            families.load_pretrained(path, trust_remote_code=trust_remote_code)
        )

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> Self:
        """The template of a tokenizer object of transformers."""
        if not tokenizer.chat_template:
            return cls(None)
        from jinja2 import TemplateError

        def renderer(messages: list[dict[str, str]], prompt: bool, now: datetime) -> str:
            try:
                return tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=prompt,
                    strftime_now=now.strftime,
                )
            except (TemplateError, ValueError) as error:
                raise InputError(f"the chat template refuses the messages: {error}") from error

        return cls(renderer)

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        now: datetime | None = None,
    ) -> str:
        """The chat as one string, special tokens spelled.

        Args:
            messages: role and content of each.
            add_generation_prompt: end with the beginning of an answer.
            now: the time for templates that tell it; by default what it is.

        Raises:
            InputError: when the model has no chat template, or it refuses the messages.
        """
        if self._renderer is None:
            raise InputError("the model has no chat template: give text or segments")
        copies = [dict(message) for message in messages]
        return self._renderer(copies, add_generation_prompt, now or datetime.now())


def messages_to_context(
    messages: Sequence[Message],
    template: ChatTemplate,
    vocab: ByteVocab,
    add_generation_prompt: bool = True,
    *,
    continue_last: bool = False,
) -> Context:
    """A chat as a context, in which only the template's own special tokens are tokens.

    Contents are text whatever they spell, and so are roles, but for the usual ones, which templates
    know by name: see ``frames``.

    Beside a token that the tokenizer takes white space in with (``ByteVocab.strips_left``,
    ``strips_right``) the template's own is left out; a content keeps all that was written of it.

    Args:
        messages: role and content of each.
        template: the model's chat template.
        vocab: the model's vocabulary.
        add_generation_prompt: end with the beginning of an answer.
        continue_last: end with the last content, white space at its end included, and leave out
            what the template writes behind it.

    Raises:
        InputError: when messages are malformed, the template refuses them, or it does more with
            a content, or an unusual role, than to write it out; or the last content is not what it
            writes last. Names the message.
    """
    _check(messages)
    now = datetime.now()
    places = [
        (i, key)
        for i, message in enumerate(messages)
        for key in ("role", "content")
        if key == "content" or message["role"] not in USUAL_ROLES
    ]

    def render(values: Sequence[str]) -> str:
        filled = [dict(message) for message in messages]
        for (i, key), value in zip(places, values, strict=True):
            filled[i][key] = value
        return template.render(filled, add_generation_prompt, now)

    fields = [
        Field(f"the {key} of {_name(messages, i)}", messages[i][key], once=key == "content")
        for i, key in places
    ]
    pieces = framed(render, fields)
    if continue_last:
        pieces = [*pieces[:-2], _to_its_end(pieces[-2], messages), ""]
    splitter = _Specials.of(vocab)
    segments: list[Text | Special] = []
    own = pieces[0]
    for value, behind in zip(pieces[1::2], pieces[2::2], strict=True):
        if value:
            segments += [*splitter.split(own), Text(_utf8(value))]
            own = behind
        else:
            own += behind
    return Context([*segments, *splitter.split(own)])


def _to_its_end(written: str, messages: Sequence[Message]) -> str:
    """The content that a template wrote last, with the white space that it took from its end."""
    content = messages[-1]["content"]
    if written.strip() != content.strip():
        raise InputError(
            f"the chat template does not end with {_name(messages, len(messages) - 1)}, so that it "
            "cannot be continued: give segments instead of messages"
        )
    return content[content.find(written) :]


def _check(messages: Sequence[Message]) -> None:
    if not messages:
        raise InputError("there are no messages: give at least one")
    for i, message in enumerate(messages):
        if set(message) != {"role", "content"}:
            raise InputError(
                f"message {i} has the keys {sorted(message)}: give role and content only"
            )
        for key, value in message.items():
            if not isinstance(value, str):
                raise InputError(f"the {key} of message {i} is no string, but {value!r}")
            _utf8(value, f"the {key} of message {i}")


class _Specials:
    """The names of a vocabulary's special tokens, and of those that take white space with them."""

    def __init__(self, vocab: ByteVocab) -> None:
        self.ids = _by_name(vocab, vocab.special_ids)
        self._vocab = vocab
        self._marks = _by_name(vocab, vocab.special_ids | vocab.strips_left | vocab.strips_right)
        names = sorted(self._marks, key=len, reverse=True)
        self._any = re.compile(f"({'|'.join(map(re.escape, names))})") if names else None

    @classmethod
    def of(cls, vocab: ByteVocab) -> _Specials:
        """Those of a vocabulary, made at the first call and kept with the vocabulary."""
        made: _Specials | None = vocab.__dict__.get("_specials")
        if made is None:
            made = vocab.__dict__["_specials"] = cls(vocab)
        return made

    def split(self, text: str) -> list[Text | Special]:
        """A template's own text with the special tokens that it spells, the longest from the left.

        A token, special or not, takes the white space with it that it takes in any text.
        """
        if self._any is None:
            return [Text(_utf8(text))]
        vocab, pieces = self._vocab, self._any.split(text)
        ids = [self._marks[piece] for piece in pieces[1::2]]
        for i, token_id in enumerate(ids):
            if token_id in vocab.strips_left:
                pieces[2 * i] = pieces[2 * i].rstrip(_WHITE_SPACE)
            if token_id in vocab.strips_right:
                pieces[2 * i + 2] = pieces[2 * i + 2].lstrip(_WHITE_SPACE)
        segments: list[Text | Special] = [Text(_utf8(piece)) for piece in pieces]
        for i, token_id in enumerate(ids):
            if token_id in vocab.special_ids:
                segments[2 * i + 1] = Special(token_id)
        return segments


def _by_name(vocab: ByteVocab, ids: Iterable[int]) -> dict[str, int]:
    """The ids of tokens by their names; of equal ones the lowest."""
    found: dict[str, int] = {}
    for token_id in sorted(ids):
        if vocab.token_text[token_id]:
            found.setdefault(vocab.token_text[token_id], token_id)
    return found


def _spelled(text: bytes, before: Sequence[int], vocab: ByteVocab) -> list[int]:
    """The canonical ids of a text behind the tokens ``before``."""
    prefix = vocab.prefix if _is_start(before, vocab) else b""
    return vocab.encode(prefix + text) if text else []


def _is_start(tokens: Sequence[int], vocab: ByteVocab) -> bool:
    """Whether tokens are what the model's texts begin behind."""
    if not vocab.has_initial_context or len(tokens) != len(vocab.initial_context):
        return False
    return tuple(tokens) == vocab.initial_context


def _utf8(text: str, what: str = "the text") -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} has half of a surrogate pair at character {error.start}, which has no UTF-8"
        ) from error


def _name(messages: Sequence[Message], i: int) -> str:
    role = messages[i]["role"]
    return f"message {i} (role {role if len(role) <= 40 else role[:40] + '…'!r})"
