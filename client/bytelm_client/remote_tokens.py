"""A token LM that a server computes: for ``bytelm.ByteBeamState`` here, or for genlm's algorithms.

This module must not know how the server computes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from bytelm.beam.prefill import TrunkFinder
from bytelm.errors import ContextTooLong, InputError
from bytelm.vocabulary.canonical import CanonicalEncoder
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_client import AsyncClient, Client
from bytelm_client.results import Model, Vocab

if TYPE_CHECKING:
    from bytelm.compat.genlm import GenlmModel

AT_ONCE = 64
"""Contexts in one call at most, if the server takes so many."""


class RemoteTokenLM:
    """A server's model as an ``AsyncTokenLM``. Making it waits for the vocabulary, some megabytes;
    in an event loop, ``start`` lets others go on meanwhile.

    >>> async with await RemoteTokenLM.start(url) as lm:  # doctest: +SKIP
    ...     state = await ByteBeamState.initial(lm, BeamParams(K=5))

    Evaluations that are asked for together are one call. The server tells what its tokens are, but
    not how it tokenizes: without a ``vocab``, states read long texts byte by byte.

    Args:
        base_url: the server's address; by default ``BYTELM_URL``, else port 8000 on this machine.
        api_key: the key to call with; by default ``BYTELM_API_KEY``.
        timeout: seconds to wait for an answer.
        retries: how often a call is sent again.
        vocab: the model's vocabulary, if it is known here, such as
            ``ByteVocab.from_pretrained("…")``.

    Attributes:
        vocab: the vocabulary.
        max_context_tokens: the longest context that the server evaluates.
        client: what calls go through.

    Raises:
        InputError: when ``vocab`` is not that of the server's model.
        BytelmClientError: when the server refuses, or does not answer.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | None = 600.0,
        retries: int = 3,
        vocab: ByteVocab | None = None,
    ) -> None:
        with Client(base_url, api_key=api_key, timeout=timeout, retries=retries) as eager:
            (model,) = eager.models()
            told = eager.vocab()
        client = AsyncClient(base_url, api_key=api_key, timeout=timeout, retries=retries)
        self._begin(client, model, _agreed(told, vocab))

    @classmethod
    async def start(
        cls, client: AsyncClient | str | None = None, *, vocab: ByteVocab | None = None
    ) -> Self:
        """The same; others go on meanwhile.

        Args:
            client: the server's, or its address; None for the usual one. ``aclose`` closes it.
            vocab: the model's vocabulary, if it is known here.

        Raises:
            InputError: when ``vocab`` is not that of the server's model.
            BytelmClientError: when the server refuses, or does not answer.
        """
        if not isinstance(client, AsyncClient):
            client = AsyncClient(client)
        try:
            (model,) = await client.models()
            told = await client.vocab()
            vocab = await asyncio.to_thread(_agreed, told, vocab)
        except BaseException:
            await client.aclose()
            raise
        lm = cls.__new__(cls)
        lm._begin(client, model, vocab)
        return lm

    def _begin(self, client: AsyncClient, model: Model, vocab: ByteVocab) -> None:
        self.vocab = vocab
        self.max_context_tokens: int | None = model.limits["context_tokens"]
        self.client = client
        self._at_once = min(AT_ONCE, model.limits["contexts"] or AT_ONCE)
        self._waiting: list[tuple[list[int], asyncio.Future[NDArray[np.float32]]]] = []
        self._calls: set[asyncio.Task[None]] = set()

    def as_genlm(self) -> GenlmModel:
        """The same as a genlm.backend model, for ``genlm.bytes`` and others.

        Needs genlm.backend and torch.
        """
        from bytelm.compat.genlm import to_genlm

        return to_genlm(self)

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """See ``AsyncTokenLM``."""
        most = self.max_context_tokens
        if most is not None and len(token_ids) > most:
            raise ContextTooLong(
                f"the context is {len(token_ids)} tokens long, the model takes at most {most}"
            )
        row: asyncio.Future[NDArray[np.float32]] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._send)
        self._waiting.append(([int(i) for i in token_ids], row))
        return await row

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _send(self) -> None:
        """Make calls of all that was asked for since the last time."""
        waiting, self._waiting = self._waiting, []
        waiting = [(ids, row) for ids, row in waiting if not row.done()]
        for i in range(0, len(waiting), self._at_once):
            call = asyncio.create_task(self._call(waiting[i : i + self._at_once]))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _call(
        self, asked: Sequence[tuple[list[int], asyncio.Future[NDArray[np.float32]]]]
    ) -> None:
        try:
            rows = await self.client.token_logprobs([ids for ids, _ in asked])
        except BaseException as error:
            for _, row in asked:
                if not row.done():
                    row.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for (_, row), told in zip(asked, rows, strict=True):
            if not row.done():
                row.set_result(told.logprobs)


def _agreed(told: Vocab, vocab: ByteVocab | None) -> ByteVocab:
    """The vocabulary that is known here, if it is the server's; else as the server tells it."""
    if vocab is not None:
        if vocab.fingerprint() != told.fingerprint:
            raise InputError("the vocabulary is not that of the server's model")
        return vocab
    vocab = ByteVocab(
        token_bytes=told.token_bytes,
        eos_token_ids=told.eos,
        bos_token_id=told.bos,
        special_ids=told.special_ids,
        added_ids=told.added_ids,
        token_text=told.token_text,
        prefix=told.prefix,
        encoder=CanonicalEncoder(told.token_bytes, None),
        strips_left=told.strips_left,
        strips_right=told.strips_right,
    )
    TrunkFinder.give_up(vocab)
    return vocab
