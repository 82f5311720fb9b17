"""TokenTable: what every tokenizer family is reduced to. Knows no library."""

from dataclasses import dataclass, field

from bytelm.vocabulary.canonical import TextTokenizer


@dataclass
class TokenTable:
    """A tokenizer's tokens by id, and the tokenizer itself as it treats text inside a context.

    Ids without an entry in `token_bytes` have no bytes; ids may be missing. Where the tokenizer
    finds a token of `strips_left` or `strips_right` it takes the white space on that side with it.
    """

    token_bytes: dict[int, bytes]
    token_text: dict[int, str]
    special_ids: set[int]
    added_ids: set[int]
    prefix: bytes
    tokenizer: TextTokenizer
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    strips_left: set[int] = field(default_factory=set)
    strips_right: set[int] = field(default_factory=set)
