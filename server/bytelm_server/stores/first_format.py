"""What stores of the first format kept, in the words of this one.

They kept the answer to a record's last change with the record, and others by a name that did not
tell which record they were about.
"""

import hashlib

import orjson


def reply_of(owner: str, session_id: str, kept: bytes) -> tuple[str, bytes]:
    """The name and the body of the reply that was kept with a record."""
    reply = orjson.loads(kept)
    name = hashlib.sha256(orjson.dumps([owner, session_id, reply.pop("key")])).hexdigest()
    return name, orjson.dumps(reply)
