"""Distributions along a text that is known, as raw numbers.

Must not know HTTP.
"""

from contextlib import aclosing, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bytelm import pace
from bytelm.beam.prefill import JOINED, TrunkFinder
from bytelm.errors import EmptyBeam, VocabError
from bytelm.models.byte_lm import Walk
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server import requests
from bytelm_server.counting import usage_of
from bytelm_server.errors import NoContinuation
from bytelm_server.row_stream import Pieces, RowFormat
from bytelm_server.scoring import why_impossible
from bytelm_server.service import ByteService

AT_ONCE = 32
"""Rows that are sent together, the first aside: it comes as soon as it is there."""


async def rows(
    service: ByteService, call: requests.RowsCall, cache_salt: str | None = None
) -> Pieces:
    """The body of an answer: the distributions before each byte of a text, and behind it."""
    text, lm = call.text.data, service.lm
    service.limits.check_scoring([len(text)], "text")
    run = await service.run(call, cache_salt)
    with suppress(VocabError):  # a byte that cannot be spelled has no probability, that is all
        await TrunkFinder.of(lm.vocab).check_fits(-JOINED, text, lm.max_context_tokens)
    state = await run.begun(call.context, "context")
    run.lm.bytes_in += len(text)
    await state.check_room(text)
    form = RowFormat(call.dtype)
    async with aclosing(pieces(state.through(text), text, lm.vocab, form)) as made:
        async for piece in made:
            yield piece
    if call.usage:
        yield form.end({"usage": usage_of(run.lm)})


async def pieces(walk: Walk[Any], text: bytes, vocab: ByteVocab, form: RowFormat) -> Pieces:
    """The rows of a walk through ``text``, some at a time; what was made comes before an error.

    Raises:
        NoContinuation: when nothing continues with one of its bytes.
    """
    waiting: list[NDArray[np.float64]] = []
    count = 0
    try:
        async with aclosing(walk.rows()) as found:
            async for q in found:
                waiting.append(q.ps)
                count += 1
                if count == 1 or len(waiting) == AT_ONCE:
                    await pace.turn()
                    yield form.rows(waiting)
                    waiting = []
    except Exception as error:
        if waiting:
            yield form.rows(waiting)
        if isinstance(error, EmptyBeam) and 0 < count <= len(text):
            raise NoContinuation(why_impossible(text, count - 1, vocab), "text") from error
        raise
    if waiting:
        yield form.rows(waiting)
