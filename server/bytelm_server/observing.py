"""Sees every request from its first line to the last byte of its answer: ids, counts, logs.

Must not know what requests are about.
"""

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bytelm_server import counting, logs
from bytelm_server.metrics import Metrics

_log = logging.getLogger("bytelm_server.requests")

HEADER = "X-Request-ID"
_GOOD_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class Observing:
    """ASGI middleware that gives each request an id, counts it and logs it.

    The id is the caller's own ``X-Request-ID``, if it is a plain word; it is in the answer and in
    every line that is logged for the request.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, watching its answer."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _GOOD_ID.fullmatch(given) else uuid.uuid4().hex
        lms: list[counting.CountingLM] = []
        status, is_open = 500, True
        began = time.perf_counter()

        def end() -> None:
            nonlocal is_open
            if is_open:
                self._count(scope, lms, status, time.perf_counter() - began)
            is_open = False

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            elif not message.get("more_body"):
                end()  # before the caller knows, so that the next request sees it counted
            await send(message)

        token, of_others = logs.request_id.set(request_id), counting.of_request.set(lms)
        try:
            with self._metrics.in_progress.track_inprogress():
                await self.app(scope, receive, noted)
        finally:
            end()
            counting.of_request.reset(of_others)
            logs.request_id.reset(token)

    def _count(
        self, scope: Scope, lms: list[counting.CountingLM], status: int, seconds: float
    ) -> None:
        route: Any = scope.get("route")
        # A route is found for methods that it does not have, too, and anybody may make those up.
        is_call = scope["method"] in (getattr(route, "methods", None) or ())
        call = f"{scope['method']} {route.path}" if is_call else "other"
        usage = counting.usage_of(*lms)
        self._metrics.requests.labels(call, str(status)).inc()
        self._metrics.seconds.labels(call).observe(seconds)
        self._metrics.bytes_in.inc(usage["bytes_in"])
        self._metrics.bytes_out.inc(usage["bytes_out"])
        if not _log.isEnabledFor(logging.INFO):
            return
        caller = scope.get("state", {}).get("caller")
        about = {
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 4),
            "client": (scope.get("client") or [None])[0],
            **({"key": caller.key_id} if caller and caller.key_id else {}),
            **{name: count for name, count in usage.items() if lms and count is not None},
        }
        _log.info("%s %s %d", scope["method"], scope["path"], status, extra=about)
