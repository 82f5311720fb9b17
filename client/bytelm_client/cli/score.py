"""``bytelm score``: how many bits a model needs for a file, by lines or by words."""

import io
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import numpy as np
import typer
from numpy.typing import NDArray

from bytelm.errors import InputError
from bytelm.spans import words as words_of
from bytelm_client.cli import models
from bytelm_client.cli.console import Count, one_line_errors, say
from bytelm_client.cli.files import check_apart, is_kept, writing
from bytelm_client.cli.kept import Kept
from bytelm_client.cli.parts import Cut, Parts
from bytelm_client.cli.parts import lines as lines_of
from bytelm_client.cli.reports import CsvReport, JsonReport, Kind, Report, TableReport, Total
from bytelm_client.cli.source import Source
from bytelm_client.cli.texts import Json, Threshold, Width, beam_options
from bytelm_client.cli.windows import Windows, in_order, logprobs_of

if TYPE_CHECKING:
    from bytelm_client import AsyncClient

CUTS: dict[Kind, Cut] = {"lines": lines_of, "words": words_of}
BLOCK = 1 << 16
"""Bytes whose scores are read at once where they are kept."""


def score(
    file: Annotated[Path, typer.Argument(help="The file; - reads stdin.", allow_dash=True)],
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            min=2,
            help="Bytes of a window; default: twice the model's longest context in tokens.",
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride", min=1, help="Bytes between windows' beginnings; default: half a window."
        ),
    ] = None,
    lines: Annotated[bool, typer.Option("--lines/--total", help="Each line, or all only.")] = True,
    words: Annotated[bool, typer.Option("--words", help="Each word instead.")] = False,
    json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Write CSV.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Where to write, as CSV if it is called .csv; what is scored is kept in a file "
            "beside it, from which the same command goes on after it was stopped.",
            allow_dash=True,
        ),
    ] = None,
    width: Width = None,
    threshold: Threshold = None,
    tokenizations: Annotated[
        Literal["all", "canonical"] | None,
        typer.Option(
            "--tokenizations",
            help="What is summed over; canonical is faster; default: the server's.",
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, help="Pieces of windows at the same time.")
    ] = 8,
    url: models.Url = None,
    api_key: models.ApiKey = None,
    model: models.Model = "default",
) -> None:
    """Write the bits that a model needs for a file: for each line or word, and for all.

    A file longer than the model's context is read through windows that overlap: one begins at every
    stride, and each byte is scored in the first window that has it.
    """
    with one_line_errors():
        if words and not lines:
            raise InputError("--words and --total exclude each other")
        if json and as_csv:
            raise InputError("--json and --csv exclude each other")
        options: Any = beam_options(width, threshold)
        if tokenizations is not None:
            options = {"beam": {**options.get("beam", {}), "tokenizations": tokenizations}}
        where = models.Where.given(url, api_key, model)
        kind: Kind = "words" if words else "lines" if lines else "total"
        if as_csv or (output is not None and output.suffix == ".csv" and not json):
            report: type[Report] = CsvReport
        elif output is not None or json or not sys.stdout.isatty():
            report = JsonReport
        else:
            report = TableReport
        with ExitStack() as files:
            source = files.enter_context(Source.opened(file))
            sink, kept = _opened(files, source, output)
            run = Run(source, kept, options, concurrency)
            models.run(where, lambda client: run.report(client, window, stride, sink, report, kind))


def _opened(files: ExitStack, source: Source, output: Path | None) -> tuple[BinaryIO, Kept | None]:
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
