"""What one call takes of a token LM that many share.

Must not know what the call is.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from contextvars import ContextVar

import numpy as np
from numpy.typing import NDArray

from bytelm import pace
from bytelm.models.ordered_rows import Answer
from bytelm.models.token_lm import (
    AsyncTokenLM,
    Chunk,
    GeneratingTokenLM,
    MeteredTokenLM,
    OrderingTokenLM,
    Usage,
    answer_of,
)
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server import answers
from bytelm_server.shares import Shares


class CountingLM(OrderingTokenLM):
    """Another token LM, as one call uses it.

    Args:
        lm: the other.
        cache_salt: the call shares cached work only with calls of the same salt.
        shares: whom the model's places are shared with: others with another salt.

    Attributes:
        usage: what the call took of the model so far.
        knows_tokens: whether ``usage`` counts tokens, too.
        bytes_in: what the call was given so far.
        bytes_out: what it has generated so far.
    """

    def __init__(
        self, lm: AsyncTokenLM, cache_salt: str | None = None, shares: Shares | None = None
    ) -> None:
        self.lm = lm
        self.cache_salt = cache_salt
        self.shares = shares
        self.vocab: ByteVocab = lm.vocab
        self.max_context_tokens: int | None = lm.max_context_tokens
        self.usage = Usage()
        self.knows_tokens = isinstance(lm, MeteredTokenLM)
        self.bytes_in = self.bytes_out = 0

    @property
    def is_idle(self) -> bool:
        """Whether the other is, where it tells."""
        return bool(getattr(self.lm, "is_idle", False))

    async def next_row(self, token_ids: Sequence[int]) -> Answer:
        """The other's answer."""
        # A model that answers without waiting must not keep other calls from their turn.
        await pace.turn()
        if self.shares is None or self.cache_salt is None:
            return await self._evaluate(token_ids)
        async with self.shares.place(self.cache_salt):
            return await self._evaluate(token_ids)

    async def _evaluate(self, token_ids: Sequence[int]) -> Answer:
        if isinstance(self.lm, MeteredTokenLM):
            return await self.lm.evaluate(token_ids, self.usage, cache_salt=self.cache_salt)
        self.usage.evaluations += 1
        return await answer_of(self.lm, token_ids)


class CountingGeneratingLM(CountingLM):
    """The same for one that generates."""

    lm: GeneratingTokenLM

    async def generate(
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
        """The other's tokens."""
        chunks = self.lm.generate(
            token_ids,
            max_tokens,
            temperature=temperature,
            seed=seed,
            stop_token_ids=stop_token_ids,
            banned_token_ids=banned_token_ids,
            usage=self.usage if usage is None else usage,
            cache_salt=self.cache_salt if cache_salt is None else cache_salt,
        )
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(aclosing(chunks))
            if self.shares is not None and self.cache_salt is not None:
                await stack.enter_async_context(self.shares.place(self.cache_salt))
            async for chunk in chunks:
                yield chunk


of_request: ContextVar[list[CountingLM]] = ContextVar("of_request")
"""The models of all calls of the request that the current task works for."""


def counting(
    lm: AsyncTokenLM, cache_salt: str | None = None, shares: Shares | None = None
) -> CountingLM:
    """``lm`` as one call uses it; it generates if ``lm`` does."""
    kind = CountingGeneratingLM if isinstance(lm, GeneratingTokenLM) else CountingLM
    made = kind(lm, cache_salt, shares)
    if (others := of_request.get(None)) is not None:
        others.append(made)
    return made


def usage_of(*lms: CountingLM) -> answers.Usage:
    """What calls took so far, all of them together."""
    took = [lm.usage for lm in lms]
    knows = all(lm.knows_tokens for lm in lms)
    return answers.Usage(
        bytes_in=sum(lm.bytes_in for lm in lms),
        bytes_out=sum(lm.bytes_out for lm in lms),
        evaluations=sum(one.evaluations for one in took),
        tokens_computed=sum(one.tokens_computed for one in took) if knows else None,
        tokens_cached=sum(one.tokens_cached for one in took) if knows else None,
    )
