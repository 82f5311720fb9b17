"""A server process for ``bench_http``: as ``bytelm serve``, and it clears its caches when asked.

Says its address on standard output once calls can be answered; after each SIGUSR1 it clears all
caches and says ``cleared``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bytelm.errors import BytelmError
from bytelm.settings import ServerSettings
from bytelm.vllm.engine import VllmEngine
from bytelm_server.app import create_app
from bytelm_server.process import listen, serve, url_of
from tests.benchmarks.bench_bytelm import SETTINGS


def main() -> int:
    """Serve the model whose folder is the argument."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = ServerSettings(port=0)
    sock = listen(settings)

    def say(line: str) -> None:
        print(line, file=out, flush=True)

    @asynccontextmanager
    async def open_lm() -> AsyncIterator[VllmEngine]:
        engine = await VllmEngine.start(sys.argv[1], SETTINGS)
        clearing: set[asyncio.Task[None]] = set()

        async def clear() -> None:
            try:
                await engine.clear_cache()
            except BytelmError as error:
                say(f"error: {error}")
            else:
                say("cleared")

        def asked() -> None:
            task = asyncio.ensure_future(clear())
            clearing.add(task)
            task.add_done_callback(clearing.discard)

        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, asked)
        try:
            yield engine
        finally:
            await engine.close()

    return serve(create_app(open_lm, settings), settings, sock, lambda _: say(url_of(sock)))


if __name__ == "__main__":
    sys.exit(main())
