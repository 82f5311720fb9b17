"""SentencePiece models as they are: processors, model files, and slow tokenizers around them.

Conversions of such models to the `tokenizers` library are fast.py's.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bytelm.errors import VocabError
from bytelm.vocabulary.canonical import Span
from bytelm.vocabulary.families import pipelines
from bytelm.vocabulary.families.table import TokenTable
from bytelm.vocabulary.pipeline import Pipeline

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken


def read_wrapped(tokenizer: Any) -> TokenTable:
    """The table of a slow tokenizer of transformers, `sp_model` and the tokens added to it.

    VocabError when the tokenizer gives the model's pieces ids of its own.
    """
    processor, added = tokenizer.sp_model, tokenizer.added_tokens_decoder
    ids = [i for i in range(processor.get_piece_size()) if i not in added]
    pieces = [processor.id_to_piece(token_id) for token_id in ids]
    for token_id, piece, text in zip(
        ids, pieces, tokenizer.convert_ids_to_tokens(ids), strict=True
    ):
        if text != piece:
            raise VocabError(
                f"the tokenizer calls token {token_id} {text!r}, its SentencePiece model {piece!r}:"
                " ids that are moved cannot be read, give the fast tokenizer"
            )
    return read(processor, added)


def read(
    processor: "SentencePieceProcessor", added: Mapping[int, "AddedToken"] | None = None
) -> TokenTable:
    """The table of a SentencePieceProcessor, and of tokens that were `added` outside of it.

    Control and unknown pieces are special, user-defined ones are text.
    """
    added = added or {}
    model = _model(processor.serialized_model_proto())
    kinds = type(model).SentencePiece
    token_bytes: dict[int, bytes] = {}
    token_text = {token_id: piece.piece for token_id, piece in enumerate(model.pieces)}
    special: set[int] = set()
    added_ids = set(added)
    for token_id, piece in enumerate(model.pieces):
        if piece.type in (kinds.CONTROL, kinds.UNKNOWN):
            special.add(token_id)
        elif piece.type == kinds.BYTE:
            token_bytes[token_id] = bytes.fromhex(piece.piece[3:5])
        elif piece.type != kinds.UNUSED:
            token_bytes[token_id] = piece.piece.replace("\u2581", " ").encode()
        if piece.type == kinds.USER_DEFINED:
            added_ids.add(token_id)
    for token_id, token in added.items():
        if token.special:
            special.add(token_id)
            token_bytes[token_id] = b""
        elif token_text.get(token_id) != token.content:  # else the model's reading is right
            special.discard(token_id)
            token_bytes[token_id] = token.content.encode()
        token_text[token_id] = token.content
    added_texts = {
        token.content: token_id
        for token_id, token in added.items()
        if token.content and token_bytes.get(token_id) == token.content.encode()
    }
    spaced_before = not model.trainer_spec.treat_whitespace_as_suffix
    dummy_prefix = model.normalizer_spec.add_dummy_prefix and spaced_before
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    return TokenTable(
        token_bytes=token_bytes,
        token_text=token_text,
        special_ids=special,
        added_ids=added_ids,
        prefix=b" " if dummy_prefix else b"",
        tokenizer=PieceTokenizer(model.SerializeToString(), added_texts),
        eos_token_ids=(processor.eos_id(),) if processor.eos_id() >= 0 else (),
        bos_token_id=processor.bos_id() if processor.bos_id() >= 0 else None,
        strips_left={token_id for token_id, token in added.items() if token.lstrip},
        strips_right={token_id for token_id, token in added.items() if token.rstrip},
    )


def _model(serialized: bytes) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # its messages are made when it is imported
    model = messages.ModelProto()
    model.ParseFromString(serialized)
    return model


class PieceTokenizer:
    """A SentencePiece model that adds no prefix and keeps all spaces, between the `added` texts."""

    def __init__(self, serialized: bytes, added: Mapping[str, int]) -> None:
        from sentencepiece import SentencePieceProcessor

        self._processor = SentencePieceProcessor(model_proto=serialized)
        self._serialized = serialized
        self._added = added
        names = map(re.escape, sorted(added, key=len, reverse=True))
        self._split = re.compile(f"({'|'.join(names)})") if added else None

    def ids(self, text: str) -> list[int]:
        """The token ids of `text`."""
        ids: list[int] = []
        for i, part in enumerate(self._parts(text)):
            if i % 2:
                ids.append(self._added[part])
            else:
                ids += self._processor.encode(part, enable_sampling=False)
        return ids

    def spans(self, text: str) -> list[Span]:
        """The same ids with the characters they stand for."""
        spans: list[Span] = []
        at = 0
        for i, part in enumerate(self._parts(text)):
            if i % 2:
                spans.append(Span(self._added[part], at, at + len(part)))
            else:
                mapping = self._processor.encode(
                    part, return_type="offset_mapping", enable_sampling=False
                )
                places = zip(mapping["ids"], mapping["offsets"], strict=True)
                spans += [Span(token_id, at + a, at + b) for token_id, (a, b) in places]
            at += len(part)
        return spans

    def pipeline(self) -> Pipeline:
        """How the ids are made."""
        return pipelines.of_sentencepiece(_model(self._serialized), self._processor, self._added)

    def _parts(self, text: str) -> list[str]:
        """Text and added tokens in turn."""
        return self._split.split(text) if self._split else [text]
