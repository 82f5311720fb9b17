"""Token LMs: the protocol that the byte layer asks for, and an immutable state over it.

This module must not know bytes beyond a vocabulary's spelling, and no particular engine.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from bytelm.compat.genlm import BackendLM, as_token_lm, is_backend
from bytelm.errors import InputError
from bytelm.models.logprobs import escape
from bytelm.models.ordered_rows import Answer, by_id
from bytelm.models.raw_rows import check_row, checked_row
from bytelm.vocabulary.vocab import ByteVocab


@runtime_checkable
class AsyncTokenLM(Protocol):
    """A token-level language model that answers asynchronously.

    Attributes:
        vocab: the bytes of its tokens.
        max_context_tokens: how many tokens a context can have at most, BOS included; None for any
            number.
    """

    vocab: ByteVocab
    max_context_tokens: int | None

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The distribution over the token after ``token_ids``.

        Returns:
            float32 ``[vocab.size]``, natural logarithms, normalised over all ids.

        Raises:
            ContextTooLong: when ``token_ids`` has more than ``max_context_tokens`` ids.
            EngineDead: when the model can no longer answer.
        """
        ...


class OrderingTokenLM(AsyncTokenLM, Protocol):
    """A token LM that can hand out rows in the order of its vocabulary's trie."""

    async def next_row(self, token_ids: Sequence[int]) -> Answer:
        """As ``next_token_logprobs``, in whichever form costs less."""
        ...

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """See ``AsyncTokenLM``."""
        return by_id(await self.next_row(token_ids))


def answer_of(lm: AsyncTokenLM, token_ids: Sequence[int]) -> Awaitable[Answer]:
    """What a token LM says about the token after ``token_ids``, in whichever form costs less."""
    # An OrderingTokenLM. Checking a protocol takes too long for each evaluation.
    ask = getattr(lm, "next_row", None)
    answer: Awaitable[Answer] = (ask or lm.next_token_logprobs)(token_ids)
    return answer


@dataclass
class Usage:
    """What some calls took of a token LM, added up by it.

    Attributes:
        evaluations: evaluations that were made for them; one that was shared with an earlier call
            counts there.
        tokens_computed: tokens that went through the model.
        tokens_cached: tokens that a cache supplied instead.
    """

    evaluations: int = 0
    tokens_computed: int = 0
    tokens_cached: int = 0


@runtime_checkable
class MeteredTokenLM(AsyncTokenLM, Protocol):
    """A token LM that tells what each evaluation takes, and keeps callers' caches apart."""

    async def evaluate(
        self, token_ids: Sequence[int], usage: Usage, *, cache_salt: str | None = None
    ) -> Answer:
        """As ``next_row`` (see ``OrderingTokenLM``); what it takes is added to ``usage``.

        Contexts share cached work only with those of the same ``cache_salt``.
        """
        ...


@runtime_checkable
class IdleTokenLM(AsyncTokenLM, Protocol):
    """A token LM that evaluates several contexts at once, and tells when it has little to do."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, nor was of late for more than a caller or two.

        What a caller evaluates then besides what it needs keeps nobody waiting.
        """
        ...


class Chunk(NamedTuple):
    """Tokens that native generation yields together.

    Attributes:
        token_ids: the tokens.
        finish_reason: None except in the last chunk: "stop" after a stop token, which is the last
            id then, or "length" after ``max_tokens`` or at the model's limit.
    """

    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"] | None


