"""Calls that are made once: their answers are kept, and told again to the same call and key.

Must not know what the calls are.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson

from bytelm_server.contexts import Body
from bytelm_server.sessions.failures import KeyConflict
from bytelm_server.stores import Reply

Answer = dict[str, Any]
"""An answer's body."""

Key = str | tuple[str, int]
"""What a caller names a call with; or names a batch with, and the call's place in it."""


@dataclass(frozen=True)
class Once:
    """A call that has a key.

    Attributes:
        about: the session that it is made on; else its own name.
        name: tells it apart from all calls of all callers.
        request: tells it apart from other calls with the same key.
    """

    about: str
    name: str
    request: str

    @classmethod
    def of(
        cls, caller: str, key: Key | None, what: str, call: Body, session_id: str | None = None
    ) -> "Once | None":
        """The call ``what`` of a caller; None without a key."""
        if key is None:
            return None
        named = orjson.dumps([caller, session_id or what, key])
        name = hashlib.sha256(named).hexdigest()
        return cls(session_id or name, name, digest(what, call))

    def reply(self, answer: Answer, expires_at: float) -> Reply:
        """Its answer, to be kept."""
        kept = {"request": self.request, "answer": answer}
        body = orjson.dumps(kept, option=orjson.OPT_SERIALIZE_NUMPY)
        return Reply(self.about, self.name, expires_at, body)

    def answer(self, reply: bytes) -> Answer:
        """Its answer, as it was kept.

        Raises:
            KeyConflict: it is the answer to another call.
        """
        kept: Answer = orjson.loads(reply)
        if kept["request"] != self.request:
            raise KeyConflict(
                "this key was used for another call: give each call a key of its own",
                "Idempotency-Key",
            )
        answer: Answer = kept["answer"]
        return answer


def digest(name: str, call: Body) -> str:
    """Tells calls with the same key apart."""
    said = call.model_dump(exclude_unset=True)
    data = orjson.dumps(
        [name, said],
        default=lambda value: value.hex() if isinstance(value, bytes) else repr(value),
        option=orjson.OPT_SORT_KEYS,
    )
    return hashlib.sha256(data).hexdigest()
