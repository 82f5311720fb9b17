"""The file of API keys, and what a server makes of it."""

import json
import logging
import stat
from pathlib import Path

import pytest

from bytelm_server.keys import KeyFile, KeyFileError, Keys


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "keys.json"


def test_a_key_is_kept_by_its_hash_alone(path: Path) -> None:
    key, secret = KeyFile(path).create("Alice")
    assert KeyFile(path).load() == [key]
    assert key.name == "Alice"
    text = path.read_text()
    assert secret not in text
    assert secret.removeprefix("bytelm_") not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = Keys(path).find(secret)
    assert found == key


def test_no_two_keys_are_equal(path: Path) -> None:
    made = [KeyFile(path).create("Alice") for _ in range(3)]
    assert len({key.id for key, _ in made}) == len({secret for _, secret in made}) == 3
    assert [key for key, _ in made] == KeyFile(path).load()
    keys = Keys(path)
    assert [keys.find(secret) for _, secret in made] == [key for key, _ in made]


@pytest.mark.parametrize("wrong", ["", "bytelm_", "bytelm_x", "é", " "])
def test_what_is_no_key(path: Path, wrong: str) -> None:
    key, secret = KeyFile(path).create("Alice")
    keys = Keys(path)
    for guess in (wrong, secret + "x", secret[:-1], key.sha256, key.id):
        assert keys.find(guess) is None


def test_without_a_file_no_key_is_required(path: Path) -> None:
    assert not Keys(path).required
    assert not Keys(None).required
    assert Keys(path).find("bytelm_x") is None


def test_changes_of_the_file_count_at_once(path: Path) -> None:
    keys = Keys(path)
    first, secret = KeyFile(path).create("Alice")
    assert keys.required
    assert keys.find(secret) == first
    second, other = KeyFile(path).create("Bob")
    assert keys.find(other) == second
    KeyFile(path).revoke(first.id)
    assert keys.find(secret) is None
    assert keys.find(other) == second


def test_revoking_the_last_key_does_not_open_the_server(path: Path) -> None:
    key, secret = KeyFile(path).create("Alice")
    keys = Keys(path)
    KeyFile(path).revoke(key.id)
    assert keys.required
    assert keys.find(secret) is None
    path.unlink()
    assert keys.required


def test_a_key_that_is_not_there_cannot_be_revoked(path: Path) -> None:
    KeyFile(path).create("Alice")
    with pytest.raises(KeyFileError, match="key_0"):
        KeyFile(path).revoke("key_0")
    assert len(KeyFile(path).load()) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"keys": [1]}', '{"keys": [{"id": "a"}]}'])
def test_a_file_of_something_else_is_no_file_of_keys(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(KeyFileError, match=r"keys\.json is not a file of"):
        Keys(path)
    with pytest.raises(KeyFileError):
        KeyFile(path).create("Alice")
    assert path.read_text() == text


def test_a_file_that_breaks_while_the_server_runs_changes_nothing(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key, secret = KeyFile(path).create("Alice")
    keys = Keys(path)
    with caplog.at_level(logging.ERROR):
        path.write_text("{")
        assert keys.find(secret) == key
    assert "stay as they were" in caplog.text


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyFileError, match="cannot write the keys"):
        KeyFile(tmp_path / "file" / "keys.json").create("Alice")


def test_the_file_is_json_that_people_can_read(path: Path) -> None:
    KeyFile(path).create("Alice")
    (entry,) = json.loads(path.read_text())["keys"]
    assert set(entry) == {"id", "name", "sha256", "created"}
