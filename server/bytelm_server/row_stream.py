"""Distributions over the next byte as raw numbers, row after row as they are made.

::

    row 0 | row 1 | … | row T              before each of T bytes, and behind the last
    row 0 | row 1 | NaN {"error": {…}}     the third could not be made

A row has 257 natural log-probabilities, little-endian: of the 256 bytes, then of EOS. None of them
is NaN, so that a NaN where a row would begin is an *end*: the rest is JSON, which tells what went
wrong, or whatever else there is to tell. Blanks fill it up where the body would be a whole number
of rows: who takes it for rows alone notices. Must not know how rows come about.
"""

import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from bytelm.models.logprobs import EOS
from bytelm_server.errors import ErrorBody, detail_of

_log = logging.getLogger(__name__)

Pieces = AsyncGenerator[bytes, None]
"""The body of an answer, some rows at a time; closing it ends the work."""

WIDTH = 257
"""Numbers in a row."""
_PLACES = np.array([*range(WIDTH - 1), EOS])


class RowFormat:
    """How numbers are written.

    Args:
        dtype: of each.
    """

    def __init__(self, dtype: Literal["float32", "float16"]) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")

    def headers(self, rows: int) -> dict[str, str]:
        """What is known of so many rows before the first."""
        return {"X-Shape": f"{rows},{WIDTH}", "X-Dtype": self.dtype.str}

    def rows(self, rows: Sequence[NDArray[np.float64]]) -> bytes:
        """Rows of the library, ``[258]`` each; what is finite stays so."""
        table = np.array(rows)[:, _PLACES]
        least = np.finfo(self.dtype).min
        table = np.where(np.isneginf(table), table, np.maximum(table, least))
        return table.astype(self.dtype).tobytes()

    def end(self, told: Mapping[str, Any]) -> bytes:
        """What stands in the place of further rows."""
        end = np.array(np.nan, self.dtype).tobytes() + orjson.dumps(told)
        return end if len(end) % (WIDTH * self.dtype.itemsize) else end + b" "


class RowStream(StreamingResponse):
    """The answer that carries rows; a client that goes away ends the work.

    Args:
        first: the first piece.
        following: gives the piece after the last one, None after the last of all.
        pieces: closed when the answer ends.
        form: how an error is written.
        rows: how many there will be, unless one cannot be made.
    """

    def __init__(
        self,
        first: bytes,
        following: Callable[[], Coroutine[Any, Any, bytes | None]],
        pieces: Pieces,
        form: RowFormat,
        rows: int,
    ) -> None:
        self._following = following
        self._pieces = pieces
        self._form = form
        self._body = self._wire(first)
        headers = {**form.headers(rows), "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(self._body, headers=headers, media_type="application/octet-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the rows; whatever happens, no work for them goes on."""
        async with aclosing(self._pieces), aclosing(self._body):
            await super().__call__(scope, receive, send)

    async def _wire(self, piece: bytes | None) -> Pieces:
        try:
            while piece is not None:
                yield piece
                piece = await self._following()
        except Exception as error:
            detail = detail_of(error)
            if detail["code"] == "internal_error":
                _log.exception("rows failed")
            yield self._form.end(ErrorBody(error=detail))
