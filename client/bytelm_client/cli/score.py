"""``bytelm score``: how many bits a model needs for a file, line by line.

A file that is longer than the model's context is read through windows. A window begins at every
``--stride`` bytes and is ``--window`` bytes long; each byte is scored in the first window that has
it, so that all but the first bytes of the file have at least window − stride bytes before them. A
window whose text has more tokens than the model takes loses its beginning.
"""

import asyncio
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bytelm.errors import InputError
from bytelm_client.cli import models
from bytelm_client.cli.console import Count, one_line_errors, say, tables
from bytelm_client.cli.texts import Json, Threshold, Width, beam_options, shown, write_json
from bytelm_client.errors import InvalidRequest

if TYPE_CHECKING:
    from bytelm_client import AsyncClient

PIECE = 256
"""Bytes that one call scores."""
BYTES_PER_TOKEN = 2
"""So many at least are in most texts; a window of more tokens than that is cut."""
NATS_PER_BIT = math.log(2.0)


@dataclass(frozen=True)
class Piece:
    """Bytes to score, and those before them that the model sees."""

    begin: int
    start: int
    end: int


def pieces(size: int, window: int | None, stride: int | None) -> Iterator[Piece]:
    """A text of ``size`` bytes in pieces, each with the beginning of its window."""
    window = window or size
    stride = stride or window
    begin, start = 0, 0
    while start < size:
        while start >= begin + window:
            begin += stride
        end = min(start + PIECE, begin + window, size)
        yield Piece(begin, start, end)
        start = end


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
    json: Json = False,
    width: Width = None,
    threshold: Threshold = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, help="Pieces at the same time.")
    ] = 8,
    url: models.Url = None,
    api_key: models.ApiKey = None,
    model: models.Model = "default",
) -> None:
    """Write the bits per byte that a model needs for a file: of each line, and of all.

    A file longer than the model's context is read through windows that overlap: one begins at every
    stride, and each byte is scored in the first window that has it.
    """
    with one_line_errors():
        name = "stdin" if str(file) == "-" else str(file)
        try:
            data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        except OSError as error:
            raise InputError(f"{name} cannot be read: {error.strerror}") from None
        if not data:
            raise InputError(f"{name} is empty")
        options: Any = beam_options(width, threshold)
        where = models.Where.given(url, api_key, model)
    as_json = json or not sys.stdout.isatty()

    async def work(client: "AsyncClient") -> None:
        span, step = await _windows(client, window, stride)
        logprobs = await Scoring(client, data, options).run(span, step, concurrency)
        _report(data, logprobs, lines, as_json)

    models.run(where, work)


async def _windows(
    client: "AsyncClient", window: int | None, stride: int | None
) -> tuple[int | None, int | None]:
    """Window and stride, by the server's limits where they are not given."""
    limits = (await client.models())[0].limits
    most = limits.get("context_bytes")
    if window is None and limits["context_tokens"] is not None:
        window = BYTES_PER_TOKEN * limits["context_tokens"]
    if most is not None:
        window = min(window or most, most)
    if window is not None and stride is not None and stride > window:
        raise InputError(f"--stride is at most the window, {window} bytes, not {stride}")
    return window, stride or (None if window is None else max(1, window // 2))


class Scoring:
    """Scores a text piece by piece, each after what its window has before it."""

    def __init__(self, client: "AsyncClient", data: bytes, options: dict[str, Any]) -> None:
        self._client = client
        self._data = data
        self._options = options
        self._logprobs = [0.0] * len(data)

    async def run(self, window: int | None, stride: int | None, concurrency: int) -> list[float]:
        """The log-probability of each byte."""
        todo = pieces(len(self._data), window, stride)
        with Count("scoring", len(self._data), "bytes") as count:

            async def worker() -> None:
                for piece in todo:
                    await self._piece(piece)
                    count.add(piece.end - piece.start)

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(concurrency):
                        group.create_task(worker())
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return self._logprobs

    async def _piece(self, piece: Piece) -> None:
        begin, start, size = piece.begin, piece.start, PIECE
        while start < piece.end:
            context, text = self._data[begin:start], self._data[start : piece.end][:size]
            try:
                told = await self._client.score(context, text, per_byte=True, **self._options)
            except InvalidRequest as error:
                if error.code != "context_too_long" or len(context) + len(text) < 2:
                    raise
                # More tokens than the model takes: the window loses half of its beginning; where
                # there is none, fewer bytes are scored at a time.
                begin += (len(context) + 1) // 2
                size = size if context else max(1, len(text) // 2)
                continue
            assert told.logprobs is not None
            for b in told.logprobs:
                self._logprobs[start] = float(b)
                start += 1
                if not b > -math.inf:
                    # Nothing was followed behind it: go on as if it had been there all along.
                    break


def _report(data: bytes, logprobs: list[float], lines: bool, as_json: bool) -> None:
    rows = _rows(data, logprobs)
    total = _bits(logprobs)
    finite = [x for x in logprobs if x > -math.inf]
    impossible = len(logprobs) - len(finite)
    if as_json:
        for number, line, bits in rows if lines else ():
            write_json({"line": number, **_numbers(bits, len(line))})
        write_json({"total": True, **_numbers(total, len(data)), "impossible": impossible})
    else:
        from rich.table import Table
        from rich.text import Text

        console = tables()
        table = Table("line", "bytes", "bits", "bits/byte", "", box=None, pad_edge=False)
        for column in table.columns[:4]:
            # The text alone gives way where a line has no room.
            column.justify, column.no_wrap = "right", True
        for number, line, bits in rows if lines else ():
            begun = shown(line.rstrip(b"\n")[: 4 * console.width])
            text = Text(begun, style="dim", no_wrap=True, overflow="ellipsis")
            table.add_row(
                str(number), str(len(line)), f"{bits:.1f}", f"{bits / len(line):.3f}", text
            )
        table.add_row("all", str(len(data)), f"{total:.1f}", f"{total / len(data):.3f}")
        console.print(table)
    if impossible:
        rest = _bits(finite) / max(len(finite), 1)
        say(
            f"{impossible} bytes have no probability, since the vocabulary cannot spell some of "
            f"the text; without them it is {rest:.3f} bits/byte"
        )


def _rows(data: bytes, logprobs: list[float]) -> list[tuple[int, bytes, float]]:
    rows = []
    start = 0
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        rows.append((number, line, _bits(logprobs[start : start + len(line)])))
        start += len(line)
    return rows


def _bits(logprobs: list[float]) -> float:
    return -math.fsum(logprobs) / NATS_PER_BIT + 0.0


def _numbers(bits: float, size: int) -> dict[str, Any]:
    known = math.isfinite(bits)
    return {
        "bytes": size,
        "bits": bits if known else None,
        "bits_per_byte": bits / size if known else None,
    }
