"""Tokenizers of the `tokenizers` library: byte-level BPE, and SentencePiece conversions.

WordPiece, word-level and end-of-word vocabularies are refused: the spaces of a text are not in
their tokens. Knows nothing of what wraps the tokenizer.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bytelm.errors import VocabError
from bytelm.vocabulary.canonical import Span
from bytelm.vocabulary.families import pipelines
from bytelm.vocabulary.families.table import TokenTable
from bytelm.vocabulary.pipeline import Pipeline

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")
_READABLE_DECODERS = {"ByteLevel", "ByteFallback", "Fuse", "Replace", "Strip", "Metaspace"}
_SAMPLING = ("dropout", "alpha", "nbest_size")
_STRANGER = "\U0010fffd\U0010fffe"  # what no vocabulary has
_SPACE_DROPPING = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit", "CharDelimiterSplit"}


def read(tokenizer: "Tokenizer") -> TokenTable:
    """The table of a `tokenizers.Tokenizer`. VocabError for families that lose spaces."""
    layout = _layout(tokenizer)
    _refuse_unreadable(tokenizer, layout)
    added = tokenizer.get_added_tokens_decoder()
    token_text = {token_id: text for text, token_id in tokenizer.get_vocab(False).items()}
    if any(part["type"] == "ByteLevel" for part in _parts(layout)):
        to_bytes = _byte_level_reader()
    else:
        to_bytes = _piece_reader(layout, token_text)
    token_bytes = {token_id: to_bytes(text) for token_id, text in token_text.items()}
    added_text = {
        token_id: _added_text(token, tokenizer, layout) for token_id, token in added.items()
    }
    for token_id, token in added.items():
        if token_text.get(token_id) != token.content:  # else the model's reading is right
            token_bytes[token_id] = added_text[token_id].encode()
        token_text[token_id] = token.content
    special = {token_id for token_id, token in added.items() if token.special}
    unknown = _unknown_id(tokenizer.model)
    if unknown is not None:
        special.add(unknown)
    for token_id in special:
        token_bytes[token_id] = b""
    return TokenTable(
        token_bytes=token_bytes,
        token_text=token_text,
        special_ids=special,
        added_ids=set(added),
        prefix=_prefix(layout),
        tokenizer=MidTextTokenizer(tokenizer, layout, token_bytes, added_text),
        strips_left={token_id for token_id, token in added.items() if token.lstrip},
        strips_right={token_id for token_id, token in added.items() if token.rstrip},
    )


class MidTextTokenizer:
    """A tokenizer without its dummy prefix, its special tokens and its stripping of spaces.

    Shares the vocabulary and merges of the tokenizer it is made from.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer",
        layout: dict[str, Any],
        token_bytes: dict[int, bytes],
        added_text: dict[int, str],
    ) -> None:
        from tokenizers import AddedToken, Tokenizer

        changes = {part: _faithful(layout[part]) for part in ("normalizer", "pre_tokenizer")}
        self._layout = layout | changes
        plain = Tokenizer.from_str(json.dumps(self._layout))
        plain.model = _plain_model(tokenizer.model)
        model_vocab = tokenizer.get_vocab(False)
        # A token that the model does not know is numbered from the vocabulary's length on, which
        # is an id in use where the vocabulary has holes: fill these first.
        holes = max(model_vocab.values(), default=-1) + 1 - len(model_vocab)
        plain.add_tokens([f"{_STRANGER}{hole}" for hole in range(holes)])
        added = tokenizer.get_added_tokens_decoder()
        texts = [
            (token_id, text)
            for token_id, text in sorted(added_text.items())
            if text and token_bytes[token_id] == text.encode()
        ]
        plain.add_tokens(
            [
                AddedToken(
                    text,
                    normalized=added[token_id].normalized,
                    single_word=added[token_id].single_word,
                )
                for token_id, text in texts
            ]
        )
        self._plain = plain
        self._token_bytes = token_bytes
        self._literals = dict(texts)
        self._added = [added[token_id] for token_id, _ in texts]
        self._original = {
            plain_id: token_id
            for token_id, text in texts
            if (plain_id := plain.token_to_id(text)) != token_id
        }
        if (stranger := plain.model.token_to_id(_STRANGER)) is not None:
            self._original[stranger] = sys.maxsize  # no token of the vocabulary

    def ids(self, text: str) -> list[int]:
        """The token ids of `text`."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if self._original:
            return [self._original.get(token_id, token_id) for token_id in ids]
        return ids

    def spans(self, text: str) -> list[Span]:
        """The same ids with the characters they stand for."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        return [
            Span(self._original.get(token_id, token_id), start, end)
            for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
        ]

    def pipeline(self) -> Pipeline:
        """How the ids are made."""
        return pipelines.of_fast(
            self._plain, self._layout, self._added, self._literals, self._token_bytes
        )


