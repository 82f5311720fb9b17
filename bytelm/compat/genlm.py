"""Adapters from and to genlm.backend models, by their shape: genlm itself is not needed for the
first, and imported only by the second.

A genlm.backend model (an ``AsyncLM``) has a ``tokenizer``, a ``byte_vocab`` (each id's bytes) and
``await next_token_logprobs(ids)``, which gives a torch tensor. This module must not know tries or
beams.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from bytelm.errors import InputError, VocabError
from bytelm.models.raw_rows import as_row, checked_row, no_distribution
from bytelm.vocabulary.vocab import ByteVocab

if TYPE_CHECKING:
    import torch

    from bytelm.models.token_lm import AsyncTokenLM

_NORMALISED = 1e-6
"""Rows whose probabilities sum to 1 within this are taken as they are."""


class BackendLM(Protocol):
    """The shape of a genlm.backend model."""

    @property
    def tokenizer(self) -> Any:
        """Of transformers, or anything with ``bos_token_id`` and ``eos_token_id``."""
        ...

    @property
    def byte_vocab(self) -> Sequence[Any]:
        """By id, the bytes, or tokens that have them as ``byte_string``."""
        ...

    def next_token_logprobs(self, token_ids: list[int], /) -> Awaitable[Any]:
        """Log-probabilities of the token after ``token_ids``, as a torch tensor."""
        ...


def as_token_lm(llm: AsyncTokenLM | BackendLM) -> AsyncTokenLM:
    """``llm`` itself if it is a token LM of bytelm, adapted if it is a genlm.backend model.

    Raises:
        InputError: when it is neither.
    """
    if not is_backend(llm):
        return cast("AsyncTokenLM", llm)
    if hasattr(llm, "byte_vocab"):
        return from_genlm(cast(BackendLM, llm))
    raise InputError(
        f"a {type(llm).__qualname__} is no token LM: it has neither vocab (bytelm's AsyncTokenLM) "
        "nor byte_vocab (genlm.backend's AsyncLM)"
    )


def is_backend(llm: AsyncTokenLM | BackendLM) -> bool:
    """Whether a token LM is a genlm.backend model, whose rows may be padded."""
    return not isinstance(getattr(llm, "vocab", None), ByteVocab)


def as_given(lm: AsyncTokenLM) -> AsyncTokenLM | BackendLM:
    """What ``as_token_lm`` made ``lm`` of."""
    return lm.adapted if isinstance(lm, _FromGenlm) else lm


def from_genlm(llm: BackendLM) -> AsyncTokenLM:
    """A genlm.backend model as a token LM of bytelm.

    The vocabulary is that of ``llm.tokenizer`` where bytelm can read it, with special tokens and
    EOS as such; otherwise that of ``llm.byte_vocab``, with the tokenizer's special tokens taken
    out. Making it takes a moment: adapt a model once to begin many states on it.

    Raises:
        VocabError: when ``byte_vocab`` is empty.
    """
    return _FromGenlm(llm)


def to_genlm(lm: AsyncTokenLM) -> GenlmModel:
    """A token LM of bytelm as a genlm.backend model, on which genlm.bytes and others can be run.

    Needs genlm.backend and torch.
    """
    return GenlmModel(lm)


class _FromGenlm:
    """See ``from_genlm``."""

    def __init__(self, llm: BackendLM) -> None:
        self.vocab = _vocab_of(llm)
        self.max_context_tokens: int | None = None
        self.adapted = llm

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """See ``AsyncTokenLM``. Logits beyond the vocabulary, which pad it, are cut off.

        Raises:
            RowError: when the model gives fewer log-probabilities than there are ids, or NaN.
        """
        answer = await self.adapted.next_token_logprobs([int(i) for i in token_ids])
        return _normalised(as_row(answer, self.vocab.size, padded=True))


class GenlmModel:
    """What genlm.backend's ``AsyncLM`` offers to asynchronous callers, over a token LM of bytelm.

    Every id has the bytes of its text, special tokens too, as genlm reads them. Ids without a text
    have probability 0.

    Attributes:
        tokenizer: BOS and EOS ids, ``encode`` and ``decode``.
        byte_vocab: genlm ``Token`` objects, by id.
    """

    def __init__(self, lm: AsyncTokenLM) -> None:
        from genlm.backend.tokenization import Token

        vocab = lm.vocab.literal()
        self.tokenizer = GenlmTokenizer(
            vocab, lm.vocab.initial_context[0], next(iter(lm.vocab.eos_token_ids), None)
        )
        self.byte_vocab = [Token(i, data) for i, data in enumerate(vocab.token_bytes)]
        self._lm = lm
        self._silent = [i for i, data in enumerate(vocab.token_bytes) if not data]

    async def next_token_logprobs(
        self, token_ids: Sequence[int], lora_name: str | None = None
    ) -> torch.Tensor:
        """The distribution over the token after ``token_ids``.

        Returns:
            float32 ``[len(byte_vocab)]`` on CPU, natural logarithms, normalised.

        Raises:
            InputError: when ``lora_name`` is given; token LMs have no adapters.
            RowError: when what the token LM gives is no distribution over tokens with a text.
        """
        import torch

        if lora_name is not None:
            raise InputError(f"this model has no LoRA adapters, got lora_name={lora_name!r}")
        answer = await self._lm.next_token_logprobs(token_ids)
        row = np.array(checked_row(answer, self._lm.vocab.size))
        row[self._silent] = -np.inf
        return torch.from_numpy(_normalised(row))

    async def batch_next_token_logprobs(
        self, token_ids_list: Sequence[Sequence[int]], lora_name: str | None = None
    ) -> torch.Tensor:
        """As ``next_token_logprobs`` for several contexts: float32 ``[contexts, ids]``."""
        import torch

        calls = [self.next_token_logprobs(ids, lora_name) for ids in token_ids_list]
        return torch.stack(await asyncio.gather(*calls))

    def clear_cache(self) -> None:
        """Nothing: what is cached belongs to the token LM."""


@dataclass(frozen=True)
class GenlmTokenizer:
    """As much of a tokenizer as genlm's algorithms ask for."""

    vocab: ByteVocab
    bos_token_id: int
    eos_token_id: int | None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text, behind BOS unless ``add_special_tokens`` is false."""
        ids = self.vocab.encode(text.encode())
        return [self.bos_token_id, *ids] if add_special_tokens else ids

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of ids, with U+FFFD for what is not UTF-8."""
        return self.vocab.decode(token_ids).decode(errors="replace")


