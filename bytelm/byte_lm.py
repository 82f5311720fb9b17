"""Byte LMs: what every state of one can do, whatever computes it.

This module must not know tokens, tries or beams.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Self

import numpy as np

from bytelm.draws import sample_dict
from bytelm.errors import InputError
from bytelm.logprobs import EOS, Chart, LazyByteProbs, checked_bytes


class StatefulByteLM(ABC):
    """A context of bytes and the distribution over the next one; an immutable value.

    ``await (state << b)`` is the state after one more byte; ``state`` itself never changes.
    """

    @abstractmethod
    async def __lshift__(self, b: int) -> Self:
        """The state after byte ``b`` (0..255), or after EOS (257).

        Raises:
            ByteError: when ``b`` is no byte and not EOS.
            Terminated: when the state is at EOS already.
            EmptyBeam: when nothing continues with ``b``.
        """

    @abstractmethod
    def prune(self) -> Self:
        """The state with what is unlikely left out."""

    @abstractmethod
    async def logp_next(self) -> LazyByteProbs:
        """The distribution over the next byte or EOS, normalised; natural logarithms.

        Raises:
            Terminated: when the state is at EOS.
        """

    @abstractmethod
    async def prefill(self, bs: bytes | Iterable[int]) -> Self:
        """The state after bytes that are known in advance.

        Raises:
            ByteError: when one of them is not in 0..255.
        """

    async def greedy(self, context: bytes | Iterable[int], steps: int) -> bytes:
        """``context`` and the most likely byte after it, ``steps`` times; ends early at EOS."""
        return await self._generate(context, steps, LazyByteProbs.argmax)

    async def sample(
        self,
        context: bytes | Iterable[int],
        steps: int,
        draw: Callable[[Chart], int] = sample_dict,
    ) -> bytes:
        """``context`` and bytes drawn after it, ``steps`` times; ends early at EOS.

        Args:
            context: bytes to prefill.
            steps: how many bytes to draw at most.
            draw: chooses a key of a Chart of probabilities, keyed by 0..255, None (EOT, always 0)
                and 257 (EOS).
        """
        return await self._generate(context, steps, lambda q: draw(q.map_values(np.exp)))

    async def _generate(
        self, context: bytes | Iterable[int], steps: int, choose: Callable[[LazyByteProbs], int]
    ) -> bytes:
        if steps < 0:
            raise InputError(f"steps must not be negative, got {steps}")
        text = bytearray(checked_bytes(context))
        state = await self.prefill(bytes(text))
        for _ in range(steps):
            b = choose(await state.logp_next())
            if b == EOS:
                break
            state = await (state.prune() << b)
            text.append(b)
        return bytes(text)

    async def cleanup(self) -> None:
        """Releases what the state holds outside this process; nothing by default."""
        return
