"""Distributions over tokens: a model's rows as they are, without bytes.

Must not know HTTP.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bytelm import pace
from bytelm.errors import ContextTooLong, InputError
from bytelm.models.raw_rows import checked_row
from bytelm.models.token_lm import AsyncTokenLM
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server.counting import CountingLM, counting, usage_of
from bytelm_server.errors import FieldError, detail_of
from bytelm_server.service import ByteService, concurrently


def top_tokens(row: NDArray[np.float32], top: int) -> dict[str, Any]:
    """The most probable tokens, best first; the smallest id of equals first.

    Args:
        row: float32 ``[vocab.size]``, natural logarithms.
        top: how many.
    """
    if top < len(row):
        # All that are as good as the last one that is wanted, so that ties fall by id.
        least = np.partition(row, -top)[-top]
        some = np.flatnonzero(row >= least)
    else:
        some = np.arange(len(row))
    best = some[np.argsort(-row[some], kind="stable")][:top]
    return {"top": [{"token": int(t), "logprob": float(row[t])} for t in best]}


class TokenRows:
    """The distributions after contexts of token ids.

    Args:
        service: has the model and the limits.
        cache_salt: cached work is shared with calls of the same salt only.
    """

    def __init__(self, service: ByteService, cache_salt: str | None) -> None:
        self.lm: CountingLM = counting(service.lm, cache_salt, service.shares)
        self._service = service

    async def rows(self, contexts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """A row for each context, float32 ``[vocab.size]``; the first error is raised."""
        for index, context in enumerate(contexts):
            self._check(context, f"contexts[{index}]")
        return await concurrently(self._row(c) for c in contexts)

    async def answer(self, contexts: Sequence[Sequence[int]], top: int) -> dict[str, Any]:
        """The ``top`` tokens after each context; a bad one has its error in its place."""

        async def one(context: Sequence[int], index: int) -> dict[str, Any]:
            try:
                self._check(context, f"contexts[{index}]")
                row = await self._row(context)
                await pace.turn()
                return top_tokens(row, top)
            except InputError as error:
                return {"index": index, "error": detail_of(error, f"contexts[{index}]")}

        results = await concurrently(one(c, i) for i, c in enumerate(contexts))
        return {"results": results, "usage": usage_of(self.lm)}

    async def _row(self, context: Sequence[int]) -> NDArray[np.float32]:
        return checked_row(await self.lm.next_token_logprobs(context), self.lm.vocab.size)

    def _check(self, context: Sequence[int], place: str) -> None:
        check_fits(context, self.lm)
        check_ids(context, self.lm.vocab, place)


def check_fits(context: Sequence[int], lm: AsyncTokenLM, kept: int | None = None) -> None:
    """Refuse a context that the model cannot take; ContextTooLong.

    Args:
        context: token ids.
        lm: the model.
        kept: how many of them are kept, the last ones; None for all.
    """
    fits = lm.max_context_tokens
    length = len(context) if kept is None else min(kept, len(context))
    if fits is not None and length > fits:
        raise ContextTooLong.of(fits, length)


def check_ids(ids: Sequence[int], vocab: ByteVocab, place: str) -> None:
    """Refuse what is no id of the vocabulary; FieldError, naming the first by its place."""
    if max(ids, default=0) >= vocab.size:
        i, token = next((i, token) for i, token in enumerate(ids) if token >= vocab.size)
        raise FieldError(f"token {token} is not in 0..{vocab.size - 1}", f"{place}[{i}]")
