"""Byte LMs: what every state of one can do, whatever computes it.

This module must not know tokens, tries or beams.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Generic, Self, TypeVar

from bytelm.errors import ContextTooLong
from bytelm.generating.draws import Choose, Draw, chooser
from bytelm.generating.generation import collect, generate
from bytelm.models.logprobs import Chart, LazyByteProbs, checked_bytes

S = TypeVar("S", bound="StatefulByteLM")


class Walk(Generic[S]):
    """A walk through a text that is known, byte by byte.

    Attributes:
        state: where it stands.
    """

    def __init__(self, state: S, text: bytes) -> None:
        self._state = state
        self._text = text
        self._at = 0

    @property
    def state(self) -> S:
        """Where it stands."""
        return self._state

    @property
    def at_limit(self) -> bool:
        """See ``StatefulByteLM``."""
        return self._state.at_limit

    async def logp_next(self) -> LazyByteProbs:
        """The distribution over the next byte or EOS, where it stands."""
        return await self._state.logp_next()

    async def advance(self) -> None:
        """Prunes, and goes on by the text's next byte; see ``StatefulByteLM.advanced``."""
        self._state = await self._state.prune().advanced(self._text[self._at])
        self._at += 1

    async def rows(self) -> AsyncGenerator[LazyByteProbs, None]:
        """The distributions where it stands, and behind each byte of the rest; see ``rows`` below.

        Raises:
            EmptyBeam: when nothing continues with one of them.
            ContextTooLong: when the text does not fit into the model.
        """
        while True:
            if self.at_limit:
                raise ContextTooLong(f"the model is full after {self._at} bytes: shorten the text")
            yield await self.logp_next()
            if self._at == len(self._text):
                return
            await self.advance()


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
            EmptyBeam: when nothing continues with ``b``; a ``ByteBeamState`` comes back empty
                instead, and raises this when it is asked for anything.
        """

    async def advanced(self, b: int) -> Self:
        """As ``<<``, but never empty.

        Raises:
            EmptyBeam: when nothing continues with ``b``.
        """
        return await (self << b)

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

    def through(self, text: bytes, share: int = 1) -> Walk[Self]:
        """A walk through bytes that are known in advance.

        Args:
            text: the bytes.
            share: how many walks like this there are at a time; they share what is held for them.
        """
        return Walk(self, text)

    async def rows(self, bs: bytes | Iterable[int]) -> AsyncGenerator[LazyByteProbs, None]:
        """The distributions before each of some bytes that are known, and behind the last.

        What a score reads; one more than there are bytes.

        Raises:
            ByteError: when one of them is not in 0..255.
            EmptyBeam: when nothing continues with one of them.
            ContextTooLong: when they do not fit into the model.
        """
        async with aclosing(self.through(checked_bytes(bs)).rows()) as rows:
            async for q in rows:
                yield q

    async def check_room(self, bs: bytes) -> None:
        """Refuses bytes that cannot fit behind the state; evaluates nothing. By default never.

        Raises:
            ContextTooLong: when they surely do not; where it is close, consuming them tells.
        """
        return

    @property
    @abstractmethod
    def context(self) -> bytes:
        """The bytes consumed so far."""

    @property
    def at_limit(self) -> bool:
        """Whether the context fills the model, so that a generation ends here; by default never."""
        return False

    async def greedy(self, context: bytes | Iterable[int], steps: int) -> bytes:
        """``context`` and the most likely byte after it, ``steps`` times.

        Ends early at EOS and where the context fills the model.
        """
        return await self._generate(context, steps, LazyByteProbs.argmax)

    async def sample(
        self,
        context: bytes | Iterable[int],
        steps: int,
        draw: Callable[[Chart], int] | None = None,
    ) -> bytes:
        """``context`` and bytes drawn after it, ``steps`` times.

        Ends early at EOS and where the context fills the model.

        Args:
            context: bytes to prefill.
            steps: how many bytes to draw at most.
            draw: a ``Draw``; or any function that chooses a key of a Chart of probabilities, keyed
                by 0..255, None (EOT, always 0) and 257 (EOS). None draws from the distribution as
                it is.
        """
        return await self._generate(context, steps, chooser(Draw() if draw is None else draw))

    async def _generate(self, context: bytes | Iterable[int], steps: int, choose: Choose) -> bytes:
        begin = checked_bytes(context)
        made = await collect(generate(await self.prefill(begin), steps, choose, onward=False))
        return begin + made.data

    async def cleanup(self) -> None:
        """Releases what the state holds outside this process; nothing by default."""
        return
