"""Reading ahead: evaluations that are asked for before a beam needs them.

A beam asks for a context when a token may end there. On the way through its likeliest token other
tokens may end, " do" and " doc" within " doctor", and each that weighs enough takes a step of the
model's: too little for the step to be worth it. A walk that has the model to itself lets the first
such step take them all, and the whole token, too; only if the text goes elsewhere was that wasted::

    The‖ d     may end at " d": wanted now     ─┐
    The‖ do    may end at " do"                 ├─ one step
    The‖ doc   weighs too little                │
    The‖ doctor                                ─┘

A fast prefill, which asks for the canonical tokens of its text in advance, reads nothing else so.

What is under way ends with the walk that asked for it: when that is cancelled, or no state refers
to it any more. Another state that still wanted it evaluates anew.

This module must not know how a token LM computes, nor how a beam weighs its candidates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from bytelm.joined import Joined
from bytelm.models.ordered_rows import Answer
from bytelm.models.token_lm import AsyncTokenLM, answer_of
from bytelm.vocabulary.trie import TokenTrie

MOST = 3
"""How many evaluations are asked for ahead at once: more would make the step itself slower."""

Path = tuple[int, ...]


class _Asked(NamedTuple):
    """An evaluation: of a candidate's very tokens, and one more."""

    tokens: Path
    token: int
    answer: Joined[Answer]


class Ahead:
    """Evaluations that extend the candidates of a beam, under way or done; an immutable value."""

    __slots__ = ("_asked",)

    def __init__(self, asked: Iterable[_Asked] = ()) -> None:
        self._asked = tuple(asked)

    @classmethod
    def of(
        cls,
        answers: Iterable[tuple[Path, Awaitable[Answer]]],
        candidates: Sequence[Path],
    ) -> Ahead:
        """Those of some contexts' evaluations that add a token to one of the candidates."""
        return cls(
            _Asked(tokens, context[-1], Joined(answer))
            for context, answer in answers
            for tokens in candidates
            if context[:-1] == tokens
        )

    def asking(self, lm: AsyncTokenLM, wanted: Iterable[tuple[Path, int]]) -> Ahead:
        """With evaluations of ``lm`` that begin now; what is there already is not asked for."""
        new = []
        for tokens, token in wanted:
            if self.find(tokens, token) is None:
                answer = Joined(answer_of(lm, (*tokens, token)))
                new.append(_Asked(tokens, token, answer))
        return Ahead((*self._asked, *new)) if new else self

    def of_candidates(
        self, trie: TokenTrie, candidates: Sequence[Path], nodes: NDArray[np.int32]
    ) -> Ahead:
        """Those that may still be of use to one of the candidates, which stand at these nodes."""
        if not self._asked:
            return self
        return Ahead(
            one
            for one in self._asked
            for tokens, node in zip(candidates, nodes.tolist(), strict=True)
            if one.tokens is tokens and trie.token_bytes[one.token].startswith(trie.prefix(node))
        )

    def without(self, contexts: Iterable[Path]) -> Ahead:
        """Those that are not of these contexts."""
        if not self._asked:
            return self
        used = set(contexts)
        return Ahead(one for one in self._asked if (*one.tokens, one.token) not in used)

    def find(self, tokens: Path, token: int) -> Joined[Answer] | None:
        """The evaluation of a candidate's tokens and one more; None if there is none to use."""
        for one in self._asked:
            if one.tokens is tokens and one.token == token and not one.answer.has_failed:
                return one.answer
        return None

    @property
    def nbytes(self) -> int:
        """How much memory the answers take."""
        rows = [one.answer.result for one in self._asked]
        return sum(row.nbytes for row in rows if row is not None)

    def give_up(self) -> None:
        """Ends those that nobody waits for: the walk that they are for was cancelled."""
        for one in self._asked:
            one.answer.give_up()


NOTHING = Ahead()


class _Reading(Protocol):
    """Something that reads ahead."""

    _ahead: Ahead


S = TypeVar("S", bound=_Reading)
P = ParamSpec("P")
R = TypeVar("R")


def walking(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """A step of a walk: what its state reads ahead ends when the step is cancelled."""

    @wraps(method)
    async def step(state: S, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await method(state, *args, **kwargs)
        except (asyncio.CancelledError, GeneratorExit):
            state._ahead.give_up()
            raise

    return cast("Callable[Concatenate[S, P], Coroutine[Any, Any, R]]", step)


def is_idle(lm: AsyncTokenLM) -> bool:
    """Whether evaluations that nobody may need would disturb nobody."""
    # An IdleTokenLM. Checking a protocol takes too long for each byte.
    return bool(getattr(lm, "is_idle", False))


def coming(
    trie: TokenTrie, node: int, piece: NDArray[np.float32], threshold: float
) -> Iterator[int]:
    """The tokens that a candidate will probably have to be extended with.

    Args:
        trie: the vocabulary.
        node: where the candidate stands.
        piece: probabilities of the tokens below that node, in any scale.
        threshold: the share among the tokens that go on like it which a token must exceed.

    Returns:
        Ids of tokens longer than the candidate's partial token, on the way through the likeliest
        one, short ones first; that one is the last.
    """
    low = trie.lo[node]
    likeliest = int(trie.order[low + int(piece.argmax())])
    for b in trie.token_bytes[likeliest][trie.depth[node] :]:
        node = trie.child(node, b)
        below = piece[trie.lo[node] - low : trie.hi[node] - low]
        least = threshold * float(below.sum())
        for at in range(trie.end[node] - trie.lo[node]):
            token = int(trie.order[trie.lo[node] + at])
            if below[at] > least or token == likeliest:
                yield token
