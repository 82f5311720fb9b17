"""The CPU image's steps, taken in a fresh tree, make a server that answers.

Nothing of this checkout's ``.venv`` is there. What it shows in the place of ``docker run``: the
user, the read-only root, volumes, keys as a secret, health check, signals. It takes ten minutes,
5 GB of disk, root and debootstrap.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.containers import Container
from tests.deploy.images import Image, Machine, build

TOP = Path(__file__).parents[2]
PROMPT, CONTINUATION = "An apple a day keeps the ", "doctor away."
MAKE_SESSION = """
from bytelm_client import Client

with Client() as client:
    print(client.session("The capital of Fran").id)
"""

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.getuid() != 0, reason="only root may change the root folder"),
]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A fresh folder on the disk: /tmp may be memory."""
    with tempfile.TemporaryDirectory(prefix="fresh-", dir="/var/tmp") as made:
        # The image's user must be able to go through it.
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture(scope="module")
def image(folder: Path) -> Image:
    assert shutil.which("debootstrap"), "debootstrap is missing: apt-get install debootstrap"
    # Where pip finds torch's CPU build by itself, no other index is asked.
    return build(TOP / "docker" / "Dockerfile.cpu", TOP, folder, Machine.this(), {})


@pytest.fixture(scope="module")
def volumes(folder: Path) -> dict[str, Path]:
    """Empty volumes, which Docker makes with the owner that the image's folders have."""
    made = {}
    for name in ("cache", "state"):
        (folder / name).mkdir()
        os.chown(folder / name, 1000, 1000)
        made[f"/{name}"] = folder / name
    return made


@pytest.fixture(scope="module")
def secrets(folder: Path) -> Path:
    made = folder / "secrets"
    made.mkdir()
    return made


@pytest.fixture(scope="module")
def key(image: Image, secrets: Path) -> str:
    """A key made in the image, as docker/keys makes it."""
    env = {"BYTELM_KEYS_FILE": "/keys/keys.json", "NUMBA_CACHE_DIR": "/tmp"}
    maker = Container(image, {"/keys": secrets}, env, user="0:0")
    done = maker.run("keys", "create", "first")
    assert done.code == 0, done.err
    (secrets / "keys.json").chmod(0o644)
    return done.out.strip()


@pytest.fixture(scope="module")
def model(image: Image, volumes: dict[str, Path]) -> None:
    """The default model on the volume, fetched and converted in the image."""
    machine = Machine.this()
    paths = {path: Path(path) for path in machine.paths}
    fetching = Container(image, {**volumes, **paths}, machine.env, network=True)
    done = fetching.run("python", "-m", "bytelm.download", entrypoint=["tini", "--"])
    assert done.code == 0, done.err


@pytest.fixture(scope="module")
def server(
    image: Image, volumes: dict[str, Path], secrets: Path, key: str, model: None, folder: Path
) -> Iterator[Container]:
    mounts = {**volumes, "/run/secrets/keys": secrets / "keys.json"}
    env = {"BYTELM_SHUTDOWN_GRACE": "30", "BYTELM_API_KEY": key}
    made = Container(image, mounts, env)
    log = folder / "server.log"
    made.start(log)
    try:
        made.wait_until_healthy(600)
        yield made
    except AssertionError:
        print(log.read_text()[-5000:])
        raise
    finally:
        made.remove()


def test_the_image_is_the_dockerfiles(image: Image) -> None:
    assert image.user == "1000:1000"
    assert image.ports == [8000]
    assert image.volumes == ["/cache", "/state"]
    assert image.labels["org.opencontainers.image.title"] == "bytelm"


def test_no_compiler_is_in_the_image(image: Image) -> None:
    for folder in ("usr/bin", "usr/local/bin", "opt/bytelm/bin"):
        for program in ("gcc", "cc", "g++", "clang", "make", "git", "cargo"):
            assert not (image.root / folder / program).exists(), program


def test_without_keys_it_does_not_serve(image: Image, volumes: dict[str, Path]) -> None:
    done = Container(image, volumes).run()
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert "--allow-remote" in line


def test_it_answers_as_the_model_does(server: Container) -> None:
    done = server.execute(
        "bytelm", "greedy", PROMPT, "--steps", "12", "--url", "http://127.0.0.1:8000"
    )
    assert (done.out.strip(), done.code) == (CONTINUATION, 0), done.err


def test_who_has_no_key_gets_no_answer(server: Container) -> None:
    url = "http://127.0.0.1:8000"
    done = server.execute("bytelm", "greedy", PROMPT, "--url", url, BYTELM_API_KEY="")
    assert done.code == 2
    assert "API key" in done.err


def test_it_is_another_user_without_rights_on_a_read_only_root(server: Container) -> None:
    said = server.execute("cat", "/proc/1/status").out
    status = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"1000"}
    assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert "Read-only" in server.execute("touch", "/opt/bytelm/new").err
    assert server.execute("touch", "/tmp/new", "/cache/new", "/state/new").code == 0


def test_the_health_check_fails_where_nobody_serves(image: Image, volumes: dict[str, Path]) -> None:
    idle = Container(image, volumes)
    done = idle.run(*image.healthcheck, entrypoint=["tini", "--"])
    assert done.code == 1


def test_sessions_are_on_the_volume(server: Container) -> None:
    url = ["--url", "http://127.0.0.1:8000"]
    made = server.execute("python", "-c", MAKE_SESSION)
    assert made.code == 0, made.err
    listed = server.execute("bytelm", "sessions", "list", *url)
    assert made.out.strip() in listed.out
    assert (server.mounts["/state"] / "sessions-8000.sqlite").stat().st_size > 0


def test_it_ends_in_order_when_it_is_told_to(server: Container) -> None:
    """The last of this file: the server is gone then."""
    assert server.healthy()
    assert server.stop(60) == 0
