"""Sampling text by tokens: as fast as the token LM generates, and the same in distribution.

Bytes that are drawn one after another, each from the distribution after those before it, have
exactly the distribution of tokens that are drawn so and decoded. So a text can be drawn in three
steps, of which only the last takes the model::

    context     The capital of Fran         two candidates of the beam, drawn by weight
                 The| capital| of| Fran‖
                 The| capital| of‖ Fran     this one: the tokens below " Fran", drawn by probability
    current      The| capital| of| France|  adds "ce"
    generated                             , which| is|…   by the token LM itself

This is exact for a beam without limits, and at a finite beam closer to exact than the walk: no
candidate is dropped on the way. Filters and masks on bytes have no counterpart on tokens, so they
need the walk; so does a ``max_context_length`` that would be reached on the way.

This module knows beams and token LMs; it must not know how a token LM generates.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Literal, TypeVar

from bytelm.beam import ByteBeamState
from bytelm.errors import InputError, MethodError
from bytelm.generating.draws import Draw, chooser
from bytelm.generating.generation import FinishReason, Note, Piece, generate
from bytelm.generating.stop_strings import Stop, StopStrings
from bytelm.models.byte_lm import StatefulByteLM
from bytelm.models.logprobs import Chart
from bytelm.models.token_lm import AsyncTokenLM, GeneratingTokenLM

S = TypeVar("S", bound=StatefulByteLM)

Method = Literal["auto", "token", "byte"]
"""How to draw a text: by tokens, by bytes, or by tokens wherever that is possible."""


def by_tokens(
    method: Method,
    lm: AsyncTokenLM | None,
    draw: Draw | Callable[[Chart], int],
    *,
    valid_utf8: bool = False,
    logprobs: bool = False,
) -> bool:
    """Whether ``method`` draws a text by tokens.

    Args:
        method: what is wanted.
        lm: the token LM below; None for a byte LM that has none.
        draw: how bytes would be chosen.
        valid_utf8: whether the text must be valid UTF-8.
        logprobs: whether log-probabilities are asked for.

    Raises:
        InputError: when there is no such method.
        MethodError: when ``"token"`` is wanted but not possible.
    """
    if method not in ("auto", "token", "byte"):
        raise InputError(f'method is "auto", "token" or "byte", got {method!r}')
    if method == "byte":
        return False
    obstacle = _obstacle(lm, draw, valid_utf8, logprobs)
    if obstacle is not None and method == "token":
        option, message = obstacle
        raise MethodError(f'method "token" {message}: use "byte" or "auto"', option)
    return obstacle is None


def _obstacle(
    lm: AsyncTokenLM | None,
    draw: Draw | Callable[[Chart], int],
    valid_utf8: bool,
    logprobs: bool,
) -> tuple[str, str] | None:
    """What stands against tokens: the option's name, and why."""
    if not isinstance(lm, GeneratingTokenLM):
        return "method", "needs a model that generates tokens by itself, which this one does not"
    if not isinstance(draw, Draw):
        return "draw", "does not work with a draw function"
    if draw.temperature != 1.0:
        return "temperature", f"draws at temperature 1, not {draw.temperature}"
    if draw.top_k is not None:
        return "top_k", "does not work with top_k"
    if draw.top_p is not None and draw.top_p < 1.0:
        return "top_p", "does not work with top_p"
    if draw.min_p is not None and draw.min_p > 0.0:
        return "min_p", "does not work with min_p"
    if valid_utf8:
        return "valid_utf8", "does not work with valid_utf8"
    if logprobs:
        return "logprobs", "gives no logprobs: it knows the tokens' only"
    return None


