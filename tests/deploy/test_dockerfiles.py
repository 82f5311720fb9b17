"""hadolint finds nothing wrong with the Dockerfiles."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.tools import tool

DOCKER = Path(__file__).parents[2] / "docker"
DOCKERFILES = sorted(DOCKER.glob("Dockerfile.*"))
CONFIGURATION = DOCKER / ".hadolint.yaml"


def hadolint(dockerfile: Path) -> subprocess.CompletedProcess[str]:
    command = [str(tool("hadolint")), "--config", str(CONFIGURATION), str(dockerfile)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(dockerfile: Path) -> None:
    done = hadolint(dockerfile)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_hadolint_would_have_something_to_say(tmp_path: Path) -> None:
    careless = tmp_path / "Dockerfile"
    careless.write_text("FROM debian\nRUN apt-get install -y gcc\nUSER root\n")
    done = hadolint(careless)
    assert done.returncode != 0
    assert {"DL3006", "DL3008", "DL3002"} <= set(re.findall(r"DL\d+", done.stdout))


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_a_rule_that_is_ignored_has_its_reason(dockerfile: Path) -> None:
    lines = dockerfile.read_text().splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("# hadolint ignore="):
            assert re.match(r"# \w", before), line
    assert "ignore" not in re.sub(r"(?m)^#.*", "", CONFIGURATION.read_text())
