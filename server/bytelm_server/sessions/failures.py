"""What calls of sessions fail with, beside what all calls fail with."""

from bytelm_server.errors import CallError


class NoSuchSession(CallError):
    """There is none by this id, or it is another caller's."""

    status, type, code = 404, "not_found", "session_not_found"


class SessionExpired(CallError):
    """Nobody used it for too long."""

    status, type, code = 410, "expired", "session_expired"


class VersionConflict(CallError):
    """The session has another version than the call goes out from."""

    status, type, code = 409, "conflict", "version_conflict"


class KeyConflict(CallError):
    """The idempotency key was used for another call."""

    status, type, code = 409, "conflict", "idempotency_conflict"


class OtherModel(CallError):
    """The session was made on a model that this server does not run."""

    status, type, code = 409, "conflict", "model_changed"


class StoreFull(CallError):
    """There is no room for another session, or for more of one."""

    status, type, code = 507, "insufficient_storage", "store_full"
