"""docker/up and docker/keys, with a stand-in for Docker that notes what it is told.

What the image would do with keys, this checkout's ``bytelm`` does; docker-compose itself reads the
compose file as it was told to.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bytelm_server.keys import KeyFile
from tests.deploy.tools import tool

DOCKER = Path(__file__).parents[2] / "docker"

STAND_IN = f"""#!{sys.executable}
import json, os, subprocess, sys

arguments = sys.argv[1:]
with open(os.environ["NOTED"], "a") as noted:
    print(json.dumps(arguments), file=noted)
if arguments[:1] == ["compose"] and arguments[1:] != ["version"]:
    profiles = arguments[1 : 1 + 2 * arguments.count("--profile")]
    command = [os.environ["COMPOSE"], *profiles, "config", "--quiet"]
    sys.exit(subprocess.run(command).returncode)
if arguments[:1] == ["run"]:
    folder = arguments[arguments.index("--volume") + 1].removesuffix(":/keys")
    command = arguments[arguments.index("keys") :]
    os.environ["BYTELM_KEYS_FILE"] = folder + "/keys.json"
    sys.exit(subprocess.run([sys.executable, "-m", "bytelm_client", *command]).returncode)
"""


class Host:
    """A machine with a copy of docker/ and the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.docker = folder / "docker"
        shutil.copytree(DOCKER, self.docker, ignore=shutil.ignore_patterns("secrets"))
        self.secrets = self.docker / "secrets"
        program = folder / "bin" / "docker"
        program.parent.mkdir()
        program.write_text(STAND_IN)
        program.chmod(0o755)
        self._noted = folder / "noted"
        self.env = {
            **os.environ,
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "NOTED": str(self._noted),
            "COMPOSE": str(tool("docker-compose")),
        }

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.docker / script), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=self.env, timeout=120)

    def told(self) -> list[Any]:
        """What Docker was told since this was last asked."""
        lines = self._noted.read_text().splitlines() if self._noted.exists() else []
        self._noted.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_the_first_start_builds_makes_a_key_and_waits_until_all_is_well(host: Host) -> None:
    done = host.run("up", "cpu", "observability", "--", "--force-recreate")
    assert done.returncode == 0, done.stderr
    profiles = ["--profile", "observability", "--profile", "cpu"]
    told = host.told()
    composed = [one for one in told if one[0] == "compose"]
    assert composed == [
        ["compose", "version"],
        ["compose", *profiles, "build"],
        ["compose", *profiles, "up", "--detach", "--wait", "--force-recreate"],
    ]
    # One key for Prometheus, one to show.
    made = [one for one in told if one[0] == "run"]
    assert all("bytelm:0.1.0-cpu" in one and "--read-only" in one for one in made)
    keys = KeyFile(host.secrets / "keys.json").load()
    assert [key.name for key in keys] == ["prometheus", "first"]
    (shown,) = done.stdout.splitlines()
    assert shown.startswith("bytelm_")
    assert shown not in (host.secrets / "keys.json").read_text()
    assert shown != (host.secrets / "metrics.key").read_text().strip()


def test_secrets_are_for_the_owner_and_the_containers_alone(host: Host) -> None:
    assert host.run("up", "cpu").returncode == 0
    assert stat.S_IMODE(host.secrets.stat().st_mode) == 0o700
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in host.secrets.iterdir()}
    assert set(files) >= {"keys.json", "metrics.key", "hf.token", "grafana.password"}
    assert {mode for name, mode in files.items() if not name.endswith(".lock")} == {0o644}, files
    assert len((host.secrets / "grafana.password").read_text()) >= 32


def test_a_second_start_makes_no_new_secrets(host: Host) -> None:
    assert host.run("up", "cpu").returncode == 0
    before = {path.name: path.read_bytes() for path in host.secrets.iterdir()}
    host.told()
    done = host.run("up", "cpu")
    assert (done.returncode, done.stdout) == (0, "")
    assert {path.name: path.read_bytes() for path in host.secrets.iterdir()} == before
    assert not [one for one in host.told() if one[0] == "run"]


def test_the_default_is_cuda(host: Host) -> None:
    assert host.run("up").returncode == 0
    assert ["compose", "--profile", "cuda", "build"] in host.told()


@pytest.mark.parametrize(
    ("arguments", "said"), [(["gpu"], "no profile gpu"), (["cpu", "scale"], "two ways to serve")]
)
def test_what_makes_no_sense_is_said(host: Host, arguments: list[str], said: str) -> None:
    done = host.run("up", *arguments)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[0]
    assert not host.secrets.exists()


def test_keys_are_made_listed_and_revoked(host: Host) -> None:
    assert host.run("up", "cpu").returncode == 0
    host.env["BYTELM_IMAGE"] = "bytelm:0.1.0-cpu"
    made = host.run("keys", "create", "alice")
    assert made.returncode == 0, made.stderr
    (key,) = [k for k in KeyFile(host.secrets / "keys.json").load() if k.name == "alice"]
    assert "alice" in host.run("keys", "list").stdout
    assert host.run("keys", "revoke", key.id).returncode == 0
    assert "alice" not in host.run("keys", "list").stdout
