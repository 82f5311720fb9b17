"""What one call takes of a token LM that many share.

Must not know bytes, nor what the call is.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import numpy as np
from numpy.typing import NDArray

from bytelm.token_lm import AsyncTokenLM, Chunk, GeneratingTokenLM, MeteredTokenLM, Usage
from bytelm.vocab import ByteVocab


class CountingLM:
    """Another token LM, as one call uses it.

    Args:
        lm: the other.
        cache_salt: the call shares cached work only with calls of the same salt.

    Attributes:
        usage: what the call took so far.
        knows_tokens: whether ``usage`` counts tokens, too.
    """

    def __init__(self, lm: AsyncTokenLM, cache_salt: str | None = None) -> None:
        self.lm = lm
        self.cache_salt = cache_salt
        self.vocab: ByteVocab = lm.vocab
        self.max_context_tokens: int | None = lm.max_context_tokens
        self.usage = Usage()
        self.knows_tokens = isinstance(lm, MeteredTokenLM)

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The other's answer."""
        # A model that answers without waiting must not keep other calls from their turn.
        await asyncio.sleep(0)
        if isinstance(self.lm, MeteredTokenLM):
            return await self.lm.evaluate(token_ids, self.usage, cache_salt=self.cache_salt)
        self.usage.evaluations += 1
        return await self.lm.next_token_logprobs(token_ids)


class CountingGeneratingLM(CountingLM):
    """The same for one that generates."""

    lm: GeneratingTokenLM

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
        """The other's tokens."""
        return self.lm.generate(
            token_ids,
            max_tokens,
            temperature=temperature,
            seed=seed,
            stop_token_ids=stop_token_ids,
            banned_token_ids=banned_token_ids,
            usage=self.usage if usage is None else usage,
            cache_salt=self.cache_salt if cache_salt is None else cache_salt,
        )


def counting(lm: AsyncTokenLM, cache_salt: str | None = None) -> CountingLM:
    """``lm`` as one call uses it; it generates if ``lm`` does."""
    kind = CountingGeneratingLM if isinstance(lm, GeneratingTokenLM) else CountingLM
    return kind(lm, cache_salt)
