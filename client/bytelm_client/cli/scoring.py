"""A run of ``bytelm score`` over a file: scored piece by piece, kept, told of.

Must not know flags.
"""

import io
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bytelm.generating.spans import words
from bytelm_client.cli.console import Count, say
from bytelm_client.cli.files import check_apart, is_kept, writing
from bytelm_client.cli.kept import Kept
from bytelm_client.cli.parts import Cut, Parts, lines
from bytelm_client.cli.reports import Kind, Report, Total
from bytelm_client.cli.source import Source
from bytelm_client.cli.windows import Windows, in_order, logprobs_of

if TYPE_CHECKING:
    from bytelm_client import AsyncClient

CUTS: dict[Kind, Cut] = {"lines": lines, "words": words}
BLOCK = 1 << 16
"""Bytes whose scores are read at once where they are kept."""


def opened(files: ExitStack, source: Source, output: Path | None) -> tuple[BinaryIO, Kept | None]:
    """Where to write, and the scores that are kept beside it, if they can be."""
    if output is None:
        return sys.stdout.buffer, None
    sink = files.enter_context(os.fdopen(writing(output), "wb"))
    if not is_kept(sink.fileno(), output):
        return sink, None
    check_apart(source.file, sink.fileno(), output)
    return sink, files.enter_context(Kept.opened(output))


class Run:
    """Scores a file, and tells of it.

    Args:
        source: the file.
        kept: where scores are kept; None where nowhere.
        options: the call's.
        concurrency: how many calls are under way at most.
    """

    def __init__(
        self, source: Source, kept: Kept | None, options: dict[str, Any], concurrency: int
    ) -> None:
        self._source = source
        self._kept = kept
        self._options = options
        self._concurrency = concurrency

    async def report(
        self,
        client: "AsyncClient",
        window: int | None,
        stride: int | None,
        sink: BinaryIO,
        of: type[Report],
        kind: Kind,
    ) -> None:
        """Score what is not kept yet, and write the report of all."""
        model, size, kept = (await client.models())[0], self._source.size, self._kept
        windows = Windows.of(model.limits, window, stride)
        if kept is not None:
            known = {
                "file": self._source.digest(),
                "model": model.fingerprint,
                "window": [windows.window, windows.stride, windows.piece],
                "beam": self._options.get("beam", {}),
            }
            kept.go_on(known, size)
            if kept.count:
                say(f"{kept.count} of {size} bytes are scored already")
            # All that was written is written again, from what is kept.
            sink.truncate(0)
        # Rows and a moving bar cannot share a terminal.
        waiting = io.BytesIO() if sink.isatty() else None
        rows = sink if waiting is None else waiting
        report, total = of(rows, kind), Total()
        parts = None if kind == "total" else Parts(CUTS[kind])
        try:
            with Count("scoring", size, "bytes", 0 if kept is None else kept.count) as count:
                async with aclosing(self._scored(client, windows, count)) as pieces:
                    async for data, logprobs in pieces:
                        total.add(logprobs)
                        if parts is not None:
                            for part in parts.take(data, logprobs, last=total.bytes == size):
                                report.part(part)
                        rows.flush()
        except BaseException:
            if kept is not None:
                say(
                    f"stopped with {kept.count} of {size} bytes scored; the same command goes on "
                    "from there"
                )
            raise
        report.end(total)
        if waiting is not None:
            sink.write(waiting.getvalue())
        sink.flush()
        if total.impossible:
            say(
                f"{total.impossible} bytes have no probability, since the vocabulary cannot spell "
                f"some of the text; without them it is {total.without:.3f} bits/byte"
            )

    async def _scored(
        self, client: "AsyncClient", windows: Windows, count: Count
    ) -> AsyncGenerator[tuple[bytes, NDArray[np.float64]], None]:
        """The text and its log-probabilities, in order: first what is kept."""
        source, kept = self._source, self._kept
        at = 0
        while kept is not None and at < kept.count:
            end = min(at + BLOCK, kept.count)
            yield source.read(at, end), kept.read(at, end)
            at = end
        todo = (piece for piece in windows.pieces(source.size) if piece.end > at)
        work = partial(logprobs_of, client, source, self._options)
        async with aclosing(in_order(work, todo, self._concurrency)) as results:
            async for piece, logprobs in results:
                # Of the first one a killed run may have kept some.
                logprobs = logprobs[at - piece.start :]
                if kept is not None:
                    kept.add(logprobs)
                yield source.read(at, piece.end), logprobs
                count.add(len(logprobs))
                at = piece.end
