"""Continuations of a session's state as answers and as events.

Must not know how a session moves.
"""

from collections.abc import AsyncIterator

from bytelm.errors import MethodError
from bytelm.generating.draws import Draw
from bytelm.generating.token_sampling import by_tokens
from bytelm_server import streams
from bytelm_server.answers import bytes_out
from bytelm_server.counting import CountingLM, usage_of
from bytelm_server.errors import FieldError
from bytelm_server.requests import Drawing, Generation
from bytelm_server.service import ByteService
from bytelm_server.sessions.replies import Answer
from bytelm_server.sessions.states import Grown


def count_of(call: Generation) -> int:
    """How many texts a call wants."""
    return call.n if isinstance(call, Drawing) else 1


def draw_of(call: Generation, service: ByteService) -> Draw | None:
    """How to draw, checked; None for what is not drawn."""
    service.limits.check_generation(1, count_of(call), call.steps)
    if not isinstance(call, Drawing):
        return None
    draw = Draw(call.temperature, call.top_k, call.top_p, call.min_p, call.seed)
    try:
        by_tokens(
            call.method,
            service.lm,
            draw,
            valid_utf8=call.valid_utf8,
            logprobs=call.logprobs,
        )
    except MethodError as error:
        raise FieldError(str(error), error.option) from error
    return draw


def answer_of(texts: list[Grown], lm: CountingLM, *, drawn: bool) -> Answer:
    """Whole continuations as results, and what they took."""
    results = []
    for n, text in enumerate(texts):
        result: Answer = {"index": 0, "sample": n} if drawn else {}
        result["bytes"] = bytes_out(text.data)
        if text.state.kind == "token":
            result["tokens"] = list(text.tokens)
        result["logprob"], result["finish_reason"] = text.logprob, text.finish_reason
        results.append(result)
    return {"results": results, "usage": usage_of(lm)}


async def collected(pieces: AsyncIterator[Grown], lm: CountingLM) -> Grown:
    """All pieces of a continuation as one; ``lm`` counts their bytes."""
    data, tokens, logprob = bytearray(), list[int](), 0.0
    async for piece in pieces:
        lm.bytes_out += len(piece.data)
        data += piece.data
        tokens += piece.tokens
        logprob += piece.logprob or 0.0
    total = None if piece.logprob is None else logprob
    return piece._replace(data=bytes(data), tokens=tuple(tokens), logprob=total)


class TextEvents(streams.TextEvents):
    """One continuation as events."""

    def __init__(self, sample: int) -> None:
        super().__init__(0, sample)

    def event(self, piece: Grown) -> Answer:  # type: ignore[override]
        """The next piece."""
        event = super().event(piece)
        if piece.state.kind == "token":
            event["tokens"] = list(piece.tokens)
        return event