def _vocab_of(llm: BackendLM) -> ByteVocab:
    """The vocabulary of a genlm.backend model, as long as its ``byte_vocab``."""
    if not llm.byte_vocab:
        raise VocabError("the model's byte_vocab is empty")
    size, eos = len(llm.byte_vocab), _generation_eos(llm)
    try:
        return ByteVocab.from_tokenizer(llm.tokenizer, vocab_size=size, eos_token_ids=eos)
    except VocabError:
        return _spelled_vocab(llm, eos)


def _spelled_vocab(llm: BackendLM, more_eos: Sequence[int]) -> ByteVocab:
    """The vocabulary that ``byte_vocab`` spells out, for tokenizers that bytelm cannot read."""
    spelled = [bytes(getattr(token, "byte_string", token)) for token in llm.byte_vocab]
    eos = [i for i in (getattr(llm.tokenizer, "eos_token_id", None), *more_eos) if i is not None]
    special = set(getattr(llm.tokenizer, "all_special_ids", ()))
    vocab = ByteVocab.from_bytes(
        [b"" if i in special else data for i, data in enumerate(spelled)],
        eos_token_ids=eos,
        bos_token_id=getattr(llm.tokenizer, "bos_token_id", None),
    )
    return replace(
        vocab,
        special_ids=vocab.special_ids | special,
        token_text=tuple(data.decode(errors="replace") for data in spelled),
    )


def _generation_eos(llm: BackendLM) -> tuple[int, ...]:
    """The EOS ids of the model's own generation settings, where it carries any."""
    model = getattr(llm, "model", None)
    eos = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if eos is None:
        return ()
    return (eos,) if isinstance(eos, int) else tuple(eos)


def _normalised(row: NDArray[np.float32]) -> NDArray[np.float32]:
    """The row itself where its probabilities sum to 1, else a copy for which they do."""
    top = float(row.max())
    if not math.isfinite(top):
        raise no_distribution(row)
    total = top + float(np.log(np.exp(row - top, dtype=np.float32).sum(dtype=np.float64)))
    return row if abs(total) <= _NORMALISED else (row - np.float32(total)).astype(np.float32)
