"""A Redis server for tests: Debian's, started here, without a port."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class RedisServer:
    """A Redis that keeps nothing on disk and listens on a socket of its own."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/redis.sock"

    def start(self, *options: str) -> None:
        program = shutil.which("redis-server")
        assert program is not None, "redis-server is missing: apt-get install redis-server"
        socket = self.folder / "redis.sock"
        self.process = subprocess.Popen(
            [program, "--port", "0", "--unixsocket", str(socket), "--save", "", *options],
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
        )
        deadline = time.monotonic() + 30
        while not socket.exists():
            assert self.process.poll() is None, "redis-server ended"
            assert time.monotonic() < deadline, "redis-server hangs"
            time.sleep(0.02)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            (self.folder / "redis.sock").unlink(missing_ok=True)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    # A socket's path must be short, which tmp_path is not.
    with tempfile.TemporaryDirectory(prefix="bytelm-redis-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        yield server
        server.end()
