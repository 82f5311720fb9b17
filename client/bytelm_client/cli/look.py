"""``bytelm next`` and ``bytelm compare``: what a model sees at the end of a prompt."""

import math
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bytelm_client.cli import models
from bytelm_client.cli.console import one_line_errors, tables
from bytelm_client.cli.texts import (
    Chat,
    Exact,
    Json,
    Prompt,
    Threshold,
    Width,
    beam_options,
    bytes_out,
    context_of,
    ending,
    prompt_bytes,
    shown,
    write_json,
)

if TYPE_CHECKING:
    from bytelm_client import AsyncClient
    from bytelm_client.results import Candidate, NextBytes, Vocab

BAR = 40
"""Characters of the longest bar."""
PARTS = " ▏▎▍▌▋▊▉█"
TOKENS = 24
"""How many of a tokenization's last tokens are shown."""


def next_bytes(
    prompt: Prompt = None,
    top: Annotated[int, typer.Option("--top", min=1, max=256, help="How many bytes to show.")] = 16,
    chat: Chat = False,
    json: Json = False,
    width: Width = None,
    threshold: Threshold = None,
    exact: Exact = False,
    url: models.Url = None,
    api_key: models.ApiKey = None,
    model: models.Model = "default",
) -> None:
    """Show the distribution over the next byte, and the tokenizations that it is made of."""
    with one_line_errors():
        context = context_of(prompt_bytes(prompt), chat)
        options: Any = beam_options(width, threshold, exact)
        where = models.Where.given(url, api_key, model)
    as_json = json or not sys.stdout.isatty()

    async def work(client: "AsyncClient") -> None:
        async with client.session(context, **options) as session:
            told = await session.next()
            candidates = await session.candidates()
        vocab = await client.vocab()
        if as_json:
            write_json(_next_json(told, candidates, vocab, top))
        else:
            _chart(told, candidates, vocab, top)

    models.run(where, work)


def _next_json(
    told: "NextBytes", candidates: "list[Candidate]", vocab: "Vocab", top: int
) -> dict[str, Any]:
    def finite(x: float) -> float | None:
        return x if x > -math.inf else None

    return {
        "top": [
            {"byte": b[0], "logprob": logprob}
            for b, logprob in told.top(top)
            if logprob > -math.inf
        ],
        "eos": finite(told.eos),
        "candidates": [
            {
                "share": share,
                "tokens": [_token(i, vocab) for i in candidate.tokens],
                "partial": bytes_out(candidate.partial),
            }
            for share, candidate in zip(_shares(candidates), candidates, strict=True)
        ],
    }


def _chart(told: "NextBytes", candidates: "list[Candidate]", vocab: "Vocab", top: int) -> None:
    from rich.table import Table
    from rich.text import Text

    console = tables()
    rows = [(shown(b), math.exp(logprob)) for b, logprob in told.top(top)]
    rows.append(("end", math.exp(told.eos)))
    rows = sorted((row for row in rows if row[1] > 0.0), key=lambda row: -row[1])[:top]
    chart = Table("byte", "", "probability", box=None, pad_edge=False)
    chart.columns[2].justify = "right"
    most = max((p for _, p in rows), default=1.0)
    for name, p in rows:
        chart.add_row(Text(name), Text(bar(p / most), style="cyan"), share_text(p))
    console.print(chart)
    console.print()
    beam = Table("share", "tokens, and what the next one begins with", box=None, pad_edge=False)
    for share, candidate in zip(_shares(candidates), candidates, strict=True):
        begins = candidate.tokens[:-TOKENS]
        text = Text("…" if begins else "", style="dim")
        for place, token in enumerate(candidate.tokens[-TOKENS:]):
            text.append("|" if place or begins else "", style="dim")
            text.append(_token(token, vocab))
        text.append("‖", style="dim")
        text.append(shown(candidate.partial), style="cyan")
        beam.add_row(share_text(share), text)
    console.print(beam)


def share_text(share: float) -> str:
    """A probability for readers; one that is above zero never looks like zero."""
    return f"{share:.4f}" if share >= 1e-4 or share == 0.0 else f"{share:.0e}"


def bar(share: float) -> str:
    """A bar of a length between nothing and ``BAR`` characters."""
    eighths = round(share * BAR * 8)
    return "█" * (eighths // 8) + PARTS[eighths % 8].strip()


def _shares(candidates: "list[Candidate]") -> list[float]:
    best = max((c.weight for c in candidates), default=0.0)
    weights = [math.exp(c.weight - best) for c in candidates]
    return [weight / sum(weights) for weight in weights]


def _token(token: int, vocab: "Vocab") -> str:
    data = vocab.token_bytes[token]
    return shown(data) if data else vocab.token_text[token] or f"<{token}>"


def compare(
    prompt: Prompt = None,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="The most bytes of the byte-level text.")
    ] = 40,
    json: Json = False,
    width: Width = None,
    threshold: Threshold = None,
    exact: Exact = False,
    url: models.Url = None,
    api_key: models.ApiKey = None,
    model: models.Model = "default",
) -> None:
    """Show what follows a prompt token by token, and byte by byte.

    Both take the most probable step each time, on the same model. They differ where the prompt ends
    inside what would be one token: token by token, the prompt's last token is wrong, and what
    follows it is a guess at something else.
    """
    with one_line_errors():
        data = prompt_bytes(prompt)
        options: Any = beam_options(width, threshold, exact)
        where = models.Where.given(url, api_key, model)
    as_json = json or not sys.stdout.isatty()

    async def work(client: "AsyncClient") -> None:
        vocab = await client.vocab()
        by_bytes = (await client.greedy(data, steps, **options)).bytes
        async with client.session(data, kind="token") as session:
            (read,) = await session.candidates()
            # No token has fewer than one byte.
            made = await session.greedy(max(1, steps))
        by_tokens = made.bytes[:steps]
        spelled = [_token(i, vocab) for i in read.tokens]
        drawn = [_token(i, vocab) for i in made.tokens or ()]
        if as_json:
            write_json(
                {
                    "prompt": {**bytes_out(data), "tokens": spelled},
                    "token_level": {**bytes_out(by_tokens), "tokens": drawn},
                    "byte_level": bytes_out(by_bytes),
                    "same": by_tokens == by_bytes,
                }
            )
        else:
            _comparison(data, spelled, by_tokens, by_bytes)

    models.run(where, work)


def _comparison(data: bytes, tokens: list[str], by_tokens: bytes, by_bytes: bytes) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    read = "|".join([*(["…"] if tokens[:-TOKENS] else []), *tokens[-TOKENS:]])
    console.print(Text("the prompt's tokens  ", style="dim"), Text(read), sep="")
    for name, text in [("token by token", by_tokens), ("byte by byte", by_bytes)]:
        console.print(
            Text(f"{name:<21}", style="dim"),
            Text(ending(data)),
            Text(shown(text), style="bold"),
            sep="",
        )
    if by_tokens == by_bytes:
        console.print(Text("They agree: the prompt ends where a token does.", style="dim"))
