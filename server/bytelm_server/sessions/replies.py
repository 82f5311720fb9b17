"""Retries: the answers that are kept, and told again to the same call with the same key.

Must not know what the calls are.
"""

import hashlib
from typing import Any

import orjson

from bytelm_server.contexts import Body
from bytelm_server.sessions.failures import KeyConflict
from bytelm_server.stores import Reply

Answer = dict[str, Any]
"""An answer's body."""


def digest(name: str, call: Body) -> str:
    """Tells calls with the same key apart."""
    said = call.model_dump(exclude_unset=True)
    data = orjson.dumps(
        [name, said],
        default=lambda value: value.hex() if isinstance(value, bytes) else repr(value),
        option=orjson.OPT_SORT_KEYS,
    )
    return hashlib.sha256(data).hexdigest()


def reply_name(key_id: str, about: str, key: str | None) -> str | None:
    """Tells kept answers apart: by caller, what they are about, and key; None without a key."""
    if key is None:
        return None
    return hashlib.sha256(orjson.dumps([key_id, about, key])).hexdigest()


def kept_reply(key: str, request: str, answer: Answer) -> bytes:
    """An answer as it is kept with a session."""
    return orjson.dumps({"key": key, "request": request, "answer": answer})


def reply_of(name: str | None, expires_at: float, request: str, answer: Answer) -> Reply | None:
    """An answer as it is kept by name; None without a name."""
    if name is None:
        return None
    return Reply(name, expires_at, orjson.dumps({"request": request, "answer": answer}))


def same_call(reply: bytes, request: str) -> Answer:
    """The answer of a kept reply, if it answers this call; else KeyConflict."""
    kept: Answer = orjson.loads(reply)
    if kept["request"] != request:
        raise _used_key()
    answer: Answer = kept["answer"]
    return answer


def replayed(reply: bytes | None, key: str | None, request: str) -> Answer | None:
    """The answer that is kept with a session, if this call is the one that it answers."""
    if reply is None or key is None or orjson.loads(reply)["key"] != key:
        return None
    return same_call(reply, request)


def refuse_used_key(reply: bytes | None, key: str | None) -> None:
    """KeyConflict if a session's last change had this key."""
    if reply is not None and key is not None and orjson.loads(reply)["key"] == key:
        raise _used_key()


def _used_key() -> KeyConflict:
    return KeyConflict(
        "this key was used for another call: give each call a key of its own", "Idempotency-Key"
    )
