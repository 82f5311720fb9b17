"""``bytelm bench``: what a running server gives to many clients at once."""

import asyncio
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bytelm_client.cli import models
from bytelm_client.cli.console import Count, one_line_errors, tables
from bytelm_client.cli.texts import Json, Threshold, Width, beam_options, write_json

if TYPE_CHECKING:
    from bytelm_client import AsyncClient

SUBJECTS = ["The river", "A good teacher", "My grandmother", "The old train", "This city", "Bread"]
VERBS = ["was known for", "always began with", "never forgot", "could not do without", "taught me"]
PLACES = ["in the north", "after the war", "at the harbour", "before sunrise", "on the hill"]


@dataclass
class Measured:
    """What the calls of one run gave.

    Attributes:
        seconds: how long the run took.
        latencies: seconds of each call.
        bytes_out: bytes generated.
        evaluations: next-token distributions computed.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    bytes_out: int = 0
    evaluations: int = 0

    def figures(self, clients: int, steps: int, kind: str) -> dict[str, Any]:
        """The run as numbers."""
        ordered = sorted(self.latencies)
        return {
            "kind": kind,
            "clients": clients,
            "steps": steps,
            "calls": len(ordered),
            "seconds": self.seconds,
            "bytes_per_second": self.bytes_out / self.seconds,
            "evaluations_per_second": self.evaluations / self.seconds,
            "latency_median": statistics.median(ordered),
            "latency_p95": ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))],
            "latency_max": ordered[-1],
        }


@one_line_errors()
def bench(
    clients: Annotated[
        int, typer.Option("--clients", min=1, help="How many clients call at the same time.")
    ] = 32,
    calls: Annotated[
        int, typer.Option("--calls", min=1, help="How many calls each client makes.")
    ] = 3,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Bytes of each call.")] = 64,
    kind: Annotated[
        Literal["greedy", "sample", "sessions"],
        typer.Option(
            "--kind",
            help="Greedy texts, drawn ones, or greedy ones of sessions that go on with each call.",
        ),
    ] = "greedy",
    json: Json = False,
    width: Width = None,
    threshold: Threshold = None,
    url: models.ServerUrl = None,
    api_key: models.ApiKey = None,
) -> None:
    """Measure a running server: bytes per second and latency with many clients at once.

    Each client has a prompt of its own. The first call of each is a warm-up and does not count.
    """
    options: Any = beam_options(width, threshold)
    as_json = json or not sys.stdout.isatty()

    async def work(client: "AsyncClient") -> None:
        measured = await measure(client, clients, calls, steps, kind, options)
        figures = measured.figures(clients, steps, kind)
        if as_json:
            write_json(figures)
        else:
            _show(figures)

    models.run(models.Where.of_a_server(url, api_key), work)


async def measure(
    client: "AsyncClient",
    clients: int,
    calls: int,
    steps: int,
    kind: str,
    options: dict[str, Any],
) -> Measured:
    """Make the calls and measure them."""
    measured = Measured()
    warm = asyncio.Barrier(clients + 1)

    async def caller(number: int, count: Count) -> None:
        prompt = prompt_of(number)
        session = await client.session(prompt, **options) if kind == "sessions" else None

        async def call() -> Any:
            if session is not None:
                return await session.greedy(steps)
            if kind == "sample":
                return await client.sample(prompt, steps, **options)
            return await client.greedy(prompt, steps, **options)

        try:
            await call()
            await warm.wait()
            for _ in range(calls):
                began = time.perf_counter()
                made = await call()
                measured.latencies.append(time.perf_counter() - began)
                measured.bytes_out += len(made.bytes)
                measured.evaluations += made.usage.evaluations
                count.add(len(made.bytes))
        finally:
            if session is not None:
                await session.delete()

    with Count("measuring", clients * calls * steps, "bytes") as count:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(caller(number, count)) for number in range(clients)]
                await warm.wait()
                began = time.perf_counter()
                await asyncio.wait(tasks)
                measured.seconds = time.perf_counter() - began
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
    return measured


def prompt_of(number: int) -> str:
    """A prompt that no other number has."""
    subject = SUBJECTS[number % len(SUBJECTS)]
    verb = VERBS[number // len(SUBJECTS) % len(VERBS)]
    place = PLACES[number // (len(SUBJECTS) * len(VERBS)) % len(PLACES)]
    return f"{number + 1}. {subject} {verb} {place}, as everybody here"


def _show(figures: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("", "", box=None, pad_edge=False, show_header=False)
    table.columns[1].justify = "right"
    table.add_row("clients", str(figures["clients"]))
    table.add_row("calls", str(figures["calls"]))
    table.add_row("bytes per second", f"{figures['bytes_per_second']:.1f}")
    table.add_row("evaluations per second", f"{figures['evaluations_per_second']:.1f}")
    for name in ("median", "p95", "max"):
        table.add_row(f"latency, {name}", f"{figures[f'latency_{name}']:.2f} s")
    tables().print(table)
