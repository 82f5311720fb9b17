"""A token LM on transformers, one context at a time: the reference that tests compare with.

This module must not know about vLLM. It needs torch and transformers, which the engine's extras
bring.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from bytelm.errors import ContextTooLong, InputError
from bytelm.vocabulary.vocab import ByteVocab


class HuggingFaceLM:
    """An ``AsyncTokenLM`` in float32 on CPU, without any cache.

    Args:
        model: a transformers model for causal language modelling.
        vocab: the bytes of its tokens, as wide as its logits.
        max_context_tokens: the longest context; None for any.
    """

    def __init__(
        self, model: Any, vocab: ByteVocab, *, max_context_tokens: int | None = None
    ) -> None:
        self.vocab = vocab
        self.max_context_tokens = max_context_tokens
        self._model = model
        self._one_at_a_time = asyncio.Lock()

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Load a model's folder."""
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        return cls(
            model,
            ByteVocab.from_pretrained(path, vocab_size=model.config.get_text_config().vocab_size),
            max_context_tokens=getattr(model.config, "max_position_embeddings", None),
        )

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The distribution over the token after ``token_ids``.

        Returns:
            float32 [vocab.size], natural logarithms, normalised.

        Raises:
            ContextTooLong: more than ``max_context_tokens`` ids.
            InputError: no ids.
        """
        if not token_ids:
            raise InputError("the context has no tokens: give at least one, such as BOS")
        if self.max_context_tokens is not None and len(token_ids) > self.max_context_tokens:
            raise ContextTooLong(
                f"the context has {len(token_ids)} tokens, the model takes "
                f"{self.max_context_tokens} at most"
            )
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._row, list(token_ids))

    def _row(self, token_ids: list[int]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits = self._model(torch.tensor([token_ids])).logits[0, -1]
            row: NDArray[np.float32] = torch.log_softmax(logits.float(), dim=-1).numpy()
        return row