@runtime_checkable
class GeneratingTokenLM(AsyncTokenLM, Protocol):
    """A token LM that can also sample tokens by itself, one evaluation for each."""

    def generate(
        self,
        token_ids: Sequence[int],
        max_tokens: int,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        stop_token_ids: Sequence[int] = (),
        banned_token_ids: Sequence[int] | NDArray[np.integer] = (),
        usage: Usage | None = None,
        cache_salt: str | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """Tokens after ``token_ids``, as they come; closing the generator ends the generation.

        Args:
            token_ids: the context.
            max_tokens: how many tokens to sample at most, at least 1.
            temperature: log-probabilities are divided by this; 0 takes the most likely token.
            seed: in 0..2**63-1; the same one draws the same tokens, up to rounding; None draws
                anew each time.
            stop_token_ids: end after one of these. EOS is a token like any other unless it is here.
            banned_token_ids: these are never sampled; the others share their probability.
            usage: what it takes is added here.
            cache_salt: contexts share cached work only with those of the same salt.

        Raises:
            ContextTooLong: when ``token_ids`` has more than ``max_context_tokens`` ids.
            EngineDead: when the model can no longer answer.
        """
        ...


class StatefulTokenizedLM:
    """A context of token ids and the distribution after it; an immutable value.

    Args:
        model: the token LM, or a genlm.backend model, whose rows are torch tensors.
        context: token ids consumed so far.
        n_calls: how many evaluations led here.
        max_context_length: keep at most this many tokens (at least 1): ``<<`` keeps the last
            ``max_context_length - 1`` and adds one. None keeps all.
    """

    def __init__(
        self,
        model: AsyncTokenLM | BackendLM,
        context: Sequence[int],
        n_calls: int = 0,
        max_context_length: int | None = None,
    ) -> None:
        if max_context_length is not None and max_context_length < 1:
            raise InputError(f"max_context_length must be at least 1, got {max_context_length}")
        self.model: Any = model
        self.context = list(context)
        self.max_context_length = max_context_length
        self._n_calls = n_calls

    @classmethod
    def initial(
        cls,
        model: AsyncTokenLM | BackendLM,
        initial_context: Sequence[int] | None = None,
        max_context_length: int | None = None,
    ) -> StatefulTokenizedLM:
        """The state before any text: ``initial_context``, by default the model's BOS.

        Raises:
            VocabError: when no context is given and the model has neither BOS nor EOS.
        """
        state = cls(model, initial_context or (), max_context_length=max_context_length)
        if initial_context is None:
            state.context = list(state.vocab.initial_context)
        return state

    @cached_property
    def vocab(self) -> ByteVocab:
        """The model's vocabulary."""
        return as_token_lm(self.model).vocab

    @property
    def n_calls(self) -> int:
        """Evaluations made by this state and those that it came from."""
        return self._n_calls

    def __lshift__(self, token: int) -> StatefulTokenizedLM:
        """The state after one more token.

        Raises:
            InputError: when ``token`` is not an id of the vocabulary.
        """
        if not isinstance(token, (int, np.integer)) or isinstance(token, bool):
            raise InputError(f"a token is an integer id, got {token!r}")
        if not 0 <= token < self.vocab.size:
            raise InputError(f"token {token} is not in 0..{self.vocab.size - 1}")
        kept = self.context
        if self.max_context_length is not None and len(kept) >= self.max_context_length:
            kept = kept[len(kept) - (self.max_context_length - 1) :]
        state = type(self)(
            self.model,
            [*kept, int(token)],
            n_calls=self._n_calls,
            max_context_length=self.max_context_length,
        )
        state.__dict__["vocab"] = self.vocab
        return state

    async def logp_next(self) -> NDArray[np.float32]:
        """Log-probabilities of the next token, float32 ``[vocab.size]``; one evaluation.

        Raises:
            RowError: when what the model gives is no distribution over its vocabulary.
        """
        self._n_calls += 1
        row: NDArray[np.float32] = await self.model.next_token_logprobs(self.context)
        if not is_backend(self.model):
            return checked_row(row, self.vocab.size)
        check_row(row, self.vocab.size, padded=True)
        return row  # a tensor, as code for genlm has it

    def __repr__(self) -> str:
        vocab = self.vocab
        return "|".join(
            escape(vocab.token_bytes[i]) or vocab.token_text[i] or f"<{i}>" for i in self.context
        )
