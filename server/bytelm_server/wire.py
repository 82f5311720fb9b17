"""Bodies on the wire: JSON in and out by orjson, and the limit of their size.

orjson refuses what is no JSON (NaN, lone surrogates) and writes −inf as null, as the API wants.
"""

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class JsonResponse(Response):
    """A body made of dicts, lists, numbers, text and numpy arrays."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """``content`` as JSON; numbers that are not finite become null."""
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


class _JsonRequest(Request):
    async def json(self) -> Any:
        return orjson.loads(await self.body())


class JsonRoute(APIRoute):
    """A route whose body is JSON, says so, and is read by orjson."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given a request that reads its body by orjson."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if self.body_field is not None and kind != "application/json":
                # A web page can send other types to a local server without asking it first.
                raise HTTPException(
                    415, "send the body with the header content-type: application/json"
                )
            return await handle(_JsonRequest(request.scope, request.receive))

        return handle_json


class BodyLimit:
    """ASGI middleware that refuses bodies of more than ``limit`` bytes, announced or streamed."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, counting what it reads."""
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise HTTPException(413, f"the body has more than {self.limit} bytes")
            return message

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        return await self.app(scope, counted, send)
