"""The vocabulary as ``/v1/vocab`` gives it: one large body, written once."""

import base64
import hashlib
from dataclasses import dataclass
from typing import Self

import orjson

from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server import answers


@dataclass(frozen=True)
class VocabBody:
    """A body as it goes over the wire, and a name for it that changes when it does."""

    body: bytes
    etag: str

    @classmethod
    def of(cls, vocab: ByteVocab) -> Self:
        """The body for a vocabulary; takes a moment for a large one."""
        tokens = [
            answers.Token(
                bytes=base64.b64encode(data).decode("ascii"),
                text=text,
                special=token_id in vocab.special_ids,
                added=token_id in vocab.added_ids,
            )
            for token_id, (data, text) in enumerate(
                zip(vocab.token_bytes, vocab.token_text, strict=True)
            )
        ]
        body = orjson.dumps(
            answers.Vocab(
                fingerprint=vocab.fingerprint(),
                bos=vocab.bos_token_id,
                eos=list(vocab.eos_token_ids),
                prefix=answers.bytes_out(vocab.prefix),
                strips_left=sorted(vocab.strips_left),
                strips_right=sorted(vocab.strips_right),
                tokens=tokens,
            )
        )
        return cls(body, f'"{hashlib.sha256(body).hexdigest()}"')
