"""``bytelm bench`` and ``bytelm doctor``."""

import errno
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from bytelm import download as models
from bytelm_client import Client
from bytelm_client.cli import checks
from bytelm_client.cli.bench import prompt_of
from bytelm_server.keys import KeyFile
from tests.server.commands import bytelm, one_line, output


@pytest.mark.parametrize("kind", ["greedy", "sample", "sessions"])
def test_bench_counts_what_it_measured(url: str, kind: str) -> None:
    before = {info.id for info in Client(url).sessions()}
    flags = ["--clients", "3", "--calls", "2", "--steps", "5", "--kind", kind, "--K", "2"]
    told = json.loads(output("bench", *flags, "--url", url))
    assert (told["kind"], told["clients"], told["calls"]) == (kind, 3, 6)
    assert 0 < told["bytes_per_second"] * told["seconds"] <= 6 * 5 + 1e-6
    assert told["evaluations_per_second"] > 0
    assert 0 < told["latency_median"] <= told["latency_p95"] <= told["latency_max"]
    assert {info.id for info in Client(url).sessions()} == before


def test_bench_without_a_server_is_one_line() -> None:
    line = one_line(bytelm("bench", "--url", "http://127.0.0.1:9"), 2)
    assert "is the server running" in line


def test_every_client_of_a_bench_has_its_own_prompt() -> None:
    assert len({prompt_of(i) for i in range(500)}) == 500


def test_doctor_finds_what_is_here(url: str) -> None:
    done = bytelm("doctor", "--json", BYTELM_URL=url)
    found = {row["what"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert found["Python"]["mark"] == "ok"
    assert found["vLLM"]["mark"] == "ok"
    assert found["server"]["found"].startswith(f"ready at {url}")
    bad = any(row["mark"] == "bad" for row in found.values())
    assert done.returncode == (1 if bad else 0)
    assert all(row["advice"] for row in found.values() if row["mark"] == "bad")


def test_doctor_tells_of_a_port_that_is_taken() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        text = output("doctor", "--port", str(port), BYTELM_URL="http://127.0.0.1:9").decode()
    assert f"port     {port}: Address already in use" in text
    assert "→ stop what uses it" in text
    assert "server   none at http://127.0.0.1:9" in text


def test_doctor_does_not_ask_to_stop_ones_own_server(url: str) -> None:
    port = url.rpartition(":")[2]
    text = output("doctor", "--port", port, BYTELM_URL=url).decode()
    assert f"✓ port     {port}: a bytelm server is there" in text
    assert "stop" not in text


def test_doctor_names_what_may_not_be_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def bind(self, address: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "socket", Refusing)
    assert checks._port(80).advice == "serve with a --port of 1024 or above"


def test_doctor_tells_of_an_address_that_is_none() -> None:
    text = output("doctor", BYTELM_URL="127.0.0.1:8000").decode()
    assert "'127.0.0.1:8000' is no address of a server" in text
    assert "→ set BYTELM_URL" in text


@pytest.mark.parametrize("arguments", ["sessions list", "sessions show", "bench"])
def test_commands_that_need_a_server_do_not_say_that_they_start_a_model(arguments: str) -> None:
    told = output(*arguments.split(), "--help").decode()
    assert "default: http://127.0.0.1:8000" in " ".join(told.split())
    assert "started here" not in told


def test_doctor_tells_of_a_server_that_wants_a_key(
    start_stub: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    _, secret = keys.create("Alice")
    url = start_stub("--set", f"keys_file={keys.path}")
    monkeypatch.setenv("BYTELM_URL", url)
    missing = checks._server()
    assert missing.found == f"ready at {url}, but the key is missing or wrong"
    assert missing.advice == "set BYTELM_API_KEY"
    monkeypatch.setenv("BYTELM_API_KEY", "wrong")
    assert checks._server() == missing
    monkeypatch.setenv("BYTELM_API_KEY", "schlüssel")
    assert checks._server().advice == "set BYTELM_API_KEY"
    monkeypatch.setenv("BYTELM_API_KEY", secret)
    assert checks._server().mark == "ok"


def test_doctor_looks_for_the_default_model(tmp_path: Path) -> None:
    text = output("doctor", BYTELM_CACHE=str(tmp_path)).decode()
    assert "the default model is not here yet" in text
    assert models.prepared(tmp_path) is None


def test_doctor_reads_what_a_cpu_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: x\nflags\t\t: fpu sse2\n")
    assert checks.cpu_flags(info) == {"fpu", "sse2"}
    assert checks.cpu_flags(tmp_path / "none") == set()
    monkeypatch.setattr(checks, "cpu_flags", lambda: {"sse2"})
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert checks._cpu(has_gpu=False).mark == "bad"
    assert checks._cpu(has_gpu=True).mark == "note"


def test_doctor_knows_what_breaks_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"torch": "2.13.0+cpu", "torchaudio": "2.13.0"}
    monkeypatch.setattr(checks, "installed", there.get)
    (finding,) = checks._packages()
    assert finding.mark == "bad"
    assert finding.advice.endswith("pip uninstall torchaudio")
    monkeypatch.setattr(checks, "installed", lambda name: None)
    assert list(checks._packages()) == []
    assert checks._vllm(has_gpu=False).advice.startswith("install bytelm[cpu]")
    assert checks._vllm(has_gpu=True).advice.startswith("install bytelm[cuda]")
