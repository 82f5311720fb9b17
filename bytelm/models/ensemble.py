"""Ensembles: several byte LMs as one, whatever their tokenizers.

Bytes are the alphabet that all models share, so that distributions over the next byte can be mixed
and multiplied where those over tokens cannot. With weights w that sum to 1, models p, a text x and
a next symbol s, which is a byte or EOS:

===========  =====================================  ================================================
mode         next symbol                            what it is
===========  =====================================  ================================================
"mixture"    Σ w(i) p(i, xs) / Σ w(i) p(i, x)       a mixture of whole texts: weights follow
                                                    the likelihood of what was read
"pool"       Σ w(i) p(i, s | x)                     a mixture of each next symbol, weights fixed
"product"    Π p(i, s | x)^w(i), normalised         the weighted geometric mean: what all allow
===========  =====================================  ================================================

This module must not know tokens, tries, beams or HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Iterable, Sequence
from contextlib import aclosing
from typing import Literal, Self, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from bytelm.errors import EmptyBeam, InputError, Terminated
from bytelm.models.byte_lm import StatefulByteLM, Walk
from bytelm.models.logprobs import EOS, SIZE, LazyByteProbs, check_symbol, checked_bytes

T = TypeVar("T")
E = TypeVar("E", bound="Ensemble")

OUT = np.full(SIZE, -np.inf)
"""What a model that is out says of the next symbol."""

Mode = Literal["mixture", "pool", "product"]
"""How the models' distributions become one; see this module."""


