"""Many clients that make all kinds of calls for minutes: errors, latencies, memory.

A real server process, ``bytelm serve`` on the default model. Writes ``results/soak``: JSON, a table
and a plot of the resident memory of the server's process and of all of its processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from tests.benchmarks.bench_host import processor
from tests.benchmarks.texts import excerpts

RESULTS = Path(__file__).with_name("results")
PATIENCE = 600.0
FLAT = 0.03
"""How much of its size the memory may grow by, from the second minute to the last."""


@dataclass
class Watched:
    """What was seen so far.

    Attributes:
        seconds: latencies by call.
        errors: answers that were none, by call and status.
        memory: seconds since the start, bytes of the server's process, bytes of all processes.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[float, int, int]] = field(default_factory=list)


class Client:
    """One of the clients: a call after the other, drawn from all kinds.

    Args:
        http: the server.
        watched: where it notes what it sees.
        texts: what contexts are cut from.
        number: makes its draws its own.
    """

    def __init__(
        self, http: httpx.AsyncClient, watched: Watched, texts: list[str], number: int
    ) -> None:
        self._http = http
        self._watched = watched
        self._random = random.Random(number)
        self._texts = texts
        self._session: str | None = None

    async def run(self, end: float) -> None:
        """Make calls until the clock shows ``end``."""
        calls: list[tuple[str, float, Callable[[], Awaitable[None]]]] = [
            ("next_bytes", 2, self._next_bytes),
            ("next_bytes, 4 contexts", 1, self._several),
            ("greedy, 16 bytes", 2, self._greedy),
            ("greedy, 16 bytes, streamed", 1, self._streamed),
            ("sample, 32 bytes", 2, self._sample),
            ("score, 3 continuations", 1, self._score),
            ("token_logprobs, top 5", 1, self._token_logprobs),
            ("session: advance, 4 bytes", 3, self._advance),
            ("session: next", 2, self._next),
            ("session: fork and end", 1, self._fork),
        ]
        weights = [weight for _, weight, _ in calls]
        while time.monotonic() < end:
            name, _, call = self._random.choices(calls, weights)[0]
            if name.startswith("session") and self._session is None:
                name, call = "session: create", self._create
            began = time.monotonic()
            try:
                await call()
            except (httpx.HTTPError, ValueError, LookupError) as error:
                self._watched.errors[f"{name}: {error!r}"[:300]] += 1
            else:
                self._watched.seconds[name].append(time.monotonic() - began)

    def _context(self) -> str:
        text = self._random.choice(self._texts)
        return text[: self._random.randint(20, len(text))]

    async def _post(self, path: str, **body: Any) -> Any:
        answer = await self._http.post(path, json=body)
        answer.raise_for_status()
        found = answer.json()
        if any("error" in result for result in found.get("results", [])):
            raise ValueError(found)
        return found

    async def _next_bytes(self) -> None:
        await self._post("/v1/next_bytes", context=self._context())

    async def _several(self) -> None:
        await self._post("/v1/next_bytes", contexts=[self._context() for _ in range(4)], top=5)

    async def _greedy(self) -> None:
        await self._post("/v1/greedy", context=self._context(), steps=16)

    async def _streamed(self) -> None:
        body = {"context": self._context(), "steps": 16, "stream": True}
        async with self._http.stream("POST", "/v1/greedy", json=body) as answer:
            answer.raise_for_status()
            lines = [line async for line in answer.aiter_lines() if line]
        if lines[-1] != "data: [DONE]" or '"error"' in lines[-2]:
            raise ValueError(lines[-2:])

    async def _sample(self) -> None:
        seed = self._random.getrandbits(32)
        await self._post("/v1/sample", context=self._context(), steps=32, seed=seed)

    async def _score(self) -> None:
        choices = [" the", " a", ". "]
        await self._post("/v1/score", context=self._context(), continuations=choices)

    async def _token_logprobs(self) -> None:
        ids = [self._random.randrange(100, 20_000) for _ in range(20)]
        await self._post("/v1/token_logprobs", contexts=[ids], top=5)

    async def _create(self) -> None:
        made = await self._post("/v1/sessions", context=self._context())
        self._session = f"/v1/sessions/{made['id']}"

    async def _advance(self) -> None:
        text = self._random.choice([" the", ". It", " and", "s in"])
        moved = await self._post(f"{self._session}/advance", bytes=text)
        if moved["length"] > 600:
            await self._end()

    async def _next(self) -> None:
        (await self._http.get(f"{self._session}/next")).raise_for_status()

    async def _fork(self) -> None:
        child = await self._post(f"{self._session}/fork")
        await self._end()
        self._session = f"/v1/sessions/{child['id']}"

    async def _end(self) -> None:
        (await self._http.delete(str(self._session))).raise_for_status()
        self._session = None


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[psutil.Process, str]]:
    """``bytelm serve`` in a process of its own, and its address."""
    flags = ["--port", "0", "--server-log-level", "WARNING", "--keys-file", "none"]
    store = ["--session-store", str(folder / "sessions.db")]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bytelm_client", "serve", *flags, *store),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        said = ""
        while "Ctrl-C" not in said:
            line = (await process.stdout.readline()).decode()
            if not line:
                raise SystemExit("the server did not start")
            said += line
        found = re.search(r"http://[0-9.:]+", said)
        assert found is not None
        yield psutil.Process(process.pid), found.group()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def watch(process: psutil.Process, watched: Watched, began: float) -> None:
    """Note the memory each second."""
    while True:
        own = process.memory_info().rss
        below = sum(child.memory_info().rss for child in process.children(recursive=True))
        watched.memory.append((time.monotonic() - began, own, own + below))
        await asyncio.sleep(1)


