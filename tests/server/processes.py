"""Servers that are ended at once and started again, at the same address with the same sessions."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.server.conftest import STUB_SERVER, free_port
from tests.server.test_serve_real import Served, kill, start


class StubProcess:
    """A server over a StubLM that keeps its sessions in a file."""

    def __init__(self, store: str, *arguments: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.arguments = ["--set", f"session_store={store}", *arguments]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(STUB_SERVER), str(self.port), *self.arguments]
        )
        deadline = time.monotonic() + 120
        while True:
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server hangs"
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)

    def end(self, number: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(60)

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.end()


class RealProcess:
    """``bytelm serve`` on the default model, with its sessions in a file."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.arguments = arguments
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.served: Served | None = None

    def start(self) -> None:
        self.served = start(self.folder, "--port", str(self.port), *self.arguments)
        self.served.wait_until_ready()

    def end(self) -> None:
        assert self.served is not None
        self.served.members()
        os.kill(self.served.process.pid, signal.SIGKILL)
        self.served.process.wait(60)
        # The engine ends by itself when its owner is gone.
        self.served.wait_until_gone()

    def clean_up(self) -> None:
        if self.served is not None:
            kill(self.served)
