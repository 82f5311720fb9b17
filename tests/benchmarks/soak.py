"""Many clients that make all kinds of calls for minutes: errors, latencies, memory.

A real server process, ``bytelm serve`` on the default model. Writes ``results/soak``: JSON, tables
and a plot of the resident memory of the server's process and of each of its engine's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil

from bytelm.vllm.start import CPU_KV_CACHE_BYTES
from tests.benchmarks.bench_host import processor
from tests.benchmarks.resident import Resident, resident
from tests.benchmarks.soak_calls import Calls, Client
from tests.benchmarks.texts import excerpts

RESULTS = Path(__file__).with_name("results")
PATIENCE = 600.0
LOOK_SECONDS, SAY_SECONDS = 2.0, 30.0
FLAT, FLAT_SHORT, LONG_SECONDS = 0.01, 0.03, 1800.0
"""How much of its size a process may grow by once it should have settled; in a run that is too
short for that, too; and how long a run must be for the first."""
SERVER = "server"


@dataclass
class Watched:
    """What was seen so far.

    Attributes:
        calls: what came of the calls.
        times: seconds since the start, of each look at the memory.
        memory: at each of them, what was resident, by process.
    """

    calls: Calls = field(default_factory=Calls)
    times: list[float] = field(default_factory=list)
    memory: dict[str, list[Resident]] = field(default_factory=lambda: defaultdict(list))


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


def processes(server: psutil.Process) -> dict[str, psutil.Process]:
    """The server's process and each of its engine's, by name."""
    found = {SERVER: server}
    for child in server.children(recursive=True):
        if title := re.match(r"VLLM::(\w+)", child.cmdline()[0]):
            found[f"{title[1]} {child.pid}"] = child
    return found


async def watch(server: psutil.Process, watched: Watched, began: float) -> None:
    """Note the memory every few seconds."""
    looked_at = processes(server)
    said = 0.0
    while True:
        gone = time.monotonic() - began
        watched.times.append(gone)
        for name, process in looked_at.items():
            found = await asyncio.to_thread(resident, process, CPU_KV_CACHE_BYTES)
            watched.memory[name].append(found)
        if gone - said >= SAY_SECONDS:
            said = gone
            calls, errors = sum(map(len, watched.calls.seconds.values())), watched.calls.errors
            own = sum(looks[-1].own for looks in watched.memory.values()) >> 20
            line = f"{gone:.0f} s: {calls} calls, {sum(errors.values())} errors, {own} MiB"
            print(line, file=sys.stderr, flush=True)
        await asyncio.sleep(LOOK_SECONDS)


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
                all_clients = [Client(http, watched.calls, texts, n) for n in range(clients)]
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


def settled(seconds: float) -> float:
    """From which second on a run's memory should stay as it is."""
    return min(600.0, seconds / 3)


def growth(times: list[float], values: list[int]) -> float:
    """By which share a value grew from the minute after it should have settled to the last."""
    at, of = np.array(times), np.array(values, float)
    minute, start = min(60.0, at[-1] / 5), settled(at[-1])
    early = of[(at >= start) & (at < start + minute)].mean()
    late = of[at >= at[-1] - minute].mean()
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
    """The tables, in Markdown."""
    total = sum(map(len, watched.calls.seconds.values()))
    errors = sum(watched.calls.errors.values())
    start = settled(watched.times[-1])
    lines = [
        "# Soak",
        "",
        f"{clients} clients for {seconds:.0f} s on one `bytelm serve`, the default model in "
        f"float32, {processor()}; server and clients share the machine. `make soak`.",
        "",
        f"{total} calls, {errors} errors; "
        f"{counts['bytelm_evaluations_total'] / watched.times[-1]:.0f} evaluations/s.",
        "Left behind: " + (", ".join(left_behind(counts)) or "nothing") + ".",
        "",
        "Resident memory in MiB, and its growth from the minute after second "
        f"{start:.0f} to the last one. The pages of the KV cache "
        f"({CPU_KV_CACHE_BYTES >> 20} MiB, in one mapping with some of the weights) come "
        "when they are first written to; they are left out of the growth.",
        "",
        "| process | heap | slots | other | KV cache | at the start, without KV | growth |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, looks in watched.memory.items():
        last = looks[-1]
        parts = [last.heap, last.shared, last.other, last.kv, looks[0].own]
        sizes = " | ".join(f"{part / 2**20:.0f}" for part in parts)
        grown = growth(watched.times, [look.own for look in looks])
        lines.append(f"| {name.split()[0]} | {sizes} | {grown:+.1%} |")
    lines += ["", "| call | calls | p50 s | p95 s | p99 s |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, took in sorted(watched.calls.seconds.items()):
        p50, p95, p99 = np.percentile(took, [50, 95, 99])
        lines.append(f"| {name} | {len(took)} | {p50:.2f} | {p95:.2f} | {p99:.2f} |")
    return "\n".join([*lines, ""])


def plot(watched: Watched, path: Path) -> None:
    """The memory over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, looks in watched.memory.items():
        label = name.split()[0]
        (line,) = axes.plot(watched.times, [look.own / 2**20 for look in looks], label=label)
        if any(look.kv for look in looks):
            whole = [(look.own + look.kv) / 2**20 for look in looks]
            axes.plot(
                *(watched.times, whole),
                "--",
                color=line.get_color(),
                label=f"{label}, KV cache too",
            )
    axes.axvline(settled(watched.times[-1]), color="0.7", linestyle=":")
    axes.set(xlabel="seconds", ylabel="resident memory, MiB")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=120)


def too_much(watched: Watched, seconds: float) -> list[str]:
    """The processes that grow, and by how much."""
    flat = FLAT if seconds >= LONG_SECONDS else FLAT_SHORT
    grown = {
        name: growth(watched.times, [look.own for look in looks])
        for name, looks in watched.memory.items()
    }
    return [f"the memory of {name} grows: {g:+.1%}" for name, g in grown.items() if g > flat]


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
        "latencies": {
            k: [round(s, 3) for s in v] for k, v in sorted(watched.calls.seconds.items())
        },
        "errors": watched.calls.errors,
        "times": [round(t, 1) for t in watched.times],
        "memory": {
            name: [[look.heap, look.shared, look.other, look.kv] for look in looks]
            for name, looks in watched.memory.items()
        },
        "counts": counts,
    }
    (given.out / "soak.json").write_text(json.dumps(figures) + "\n")
    plot(watched, given.out / "soak.png")
    print(text)
    wrong = [f"{count} × {error}" for error, count in watched.calls.errors.items()]
    wrong += left_behind(counts)
    wrong += too_much(watched, given.seconds)
    print("\n".join(wrong), file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
