"""What one call takes of a token LM that many share.

Must not know bytes, nor what the call is.
"""

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bytelm.token_lm import AsyncTokenLM, MeteredTokenLM, Usage
from bytelm.vocab import ByteVocab


class CountingLM:
    """Another token LM, as one call uses it.

    Attributes:
        usage: what the call took so far.
        knows_tokens: whether ``usage`` counts tokens, too.
    """

    def __init__(self, lm: AsyncTokenLM) -> None:
        self.lm = lm
        self.vocab: ByteVocab = lm.vocab
        self.max_context_tokens: int | None = lm.max_context_tokens
        self.usage = Usage()
        self.knows_tokens = isinstance(lm, MeteredTokenLM)

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The other's answer."""
        # A model that answers without waiting must not keep other calls from their turn.
        await asyncio.sleep(0)
        if isinstance(self.lm, MeteredTokenLM):
            return await self.lm.evaluate(token_ids, self.usage)
        self.usage.evaluations += 1
        return await self.lm.next_token_logprobs(token_ids)
