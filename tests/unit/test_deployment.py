"""What the files of ``docker/`` say fits together, and fits the server."""

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from bytelm.models.testing import StubLM
from bytelm.settings import EngineSettings, ServerSettings
from bytelm.vllm.slots import SlotsAddress
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server.app import create_app
from bytelm_server.on_ray.proxy import STATELESS, middlewares

TOP = Path(__file__).parents[2]
DOCKER = TOP / "docker"
DOCKERFILES = sorted(DOCKER.glob("Dockerfile.*"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def servers(compose: dict[str, Any]) -> dict[str, Any]:
    """The services that are bytelm."""
    return {n: s for n, s in compose["services"].items() if s["image"].startswith("bytelm:")}


def seconds(duration: str) -> int:
    return int(duration.removesuffix("s"))


def test_every_profile_of_the_issue_exists(compose: dict[str, Any]) -> None:
    profiles = {p for service in compose["services"].values() for p in service["profiles"]}
    assert profiles == {"cuda", "cpu", "scale", "scale-cpu", "observability"}


def test_what_services_refer_to_exists_in_their_profiles(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert set(service["networks"]) <= set(compose["networks"])
        for secret in service.get("secrets", []):
            assert secret["source"] in compose["secrets"]
        for needed in service.get("depends_on", []):
            assert set(service["profiles"]) <= set(compose["services"][needed]["profiles"])
        for volume in service.get("volumes", []):
            source, _, rest = volume.partition(":")
            if source.startswith("."):
                assert (DOCKER / source).exists(), source
                assert rest.endswith(":ro")
            elif rest:
                assert source in compose["volumes"]


def test_every_service_is_confined_and_comes_back(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["restart"] == "unless-stopped", name
        assert "mem_limit" in service, name
        assert not service.get("privileged"), name


def test_only_this_machine_reaches_what_is_published_unless_it_is_asked_for(
    compose: dict[str, Any],
) -> None:
    published = [p for service in compose["services"].values() for p in service.get("ports", [])]
    assert published
    for port in published:
        assert re.match(r"\$\{\w+:-127\.0\.0\.1:", port), port


def test_nothing_secret_is_in_the_files(compose: dict[str, Any]) -> None:
    assert all(
        secret["file"].endswith(("}", ".json", ".key", ".password"))
        for secret in compose["secrets"].values()
    )
    assert "secrets/" in (DOCKER / ".gitignore").read_text().splitlines()
    ignored = (TOP / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert not any(line.startswith("!docker") for line in ignored)


def test_variables_of_servers_are_settings(compose: dict[str, Any]) -> None:
    known = {f"BYTELM_{name.upper()}" for name in ServerSettings.model_fields}
    known |= {f"BYTELM_ENGINE_{name.upper()}" for name in EngineSettings.model_fields}
    known |= {"BYTELM_CACHE", "BYTELM_STATE"}
    given = {v for service in servers(compose).values() for v in service["environment"]}
    for dockerfile in DOCKERFILES:
        given |= set(re.findall(r"^ +(BYTELM_\w+)=", dockerfile.read_text(), re.M))
    assert {v for v in given if v.startswith("BYTELM_")} <= known
    assert {"BYTELM_KEYS_FILE", "BYTELM_SESSION_STORE", "BYTELM_HOST"} <= given


def test_calls_and_the_engine_have_time_to_end(compose: dict[str, Any]) -> None:
    for service in servers(compose).values():
        grace = float(service["environment"]["BYTELM_SHUTDOWN_GRACE"])
        assert seconds(service["stop_grace_period"]) >= grace + 10


def test_shared_memory_holds_the_rows_of_large_vocabularies(compose: dict[str, Any]) -> None:
    """Twice: the next engine's are made while those of a dead one may still be there."""
    rows = SlotsAddress("", 2 * EngineSettings().max_num_seqs, 262_144).nbytes
    for service in servers(compose).values():
        assert service["shm_size"] == "2gb"
        assert 2 * rows < 2 * 10**9


def test_the_gateway_waits_longer_than_a_call_may_take() -> None:
    text = (DOCKER / "haproxy" / "haproxy.cfg").read_text()
    for side in ("client", "server"):
        found = re.search(rf"timeout {side} (\d+)s", text)
        assert found is not None
        assert int(found[1]) > ServerSettings(keys_file=None).call_seconds


def test_gateways_send_every_call_again_that_changes_nothing() -> None:
    app = create_app(StubLM(ByteVocab.from_bytes([b"a"])), ServerSettings(session_store="memory"))
    posts = {path for path, calls in app.openapi()["paths"].items() if "post" in calls}
    stateless = {path for path in posts if not path.startswith("/v1/sessions")}
    assert stateless == STATELESS
    text = (DOCKER / "haproxy" / "haproxy.cfg").read_text()
    (found,) = re.findall(r"disable-l7-retry unless .*\{ path_beg (.*) \}", text)
    assert set(found.split()) == STATELESS


def test_redis_keeps_what_was_acknowledged() -> None:
    settings = set((DOCKER / "redis" / "redis.conf").read_text().splitlines())
    kept = {"appendonly yes", "appendfsync always", "maxmemory-policy noeviction"}
    assert kept <= settings


def test_prometheus_and_gateway_find_servers_by_the_names_that_they_have(
    compose: dict[str, Any],
) -> None:
    job = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    (looked_up,) = job[0]["dns_sd_configs"]
    gateway = (DOCKER / "haproxy" / "haproxy.cfg").read_text()
    for service in servers(compose).values():
        aliases = service["networks"]["front"]["aliases"]
        assert looked_up["names"][0] in aliases
        if "store" in service["networks"]:
            assert "replica" in aliases
    assert gateway.count('"${BYTELM_REPLICA-replica}:8000"') == 2


@pytest.fixture(scope="module")
def on_ray() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "ray" / "serve.yaml").read_text())


def test_ray_is_given_settings_and_an_application_that_exist(on_ray: dict[str, Any]) -> None:
    (application,) = on_ray["applications"]
    module, _, function = application["import_path"].partition(":")
    assert f"\ndef {function}(" in (TOP / "server" / f"{module.replace('.', '/')}.py").read_text()
    given = application["args"]
    assert set(given) == {"model", "server", "engine"}
    ServerSettings(**given["server"])
    EngineSettings(**given["engine"])
    assert given["server"]["session_store"].startswith("redis://")
    assert given["server"]["keys_file"]


def test_ray_leaves_limits_and_time_to_the_server(on_ray: dict[str, Any]) -> None:
    ((deployment,),) = [application["deployments"] for application in on_ray["applications"]]
    settings = ServerSettings(keys_file=None)
    assert deployment["max_ongoing_requests"] >= settings.max_running_calls
    assert "request_timeout_s" not in on_ray["http_options"]
    assert on_ray["http_options"]["keep_alive_timeout_s"] == settings.keep_alive_seconds


def test_ray_finds_sessions_by_what_its_proxies_are_told_to_mark(on_ray: dict[str, Any]) -> None:
    ((deployment,),) = [application["deployments"] for application in on_ray["applications"]]
    router = deployment["request_router_config"]["request_router_class"]
    assert router == "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
    told = re.search(
        r"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=([\w.]+):(\w+)",
        (DOCKER / "ray" / "node").read_text(),
    )
    assert told is not None
    assert getattr(import_module(told[1]), told[2]) is middlewares


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_small_unprivileged_and_watched(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    final = text[text.rindex("\nFROM ") :]
    assert all(re.search(r":\d+\.\d+\.\d+-", line) for line in re.findall(r"^FROM .*", text, re.M))
    assert "USER 1000:1000" in final
    assert "HEALTHCHECK" in final
    assert 'ENTRYPOINT ["tini", "--", "bytelm"]' in final
    assert not re.search(r"pip install|build-essential|g\+\+|git\b|make\b|nvcc", final)


def test_the_dashboard_asks_for_what_the_issue_names() -> None:
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "bytelm.json").read_text())
    asked = " ".join(t["expr"] for panel in dashboard["panels"] for t in panel["targets"])
    for metric in (
        "bytelm_bytes_out_total",
        "bytelm_evaluations_total",
        "bytelm_tail_hits_total",
        "bytelm_request_seconds_bucket",
        "bytelm_sessions",
        "vllm:kv_cache_usage_perc",
    ):
        assert metric in asked
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
