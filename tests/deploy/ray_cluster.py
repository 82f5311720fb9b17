"""Ray Serve on this machine, with the files of ``docker/ray``, and what an application needs."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml  # type: ignore[import-untyped]

from bytelm_server.keys import KeyFile
from tests.scale.conftest import RedisServer
from tests.server.conftest import free_port

TOP = Path(__file__).parents[2]
DOCKER = TOP / "docker"
HEADER = "x-bytelm-server"


@dataclass
class Cluster:
    """Ray's head alone, with an application of some replicas.

    Attributes:
        folder: everything is kept there.
        import_path: the application.
        engine: its engine's settings.
        count: its replicas.
        url: where it answers.
        key: an API key.
    """

    folder: Path
    import_path: str
    engine: dict[str, Any]
    count: int = 2
    url: str = ""
    key: str = ""
    redis: RedisServer | None = None
    ray: subprocess.Popen[bytes] | None = None
    _dashboard: str = ""
    _port: int = 0

    def start(self) -> None:
        """All of it; returns when all replicas answer."""
        # A socket's path must be short.
        self.redis = RedisServer(Path(tempfile.mkdtemp(prefix="bytelm-redis-", dir=self.folder)))
        self.redis.start("--appendonly", "yes", "--appendfsync", "always")
        self.key = self.new_key()
        self._start_ray()
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        sizes = ("min_replicas", "initial_replicas", "max_replicas")
        self.deploy(dict.fromkeys(sizes, self.count))
        self.wait_for(self.count)

    def deploy(self, autoscaling: dict[str, Any]) -> None:
        """What ``serve deploy`` does, now or again; ``autoscaling`` is this test's own."""
        config = self.folder / "serve.yaml"
        config.write_text(yaml.safe_dump(self._config(autoscaling)))
        deploy = ["serve", "deploy", str(config), "--address", self._dashboard]
        deadline = time.monotonic() + 120
        while (done := self._run(deploy)).returncode:
            assert time.monotonic() < deadline, done.stdout
            time.sleep(1)

    def wait_for(self, count: int) -> None:
        """Until so many replicas answer."""
        deadline = time.monotonic() + 240
        while len(self.seen()) != count:
            if time.monotonic() > deadline:
                status = ["serve", "status", "--address", self._dashboard]
                raise TimeoutError(self._run(status).stdout)
            time.sleep(0.5)

    def _start_ray(self) -> None:
        """Ray's head, on free ports of this machine alone."""
        dashboard = free_port()
        self._dashboard = f"http://127.0.0.1:{dashboard}"
        ports = {
            "--port": free_port(),
            "--dashboard-port": dashboard,
            "--dashboard-agent-listen-port": free_port(),
            "--ray-client-server-port": free_port(),
            "--metrics-export-port": free_port(),
        }
        given = [f"{flag}={port}" for flag, port in ports.items()]
        given += ["--node-ip-address=127.0.0.1", f"--temp-dir={self.folder / 'ray'}"]
        given += ["--num-cpus=8", f"--object-store-memory={100 << 20}", "--block"]
        with (self.folder / "ray.log").open("wb") as log:
            self.ray = subprocess.Popen(
                [str(DOCKER / "ray" / "node"), "head", *given],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self._environment(),
            )

    def _config(self, autoscaling: dict[str, Any]) -> dict[str, Any]:
        """docker/ray/serve.yaml, with what is this test's own."""
        config: dict[str, Any] = yaml.safe_load((DOCKER / "ray" / "serve.yaml").read_text())
        config["http_options"] |= {"host": "127.0.0.1", "port": self._port}
        (application,) = config["applications"]
        application["import_path"] = self.import_path
        assert self.redis is not None
        application["args"]["server"] |= {
            "session_store": self.redis.url,
            "keys_file": str(self.keys_file),
        }
        application["args"]["engine"] = self.engine
        (deployment,) = application["deployments"]
        deployment["autoscaling_config"] |= autoscaling
        return config

    def _environment(self) -> dict[str, str]:
        # What Ray starts must find the tests' modules too.
        folders = [str(TOP), *filter(None, [os.environ.get("PYTHONPATH")])]
        return os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": ":".join(folders),
        }

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            cwd=self.folder,
            env=self._environment(),
        )

    @property
    def keys_file(self) -> Path:
        """The API keys."""
        return self.folder / "keys.json"

    def new_key(self) -> str:
        """Another API key, which has no sessions yet."""
        return KeyFile(self.keys_file).create("ray")[1]

    @property
    def headers(self) -> dict[str, str]:
        """What calls are made with."""
        return {"Authorization": f"Bearer {self.key}"}

    def client(self) -> httpx.Client:
        """A client of the application."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=60)

    def seen(self) -> set[str]:
        """The replicas that answer a few dozen calls."""
        try:
            with self.client() as http:
                answers = [http.get(f"/v1/sessions/ses_{i}") for i in range(32)]
        except httpx.TransportError:
            return set()
        return {a.headers[HEADER] for a in answers if a.status_code == 404 and HEADER in a.headers}

    def replicas(self) -> list[psutil.Process]:
        """The processes of the replicas, oldest first."""
        assert self.ray is not None
        found = [
            process
            for process in psutil.Process(self.ray.pid).children(recursive=True)
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::ServeReplica:")
        ]
        return sorted(found, key=lambda process: process.create_time())

    def end(self) -> None:
        """End everything, in order as far as it goes."""
        if self.ray is not None:
            processes = psutil.Process(self.ray.pid).children(recursive=True)
            self.ray.send_signal(signal.SIGTERM)
            try:
                self.ray.wait(60)
            except subprocess.TimeoutExpired:
                self.ray.kill()
            _, alive = psutil.wait_procs(processes, timeout=10)
            for process in alive:
                process.kill()
        if self.redis is not None:
            self.redis.end()
        shutil.rmtree(self.folder / "ray", ignore_errors=True)
