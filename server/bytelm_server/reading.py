"""How a call's body is read: JSON by orjson, held against what calls may have before it is checked.

orjson refuses what is no JSON (NaN, lone surrogates).
"""

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from bytelm import pace
from bytelm_server.backend import Backend
from bytelm_server.limits import Limits
from bytelm_server.shapes import check_counts, check_parts


class _JsonRequest(Request):
    """A request whose body is kept once: as what it says."""

    _said: bytes = b""

    async def read(self) -> None:
        """Read the body, and hold it against what calls may have; LimitExceeded."""
        self._said = await super().body()
        backend: Backend = self.app.state.backend
        limits = Limits(backend.settings)
        await pace.turn()
        check_counts(self._said)
        await pace.turn()
        try:
            data = orjson.loads(self._said)
        except orjson.JSONDecodeError:
            return  # ``json`` tells
        check_parts(data, limits.longest_text)
        limits.check_lists(data)
        self._said = self._said and b"read"
        self._body = b""
        self._json = data
        await pace.turn()

    async def body(self) -> bytes:
        """Whether there is one; what it says is in ``json``."""
        return self._said

    async def json(self) -> Any:
        """What it says."""
        return self._json if hasattr(self, "_json") else orjson.loads(self._said)


class JsonRoute(APIRoute):
    """A route whose body is JSON, says so, and is read by orjson."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given a request that was read."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            if self.body_field is None:
                return await handle(request)
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                # A web page can send other types to a local server without asking it first.
                raise HTTPException(
                    415, "send the body with the header content-type: application/json"
                )
            read = _JsonRequest(request.scope, request.receive)
            await read.read()
            return await handle(read)

        return handle_json
