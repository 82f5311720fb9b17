"""The store that the settings name."""

from bytelm.settings import ServerSettings
from bytelm_server.stores import SessionStore
from bytelm_server.stores.memory import MemoryStore


def store_of(settings: ServerSettings) -> SessionStore:
    """The store for a server; it is opened when the server starts."""
    return MemoryStore(settings.max_sessions)
