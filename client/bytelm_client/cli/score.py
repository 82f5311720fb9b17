"""``bytelm score``: how many bits a model needs for a file, by lines or by words."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from bytelm.errors import InputError
from bytelm_client.cli import models
from bytelm_client.cli.console import one_line_errors
from bytelm_client.cli.texts import (
    Json,
    Stride,
    Threshold,
    Tokenizations,
    Width,
    Window,
    beam_options,
)


def score(
    file: Annotated[Path, typer.Argument(help="The file; - reads stdin.", allow_dash=True)],
    window: Window = None,
    stride: Stride = None,
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
    tokenizations: Tokenizations = None,
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
        options = beam_options(width, threshold, tokenizations=tokenizations)
        where = models.Where.given(url, api_key, model)
        from bytelm_client.cli.reports import CsvReport, JsonReport, Kind, Report, TableReport
        from bytelm_client.cli.scoring import Run, opened
        from bytelm_client.cli.source import Source

        kind: Kind = "words" if words else "lines" if lines else "total"
        if as_csv or (output is not None and output.suffix == ".csv" and not json):
            report: type[Report] = CsvReport
        elif output is not None or json or not sys.stdout.isatty():
            report = JsonReport
        else:
            report = TableReport
        with ExitStack() as files:
            source = files.enter_context(Source.opened(file))
            sink, kept = opened(files, source, output)
            run = Run(source, kept, options, concurrency)
            models.run(where, lambda client: run.report(client, window, stride, sink, report, kind))
