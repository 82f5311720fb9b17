"""The compose file's gateway, Redis and servers, as processes of this machine.

All run with the files of ``docker/``, on the ports that these name, at loopback addresses of their
own, which nobody else uses.
"""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bytelm_server.keys import KeyFile
from tests.server.processes import StubProcess

DOCKER = Path(__file__).parents[2] / "docker"


def some_addresses(count: int) -> list[str]:
    """Addresses of this machine alone."""
    draws = random.SystemRandom()
    net = f"127.{draws.randint(16, 250)}.{draws.randint(1, 250)}"
    return [f"{net}.{i + 1}" for i in range(count)]


def program(name: str, package: str) -> str:
    """Where a program of Debian is."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    assert found is not None, f"{name} is missing: apt-get install {package}"
    return found


class NameServer:
    """Answers like Docker's: the addresses of whoever has a name now.

    Args:
        address: where it listens, on port 53.
        names: the addresses of each name; may be changed.
    """

    def __init__(self, address: str, names: dict[str, list[str]]) -> None:
        self.names = names
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """End."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                question, sender = self._socket.recvfrom(4096)
                self._socket.sendto(self._answer(question), sender)
            except (OSError, IndexError):
                # An empty message is what waking up for the end looks like.
                return

    def _answer(self, message: bytes) -> bytes:
        """See RFC 1035, section 4."""
        labels, place = [], 12
        while length := message[place]:
            labels.append(message[place + 1 : place + 1 + length].decode())
            place += 1 + length
        question = message[12 : place + 5]
        kind = int.from_bytes(message[place + 1 : place + 3])
        addresses = self.names.get(".".join(labels).lower())
        rcode = 3 if addresses is None else 0
        found = (addresses or []) if kind == 1 else []
        head = message[:2] + bytes([0x81, 0x80 | rcode, 0, 1, 0, len(found), 0, 0, 0, 0])
        records = b"".join(
            # The question's name, A, IN, a second, four bytes
            b"\xc0\x0c\0\x01\0\x01\0\0\0\x01\0\x04" + socket.inet_aton(address)
            for address in found
        )
        return head + question + records


class Replica(StubProcess):
    """A server over a StubLM at an address of its own, on the port that containers have."""

    def __init__(self, address: str, store: str, keys_file: Path, *arguments: str) -> None:
        super().__init__(store, "--set", f"host={address}", *arguments)
        self.arguments += ["--set", f"keys_file={keys_file}"]
        self.port = 8000
        self.url = f"http://{address}:8000"


@dataclass
class Scale:
    """The profile ``scale`` with two servers.

    Attributes:
        url: the gateway's.
        key: an API key.
        replicas: the servers.
        names: who has which name.
    """

    folder: Path
    url: str = ""
    key: str = ""
    replicas: list[Replica] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=dict)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _name_server: NameServer | None = None

    def start(self) -> None:
        """All of it; returns when the gateway answers for both servers."""
        addresses = some_addresses(5)
        self.names = {"replica": addresses[:2]}
        self._name_server = NameServer(addresses[2], self.names)
        self._start_redis(addresses[3])
        keys_file = self.folder / "keys.json"
        self.key = KeyFile(keys_file).create("scale")[1]
        for address in addresses[:2]:
            replica = Replica(address, f"redis://{addresses[3]}:6379/0", keys_file, "--metered")
            self.replicas.append(replica)
            replica.start()
        self.url = f"http://{addresses[4]}:8080"
        configuration = str(DOCKER / "haproxy" / "haproxy.cfg")
        self._run(
            [program("haproxy", "haproxy"), "-db", "-f", configuration],
            BYTELM_NAMESERVER=f"{addresses[2]}:53",
            BYTELM_GATEWAY=f"{addresses[4]}:8080",
        )
        self.wait_for(2)

    def wait_for(self, count: int) -> None:
        """Until the gateway sends calls to so many servers."""
        deadline = time.monotonic() + 60
        while len(self.seen()) != count:
            assert time.monotonic() < deadline, "the gateway hangs"
            time.sleep(0.1)

    def seen(self) -> set[str]:
        """The servers that answer a few dozen calls on the gateway."""
        try:
            with self.client() as http:
                answers = [http.get(f"/v1/sessions/ses_{i}") for i in range(32)]
        except httpx.TransportError:
            return set()
        return {a.headers["x-bytelm-server"] for a in answers if a.status_code == 404}

    def client(self) -> httpx.Client:
        """A client of the gateway."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=60)

    @property
    def headers(self) -> dict[str, str]:
        """What calls are made with."""
        return {"Authorization": f"Bearer {self.key}"}

    def end(self) -> None:
        """Kill everything."""
        for replica in self.replicas:
            replica.clean_up()
        for process in self._processes:
            process.kill()
            process.wait(30)
        if self._name_server is not None:
            self._name_server.close()

    def _start_redis(self, address: str) -> None:
        configuration = str(DOCKER / "redis" / "redis.conf")
        self._run([program("redis-server", "redis-server"), configuration, "--bind", address])
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection((address, 6379), 1).close()
            except OSError:
                assert time.monotonic() < deadline, "redis-server hangs"
                time.sleep(0.05)
            else:
                return

    def _run(self, command: list[str], **environment: str) -> None:
        self._processes.append(
            subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self.folder,
                env=os.environ | environment,
            )
        )
