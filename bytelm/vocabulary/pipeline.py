"""Pipeline: how a tokenizer makes tokens, as far as canonical tokenizations depend on it.

Knows no tokenizer library: families/ makes pipelines, canonical_paths.py reads them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from bytelm.vocabulary.split_stages import Stage
from bytelm.vocabulary.text_changes import TextChange


@dataclass(frozen=True)
class Pipeline:
    """Text is cut by `stages`, and each piece is merged by byte-pair encoding.

    Merges are done by priority, of one priority from the left. `merge` gives the ids of the joint
    text of tokens as one piece by merges alone, nothing for ids that are not the model's. A piece
    that is in `whole` becomes this token, whatever the merges say. `literals` are tokens that are
    found before all else, by their text; the first stage finds them. Where `characters` is set,
    merges begin with characters instead of bytes, and a character that is none of these is spelled
    by `byte_ids`. `change` is what is done to text before all this. `top` is the highest id that is
    given.
    """

    stages: tuple[Stage, ...]
    merge: Callable[[Sequence[int]], list[int]]
    top: int
    whole: Mapping[bytes, int] | None = None
    literals: Mapping[int, str] = field(default_factory=dict)
    characters: frozenset[str] | None = None
    byte_ids: frozenset[int] = frozenset()
    change: TextChange | None = None


def byte_pair_merge(data: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """The ranks of the tokens of bytes: what two neighbours join to with the lowest rank, first.

    A byte that is no token is left out.
    """
    parts = [data[i : i + 1] for i in range(len(data))]
    while len(parts) > 1:
        joined = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not joined:
            break
        _, at = min(joined)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [ranks[part] for part in parts if part in ranks]