class Ensemble(StatefulByteLM):
    """Several byte LMs as one.

    >>> both = Ensemble([await one.prefill(b"Q: "), await other.prefill(b"# ")])  # doctest: +SKIP

    What the models have read before is theirs: a prompt of one's own for each. All of them read
    what the ensemble reads. In a mixture, a model that gives a byte no probability is out from
    there on; in a pool, one that cannot go on with it is. If no model of a mixture gives it any,
    those that can go on all the same (by healing) keep their weights.

    Args:
        states: a state of each model, the same as often as one likes.
        weights: of each, positive; they are made to sum to 1. None for equal ones.
        mode: how distributions become one.

    Attributes:
        states: the models' states; None for one that is out.
        log_weights: float64 ``[models]``. In a mixture, log(weight) + log-probability of what the
            ensemble has read; else log(weight). -inf for a model that is out.
        mode: how distributions become one.

    Raises:
        InputError: when there is no state, or a weight is missing or not positive.
    """

    states: Sequence[StatefulByteLM | None]

    def __init__(
        self,
        states: Sequence[StatefulByteLM],
        weights: Sequence[float] | None = None,
        mode: Mode = "mixture",
    ) -> None:
        if not states:
            raise InputError("an ensemble needs at least one model")
        if mode not in get_args(Mode):
            raise InputError(f'mode is "mixture", "pool" or "product", got {mode!r}')
        shares = np.ones(len(states)) if weights is None else np.array(weights, np.float64)
        if shares.shape != (len(states),):
            raise InputError(f"there are {len(states)} models, but {shares.size} weights")
        if not (np.isfinite(shares) & (shares > 0.0)).all():
            raise InputError(f"weights must be positive and finite, got {list(shares)}")
        self._set(states, np.log(shares / shares.sum()), mode, b"", False)

    def _set(
        self,
        states: Sequence[StatefulByteLM | None],
        log_weights: NDArray[np.float64],
        mode: Mode,
        context: bytes,
        terminated: bool,
    ) -> None:
        self.states = tuple(states)
        self.log_weights = log_weights
        self.mode = mode
        self.terminated = terminated
        self._context = context
        self._next = self._unpruned = _Distributions(self.states)

    def _with(
        self,
        states: Sequence[StatefulByteLM | None],
        log_weights: NDArray[np.float64],
        added: bytes = b"",
        terminated: bool = False,
    ) -> Self:
        new = object.__new__(type(self))
        new._set(states, log_weights, self.mode, self._context + added, terminated)
        return new

    @property
    def context(self) -> bytes:
        """The bytes that the ensemble has consumed; what its models had before does not count."""
        return self._context

    @property
    def at_limit(self) -> bool:
        """Whether the context fills one of the models."""
        return any(state.at_limit for state in self.states if state is not None)

    async def logp_next(self) -> LazyByteProbs:
        """The distribution over the next byte or EOS; all models are asked at once.

        Raises:
            Terminated: when the state is at EOS.
            EmptyBeam: when no symbol has probability in all models of a product.
        """
        self._check_open()
        total = self._combined(await self._next.get())
        if not total.max() > -np.inf:
            raise EmptyBeam("the models agree on no next byte: use a pool or a mixture")
        report = total - _log_sum_exp(total[:, None])
        drawable = await self._next.drawable()
        if drawable is None:
            return LazyByteProbs(report)
        kept = self._combined(drawable)
        # Where the models agree on nothing that they know well, the report is all there is.
        return LazyByteProbs(
            report, kept=np.exp(kept - kept.max()) if kept.max() > -np.inf else None
        )

    def _combined(self, logps: NDArray[np.float64]) -> NDArray[np.float64]:
        """The models' distributions, float64 ``[models, 258]``, as one that is not normalised."""
        if self.mode == "product":
            return (np.exp(self.log_weights)[:, None] * logps).sum(axis=0)
        return _log_sum_exp(self.log_weights[:, None] + logps)

    async def __lshift__(self, b: int) -> Self:
        b = check_symbol(b)
        self._check_open()
        weights = self.log_weights
        if self.mode == "mixture":
            follow = weights + (await self._unpruned.get())[:, b]
            if follow.max() > -np.inf:
                weights = follow
        moved = await _gather(
            _moved(state, b) if state is not None and weight > -np.inf else _nothing()
            for state, weight in zip(self.states, weights, strict=True)
        )
        return self._moved(moved, weights, b"" if b == EOS else bytes([b]), b == EOS)

    def prune(self) -> Self:
        """The ensemble of the pruned states.

        The weights of a mixture follow the distributions before: those that a walk has read.
        """
        states = [None if state is None else state.prune() for state in self.states]
        pruned = self._with(states, self.log_weights, terminated=self.terminated)
        pruned._unpruned = self._unpruned
        return pruned

    async def prefill(self, bs: bytes | Iterable[int]) -> Self:
        """The state after bytes that are known in advance.

        A mixture walks, for its weights follow their likelihood; let the models prefill what is not
        to count. In the other modes the models prefill, each in its own way.

        Raises:
            ByteError: when one of them is not in 0..255.
            EmptyBeam: when no model can go on with them.
        """
        added = checked_bytes(bs)
        self._check_open()
        if not added:
            return self
        if self.mode == "mixture":
            walk = self.through(added)
            for _ in added:
                await walk.advance()
            return walk.state
        filled = await _gather(
            _nothing() if state is None else _prefilled(state, added) for state in self.states
        )
        return self._moved(filled, self.log_weights, added)

    def through(self, text: bytes, share: int = 1) -> Walk[Self]:
        """See ``StatefulByteLM``; each model walks in its own way, in waves if it can."""
        return _Walk(self, text, share)

    async def rows(self, bs: bytes | Iterable[int]) -> AsyncGenerator[LazyByteProbs, None]:
        """See ``StatefulByteLM``; each model reads the text in its own way, in waves if it can."""
        text = checked_bytes(bs)
        self._check_open()
        reading = [None if state is None else _Reading(state, text) for state in self.states]
        walk = Walk(self._with(reading, self.log_weights), text)
        try:
            async with aclosing(walk.rows()) as rows:
                async for q in rows:
                    yield q
        finally:
            await _gather(one.cleanup() for one in reading if one is not None)

    async def cleanup(self) -> None:
        """Releases what the models' states hold."""
        await _gather(state.cleanup() for state in self.states if state is not None)

    def _moved(
        self,
        moved: Sequence[StatefulByteLM | EmptyBeam | None],
        weights: NDArray[np.float64],
        added: bytes,
        terminated: bool = False,
    ) -> Self:
        """The ensemble of the models that could go on, the others' weights gone."""
        failed = [outcome for outcome in moved if isinstance(outcome, EmptyBeam)]
        states = [None if isinstance(outcome, EmptyBeam) else outcome for outcome in moved]
        if failed and (self.mode == "product" or not any(states)):
            raise failed[0]
        out = [state is None for state in states]
        weights = np.where(out, -np.inf, weights)
        if self.mode == "pool":
            weights = weights - _log_sum_exp(weights[:, None])
        return self._with(states, weights, added, terminated)

    def _check_open(self) -> None:
        if self.terminated:
            raise Terminated(f"the text ended (EOS) after {self._context[-24:]!r}")

    def __repr__(self) -> str:
        shares = np.exp(self.log_weights - _log_sum_exp(self.log_weights[:, None]))
        lines = [f"{self.mode} of {len(self.states)} models after {self._context!r}"]
        lines += [
            f"({share:.4f}) {'out' if state is None else type(state).__name__}"
            for share, state in zip(shares, self.states, strict=True)
        ]
        return "\n".join(lines) + "\n"


