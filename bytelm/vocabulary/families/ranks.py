"""Rank vocabularies, whose tokens are bytes from the start: tiktoken encodings and tekken."""

import base64
import binascii
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bytelm.errors import VocabError
from bytelm.vocabulary.canonical import Span
from bytelm.vocabulary.families import pipelines
from bytelm.vocabulary.families.table import TokenTable
from bytelm.vocabulary.pipeline import Pipeline

if TYPE_CHECKING:
    import tiktoken
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer


def read_tiktoken(encoding: "tiktoken.Encoding") -> TokenTable:
    """The table of a tiktoken encoding. EOS is its end-of-text token, if it has one."""
    token_bytes = {}
    for token_id in range(encoding.n_vocab):
        try:
            token_bytes[token_id] = encoding.decode_single_token_bytes(token_id)
        except KeyError:
            continue  # ranks and special tokens need not be contiguous
    # The encoding's methods give the id of the ordinary token where one is spelled alike.
    special_ids: dict[str, int] = encoding._special_tokens
    special = set(special_ids.values())
    ends = sorted(special_ids.keys() & {"<|endoftext|>", "<|end_of_text|>"})
    return TokenTable(
        token_bytes=token_bytes,
        token_text={i: data.decode(errors="replace") for i, data in token_bytes.items()},
        special_ids=special,
        added_ids=set(special),
        prefix=b"",
        tokenizer=RankTokenizer(
            encoding.encode_ordinary, lambda: pipelines.of_ranks(encoding, token_bytes, 0)
        ),
        eos_token_ids=tuple(special_ids[text] for text in ends),
    )


def load_tiktoken(
    path: Path, pattern: str | None, special_tokens: Mapping[str, int]
) -> "tiktoken.Encoding":
    """The encoding of a rank file (base64 token, space, rank; a line each).

    VocabError for other files, and without the `pattern` that splits text before merging.
    """
    try:
        lines = (line.split() for line in path.read_bytes().splitlines() if line)
        token_ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except (binascii.Error, ValueError) as error:
        raise VocabError(
            f"{str(path)!r} is no tokenizer.json, tekken json, SentencePiece model or tiktoken"
            f" rank file ({error})"
        ) from error
    if pattern is None:
        raise VocabError(
            f"{str(path)!r} is a tiktoken rank file, which does not say how text is split:"
            " give its pattern (pat_str)"
        )
    import tiktoken

    return tiktoken.Encoding(
        name=path.name,
        pat_str=pattern,
        mergeable_ranks=token_ranks,
        special_tokens=dict(special_tokens),
    )


def read_tekken(tokenizer: "Tekkenizer") -> TokenTable:
    """The table of mistral_common's Tekkenizer."""
    special = {i for i in range(tokenizer.n_words) if tokenizer.is_special(i)}
    token_text = dict(enumerate(tokenizer.vocab()))
    token_bytes = {
        token_id: tokenizer.id_to_byte_piece(token_id)
        for token_id in range(tokenizer.n_words)
        if token_id not in special
    }
    return TokenTable(
        token_bytes=token_bytes,
        token_text=token_text,
        special_ids=special,
        added_ids=set(special),
        prefix=b"",
        tokenizer=RankTokenizer(
            lambda text: tokenizer.encode(text, bos=False, eos=False),
            lambda: pipelines.of_ranks(tokenizer._model, token_bytes, tokenizer.num_special_tokens),
        ),
        eos_token_ids=(tokenizer.eos_id,),
        bos_token_id=tokenizer.bos_id,
    )


class RankTokenizer:
    """A tokenizer that spells every text exactly, by its function from text to ids."""

    def __init__(
        self, encode: Callable[[str], list[int]], pipeline: Callable[[], Pipeline]
    ) -> None:
        self._encode = encode
        self._pipeline = pipeline

    def ids(self, text: str) -> list[int]:
        """The token ids of `text`."""
        return self._encode(text)

    def spans(self, text: str) -> list[Span]:
        """No places: asked for only when the model lacks some of the tokens."""
        return []

    def pipeline(self) -> Pipeline:
        """How the ids are made."""
        return self._pipeline()
