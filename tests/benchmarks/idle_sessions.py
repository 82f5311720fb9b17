"""How much memory idle byte sessions take: what a server's resident memory grows by for each.

The server is a process of its own over a StubLM with the default model's vocabulary; sessions are
made 32 at a time, each walks a few bytes and gives a distribution, and then all are left alone
until they have left memory. ``make bench-idle`` writes ``results/idle_sessions.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from bytelm import download as models
from bytelm import memory
from bytelm.models.testing import StubLM
from bytelm.settings import ServerSettings
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_client import AsyncClient, AsyncSession

SESSIONS = 2000
AT_ONCE = 32
IDLE_SECONDS = 30.0
"""The server's default."""
ROWS = 64
MOST_PER_SESSION = 64 * 1024
RESULTS = Path(__file__).parent / "results"


@asynccontextmanager
async def served(
    model: str, store: str, idle_seconds: float
) -> AsyncIterator[tuple[psutil.Process, str]]:
    """Such a server and its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.idle_sessions", "--serve", model),
        *("--store", store, "--idle", str(idle_seconds)),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).decode().strip()
        if not url:
            raise SystemExit("error: the server did not start")
        yield psutil.Process(process.pid), url
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def measure(
    model: str, sessions: int, store: str, idle_seconds: float = IDLE_SECONDS
) -> dict[str, Any]:
    """Bytes of resident memory for each of so many sessions, busy and idle.

    Args:
        model: the folder whose vocabulary is used.
        sessions: how many.
        store: where the server keeps them; ``memory`` for its own memory.
        idle_seconds: after which a session leaves memory.
    """
    turn = asyncio.Semaphore(AT_ONCE)
    async with served(model, store, idle_seconds) as (process, url), AsyncClient(url) as client:

        async def one(number: int) -> AsyncSession:
            async with turn:
                text = f"session {number}: an apple a day keeps the doctor away and "
                session = await client.session(text, beam={"K": 5}, ttl=3600)
                await session.advance(b"so on")
                await session.next()
                return session

        def resident() -> int:
            return int(process.memory_info().rss)

        async def idle() -> int:
            """What is left when no session is in memory."""
            least = resident()
            end = time.monotonic() + idle_seconds + 5
            while time.monotonic() < end:
                await asyncio.sleep(0.5)
                least = min(least, resident())
            return least

        # The first ones take what any number of them takes.
        await asyncio.gather(*[one(-n) for n in range(1, 4 * AT_ONCE + 1)])
        before = await idle()
        made = await asyncio.gather(*[one(n) for n in range(sessions)])
        busy = resident()
        after = await idle()
        # They are all there.
        info = await made[0].refresh()
        assert info.length == len("session 0: an apple a day keeps the doctor away and so on")
    return {
        "store": store if store == "memory" else "sqlite",
        "sessions": sessions,
        "before": before,
        "busy": busy,
        "idle": after,
        "busy_per_session": (busy - before) / sessions,
        "idle_per_session": (after - before) / sessions,
    }


def serve(model: str, store: str, idle_seconds: float) -> int:
    """Serve a StubLM with a model's vocabulary; say the address when calls can be answered."""
    from bytelm_server.app import create_app
    from bytelm_server.process import listen, url_of
    from bytelm_server.process import serve as serve_app

    # As the engine does.
    memory.keep_freed()
    lm = StubLM(ByteVocab.from_pretrained(model), rows=ROWS)
    settings = ServerSettings(
        port=0,
        keys_file=None,
        session_store=store,
        session_idle_seconds=idle_seconds,
        server_log_level="WARNING",
    )
    sock = listen(settings)
    return serve_app(
        create_app(lm, settings), settings, sock, lambda _: print(url_of(sock), flush=True)
    )


def page(found: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    rows = [
        f"| {one['store']} | {one['sessions']} | {one['busy_per_session'] / 1024:.1f} | "
        f"{one['idle_per_session'] / 1024:.1f} |"
        for one in found
    ]
    return "\n".join(
        [
            "# Memory of idle sessions",
            "",
            "Growth of the server's resident memory for each byte session at K=5, KiB: right after "
            "all were made and used, and when they had been idle. A StubLM with the default "
            "model's vocabulary of 49,152 tokens. `make bench-idle`.",
            "",
            "| store | sessions | busy | idle |",
            "| --- | --: | --: | --: |",
            *rows,
            "",
            f"The goal is {MOST_PER_SESSION // 1024} KiB for each idle one.",
            "",
        ]
    )


async def run(model: str, sessions: int) -> list[dict[str, Any]]:
    """Both stores."""
    with tempfile.TemporaryDirectory() as folder:
        stores = (str(Path(folder) / "sessions.sqlite"), "memory")
        return [await measure(model, sessions, store) for store in stores]


def main() -> int:
    """Measures and writes the results; fails where the goal is missed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", help="a model's folder or name; the default model otherwise")
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the results")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--store", default="memory", help=argparse.SUPPRESS)
    parser.add_argument("--idle", type=float, default=IDLE_SECONDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        return serve(given.serve, given.store, given.idle)
    found = asyncio.run(run(str(models.resolve(given.model)), given.sessions))
    (given.out / "idle_sessions.json").write_text(json.dumps(found, indent=1) + "\n")
    (given.out / "idle_sessions.md").write_text(page(found))
    for one in found:
        print(f"{one['store']}: {one['idle_per_session'] / 1024:.1f} KiB for each idle session")
    return 0 if all(one["idle_per_session"] <= MOST_PER_SESSION for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
