"""The store that the settings name."""

import itertools
from pathlib import Path

from bytelm.settings import Paths, ServerSettings
from bytelm_server.stores import SessionStore
from bytelm_server.stores.memory import MemoryStore


def store_of(settings: ServerSettings) -> SessionStore:
    """The store for a server, reserved for it; it is opened when the server starts.

    Raises:
        InputError: one line that says why it cannot be used.
    """
    name = settings.session_store
    if name == "memory":
        return MemoryStore(settings.max_sessions)
    if name.startswith(("redis://", "rediss://", "unix://")):
        from bytelm_server.stores.redis import RedisStore

        return RedisStore(name, settings.max_sessions)
    if name != "sqlite":
        return _sqlite(Path(name).expanduser(), settings)
    folder = Paths().state_dir
    if settings.port:
        return _sqlite(folder / f"sessions-{settings.port}.sqlite", settings)
    # Whoever takes any free port does not expect to find its sessions again.
    from bytelm_server.stores.sqlite import StoreInUse

    for n in itertools.count():
        try:
            return _sqlite(folder / f"sessions-any-port-{n}.sqlite", settings)
        except StoreInUse:
            continue
    raise AssertionError("there is always another file")


def _sqlite(path: Path, settings: ServerSettings) -> SessionStore:
    from bytelm_server.stores.sqlite import SqliteStore

    return SqliteStore(
        path,
        settings.max_sessions,
        fsync=settings.session_fsync,
        most_bytes=settings.max_session_store_bytes,
    )