def _layout(tokenizer: "Tokenizer") -> dict[str, Any]:
    """The tokenizer's JSON with an empty model: everything but the vocabulary."""
    from tokenizers import Tokenizer, models

    shell = Tokenizer(models.BPE())
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        value = getattr(tokenizer, part)
        if value is not None:
            setattr(shell, part, value)
    try:
        layout: dict[str, Any] = json.loads(shell.to_str())
    except Exception as error:  # the library raises a bare Exception for parts written in Python
        raise VocabError(
            f"the tokenizer has parts that cannot be written as JSON ({error}): what they do to"
            " a text cannot be known"
        ) from error
    return layout


def _parts(node: Any) -> Iterator[dict[str, Any]]:
    """Every component in a layout: normalizers, pre-tokenizers, decoders."""
    if isinstance(node, dict):
        if isinstance(node.get("type"), str):
            yield node
        for value in node.values():
            yield from _parts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _parts(value)


def _refuse_unreadable(tokenizer: "Tokenizer", layout: dict[str, Any]) -> None:
    """VocabError, with the reason, where the bytes of a text cannot be had from its tokens."""
    model = tokenizer.model
    kind = type(model).__name__
    splitters = {part["type"] for part in _parts(layout["pre_tokenizer"])}
    decoders = {part["type"] for part in _parts(layout["decoder"])} - {"Sequence"}
    reason = None
    if kind == "WordPiece":
        reason = "WordPiece drops the spaces between words (## only marks that there was none)"
    elif kind == "WordLevel":
        reason = "a word-level vocabulary drops the spaces between words"
    elif getattr(model, "end_of_word_suffix", None):
        reason = f"{model.end_of_word_suffix!r} marks where words end, but not which space followed"
    elif getattr(model, "continuing_subword_prefix", None):
        reason = (
            f"the mark {model.continuing_subword_prefix!r} stands in for spaces that are dropped"
        )
    elif splitters & _SPACE_DROPPING and not splitters & {"Metaspace", "ByteLevel"}:
        reason = f"its pre-tokenizer {min(splitters & _SPACE_DROPPING)} drops spaces"
    elif decoders - _READABLE_DECODERS:
        reason = f"its decoder {min(decoders - _READABLE_DECODERS)} changes tokens by their place"
    elif any("Regex" in part.get("pattern", ()) for part in _parts(layout["decoder"])):
        reason = "its decoder replaces whatever a regular expression matches"
    if reason:
        raise VocabError(
            f"the bytes of a text cannot be recovered from this tokenizer's tokens: {reason};"
            " use a model with a byte-level BPE or SentencePiece vocabulary"
        )


