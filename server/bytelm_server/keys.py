"""API keys in a file, of which only their hashes are kept.

The command line writes the file, a server reads it, and reads it again when it has changed. Must
not know HTTP.
"""

import fcntl
import hashlib
import hmac
import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bytelm.errors import InputError

_log = logging.getLogger(__name__)

PREFIX = "bytelm_"


class KeyFileError(InputError):
    """The file of keys cannot be read or written, or a key is not in it."""


@dataclass(frozen=True)
class Key:
    """An API key, without the key itself.

    Attributes:
        id: names it, in lists and logs and wherever something belongs to it.
        name: whose it is, for people.
        sha256: of the whole key; 256 random bits need no slower hash.
        created: when, in UTC.
    """

    id: str
    name: str
    sha256: str
    created: str


class KeyFile:
    """The keys in a file; a file that does not exist has none.

    Args:
        path: where it is; a ``~`` at the beginning is the user's home.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()

    def load(self) -> list[Key]:
        """All keys, oldest first.

        Raises:
            KeyFileError: one line that says what is wrong with the file.
        """
        try:
            return [Key(**entry) for entry in json.loads(self.path.read_text())["keys"]]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise KeyFileError(f"cannot read the keys in {self.path}: {error.strerror}") from error
        except (ValueError, LookupError, TypeError) as error:
            raise KeyFileError(f"{self.path} is not a file of bytelm's API keys") from error

    def create(self, name: str) -> tuple[Key, str]:
        """Make a key.

        Returns:
            what is kept of it, and the key, which nobody can find out later.
        """
        secret = PREFIX + secrets.token_urlsafe(32)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        key = Key(f"key_{secrets.token_hex(6)}", name, _hash(secret), now)
        with self._changing() as keys:
            keys.append(key)
        return key, secret

    def revoke(self, key_id: str) -> Key:
        """Take a key out of the file; servers refuse it from then on.

        Raises:
            KeyFileError: when there is no such key.
        """
        with self._changing() as keys:
            for key in keys:
                if key.id == key_id:
                    keys.remove(key)
                    return key
        raise KeyFileError(f"there is no key {key_id!r}: bytelm keys list shows them")

    @contextmanager
    def _changing(self) -> Iterator[list[Key]]:
        """The list of keys, to change; nobody else changes it meanwhile."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self.path.with_name(self.path.name + ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                keys = self.load()
                yield keys
                self._save(keys)
        except OSError as error:
            raise KeyFileError(f"cannot write the keys to {self.path}: {error.strerror}") from error

    def _save(self, keys: list[Key]) -> None:
        text = json.dumps({"keys": [asdict(key) for key in keys]}, indent=2) + "\n"
        new = self.path.with_name(self.path.name + ".new")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)


class Keys:
    """The keys that a server knows, as the file has them now.

    Where there was a key once, calls need one: revoking the last one does not open the server.

    Args:
        path: the file; None for a server without keys.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else KeyFile(path)
        self._seen: tuple[int, ...] | None = None
        self._keys: list[Key] = []
        self._required = False
        if self._file is not None:
            self._seen = self._stamp()
            self._keys = self._file.load()
            self._required = bool(self._keys)

    @property
    def required(self) -> bool:
        """Whether calls need a key."""
        self._refresh()
        return self._required

    def __len__(self) -> int:
        self._refresh()
        return len(self._keys)

    def find(self, secret: str) -> Key | None:
        """The key, unless there is no such key (any more)."""
        self._refresh()
        wanted = _hash(secret)
        found = None
        # All of them, so that the time tells nothing.
        for key in self._keys:
            if hmac.compare_digest(key.sha256, wanted):
                found = key
        return found

    def _stamp(self) -> tuple[int, ...] | None:
        assert self._file is not None
        try:
            found = self._file.path.stat()
        except OSError:
            return None  # loading says why
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _refresh(self) -> None:
        if self._file is None or (stamp := self._stamp()) == self._seen:
            return
        self._seen = stamp
        try:
            self._keys = self._file.load()
        except KeyFileError as error:
            _log.error("the keys stay as they were: %s", error)
        self._required = self._required or bool(self._keys)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
