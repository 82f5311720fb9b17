"""SentencePiece models as they are: processors and model files.

Conversions of such models to the `tokenizers` library are fast.py's.
"""

from typing import TYPE_CHECKING, Any

from bytelm.canonical import Span
from bytelm.families.table import TokenTable

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor


def read(processor: "SentencePieceProcessor") -> TokenTable:
    """The table of a SentencePieceProcessor.

    Control and unknown pieces are special, user-defined ones are text.
    """
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # its messages are made when it is imported
    model = messages.ModelProto()
    model.ParseFromString(processor.serialized_model_proto())
    kinds = messages.ModelProto.SentencePiece
    token_bytes: dict[int, bytes] = {}
    special: set[int] = set()
    added: set[int] = set()
    for token_id, piece in enumerate(model.pieces):
        if piece.type in (kinds.CONTROL, kinds.UNKNOWN):
            special.add(token_id)
        elif piece.type == kinds.BYTE:
            token_bytes[token_id] = bytes.fromhex(piece.piece[3:5])
        elif piece.type != kinds.UNUSED:
            token_bytes[token_id] = piece.piece.replace("\u2581", " ").encode()
        if piece.type == kinds.USER_DEFINED:
            added.add(token_id)
    spaced_before = not model.trainer_spec.treat_whitespace_as_suffix
    dummy_prefix = model.normalizer_spec.add_dummy_prefix and spaced_before
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    return TokenTable(
        token_bytes=token_bytes,
        token_text={token_id: piece.piece for token_id, piece in enumerate(model.pieces)},
        special_ids=special,
        added_ids=added,
        prefix=b" " if dummy_prefix else b"",
        tokenizer=PieceTokenizer(model.SerializeToString()),
        eos_token_ids=(processor.eos_id(),) if processor.eos_id() >= 0 else (),
        bos_token_id=processor.bos_id() if processor.bos_id() >= 0 else None,
    )


class PieceTokenizer:
    """A SentencePiece model that adds no prefix and keeps all spaces."""

    def __init__(self, serialized: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self._processor = SentencePieceProcessor(model_proto=serialized)

    def ids(self, text: str) -> list[int]:
        """The token ids of `text`."""
        ids: list[int] = self._processor.encode(text, enable_sampling=False)
        return ids

    def spans(self, text: str) -> list[Span]:
        """The same ids with the characters they stand for."""
        mapping = self._processor.encode(text, return_type="offset_mapping", enable_sampling=False)
        places = zip(mapping["ids"], mapping["offsets"], strict=True)
        return [Span(token_id, start, end) for token_id, (start, end) in places]
