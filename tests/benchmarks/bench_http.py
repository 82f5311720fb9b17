"""The side of ``bench`` that is bytelm over HTTP: stateless calls to a server process.

Each session is a client with a connection of its own, and one call makes all of its bytes.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from contextlib import AsyncExitStack
from typing import IO, Any

from bytelm_client import AsyncClient, Beam
from bytelm_client.results import Usage
from tests.benchmarks.bench_cases import Case, Figures, run_side

CLEAR_SECONDS = 5.0
"""In which the engine must have ended all that a call left running."""


class HttpSide:
    """A server process and its clients."""

    def __init__(self, server: Process, log: IO[bytes]) -> None:
        self.server = server
        self.url = ""
        self._log = log

    @classmethod
    async def start(cls, model: str) -> HttpSide:
        """Start the server."""
        module = "tests.benchmarks.bench_server"
        log = tempfile.TemporaryFile()  # noqa: SIM115 (its end is this object's)
        server = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, model, stdout=PIPE, stderr=log
        )
        side = cls(server, log)
        side.url = await side._line()
        return side

    async def _line(self) -> str:
        assert self.server.stdout is not None
        line = (await self.server.stdout.readline()).decode().strip()
        if not line:
            status = await self.server.wait()
            self._log.seek(0)
            sys.stderr.buffer.write(b"".join(self._log.readlines()[-30:]))
            raise SystemExit(f"error: the server ended (exit status {status})")
        return line

    async def clear(self) -> None:
        """See ``Side``."""
        deadline = time.monotonic() + CLEAR_SECONDS
        while True:
            self.server.send_signal(signal.SIGUSR1)
            line = await self._line()
            if line == "cleared":
                return
            if time.monotonic() > deadline:
                raise SystemExit(line)
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        """See ``Side``."""
        if self.server.returncode is None:
            self.server.terminate()
            await self.server.wait()
        self._log.close()

    async def measure(self, case: Case, prompts: list[bytes], repetition: int) -> Figures:
        """See ``Side``."""
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(AsyncClient(self.url, timeout=None))
                for _ in prompts
            ]
            await asyncio.gather(*[client.health() for client in clients])  # connected
            began = time.perf_counter()
            made = await asyncio.gather(
                *[
                    self._session(client, case, prompt)
                    for client, prompt in zip(clients, prompts, strict=True)
                ]
            )
            seconds = time.perf_counter() - began
        usages = [usage for _, usage in made]
        return {
            "seconds": seconds,
            "bytes": sum(size for size, _ in made),
            "evaluations": sum(usage.evaluations for usage in usages),
            "tokens_computed": sum(usage.tokens_computed or 0 for usage in usages),
            "tokens_cached": sum(usage.tokens_cached or 0 for usage in usages),
        }

    async def _session(self, client: AsyncClient, case: Case, prompt: bytes) -> tuple[int, Usage]:
        """How many bytes a session made, and what that took."""
        # What ends a text early would make the sessions' work uneven: nothing does, on any side.
        beam: Beam = {"K": case.K, "prune_threshold": case.threshold, "eos_tokens": []}
        if case.call == "next bytes":
            return 1, (await client.next_bytes(prompt, beam=beam)).usage
        if case.call == "greedy":
            made = await client.greedy(prompt, case.steps, beam=beam)
        else:
            method: Any = "token" if case.call == "token sample" else "byte"
            made = await client.sample(prompt, case.steps, beam=beam, method=method)
        return len(made.bytes), made.usage


if __name__ == "__main__":
    run_side(HttpSide.start)
