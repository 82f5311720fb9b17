"""docker-compose itself, and the Compose specification, find nothing wrong with the compose file.

That services fit together and fit the server is in ``tests/unit/test_deployment.py``.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml  # type: ignore[import-untyped]

from tests.deploy.tools import compose_schema, tool

DOCKER = Path(__file__).parents[2] / "docker"
FILE = DOCKER / "compose.yaml"
PROFILES = {
    "cuda": {"bytelm"},
    "cpu": {"bytelm-cpu"},
    "scale": {"replica-0", "replica-1", "redis", "gateway"},
    "scale-cpu": {"replica-cpu", "redis", "gateway"},
    "observability": {"prometheus", "grafana"},
}


def config(*profiles: str, file: Path = FILE, **environment: str) -> dict[str, Any]:
    """What docker-compose makes of the file."""
    command = [str(tool("docker-compose")), "--file", str(file)]
    for profile in profiles:
        command += ["--profile", profile]
    command += ["config", "--format", "json"]
    own = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=own)
    assert done.returncode == 0, done.stderr
    # A variable that is not set, or a field that is out of date.
    assert done.stderr == ""
    made: dict[str, Any] = json.loads(done.stdout)
    return made


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_resolves(profile: str) -> None:
    made = config(profile)
    assert set(made["services"]) == PROFILES[profile]
    for name, service in made["services"].items():
        assert set(service.get("depends_on", {})) <= set(made["services"]), name
        assert set(service["networks"]) <= set(made["networks"])
        for secret in service.get("secrets", []):
            assert made["secrets"][secret["source"]]["file"].startswith(f"{DOCKER}/secrets/")
        for mount in service.get("volumes", []):
            if mount["type"] == "bind":
                assert Path(mount["source"]).exists(), mount
                assert mount["read_only"]
            elif "source" in mount:
                assert mount["source"] in made["volumes"]
        if "build" in service:
            context = Path(service["build"]["context"])
            assert (context / service["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("profile", ["cuda", "cpu", "scale", "scale-cpu"])
def test_a_profile_resolves_beside_observability(profile: str) -> None:
    made = config(profile, "observability")
    assert set(made["services"]) == PROFILES[profile] | PROFILES["observability"]
    published = [
        (port.get("host_ip"), port["published"])
        for service in made["services"].values()
        for port in service.get("ports", [])
    ]
    assert sorted(published) == [("127.0.0.1", "3000"), ("127.0.0.1", "8000")]


def test_variables_reach_the_services() -> None:
    made = config(
        "scale-cpu",
        BYTELM_MODEL="Qwen/Qwen3-0.6B",
        BYTELM_REPLICAS="3",
        BYTELM_MEMORY="4g",
        BYTELM_PUBLISH="0.0.0.0:80",
        BYTELM_TENSOR_PARALLEL_SIZE="2",
        HF_TOKEN_FILE="/somewhere/token",
        TORCH_INDEX="",
    )
    replica, gateway = made["services"]["replica-cpu"], made["services"]["gateway"]
    assert replica["command"][-2:] == ["--model", "Qwen/Qwen3-0.6B"]
    assert replica["deploy"]["replicas"] == 3
    assert int(replica["mem_limit"]) == 4 << 30
    assert replica["environment"]["BYTELM_ENGINE_TENSOR_PARALLEL_SIZE"] == "2"
    assert replica["build"]["args"] == {"TORCH_INDEX": ""}
    assert (gateway["ports"][0]["host_ip"], gateway["ports"][0]["published"]) == ("0.0.0.0", "80")
    assert made["secrets"]["hf_token"]["file"] == "/somewhere/token"


def test_settings_of_ones_own_are_in_a_file_that_need_not_be_there(tmp_path: Path) -> None:
    copied = tmp_path / "compose.yaml"
    copied.write_bytes(FILE.read_bytes())
    before = config("cuda", "scale", file=copied)["services"]
    (tmp_path / "bytelm.env").write_text("BYTELM_ENGINE_MAX_MODEL_LEN=8192\n")
    after = config("cuda", "scale", file=copied)["services"]
    for server in ("bytelm", "replica-0", "replica-1"):
        added = {"BYTELM_ENGINE_MAX_MODEL_LEN": "8192"}
        assert after[server]["environment"] == before[server]["environment"] | added
    assert "environment" not in after["redis"]


def test_each_replica_has_a_gpu_of_its_own() -> None:
    services = config("scale")["services"]
    reserved = [
        device
        for service in services.values()
        for device in service.get("deploy", {})
        .get("resources", {})
        .get("reservations", {})
        .get("devices", [])
    ]
    assert [device["device_ids"] for device in reserved] == [["0"], ["1"]]
    assert all(device["capabilities"] == ["gpu"] for device in reserved)


def test_the_file_is_what_the_compose_specification_allows() -> None:
    schema = compose_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    written = yaml.safe_load(FILE.read_text())
    assert [f"{list(e.path)}: {e.message}" for e in validator.iter_errors(written)] == []
    # It would have found something.
    written["services"]["bytelm"]["restart_policy"] = "always"
    assert not validator.is_valid(written)
