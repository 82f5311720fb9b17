"""Pipelines of tokenizers: whether canonical tokenizations are known for a family, and how it cuts.

Whatever is not known to be right is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Never

from bytelm.errors import VocabError
from bytelm.vocabulary.pipeline import Pipeline, byte_pair_merge
from bytelm.vocabulary.split_stages import Stage
from bytelm.vocabulary.splitting import Splitter
from bytelm.vocabulary.text_changes import MARK, TextChange, composed, marked_spaces

if TYPE_CHECKING:
    import tiktoken
    from tokenizers import AddedToken, Tokenizer

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern of the byte-level pre-tokenizer of `tokenizers`."""


def refuse(reason: str) -> Never:
    """VocabError: canonical tokenizations are not known."""
    raise VocabError(
        f"canonical tokenizations are not known for this tokenizer: {reason}; use all tokenizations"
    )


def of_ranks(
    encoding: tiktoken.Encoding, token_bytes: Mapping[int, bytes], first_id: int
) -> Pipeline:
    """The pipeline of a tiktoken encoding whose ranks are ids from `first_id` on."""
    import tiktoken

    ranks: dict[bytes, int] = encoding._mergeable_ranks
    bytes_alone = {bytes([byte]): byte for byte in range(256)}

    @lru_cache(256)
    def matcher(charset: str) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            "charset", pat_str=charset, mergeable_ranks=bytes_alone, special_tokens={}
        )

    def matched(charset: str, text: str) -> set[str]:
        return set(bytes(matcher(charset).encode_ordinary(text)).decode())

    def merge(ids: Sequence[int]) -> list[int]:
        data = b"".join([token_bytes.get(token_id, b"") for token_id in ids])
        return [rank + first_id for rank in byte_pair_merge(data, ranks)]

    stage = Stage.of_pattern(encoding._pat_str, matched, gaps=True, possessive_braces=True)
    if Splitter((stage,), lambda _: True).has_gaps:
        refuse(f"its pattern {encoding._pat_str!r} leaves text out")
    whole = {data: rank + first_id for data, rank in ranks.items()}
    return Pipeline((stage,), merge, max(whole.values()), whole)


def of_sentencepiece(model: Any, processor: Any, added: Mapping[str, int]) -> Pipeline:
    """The pipeline of a SentencePiece model, and of tokens that were `added` outside of it.

    `processor` adds no prefix and keeps all spaces.
    """
    kinds = type(model).SentencePiece
    types = type(model.trainer_spec)
    if model.trainer_spec.model_type != types.BPE:
        refuse(f"SentencePiece {types.ModelType.Name(model.trainer_spec.model_type)} models")
    if model.normalizer_spec.precompiled_charsmap or not model.normalizer_spec.escape_whitespaces:
        refuse(f"SentencePiece models that normalize text ({model.normalizer_spec.name})")
    if any(piece.type == kinds.UNUSED for piece in model.pieces):
        refuse("SentencePiece models with unused pieces")
    literals = {token_id: text for text, token_id in added.items()}
    texts: dict[int, str] = {}
    byte_ids = set()
    for token_id, piece in enumerate(model.pieces):
        if piece.type == kinds.USER_DEFINED:
            literals[token_id] = piece.piece.replace(MARK, " ")
        elif piece.type == kinds.BYTE:
            byte_ids.add(token_id)
        elif piece.type == kinds.NORMAL:
            texts[token_id] = piece.piece.replace(MARK, " ")
    if added and len(literals) > len(added):
        refuse("SentencePiece models with user-defined symbols and added tokens")

    def merge(ids: Sequence[int]) -> list[int]:
        text = "".join([texts.get(token_id, "") for token_id in ids])
        found: list[int] = processor.encode(text, enable_sampling=False)
        return found

    stages = (Stage.uncut(),)
    return Pipeline(
        _with_literals(stages, literals),
        merge,
        max([*texts, *byte_ids, *literals]),
        literals=literals,
        characters=_characters(texts, byte_ids),
        byte_ids=frozenset(byte_ids),
        change=marked_spaces(),
    )


