"""``bytelm rows``: the distribution before each byte of a file, as an array of numpy's."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from bytelm.errors import InputError
from bytelm_client.cli import models
from bytelm_client.cli.console import one_line_errors
from bytelm_client.cli.files import DASH
from bytelm_client.cli.texts import (
    Json,
    Stride,
    Threshold,
    Tokenizations,
    Width,
    Window,
    beam_options,
    write_json,
)


def rows(
    file: Annotated[Path, typer.Argument(help="The file; - reads stdin.", allow_dash=True)],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            help="The array, as numpy.load reads it; it gets this name when it is whole. - writes "
            "to stdout.",
            allow_dash=True,
        ),
    ],
    dtype: Annotated[
        Literal["float32", "float16"],
        typer.Option("--dtype", help="Of the numbers; float16 is rounded by 1/2048 at most."),
    ] = "float32",
    context: Annotated[
        str, typer.Option("--context", help="What stands before each window: bytes of any kind.")
    ] = "",
    window: Window = None,
    stride: Stride = None,
    json: Json = False,
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
    """Write the distribution before each byte of a file, and behind the last, as a .npy file.

    The array has a row for each: natural log-probabilities of the 256 bytes, then of EOS. A file
    longer than the model's context is read through windows, as bytelm score reads it.
    """
    with one_line_errors():
        if json and str(output) == DASH:
            raise InputError("--json and --output - exclude each other: both write to stdout")
        options = beam_options(width, threshold, tokenizations=tokenizations)
        where = models.Where.given(url, api_key, model)
        from bytelm_client.cli.row_array import Reading
        from bytelm_client.cli.source import Source

        with Source.opened(file) as source:
            reading = Reading(source, os.fsencode(context), dtype, options, concurrency)
            models.run(where, lambda client: reading.write(client, window, stride, output))
        if json:
            told = {"output": str(output), "shape": reading.shape, "dtype": dtype}
            write_json(told)