def sample(
    state: S,
    steps: int,
    draw: Draw | Callable[[Chart], int],
    *,
    method: Method = "auto",
    stop: Stop = (),
    valid_utf8: bool = False,
    logprobs: bool = False,
    note: Note | None = None,
    onward: bool = True,
) -> AsyncIterator[Piece[S]] | AsyncIterator[Piece[None]]:
    """A text drawn after ``state``, by tokens or by bytes, in pieces as they become final.

    Args:
        state: where to begin.
        steps: how many bytes to draw at most.
        draw: a ``Draw``; or any function, see ``chooser``.
        method: by tokens, by bytes, or ``"auto"``: by tokens wherever that is possible.
        stop: see ``generate``; so are the others.
        valid_utf8: not by tokens.
        logprobs: not by tokens.
        note: not by tokens.
        onward: no matter by tokens.

    Raises:
        InputError: when there is no such method, and as ``generate`` does.
        MethodError: when ``"token"`` is wanted but not possible.
    """
    lm = state.source.lm if isinstance(state, ByteBeamState) else None
    told = logprobs or note is not None
    tokens = by_tokens(method, lm, draw, valid_utf8=valid_utf8, logprobs=told)
    if tokens and isinstance(state, ByteBeamState) and not state.has_room_for(steps):
        if method == "token":
            raise MethodError(
                'method "token" forgets nothing on the way, and max_context_length has no room for '
                f'{steps} more tokens: use "byte" or "auto"',
                "method",
            )
        tokens = False
    if tokens:
        assert isinstance(state, ByteBeamState)
        assert isinstance(draw, Draw)
        return sample_tokens(state, steps, draw, stop=stop)
    how: dict[str, Any] = {"valid_utf8": valid_utf8, "logprobs": logprobs, "note": note}
    return generate(state, steps, chooser(draw), stop=stop, onward=onward, **how)


async def sample_tokens(
    state: ByteBeamState, steps: int, draw: Draw, *, stop: Stop = ()
) -> AsyncIterator[Piece[None]]:
    """A text drawn after ``state`` by tokens, in pieces as they become final.

    No piece has a state: the tokens that were drawn are only one way to spell these bytes. The
    state after them is ``await state.prefill(data)``.

    Args:
        state: where to begin; its token LM must be a ``GeneratingTokenLM``.
        steps: how many bytes to draw at most.
        draw: the randomness, without any filter. Where its seed was given, the token LM draws
            reproducibly, too.
        stop: see ``generate``.

    Raises:
        InputError: when ``steps`` is negative, or a stop string is empty or no bytes.
        MethodError: when ``draw`` filters, or the token LM does not generate.
        Terminated: when the state is at EOS.
    """
    if steps < 0:
        raise InputError(f"steps must not be negative, got {steps}")
    source = state.source
    by_tokens("token", source.lm, draw)
    assert isinstance(source.lm, GeneratingTokenLM)
    text = _Text(steps, StopStrings.of(stop))
    finish: FinishReason | None = None if steps else "steps"
    if finish is None:
        tokens, rest = state.draw_tokens(draw.uniform)
        finish = text.take(rest)
        if finish is None and not source.fits(len(tokens)):
            finish = "length"
    if finish is None:
        stream = source.lm.generate(
            tokens,
            text.left,  # each token has at least one byte
            seed=draw.next_seed(),
            stop_token_ids=source.eos_ids,
            banned_token_ids=source.banned_ids,
        )
        async with aclosing(stream):
            if data := text.final():
                yield Piece(data, None, None, None)
            async for chunk in stream:
                ended = chunk.finish_reason == "stop"
                ids = chunk.token_ids[:-1] if ended else chunk.token_ids
                finish = text.take(source.vocab.decode(ids))
                if finish is None and chunk.finish_reason is not None:
                    finish = "eos" if ended else "length"
                if finish is not None:
                    break
                if data := text.final():
                    yield Piece(data, None, None, None)
    yield Piece(bytes(text.held), None, None, finish)


class _Text:
    """Bytes as they come, cut at a number of them or at a stop string.

    Attributes:
        left: how many more there may be.
        held: those that were not given yet.
    """

    def __init__(self, steps: int, stops: StopStrings) -> None:
        self.left = steps
        self.held = bytearray()
        self._stops = stops
        self._node = 0

    def take(self, data: bytes) -> FinishReason | None:
        """Adds bytes up to where the text ends; why it does, or None. It ends once."""
        for b in data:
            self.held.append(b)
            self.left -= 1
            self._node = self._stops.follow(self._node, b)
            if length := self._stops.ended[self._node]:
                del self.held[-length:]
                return "stop"
            if not self.left:
                return "steps"
        return None

    def final(self) -> bytes:
        """Those that can be given now: no stop string can take them back."""
        ready = len(self.held) - self._stops.begun[self._node]
        data = bytes(self.held[:ready])
        del self.held[:ready]
        return data