def of_fast(
    tokenizer: Tokenizer,
    layout: Mapping[str, Any],
    added: Sequence[AddedToken],
    literals: Mapping[int, str],
    token_bytes: Mapping[int, bytes],
) -> Pipeline:
    """The pipeline of a tokenizer of `tokenizers` that adds no prefix and finds no special tokens.

    `layout` is its JSON without the model; `added` are the tokens that it finds by their text,
    `literals` their texts by the ids that the vocabulary gives them.
    """
    kind = type(tokenizer.model).__name__
    if kind != "BPE":
        refuse(f"{kind} models")
    if any(token.single_word for token in added):
        refuse("added tokens that are single words")
    if len({token.normalized for token in added}) > 1:
        refuse("added tokens some of which are found before, some after normalization")
    marked, change = _normalized(layout["normalizer"])
    stages, byte_level, metaspace = _stages(layout["pre_tokenizer"], marked)
    texts = {token_id: text for text, token_id in tokenizer.get_vocab(False).items()}
    model = tokenizer.model
    whole = None
    if model.ignore_merges:
        if not byte_level:
            refuse("whole pieces that are looked up before merging, without byte-level merges")
        whole = {token_bytes[i]: i for i in texts if token_bytes[i]}
        split = tokenizer.pre_tokenizer.pre_tokenize_str
        for token_id, text in texts.items():
            if not token_bytes[token_id] and len(split(text)) == 1:
                refuse(f"its special token {text!r} may be found as a word")
        model = _without_lookup(model)

    def merge(ids: Sequence[int]) -> list[int]:
        text = "".join([texts.get(token_id, "") for token_id in ids])
        return [token.id for token in model.tokenize(text)]

    top = max([*texts, *literals])
    stages = _with_literals(stages or (Stage.uncut(),), literals)
    if byte_level:
        if marked or metaspace:
            refuse("spaces that are marked before bytes are")
        return Pipeline(stages, merge, top, whole, literals, change=change)
    if marked or metaspace:
        spelled = {i: text.replace(MARK, " ") for i, text in texts.items()}
    else:
        spelled = texts
    byte_ids = {i for i, text in texts.items() if _BYTE_PIECE.fullmatch(text)}
    if model.byte_fallback and len(byte_ids) < 256:
        refuse("byte fallback without a token for every byte")
    ordinary = {i: text for i, text in spelled.items() if token_bytes[i] and i not in byte_ids}
    return Pipeline(
        stages,
        merge,
        top,
        literals=literals,
        characters=_characters(ordinary, byte_ids if model.byte_fallback else ()),
        byte_ids=frozenset(byte_ids if model.byte_fallback else ()),
        change=change or (marked_spaces() if marked or metaspace else None),
    )


_BYTE_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")


def _characters(texts: Mapping[int, str], byte_ids: Any) -> frozenset[str]:
    """The characters that merges begin with."""
    characters = frozenset(text for text in texts.values() if len(text) == 1)
    if not byte_ids and any(set(text) - characters for text in texts.values()):
        refuse("tokens with characters that are no tokens, and no byte fallback")
    return characters


def _with_literals(stages: tuple[Stage, ...], literals: Mapping[int, str]) -> tuple[Stage, ...]:
    return (Stage.of_literals(literals.values()), *stages) if literals else stages


def _normalized(normalizer: Any) -> tuple[bool, TextChange | None]:
    """Whether the normalizer writes spaces as SentencePiece does, and what else it changes."""
    parts = _flat(normalizer, "normalizers")
    if not parts:
        return False, None
    if len(parts) == 1 and parts[0]["type"] == "NFC":
        return False, composed()
    for part in parts:
        kind = part["type"]
        if kind != "Replace" or (part["pattern"], part["content"]) != ({"String": " "}, MARK):
            refuse(f"its normalizer {kind} changes text")
    return True, None


def _stages(splitter: Any, marked: bool) -> tuple[tuple[Stage, ...], bool, bool]:
    """The stages of a pre-tokenizer, whether it is byte-level, and whether it marks spaces."""
    from tokenizers import Regex
    from tokenizers import pre_tokenizers as splitters

    @lru_cache(256)
    def matcher(charset: str) -> splitters.Split:
        return splitters.Split(Regex(charset), "removed")

    def matched(charset: str, text: str) -> set[str]:
        left = matcher(charset).pre_tokenize_str(text)
        return set(text).difference(*(piece for piece, _ in left))

    digits = splitters.Digits(individual_digits=True)

    def digits_of(text: str) -> set[str]:
        return {c for c in text if len(digits.pre_tokenize_str("a" + c)) > 1}

    def of_pattern(pattern: str) -> Stage:
        return Stage.of_pattern(pattern, matched, gaps=True, possessive_braces=False)

    stages: list[Stage] = []
    byte_level = metaspace = False
    for part in _flat(splitter, "pretokenizers"):
        kind = part["type"]
        if byte_level or metaspace:
            refuse(f"its pre-tokenizer {kind} comes after spaces or bytes were marked")
        if kind == "ByteLevel":
            byte_level = True
            if part["use_regex"]:
                stages.append(of_pattern(GPT2))
        elif kind == "Metaspace" and part["replacement"] == MARK:
            metaspace = True
            if part["split"]:
                stages.append(Stage.words())
        elif kind == "Digits":
            stages.append(Stage.of_set(digits_of, part["individual_digits"]))
        elif kind == "Split" and marked and part["pattern"] == {"String": " "}:
            continue  # there are no spaces any more
        elif kind == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
            if marked:
                refuse("its pre-tokenizer splits after spaces were marked")
            ((form, pattern),) = part["pattern"].items()
            stages.append(of_pattern(pattern if form == "Regex" else re.escape(pattern)))
        else:
            refuse(f"its pre-tokenizer {json.dumps(part)}")
    return tuple(stages), byte_level, metaspace


def _flat(part: Any, name: str) -> list[Any]:
    """The parts of a layout's component one after another."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [inner for one in part[name] for inner in _flat(one, name)]


def _without_lookup(model: Any) -> Any:
    """A copy of a model that merges every piece."""
    from tokenizers import Tokenizer

    whole = json.loads(Tokenizer(model).to_str())
    whole["model"]["ignore_merges"] = False
    return Tokenizer.from_str(json.dumps(whole)).model
