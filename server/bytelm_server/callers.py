"""Who makes a call. Must not know what the call is."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request


@dataclass(frozen=True)
class Caller:
    """Whoever holds an API key; everybody, where the server has no keys.

    Attributes:
        key_id: names the key; empty where there are none. Sessions belong to it.
        cache_salt: cached work is shared with callers of the same salt only.
        network: where the call comes from; empty for this machine.
    """

    key_id: str = ""
    cache_salt: str | None = None
    network: str = ""

    @property
    def party(self) -> str:
        """Whose calls take turns together, and in turn with those of others."""
        return self.key_id or self.network


async def caller(request: Request) -> Caller:
    """Who makes this call, as the doors found out."""
    found: Caller = request.state.caller
    return found


Calling = Annotated[Caller, Depends(caller)]
"""A route's parameter: who makes the call."""
