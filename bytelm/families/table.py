"""TokenTable: what every tokenizer family is reduced to. Knows no library."""

from dataclasses import dataclass

from bytelm.canonical import TextTokenizer


@dataclass
class TokenTable:
    """A tokenizer's tokens by id, and the tokenizer itself as it treats text inside a context.

    Ids without an entry in `token_bytes` have no bytes; ids may be missing.
    """

    token_bytes: dict[int, bytes]
    token_text: dict[int, str]
    special_ids: set[int]
    added_ids: set[int]
    prefix: bytes
    tokenizer: TextTokenizer
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