async def soak(clients: int, seconds: float) -> tuple[Watched, dict[str, float]]:
    """Run it; what was seen, and the server's own counts at the end."""
    watched = Watched()
    texts = [text.decode() for text in excerpts(32, 400)]
    with tempfile.TemporaryDirectory() as folder:
        async with served(Path(folder)) as (process, url):
            limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
            async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as http:
                began = time.monotonic()
                watching = asyncio.create_task(watch(process, watched, began))
                end = began + seconds
                all_clients = [Client(http, watched, texts, n) for n in range(clients)]
                await asyncio.gather(*[client.run(end) for client in all_clients])
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                # What a call leaves behind would be left now.
                await asyncio.sleep(1)
                text = (await http.get("/metrics")).text
    counts = {}
    for line in text.splitlines():
        if re.match(r"bytelm_[a-z_]+ ", line):
            name, value = line.split()
            counts[name] = float(value)
    return watched, counts


def growth(memory: list[tuple[float, int, int]], which: int) -> float:
    """By which share the memory grew from the second minute to the last."""
    times = np.array([row[0] for row in memory])
    values = np.array([row[which] for row in memory], float)
    minute = min(60.0, times[-1] / 5)
    early = values[(times >= minute) & (times < 2 * minute)].mean()
    late = values[times >= times[-1] - minute].mean()
    return float(late / early - 1)


def left_behind(counts: dict[str, float]) -> list[str]:
    """What calls that have ended should have given back."""
    wanted = {
        "bytelm_calls_running": 0.0,
        "bytelm_calls_waiting": 0.0,
        "bytelm_evaluations_in_flight": 0.0,
        "bytelm_slots_free": counts["bytelm_slots"],
        "bytelm_requests_in_progress": 1.0,
    }
    return [f"{n} is {counts[n]:g}" for n, value in wanted.items() if counts[n] != value]


def report(watched: Watched, counts: dict[str, float], clients: int, seconds: float) -> str:
    """The table, in Markdown."""
    total = sum(map(len, watched.seconds.values()))
    errors = sum(watched.errors.values())
    grown = {"the server's process": growth(watched.memory, 1), "all": growth(watched.memory, 2)}
    lines = [
        "# Soak",
        "",
        f"{clients} clients for {seconds:.0f} s on one `bytelm serve`, the default model in "
        f"float32, {processor()}; server and clients share the machine. `make soak`.",
        "",
        f"{total} calls, {errors} errors; "
        f"{counts['bytelm_evaluations_total'] / watched.memory[-1][0]:.0f} evaluations/s.",
        "Resident memory, mean of the last minute against that of the second: "
        + ", ".join(f"{name} {share:+.1%}" for name, share in grown.items())
        + " (the plot has all of it).",
        "Left behind: " + (", ".join(left_behind(counts)) or "nothing") + ".",
        "",
        "| call | calls | p50 s | p95 s | p99 s |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, took in sorted(watched.seconds.items()):
        p50, p95, p99 = np.percentile(took, [50, 95, 99])
        lines.append(f"| {name} | {len(took)} | {p50:.2f} | {p95:.2f} | {p99:.2f} |")
    return "\n".join([*lines, ""])


def plot(watched: Watched, path: Path) -> None:
    """The memory over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    times, own, whole = zip(*watched.memory, strict=True)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(times, np.array(whole) / 2**20, label="all processes, engine included")
    axes.plot(times, np.array(own) / 2**20, label="the server's process")
    axes.axvline(60, color="0.7", linestyle=":", label="first minute")
    axes.set(xlabel="seconds", ylabel="resident memory, MiB")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> int:
    """Run, write, and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    watched, counts = asyncio.run(soak(given.clients, given.seconds))
    text = report(watched, counts, given.clients, given.seconds)
    given.out.mkdir(exist_ok=True)
    (given.out / "soak.md").write_text(text)
    figures = {
        "clients": given.clients,
        "seconds": given.seconds,
        "latencies": {k: [round(s, 4) for s in v] for k, v in sorted(watched.seconds.items())},
        "errors": watched.errors,
        "memory": [[round(t, 1), own, whole] for t, own, whole in watched.memory],
        "counts": counts,
    }
    (given.out / "soak.json").write_text(json.dumps(figures) + "\n")
    plot(watched, given.out / "soak.png")
    print(text)
    wrong = [f"{count} × {error}" for error, count in watched.errors.items()]
    wrong += left_behind(counts)
    if growth(watched.memory, 1) > FLAT:
        wrong.append("the server's memory grows")
    print("\n".join(wrong), file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
