"""The server as a process: its socket, its signals and its end.

Ctrl-C and SIGTERM stop it in order: new calls are answered with 503, running ones get a few
seconds, and those that are not done by then are answered with 503, too; then the model ends and
what sessions became is written down. A second signal, or an end that takes too long, ends the
process at once; the engine's processes end with it.
"""

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from bytelm.errors import InputError
from bytelm.settings import ServerSettings
from bytelm_server import logs
from bytelm_server.backend import Backend
from bytelm_server.connections import Connection, Connections
from bytelm_server.keys import Keys
from bytelm_server.service import ByteService

LAST_ANSWERS_SECONDS = 1
"""Seconds that the last answers have to get to their clients."""
LONGEST_END = 4.0
"""Seconds that the model has to end in, after the calls."""


class CannotListen(InputError):
    """The address is taken, or not this machine's, or open to others without a decision."""


def listen(settings: ServerSettings) -> socket.socket:
    """The socket that the server will listen on, reserved before anything slow begins.

    Raises:
        CannotListen: one line that says why, and what to do.
        KeyFileError: when the file of API keys cannot be read.
    """
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise CannotListen(f"{host!r} is not an address of this machine: {error}") from None
    is_open = not settings.allow_remote and not Keys(settings.keys_file).required
    if is_open and not _is_loopback(str(address[0])):
        raise CannotListen(
            f"{host} can be reached from other machines, and there are no API keys: make one with "
            "bytelm keys create, use 127.0.0.1, or give --allow-remote to serve everybody who can "
            "reach it"
        )
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        # A bound address can still be bound by others; one that listens cannot.
        sock.listen()
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            reason = f"port {port} on {host} is in use: stop what uses it, or choose another port"
            raise CannotListen(reason) from None
        raise CannotListen(f"cannot listen on {host}, port {port}: {error.strerror}") from None
    return sock


def _is_loopback(address: str) -> bool:
    return address == "::1" or address.startswith("127.")


def url_of(sock: socket.socket) -> str:
    """The address to reach a socket's server at, from this machine."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Uvicorn, stopped by signals through the event loop, and for certain."""

    def __init__(
        self, config: uvicorn.Config, backend: Backend, grace: float, connections: Connections
    ) -> None:
        super().__init__(config)
        self.server_state = self._connections = connections
        self.backend = backend
        self.grace = grace
        self._ending: asyncio.Task[None] | None = None
        self.stopped_by: signal.Signals | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM while the server runs."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def on_tick(self, counter: int) -> bool:
        """What is done ten times a second."""
        if counter % 10 == 0:
            self._connections.look()
        return await super().on_tick(counter)

    def stop(self, number: signal.Signals) -> None:
        """End in order; at once when asked twice, or when that takes too long."""
        if self.stopped_by is not None:
            os._exit(exit_code(number))
        self.stopped_by = number
        self.backend.drain()
        self._ending = asyncio.create_task(self._end())
        # A thread, for the case that the event loop is what hangs.
        last_resort = threading.Timer(
            self.grace + LAST_ANSWERS_SECONDS + LONGEST_END, _give_up, [exit_code(number)]
        )
        last_resort.daemon = True
        last_resort.start()

    async def _end(self) -> None:
        """Exit when all calls are done, or after a while."""
        try:
            async with asyncio.timeout(self.grace):
                await self.backend.admission.idle()
        except TimeoutError:
            self.backend.give_up()
        self.should_exit = True


def _give_up(code: int) -> None:
    os.write(2, b"bytelm: the server did not end in time: it is ended at once\n")
    os._exit(code)


def exit_code(number: signal.Signals | None) -> int:
    """What the process ends with: 130 after Ctrl-C, 0 when it was asked to end."""
    return 130 if number == signal.SIGINT else 0


def serve(
    app: FastAPI,
    settings: ServerSettings,
    sock: socket.socket,
    on_ready: Callable[[ByteService], None],
) -> int:
    """Serve until a signal comes; blocks.

    Args:
        app: from ``create_app``; its model starts while it already answers ``/health``.
        settings: the server's.
        sock: from ``listen``.
        on_ready: called once, when calls can be answered.

    Returns:
        The process's exit code.

    Raises:
        BytelmError: what kept the model from starting.
    """
    logs.configure(settings.server_log_level)
    backend: Backend = app.state.backend
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        http=Connection,
        ws="none",
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=LAST_ANSWERS_SECONDS,
    )
    connections = Connections(settings, app.state.metrics)
    server = _Server(config, backend, settings.shutdown_grace, connections)

    async def run() -> None:
        serving = asyncio.create_task(server.serve([sock]))
        starting = asyncio.create_task(backend.started())
        await asyncio.wait({serving, starting}, return_when=asyncio.FIRST_COMPLETED)
        try:
            if starting.done() and server.stopped_by is None:
                # What is there to stay is not searched for garbage again and again.
                gc.collect()
                gc.freeze()
                on_ready(starting.result())
        except BaseException:
            server.should_exit = True
            raise
        finally:
            starting.cancel()
            await serving

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(run())
    return exit_code(server.stopped_by)
