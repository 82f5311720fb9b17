"""ByteVocab: which bytes each token id of a model stands for, and the ids of given bytes.

The one place where the rest of bytelm learns about a tokenizer. Reading a tokenizer of any family
is families.py's work, tokenizing bytes is canonical.py's. Knows nothing of tries, beams or
engines.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from bytelm.errors import UnknownModel, VocabError
from bytelm.vocabulary import families
from bytelm.vocabulary.canonical import CanonicalEncoder


@dataclass(frozen=True, eq=False)
class ByteVocab:
    """A model's vocabulary as bytes. Immutable; shared by all states on the model.

    `token_bytes` has one entry per logit of the model. Ids with b"" have no bytes (special tokens,
    EOS, embeddings that pad the vocabulary, unused ids): they are never text. `prefix` is what the
    tokenizer puts before a text (b" " with a SentencePiece dummy prefix): the ids of a text at a
    context's start are `encode(prefix + text)`. The tokenizer takes the white space to the left of
    `strips_left` and to the right of `strips_right` with these tokens; a text keeps it, a chat
    template's own does not.
    """

    token_bytes: tuple[bytes, ...] = field(repr=False)
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    special_ids: frozenset[int] = field(repr=False)
    added_ids: frozenset[int] = field(repr=False)
    token_text: tuple[str, ...] = field(repr=False)
    prefix: bytes
    encoder: CanonicalEncoder = field(repr=False)
    strips_left: frozenset[int] = field(repr=False, default=frozenset())
    strips_right: frozenset[int] = field(repr=False, default=frozenset())

    @property
    def size(self) -> int:
        """The number of ids, which is the width of the model's logits."""
        return len(self.token_bytes)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many bytes each token has."""
        return tuple(map(len, self.token_bytes))

    @property
    def has_initial_context(self) -> bool:
        """Whether there is a token that contexts start with."""
        return self.bos_token_id is not None or bool(self.eos_token_ids)

    @property
    def initial_context(self) -> tuple[int, ...]:
        """The token a context starts with: BOS, or without one the first EOS. Else VocabError."""
        if self.bos_token_id is not None:
            return (self.bos_token_id,)
        if self.eos_token_ids:
            return (self.eos_token_ids[0],)
        raise VocabError(
            "the tokenizer has neither a BOS nor an EOS token to start a context with:"
            " give an explicit initial context"
        )

    def encode(self, data: bytes) -> list[int]:
        """The canonical ids of bytes as text, whose bytes concatenate to exactly `data`.

        No BOS, no prefix (give `prefix + text` for a text that starts a context), and never a
        special token: its spelling is ordinary text. Bytes that are not UTF-8, and places that the
        tokenizer would change, are spelled by longest match. VocabError names a byte that the
        vocabulary cannot spell.
        """
        return self.encoder.encode(bytes(data))

    def decode(self, ids: Iterable[int]) -> bytes:
        """The concatenated bytes of `ids`. VocabError for an id outside the vocabulary."""
        pieces = []
        for token_id in ids:
            if not 0 <= token_id < self.size:
                raise VocabError(f"token id {token_id} is not in 0..{self.size - 1}")
            pieces.append(self.token_bytes[token_id])
        return b"".join(pieces)

    def spelling(self, token_id: int) -> bytes:
        """The bytes of a token, or of its name if it is no text."""
        return self.token_bytes[token_id] or self.token_text[token_id].encode(errors="replace")

    @cached_property
    def alphabet(self) -> frozenset[int]:
        """The bytes that some token has."""
        return frozenset(set().union(*self.token_bytes))

    def fingerprint(self) -> str:
        """SHA-256 (hex) over what bytes are read by: token bytes, EOS, BOS, special ids, prefix."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        ids = [list(self.eos_token_ids), self.bos_token_id, sorted(self.special_ids), self.size]
        digest.update(json.dumps([*ids, self.prefix.hex()]).encode())
        for data in self.token_bytes:
            digest.update(b"%d:" % len(data) + data)
        return digest.hexdigest()

    def literal(self) -> Self:
        """The same ids with every token's text as its bytes, special tokens too, and no EOS.

        genlm's reading, for comparisons. Contexts start as they do here. `encode` still gives
        special tokens' spellings as ordinary text.
        """
        return self._literal

    @cached_property
    def _literal(self) -> Self:
        bos = self.bos_token_id
        if bos is None and self.eos_token_ids:
            bos = self.eos_token_ids[0]
        return replace(
            self,
            token_bytes=tuple(map(self.spelling, range(self.size))),
            eos_token_ids=(),
            bos_token_id=bos,
            special_ids=frozenset(),
            strips_left=frozenset(),
            strips_right=frozenset(),
        )

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: Any,
        *,
        vocab_size: int | None = None,
        eos_token_ids: Sequence[int] = (),
        bos_token_id: int | None = None,
    ) -> Self:
        """The vocabulary of a tokenizer object of transformers, tokenizers, sentencepiece,
        tiktoken or mistral_common.

        `vocab_size` is the width of the model's logits when it differs from the tokenizer's
        length: ids beyond the tokenizer have no bytes, tokens beyond the model do not exist.
        `eos_token_ids` come after the tokenizer's own EOS, `bos_token_id` replaces its BOS; both
        count as special. VocabError when the tokens' bytes cannot be known.
        """
        table = families.read(tokenizer)
        size = max(table.token_text, default=-1) + 1 if vocab_size is None else vocab_size
        if size < 1:
            raise VocabError("the tokenizer has no tokens")
        eos = tuple(dict.fromkeys((*table.eos_token_ids, *eos_token_ids)))
        bos = table.bos_token_id if bos_token_id is None else bos_token_id
        marks = eos if bos is None else (*eos, bos)
        for token_id in marks:
            if not 0 <= token_id < size:
                raise VocabError(
                    f"the EOS or BOS id {token_id} is not in the model's vocabulary of {size}:"
                    " check that tokenizer and model belong together"
                )
        special = {token_id for token_id in table.special_ids if token_id < size}.union(marks)
        token_bytes = tuple(
            b"" if token_id in special else table.token_bytes.get(token_id, b"")
            for token_id in range(size)
        )
        return cls(
            token_bytes=token_bytes,
            eos_token_ids=eos,
            bos_token_id=bos,
            special_ids=frozenset(special),
            added_ids=frozenset(token_id for token_id in table.added_ids if token_id < size),
            token_text=tuple(table.token_text.get(token_id, "") for token_id in range(size)),
            prefix=table.prefix,
            encoder=CanonicalEncoder(token_bytes, table.tokenizer),
            strips_left=frozenset(i for i in table.strips_left if i < size),
            strips_right=frozenset(i for i in table.strips_right if i < size),
        )

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        vocab_size: int | None = None,
        trust_remote_code: bool = False,
    ) -> Self:
        """The vocabulary of a model in Hugging Face layout: a directory, or a name on the hub.

        EOS are the tokenizer's and generation_config.json's together; `vocab_size` is read from
        config.json when not given. A directory with nothing but a tekken.json or SentencePiece
        model for a tokenizer is read from that. Needs transformers. UnknownModel when there is
        no tokenizer, or files are damaged. With `trust_remote_code`, code that comes with the
        model may run.
        """
        from transformers.utils import cached_file

        def settings(name: str) -> dict[str, Any]:
            found = cached_file(str(path), name, _raise_exceptions_for_missing_entries=False)
            read = json.loads(Path(found).read_text()) if found else {}
            if not isinstance(read, dict):
                raise ValueError(f"{name} is no JSON object")
            return read

        tokenizer = families.load_pretrained(path, trust_remote_code=trust_remote_code)
        try:
            config, generation = settings("config.json"), settings("generation_config.json")
        except (OSError, ValueError) as error:
            raise UnknownModel(f"no settings can be read from {str(path)!r}: {error}") from error
        if vocab_size is None:
            vocab_size = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
        eos = generation.get("eos_token_id")
        return cls.from_tokenizer(
            tokenizer,
            vocab_size=vocab_size,
            eos_token_ids=[eos] if isinstance(eos, int) else eos or (),
        )

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        vocab_size: int | None = None,
        eos_token_ids: Sequence[int] = (),
        bos_token_id: int | None = None,
        pattern: str | None = None,
        special_tokens: Mapping[str, int] | None = None,
    ) -> Self:
        """The vocabulary of one tokenizer file: tokenizer.json, a tekken json, a SentencePiece
        model, or a tiktoken rank file.

        A rank file says neither how it splits text nor what its special tokens are: `pattern`
        (tiktoken's pat_str) is required for it, `special_tokens` (text → id) may be given.
        """
        tokenizer = families.load(Path(path), pattern, special_tokens)
        return cls.from_tokenizer(
            tokenizer,
            vocab_size=vocab_size,
            eos_token_ids=eos_token_ids,
            bos_token_id=bos_token_id,
        )

    @classmethod
    def from_bytes(
        cls,
        token_bytes: Sequence[bytes],
        *,
        eos_token_ids: Sequence[int] = (),
        bos_token_id: int | None = None,
    ) -> Self:
        """A vocabulary without a tokenizer, for toys and tests; EOS and BOS ids have no bytes.

        Canonical here means longest match from the left, with shorter tokens tried where that
        leads nowhere.
        """
        eos = tuple(dict.fromkeys(eos_token_ids))
        special = frozenset(eos if bos_token_id is None else (*eos, bos_token_id))
        for token_id in special:
            if not 0 <= token_id < len(token_bytes):
                raise VocabError(
                    f"the EOS or BOS id {token_id} is not in 0..{len(token_bytes) - 1}"
                )
        kept = tuple(b"" if i in special else bytes(data) for i, data in enumerate(token_bytes))
        return cls(
            token_bytes=kept,
            eos_token_ids=eos,
            bos_token_id=bos_token_id,
            special_ids=special,
            added_ids=frozenset(),
            token_text=tuple(bytes(data).decode(errors="replace") for data in token_bytes),
            prefix=b"",
            encoder=CanonicalEncoder(kept, None),
        )
