"""``bytelm greedy`` and ``bytelm sample``: what follows a prompt, or each prompt of a file."""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bytelm.errors import InputError
from bytelm_client.cli import models
from bytelm_client.cli.console import one_line_errors, say
from bytelm_client.cli.flags import finite
from bytelm_client.cli.texts import (
    Chat,
    Exact,
    Json,
    Prompt,
    Threshold,
    Width,
    beam_options,
    context_of,
    continuation_json,
    prompt_bytes,
    write,
    write_json,
)

if TYPE_CHECKING:
    from bytelm_client import AsyncClient

Steps = Annotated[int, typer.Option("--steps", min=1, help="The most bytes to generate.")]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop", help="What ends the text, not written: any bytes; may be given several times."
    ),
]
LogProbs = Annotated[bool, typer.Option("--logprobs", help="With log-probabilities (--json).")]
Input = Annotated[
    Path | None,
    typer.Option(
        "--input",
        help="A file of JSON lines, each a prompt: a string, or an object with `context` and any "
        "other fields of the call; - reads stdin. With --output; goes on where a killed run "
        "stopped.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", help="The file of JSON lines that results go to; - writes to stdout."),
]
Concurrency = Annotated[
    int, typer.Option("--concurrency", min=1, help="Prompts of a file at the same time.")
]


def greedy(
    prompt: Prompt = None,
    steps: Steps = 64,
    stop: Stop = None,
    chat: Chat = False,
    logprobs: LogProbs = False,
    json: Json = False,
    width: Width = None,
    threshold: Threshold = None,
    exact: Exact = False,
    input: Input = None,
    output: Output = None,
    concurrency: Concurrency = 32,
    url: models.Url = None,
    api_key: models.ApiKey = None,
    model: models.Model = "default",
) -> None:
    """Write the most probable bytes after a prompt, as they come."""
    with one_line_errors():
        options = _options(steps, stop, logprobs, width, threshold, exact)
        where = models.Where.given(url, api_key, model)
        _generate("greedy", where, prompt, options, 1, chat, json, input, output, concurrency)


def sample(
    prompt: Prompt = None,
    steps: Steps = 64,
    n: Annotated[int, typer.Option("--n", min=1, help="How many samples.")] = 1,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", callback=finite, help="Below 1 sharpens, above 1 flattens."),
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Keep so many bytes.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", callback=finite, help="Keep the fewest of this probability."),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option("--min-p", callback=finite, help="Keep those at least so likely as the best."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="The same one draws the same bytes.")
    ] = None,
    method: Annotated[
        Literal["auto", "token", "byte"] | None, typer.Option("--method", help="How to draw.")
    ] = None,
    valid_utf8: Annotated[
        bool, typer.Option("--valid-utf8", help="Draw whole characters only.")
    ] = False,
    stop: Stop = None,
    chat: Chat = False,
    logprobs: LogProbs = False,
    json: Json = False,
    width: Width = None,
    threshold: Threshold = None,
    exact: Exact = False,
    input: Input = None,
    output: Output = None,
    concurrency: Concurrency = 32,
    url: models.Url = None,
    api_key: models.ApiKey = None,
    model: models.Model = "default",
) -> None:
    """Write bytes drawn after a prompt, as they come."""
    with one_line_errors():
        options = _options(steps, stop, logprobs, width, threshold, exact)
        drawing = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "seed": seed,
            "method": method,
            "valid_utf8": valid_utf8 or None,
        }
        options |= {name: value for name, value in drawing.items() if value is not None}
        where = models.Where.given(url, api_key, model)
        _generate("sample", where, prompt, options, n, chat, json, input, output, concurrency)


def _options(
    steps: int,
    stop: list[str] | None,
    logprobs: bool,
    width: str | None,
    threshold: float | None,
    exact: bool,
) -> dict[str, Any]:
    options: dict[str, Any] = {"steps": steps, **beam_options(width, threshold, exact)}
    if stop:
        # What is no text in the user's encoding arrives escaped.
        options["stop"] = [os.fsencode(string) for string in stop]
    if logprobs:
        options["logprobs"] = True
    return options


def _generate(
    call: Literal["greedy", "sample"],
    where: models.Where,
    prompt: str | None,
    options: dict[str, Any],
    n: int,
    chat: bool,
    json: bool,
    input: Path | None,
    output: Path | None,
    concurrency: int,
) -> None:
    if (input is None) != (output is None):
        raise InputError("--input and --output go together")
    if input is not None and output is not None:
        if prompt is not None:
            raise InputError("give a prompt or --input, not both")
        from bytelm_client.cli.batch import Batch

        batch = Batch(call, input, output, {**options, "n": n} if n > 1 else options, chat)
        with batch.opened() as files:
            models.run(where, lambda client: batch.run(client, files, concurrency))
        raise typer.Exit(1 if batch.failed else 0)
    data = prompt_bytes(prompt)
    context = context_of(data, chat)

    async def work(client: "AsyncClient") -> None:
        if json or n > 1:
            method: Any = getattr(client, call)
            more = {"n": n} if call == "sample" else {}
            made = await method(context, **options, **more)
            for one in made if isinstance(made, list) else [made]:
                if json:
                    write_json(continuation_json(one))
                else:
                    write(one.bytes + b"\n")
            return
        # On a terminal the text is whole; into a pipe go the new bytes alone.
        on_terminal = sys.stdout.isatty()
        began = time.monotonic()
        opened: Any = client.stream_greedy if call == "greedy" else client.stream_sample
        prompt_shown = data if on_terminal and not chat else b""
        begun = False
        async with opened(context, **options) as stream:
            try:
                async for piece in stream:
                    write(piece if begun else prompt_shown + piece)
                    begun = True
            finally:
                # What goes wrong has a line of its own.
                if on_terminal and begun:
                    write(b"\n")
        if on_terminal:
            if not begun:
                write(prompt_shown + b"\n")
            made, seconds = stream.result, time.monotonic() - began
            rate = len(made.bytes) / max(seconds, 1e-9)
            say(f"({made.finish_reason}; {len(made.bytes)} bytes, {rate:.0f} bytes/s)")

    models.run(where, work)
