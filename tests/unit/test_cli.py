"""The command line as users meet it: as its own process."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from bytelm.settings import EngineSettings, ServerSettings


def bytelm(
    *arguments: str, stdout: Any = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bytelm_client", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "HOME": "/nonexistent",
            "COLUMNS": "200",
            **environment,
        },
    )


def one_line(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The only line of a command that failed in order."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def one_line_of(text: str) -> str:
    """The only line of a text."""
    (line,) = text.splitlines()
    return line


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def test_version() -> None:
    assert bytelm("--version").stdout == f"bytelm {version('bytelm')}\n"


def test_help_lists_the_commands() -> None:
    assert "serve" in bytelm("--help").stdout


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, bytelm_client.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numba', 'numpy', 'vllm', 'transformers', 'fastapi', 'httpx'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_every_setting_is_a_flag_with_an_explanation() -> None:
    text = bytelm("serve", "--help").stdout
    for settings in (ServerSettings, EngineSettings):
        for name, field in settings.model_fields.items():
            assert f"--{name.replace('_', '-')}" in text
            assert (field.description or "").split()[0] in text


def test_port_in_use_is_one_line(taken: int) -> None:
    line = one_line(bytelm("serve", "--port", str(taken)))
    assert f"port {taken}" in line
    assert "in use" in line


def test_what_is_on_can_be_turned_off(taken: int) -> None:
    kinds = (ServerSettings, EngineSettings)
    fields = [item for kind in kinds for item in kind.model_fields.items()]
    flags = [f"--no-{name.replace('_', '-')}" for name, field in fields if field.default is True]
    assert "--no-default-keep-canonical" in flags
    assert "in use" in one_line(bytelm("serve", *flags, "--port", str(taken)))


def test_the_port_can_come_from_the_environment(taken: int) -> None:
    assert "in use" in one_line(bytelm("serve", BYTELM_PORT=str(taken)))


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_are_refused_without_keys(host: str) -> None:
    assert "--allow-remote" in one_line(bytelm("serve", "--host", host, "--port", "0"))


def test_a_host_that_is_none() -> None:
    assert "not an address" in one_line(bytelm("serve", "--host", "no such host", "--port", "0"))


def test_a_model_that_does_not_exist_is_one_line() -> None:
    done = bytelm("serve", "--model", "/no/such/model", "--port", "0")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "bytelm: error: the model folder /no/such/model does not exist"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--max-K", "many"), ("--max-steps", "0"), ("--default-prune-threshold", "1")],
)
def test_a_wrong_setting_names_its_flag(flag: str, value: str) -> None:
    assert flag in one_line(bytelm("serve", flag, value, "--port", "0"))


@pytest.mark.parametrize(
    ("variable", "command"),
    [
        ("BYTELM_PORT", ["doctor"]),
        ("BYTELM_PORT", ["keys", "list"]),
        ("BYTELM_PORT", ["keys", "create", "Alice"]),
        ("BYTELM_PORT", ["greedy", "x"]),
        ("BYTELM_PORT", ["serve"]),
        ("BYTELM_ENGINE_MAX_NUM_SEQS", ["greedy", "x"]),
        ("BYTELM_ENGINE_KV_CACHE_MEMORY_BYTES", ["doctor"]),
    ],
)
def test_a_wrong_setting_names_its_variable(variable: str, command: list[str]) -> None:
    line = one_line(bytelm(*command, **{variable: "abc"}))
    assert line.startswith(f"bytelm: error: {variable}: ")


def test_a_port_that_there_is_not() -> None:
    done = bytelm("doctor", "--port", "70000")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Invalid value for '--port'" in done.stderr


def test_a_wrong_flag_is_no_traceback() -> None:
    done = bytelm("serve", "--colour", "red")
    assert done.returncode == 2
    assert "--colour" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flag", "arguments"),
    [
        ("--temperature", ["sample", "x", "--temperature", "nan"]),
        ("--top-p", ["sample", "x", "--top-p", "inf"]),
        ("--min-p", ["sample", "x", "--min-p", "nan"]),
        ("--prune-threshold", ["next", "x", "--prune-threshold", "nan"]),
        ("--evaluations-per-byte", ["size", "8b", "--evaluations-per-byte", "inf"]),
    ],
)
def test_a_number_that_is_none_is_refused_at_once(flag: str, arguments: list[str]) -> None:
    done = bytelm(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"Invalid value for '{flag}'" in done.stderr
    assert "is no finite number" in done.stderr


@pytest.mark.parametrize("command", [["next", "x"], ["bench"]])
def test_a_width_that_is_none_is_one_line(command: list[str]) -> None:
    assert "--K is a number or none" in one_line(bytelm(*command, "--K", "²"))


def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    where = {"BYTELM_KEYS_FILE": str(tmp_path / "keys.json")}
    assert "no keys" in bytelm("keys", "list", **where).stdout
    made = bytelm("keys", "create", "Alice", **where)
    assert made.returncode == 0
    secret = made.stdout.strip()
    assert len(secret) > 40
    (key_id,) = re.findall(r"key_[0-9a-f]+", made.stderr)
    listed = bytelm("keys", "list", **where).stdout
    assert key_id in listed
    assert "Alice" in listed
    assert secret not in listed
    assert bytelm("keys", "revoke", key_id, **where).returncode == 0
    assert "no keys" in bytelm("keys", "list", **where).stdout
    assert key_id in one_line(bytelm("keys", "revoke", key_id, **where))


@pytest.mark.parametrize(
    "command",
    ["size 8b", "size 8b --json", "doctor", "doctor --json", "keys list", "--help", "--version"],
)
def test_a_reader_that_has_left_is_no_error(command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = bytelm(*command.split(), stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    "command",
    ["size 8b", "size 8b --json", "doctor", "keys list", "--help", "size --help", "--version"],
)
def test_an_output_that_is_full_is_one_line(command: str) -> None:
    with open("/dev/full", "wb") as full:
        done = bytelm(*command.split(), stdout=full)
    assert (done.returncode, done.stderr) == (
        2,
        "bytelm: error: the output cannot be written: No space left on device\n",
    )


def test_an_output_that_was_closed_is_one_line() -> None:
    shell = f"exec {sys.executable} -m bytelm_client size 8b --json >&-"
    done = subprocess.run(["sh", "-c", shell], stderr=subprocess.PIPE, text=True, timeout=120)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, "cannot be written" in line) == (2, True)


def test_a_stdin_that_was_closed_is_empty() -> None:
    shell = f"exec {sys.executable} -m bytelm_client greedy --url http://127.0.0.1:9 <&-"
    done = subprocess.run(["sh", "-c", shell], stderr=subprocess.PIPE, text=True, timeout=120)
    assert "is the server running" in one_line_of(done.stderr)


def test_an_encoding_without_the_characters_gets_escapes(tmp_path: Path) -> None:
    where = {"BYTELM_KEYS_FILE": str(tmp_path / "keys.json"), "PYTHONIOENCODING": "ascii"}
    assert bytelm("keys", "create", "Zoë", **where).returncode == 0
    assert "Zo\\xeb" in bytelm("keys", "list", **where).stdout


@pytest.mark.parametrize("name", ["\udcff", "a\nb", "\x1b[2J", "", "  "])
def test_a_keys_name_is_one_line_of_text(tmp_path: Path, name: str) -> None:
    where = {"BYTELM_KEYS_FILE": str(tmp_path / "keys.json")}
    assert "name is one line of text" in one_line(bytelm("keys", "create", name, **where))
    assert not (tmp_path / "keys.json").exists()


def test_names_of_keys_that_are_no_text_are_listed_as_escapes(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    assert bytelm("keys", "create", "name", "--keys-file", str(path)).returncode == 0
    path.write_text(path.read_text().replace('"name": "name"', '"name": "\\udcff\\u001b[2J"'))
    done = bytelm("keys", "list", "--keys-file", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\udcff\\x1b[2J" in done.stdout
    key_id = done.stdout.splitlines()[1].split()[0]
    done = bytelm("keys", "revoke", key_id, "--keys-file", str(path))
    assert "\\udcff\\x1b[2J" in done.stdout


def test_a_key_that_nobody_saw_is_not_kept(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.json")
    with open("/dev/full", "wb") as full:
        done = bytelm("keys", "create", "Alice", "--keys-file", path, stdout=full)
    assert done.returncode == 2
    assert "no keys" in bytelm("keys", "list", "--keys-file", path).stdout


def test_long_names_of_keys_leave_the_ids_whole(tmp_path: Path) -> None:
    where = {"BYTELM_KEYS_FILE": str(tmp_path / "keys.json"), "COLUMNS": "60"}
    assert bytelm("keys", "create", "many words " * 20, **where).returncode == 0
    (row,) = bytelm("keys", "list", **where).stdout.splitlines()[1:]
    assert re.fullmatch(r"key_\w{12} +(many words ){20} *\S{25}", row.strip())


def test_a_file_of_keys_that_is_none_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text("nonsense")
    for command in (["keys", "list"], ["serve", "--port", "0"]):
        assert str(path) in one_line(bytelm(*command, "--keys-file", str(path)))


def test_with_keys_other_machines_may_call(tmp_path: Path, taken: int) -> None:
    path = str(tmp_path / "keys.json")
    assert bytelm("keys", "create", "Alice", "--keys-file", path).returncode == 0
    done = bytelm("serve", "--host", "0.0.0.0", "--port", str(taken), "--keys-file", path)
    assert "in use" in one_line(done)


def test_size_shows_models_side_by_side() -> None:
    done = bytelm("size", "1b", "8B", "--gpu", "a100-80")
    assert done.returncode == 0, done.stderr
    first, names, *rows = done.stdout.splitlines()
    assert first == "On NVIDIA A100 SXM 80 GB:"
    assert names.split() == ["Llama-3.2-1B", "Llama-3.1-8B"]
    (weights,) = [row for row in rows if row.startswith("weights")]
    assert weights.split()[1:6] == ["2.47", "GB", "16.1", "GB", "computed"]


def test_size_of_a_folder_as_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,'
        ' "intermediate_size": 128, "vocab_size": 1000, "tie_word_embeddings": true}'
    )
    done = bytelm("size", str(tmp_path), "--context", "100", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["model"] == tmp_path.name
    found = {figure["name"]: figure for figure in told["figures"]}
    assert found["KV of a token"]["value"] == 2 * 2 * 64 * 2
    assert set(found["weights"]) == {"about", "name", "value", "unit", "kind", "how"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["8b", "--gpu", "abacus"], "abacus"),
        (["8b", "--dtype", "int1"], "int1"),
        (["70b", "--gpus", "1"], "do not fit"),
        (["/no/such/model"], "does not exist"),
        (["8bb"], "'8bb' is none of 135m, 1b, 8b, 70b: did you mean 8b?"),
        (["70", "--json"], "did you mean 70b?"),
        (["7B"], "'7B' is none of 135m, 1b, 8b, 70b. Models of the hub are named owner/name"),
    ],
)
def test_size_says_what_is_wrong(arguments: list[str], said: str) -> None:
    assert said in one_line(bytelm("size", *arguments))


def test_size_needs_nothing_heavy() -> None:
    script = (
        "import sys, bytelm_client.cli as cli\n"
        "try: cli.main(['size', '8b', '--json'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'vllm', 'transformers', 'fastapi', 'httpx'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"
