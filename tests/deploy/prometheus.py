"""The compose file's Prometheus, as a process of this machine.

It runs Debian's program with the compose file's own command and configuration. What containers have
by being containers, it has in a mount namespace of its own: ``docker/prometheus`` as
/etc/prometheus, the key as /run/secrets/metrics_key, and an /etc/resolv.conf that names a name
server of this test, which knows ``bytelm-servers``. Only the place of its data and the address that
it listens on are given anew.
"""

import json
import os
import re
import shlex
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml  # type: ignore[import-untyped]

from bytelm_server.keys import KeyFile
from tests.scale.gateway import DOCKER, NameServer, program, some_addresses

GRAFANA = DOCKER / "grafana"


@dataclass
class Prometheus:
    """One that scrapes a server at ``server``, port 8000, with a key of its own.

    Attributes:
        folder: everything is kept there.
        server: the server's address.
        keys_file: the server's keys.
        url: where queries go.
        key: another key of the server, for its users.
    """

    folder: Path
    server: str = ""
    keys_file: Path = Path()
    url: str = ""
    key: str = ""
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _name_server: NameServer | None = None

    def __post_init__(self) -> None:
        self._addresses = some_addresses(3)
        self.server = self._addresses[0]
        self.url = f"http://{self._addresses[1]}:9090"
        self.keys_file = self.folder / "keys.json"
        keys = KeyFile(self.keys_file)
        self.key = keys.create("user")[1]
        # As docker/up makes it.
        (self.folder / "metrics_key").write_text(keys.create("prometheus")[1] + "\n")
        (self.folder / "resolv.conf").write_text(f"nameserver {self._addresses[2]}\n")

    def start(self) -> None:
        """Returns when it answers."""
        self._name_server = NameServer(self._addresses[2], {"bytelm-servers": [self.server]})
        compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
        given = compose["services"]["prometheus"]["command"]
        own = {
            "--storage.tsdb.path": self.folder / "data",
            "--web.listen-address": self.url.removeprefix("http://"),
        }
        kept = [flag for flag in given if flag.partition("=")[0] not in own]
        command = [program("prometheus", "prometheus"), *kept]
        command += [f"{flag}={value}" for flag, value in own.items()]
        with (self.folder / "prometheus.log").open("wb") as log:
            process = subprocess.Popen(
                self._as_in_the_container(command), stdout=log, stderr=log, cwd=self.folder
            )
        self._processes.append(process)
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, (self.folder / "prometheus.log").read_text()
            assert time.monotonic() < deadline, "prometheus hangs"
            try:
                if httpx.get(f"{self.url}/-/ready").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)

    def checked(self) -> subprocess.CompletedProcess[str]:
        """What promtool says of the configuration."""
        command = [program("promtool", "prometheus"), "check", "config"]
        return subprocess.run(
            self._as_in_the_container([*command, "/etc/prometheus/prometheus.yml"]),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def _as_in_the_container(self, command: list[str]) -> list[str]:
        """A command that sees the files that the compose file mounts."""
        mounts = [
            f"mount --bind {DOCKER / 'prometheus'} /etc/prometheus",
            f"mount --bind {self.folder / 'resolv.conf'} /etc/resolv.conf",
            "mount -t tmpfs none /run",
            "mkdir /run/secrets",
            f"cp {self.folder / 'metrics_key'} /run/secrets/metrics_key",
        ]
        script = " && ".join([*mounts, f"exec {shlex.join(map(str, command))}"])
        # Without root's rights, as root of a user namespace.
        other = [] if os.geteuid() == 0 else ["--map-root-user"]
        return ["unshare", "--mount", *other, "sh", "-c", script]

    def targets(self) -> list[dict[str, Any]]:
        """What it scrapes."""
        return self._get("targets")["activeTargets"]

    def values(self, query: str) -> list[float]:
        """What a panel of the dashboard would show of the last two minutes; NaN is nothing."""
        now = time.time()
        found = self._get("query_range", query=query, start=now - 120, end=now, step=interval())
        values = [float(value) for series in found["result"] for _, value in series["values"]]
        return [value for value in values if value == value]

    def _get(self, what: str, **params: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{what}", params=params, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def end(self) -> None:
        """Kill everything."""
        for process in self._processes:
            process.kill()
            process.wait(30)
        if self._name_server is not None:
            self._name_server.close()


def interval() -> int:
    """The scrape interval that the data source tells Grafana, in seconds."""
    path = GRAFANA / "provisioning" / "datasources" / "prometheus.yaml"
    (source,) = yaml.safe_load(path.read_text())["datasources"]
    return int(source["jsonData"]["timeInterval"].removesuffix("s"))


def queries() -> dict[str, str]:
    """The dashboard's queries, by panel and letter, with what Grafana puts in for its variables."""
    dashboard = json.loads((GRAFANA / "dashboards" / "bytelm.json").read_text())
    # https://grafana.com/docs: the larger of four scrapes and a scrape more than a panel's step,
    # which for the last hour is the scrape interval.
    rate = f"{max(4 * interval(), interval() + interval())}s"
    found = {
        f"{panel['title']} {target['refId']}": target["expr"].replace("$__rate_interval", rate)
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }
    left = [query for query in found.values() if re.search(r"\$|\[\[", query)]
    assert not left, left
    return found
