"""An image's processes without Docker: a read-only root, volumes, namespaces, no privileges.

What compose.yaml asks of Docker is done here by unshare, mount, chroot and setpriv. A container's
network is its own and has nothing but itself, unless it is given this machine's.
"""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.deploy.images import Image

START = r"""
set -eu
root=$1 shm=$2; shift 2
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/shm"
mount -t tmpfs -o "size=$shm,mode=1777" tmpfs "$root/dev/shm"
mount -t tmpfs -o size=2g,mode=1777 tmpfs "$root/tmp"
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$(dirname "$root$2")"; touch "$root$2"; fi
  mount --bind "$1" "$root$2"
  shift 2
done
shift
mount -o remount,bind,ro "$root"
ip link set lo up 2>/dev/null || true
exec chroot "$root" "$@"
"""
"""``START root size-of-shared-memory [path path-inside]… -- command…``."""


@dataclass
class Container:
    """An image that runs.

    Args:
        image: the image.
        mounts: folders and files of this machine, by where they are inside; volumes too.
        env: more variables.
        user: ``uid:gid``; the image's by default.
        shm_size: shared memory, as mount writes it.
        network: whether it has this machine's network.
    """

    image: Image
    mounts: dict[str, Path] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    shm_size: str = "2g"
    network: bool = False
    process: subprocess.Popen[bytes] | None = None

    def run(self, *cmd: str, entrypoint: Sequence[str] | None = None) -> "Done":
        """Start, with other arguments if they are given, and wait for the end."""
        started = self._started(cmd, entrypoint, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = started.communicate(timeout=600)
        return Done(started.returncode, out.decode(), err.decode())

    def start(self, log: Path, *cmd: str) -> None:
        """Start in the background."""
        with log.open("wb") as file:
            self.process = self._started(cmd, None, stdout=file, stderr=file)

    def execute(self, *command: str, **env: str) -> "Done":
        """Run one more command in it, as the same user."""
        enter = ["nsenter", "--target", str(self.init), "--all", "--root"]
        done = subprocess.run(
            [*enter, *self._command(list(command), env)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def healthy(self) -> bool:
        """What the image's health check says."""
        return self.execute(*self.image.healthcheck).code == 0

    def wait_until_healthy(self, seconds: float) -> None:
        """Wait until the health check is content."""
        deadline = time.monotonic() + seconds
        while not self.healthy():
            assert self.process is not None
            assert self.process.poll() is None, "the container has ended"
            assert time.monotonic() < deadline, "the container hangs"
            time.sleep(1)

    @property
    def init(self) -> int:
        """The first process, by its id on this machine."""
        assert self.process is not None
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        while not (found := children.read_text().split()):
            assert self.process.poll() is None, "the container has ended"
            time.sleep(0.01)
        return int(found[0])

    def stop(self, seconds: float) -> int:
        """End as ``docker stop`` does; the exit status."""
        assert self.process is not None
        os.kill(self.init, getattr(signal, self.image.stopsignal))
        return self.process.wait(seconds)

    def remove(self) -> None:
        """End at once."""
        if self.process is not None and self.process.poll() is None:
            # All others of its namespace end with the first.
            os.kill(self.init, signal.SIGKILL)
            self.process.wait(30)

    def _started(
        self, cmd: Sequence[str], entrypoint: Sequence[str] | None, **streams: Any
    ) -> "subprocess.Popen[bytes]":
        apart = ["--mount", "--pid", "--ipc", "--uts", *(() if self.network else ("--net",))]
        mounts = [str(p) for inside, outside in self.mounts.items() for p in (outside, inside)]
        begin = self.image.entrypoint if entrypoint is None else entrypoint
        command = [*begin, *(cmd or self.image.cmd)]
        start = ["unshare", *apart, "--fork", "--kill-child", "sh", "-c", START, "sh"]
        start += [str(self.image.root), self.shm_size, *mounts, "--"]
        start += self._command(command, {})
        return subprocess.Popen(start, stdin=subprocess.DEVNULL, **streams)

    def _command(self, command: list[str], env: dict[str, str]) -> list[str]:
        uid, gid = (self.user or self.image.user).split(":")
        confined = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        confined += ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
        variables = {**self.image.env, **self.env, **env}
        assignments = [f"{name}={value}" for name, value in variables.items()]
        return [*confined, "env", "-C", self.image.workdir, "-i", *assignments, *command]


@dataclass(frozen=True)
class Done:
    """What a command left: its exit status and what it wrote."""

    code: int
    out: str
    err: str
