"""Bodies on the wire: JSON in and out by orjson, and the limit of their size.

orjson refuses what is no JSON (NaN, lone surrogates) and writes −inf as null, as the API wants.
"""

import asyncio
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
    """ASGI middleware that refuses bodies that are too large or come too slowly.

    Args:
        app: where calls go.
        limit: the most bytes of a body, announced or streamed.
        seconds: how long a body may take.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self.app = app
        self.limit = limit
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, counting what it reads."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        seen = 0
        deadline: float | None = asyncio.get_running_loop().time() + self.seconds

        async def counted() -> Message:
            nonlocal seen, deadline
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408, f"the body did not come within {self.seconds:g} seconds"
                ) from None
            if not message.get("more_body"):
                deadline = None  # what comes now is that the client leaves
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise HTTPException(413, f"the body has more than {self.limit} bytes")
            return message

        return await self.app(scope, counted, send)
