"""A connection between a client and a server that breaks when a test wants it to."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit


class Proxy:
    """Passes bytes on between clients and a server.

    Attributes:
        url: where clients reach it.
        connections: how many were made so far.
        break_before: so many next calls never reach the server.
        break_after: so many next answers never reach the client, though the server gave them.
        cut_stream: whether answers end after the first piece that is passed on.
    """

    def __init__(self, url: str) -> None:
        self.url = ""
        self.connections = 0
        self.break_before = 0
        self.break_after = 0
        self.cut_stream = False
        self._host, self._port = urlsplit(url).hostname, urlsplit(url).port

    async def serve(self, ready: threading.Event) -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        self.stop = lambda: loop.call_soon_threadsafe(stop.set)
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await stop.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        to_server: asyncio.StreamWriter | None = None
        try:
            data = await reader.read(1 << 16)
            if self.break_before:
                self.break_before -= 1
                return
            from_server, to_server = await asyncio.open_connection(self._host, self._port)
            to_server.write(data)
            forward = asyncio.create_task(self._pass_on(reader, to_server))
            with contextlib.suppress(OSError):
                await self._answers(from_server, writer)
            forward.cancel()
        finally:
            writer.close()
            if to_server is not None:
                to_server.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if self.break_after:
                self.break_after -= 1
                return
            last = self.cut_stream  # before the client sees the answer, and sets it for the next
            writer.write(data)
            await writer.drain()
            if last:
                return


@contextmanager
def proxy_to(url: str) -> Iterator[Proxy]:
    """A proxy to the server at ``url``, on a thread of its own."""
    made, ready = Proxy(url), threading.Event()
    thread = threading.Thread(target=asyncio.run, args=[made.serve(ready)])
    thread.start()
    ready.wait()
    try:
        yield made
    finally:
        made.stop()
        thread.join()