def _byte_level_reader() -> Callable[[str], bytes]:
    """Reads tokens in GPT-2's byte alphabet: each byte is written as one printable character.

    A token with any other character is text.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    # Characters below 256 that are outside the alphabet must not pass as the bytes they look like.
    table = dict.fromkeys(others, "\uffff")
    table |= {256 + place: chr(byte) for place, byte in enumerate(others)}

    def to_bytes(text: str) -> bytes:
        try:
            return text.translate(table).encode("latin-1")
        except UnicodeEncodeError:
            return text.encode()

    return to_bytes


def _piece_reader(layout: dict[str, Any], token_text: dict[int, str]) -> Callable[[str], bytes]:
    """Reads SentencePiece pieces: a mark for the space, and <0x0A> where there is byte fallback."""
    marks = {"\u2581": " "} if _marks_spaces(layout) else {}
    for part in _parts(layout["decoder"]):
        if part["type"] == "Replace" and "String" in part["pattern"]:
            marks[part["pattern"]["String"]] = part["content"]
    for part in _parts(layout):
        if part["type"] == "Metaspace":
            marks[part["replacement"]] = " "
    texts = set(token_text.values())
    falls_back = any(part["type"] == "ByteFallback" for part in _parts(layout["decoder"]))
    falls_back = falls_back or all(f"<0x{byte:02X}>" in texts for byte in range(256))

    def to_bytes(text: str) -> bytes:
        if falls_back and (byte := _BYTE_PIECE.fullmatch(text)):
            return bytes.fromhex(byte[1])
        for mark, space in marks.items():
            text = text.replace(mark, space)
        return text.encode()

    return to_bytes


def _marks_spaces(layout: dict[str, Any]) -> bool:
    """Whether a normalizer writes spaces as SentencePiece does."""
    return any(
        part["type"] in {"Replace", "Prepend"} and "\u2581" in json.dumps(part, ensure_ascii=False)
        for part in _parts(layout["normalizer"])
    )


def _added_text(token: "AddedToken", tokenizer: "Tokenizer", layout: dict[str, Any]) -> str:
    """The text that an added token stands for.

    A normalized one is looked for in normalized text. With a normalizer that writes spaces as
    marks, a mark of its own is a space, and what is put before a text stands before it, too.
    """
    if not token.normalized or not _marks_spaces(layout):
        return token.content
    return tokenizer.normalizer.normalize_str(token.content).replace("\u2581", " ")


def _unknown_id(model: Any) -> int | None:
    """The id of the token that stands for any unknown text, if there is one."""
    if type(model).__name__ == "Unigram":
        unknown: int | None = json.loads(model.__getstate__())["unk_id"]
        return unknown
    return model.token_to_id(model.unk_token) if model.unk_token else None


def _plain_model(model: Any) -> Any:
    """The model; a copy where it draws its segmentations or fails at text that it does not know.

    BPE without an unknown token leaves such text out. Unigram has to have one: it gets `_STRANGER`.
    """
    from tokenizers import Tokenizer

    changes: dict[str, Any] = {name: None for name in _SAMPLING if getattr(model, name, None)}
    if _unknown_id(model) is None:
        if type(model).__name__ == "Unigram":
            pieces = json.loads(model.__getstate__())["vocab"]
            changes |= {"vocab": [*pieces, (_STRANGER, 0.0)], "unk_id": len(pieces)}
        elif model.unk_token:
            changes["unk_token"] = None
    if not changes:
        return model
    whole = json.loads(Tokenizer(model).to_str())
    whole["model"] |= changes
    return Tokenizer.from_str(json.dumps(whole)).model


def _prefix(layout: dict[str, Any]) -> bytes:
    """What the tokenizer puts before a text, as bytes."""
    for part in _parts(layout["normalizer"]):
        if part["type"] == "Prepend":
            return str(part["prepend"]).replace("\u2581", " ").encode()
    for part in _parts(layout["pre_tokenizer"]):
        if part["type"] == "Metaspace" and part["prepend_scheme"] != "never":
            return b" "
        if part["type"] == "ByteLevel" and part["add_prefix_space"]:
            return b" "
    return b""


def _faithful(part: Any) -> Any:
    """A normalizer's or pre-tokenizer's JSON without what adds a prefix or drops spaces."""
    if part is None or part["type"] in {"Prepend", "Strip", "WhitespaceSplit"}:
        return None
    changed = dict(part)
    for key in ("normalizers", "pretokenizers"):
        if key in changed:
            kept = (_faithful(inner) for inner in changed[key])
            changed[key] = [inner for inner in kept if inner is not None]
    if part["type"] == "Metaspace":
        changed["prepend_scheme"] = "never"
    if part["type"] == "ByteLevel" and "add_prefix_space" in part:
        changed["add_prefix_space"] = False
    return changed
