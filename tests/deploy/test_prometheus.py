"""Prometheus scrapes a server with the compose file's configuration, and the dashboard shows it."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]

from tests.deploy.prometheus import GRAFANA, Prometheus, interval, queries
from tests.scale.gateway import DOCKER, Replica
from tests.server.test_serve_real import kill, start

OF_THE_ENGINE = ("vllm:", "bytelm_tail_")
"""What a StubLM does not count."""


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Prometheus]:
    made = Prometheus(tmp_path)
    yield made
    made.end()


class Load:
    """Somebody who makes calls of several kinds until told to stop."""

    def __init__(self, url: str, key: str) -> None:
        self._http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60
        )
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.failed: list[str] = []

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._http.close()

    def _run(self) -> None:
        number = 0
        while not self._stopped.wait(0.05):
            number += 1
            self._post("/v1/greedy", context=f"{number} apples a day keep", steps=8)
            self._post("/v1/sample", context="Once upon a time", steps=60, n=4)
            made = self._post("/v1/sessions", context=f"{number} apples")
            self._post(f"/v1/sessions/{made['id']}/advance", bytes=" a")

    def _post(self, path: str, **body: Any) -> Any:
        answer = self._http.post(path, json=body)
        if answer.status_code != 200:
            self.failed.append(answer.text)
            self._stopped.set()
            return {"id": ""}
        return answer.json()


def have_data(prometheus: Prometheus, wanted: dict[str, str]) -> None:
    """All queries return data, soon enough."""
    deadline = time.monotonic() + 120
    missing = dict(wanted)
    while missing:
        assert time.monotonic() < deadline, (missing, prometheus.targets())
        time.sleep(1)
        missing = {name: query for name, query in missing.items() if not prometheus.values(query)}


def test_promtool_finds_nothing_wrong(prometheus: Prometheus) -> None:
    done = prometheus.checked()
    assert done.returncode == 0, done.stderr
    assert "SUCCESS" in done.stdout


def test_the_dashboard_asks_the_data_source_that_grafana_is_given() -> None:
    path = GRAFANA / "provisioning" / "datasources" / "prometheus.yaml"
    (source,) = yaml.safe_load(path.read_text())["datasources"]
    dashboard = json.loads((GRAFANA / "dashboards" / "bytelm.json").read_text())
    asked = {
        part["datasource"]["uid"]
        for panel in dashboard["panels"]
        for part in (panel, *panel["targets"])
    }
    assert asked == {source["uid"]}
    scraped = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    assert scraped["global"]["scrape_interval"] == f"{interval()}s"


def test_the_dashboard_shows_a_server_under_load(prometheus: Prometheus) -> None:
    """All but what only an engine counts."""
    server = Replica(prometheus.server, "memory", prometheus.keys_file, "--metered")
    try:
        server.start()
        prometheus.start()
        wanted = {n: q for n, q in queries().items() if not any(m in q for m in OF_THE_ENGINE)}
        with Load(server.url, prometheus.key) as load:
            have_data(prometheus, wanted)
        assert not load.failed
        (target,) = prometheus.targets()
        assert target["scrapeUrl"] == f"http://{prometheus.server}:8000/metrics"
        assert (target["health"], target["lastError"]) == ("up", "")
        assert max(prometheus.values(wanted["Bytes out A"])) > 0
        assert max(prometheus.values(wanted["Ready servers, restarts A"])) == 1
    finally:
        server.clean_up()


def test_who_has_no_key_sees_no_metrics(prometheus: Prometheus) -> None:
    server = Replica(prometheus.server, "memory", prometheus.keys_file)
    (prometheus.folder / "metrics_key").write_text("bytelm_of_nobody\n")
    try:
        server.start()
        prometheus.start()
        deadline = time.monotonic() + 60
        while not (found := prometheus.targets()) or found[0]["health"] == "unknown":
            assert time.monotonic() < deadline, "prometheus finds no server"
            time.sleep(0.2)
        assert found[0]["health"] == "down"
        assert "401" in found[0]["lastError"]
    finally:
        server.clean_up()


def test_the_dashboard_shows_a_real_server_under_load(prometheus: Prometheus) -> None:
    """Every query of it, vLLM's own counts included."""
    served = start(
        prometheus.folder,
        *("--host", prometheus.server, "--port", "8000", "--vllm-metrics"),
        *("--keys-file", str(prometheus.keys_file)),
    )
    try:
        served.wait_until_ready()
        prometheus.start()
        with Load(served.url, prometheus.key) as load:
            have_data(prometheus, queries())
        assert not load.failed
        assert all(0 <= used <= 1 for used in prometheus.values(queries()["KV cache in use A"]))
        assert 0 < max(prometheus.values(queries()["Tail hit rate A"])) <= 1
    finally:
        kill(served)