class _Walk(Walk[E]):
    """The walk of an ensemble whose models walk in their own ways."""

    def __init__(self, state: E, text: bytes, share: int) -> None:
        self._walks = [None if one is None else one.through(text, share) for one in state.states]
        walking = [None if walk is None else _Walking(walk) for walk in self._walks]
        super().__init__(state._with(walking, state.log_weights), text)
        self._before = state

    @property
    def state(self) -> E:
        """Where it stands: the models' own states, of those that could go on."""
        states = [
            None if one is None or walk is None else walk.state
            for one, walk in zip(self._state.states, self._walks, strict=True)
        ]
        return self._before._with(states, self._state.log_weights, self._text[: self._at])


class _Moving(StatefulByteLM):
    """A model on its way through a text that is known: a state that moves, for one walk alone."""

    def prune(self) -> Self:
        return self

    async def prefill(self, bs: bytes | Iterable[int]) -> Self:
        raise NotImplementedError("its text is known")

    @property
    def context(self) -> bytes:
        raise NotImplementedError("it is the ensemble's")


class _Walking(_Moving):
    """One that goes by its walk."""

    def __init__(self, walk: Walk[StatefulByteLM]) -> None:
        self._walk = walk

    @property
    def at_limit(self) -> bool:
        return self._walk.at_limit

    async def logp_next(self) -> LazyByteProbs:
        return await self._walk.logp_next()

    async def __lshift__(self, b: int) -> Self:
        await self._walk.advance()
        return self


class _Reading(_Moving):
    """One that goes by its rows."""

    def __init__(self, state: StatefulByteLM, text: bytes) -> None:
        self._rows = state.rows(text)
        self._row: LazyByteProbs | None = None

    async def logp_next(self) -> LazyByteProbs:
        if self._row is None:
            self._row = await anext(self._rows)
        return self._row

    async def __lshift__(self, b: int) -> Self:
        self._row = await anext(self._rows)
        return self

    async def cleanup(self) -> None:
        await self._rows.aclose()


class _Distributions:
    """What some states say of the next symbol, asked once, when it is wanted first."""

    def __init__(self, states: Sequence[StatefulByteLM | None]) -> None:
        self._states = states
        self._told: list[LazyByteProbs | None] = []

    async def get(self) -> NDArray[np.float64]:
        """Float64 ``[models, 258]``; -inf of a model that is out."""
        if not self._told:
            self._told = await _gather(
                _nothing() if state is None else state.logp_next() for state in self._states
            )
        return np.array([OUT if told is None else told.ps for told in self._told])

    async def drawable(self) -> NDArray[np.float64] | None:
        """What may be drawn of each model's, in the same form; None if that is the same."""
        await self.get()
        chosen = [None if told is None else told.drawable for told in self._told]
        if all(one is told for one, told in zip(chosen, self._told, strict=True)):
            return None
        return np.array([OUT if one is None else one.ps for one in chosen])


async def _moved(state: StatefulByteLM, b: int) -> StatefulByteLM | EmptyBeam:
    try:
        return await state.advanced(b)
    except EmptyBeam as error:
        return error


async def _prefilled(state: StatefulByteLM, bs: bytes) -> StatefulByteLM | EmptyBeam:
    try:
        return await state.prefill(bs)
    except EmptyBeam as error:
        return error


async def _nothing() -> None:
    return None


async def _gather(calls: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all calls, run concurrently; if one fails or is cancelled, all end."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _log_sum_exp(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the first axis: float64 of the others; -inf where all are."""
    top = values.max(axis=0)
    shift = np.where(top > -np.inf, top, 0.0)
    with np.errstate(divide="ignore"):
        return shift + np.log(np.exp(values - shift).sum(axis=0))
