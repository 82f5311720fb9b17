"""What the HTTP proxies of Ray Serve do for bytelm, beside passing calls on.

Ray calls ``middlewares`` in every proxy, where the environment of ``ray start`` names it::

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=bytelm_server.on_ray.proxy:middlewares

A session's calls are marked with its id, by which Ray's ``ConsistentHashRouter`` finds the same
replica each time. Where a replica dies before it has answered, Ray gives no answer at all: the call
is sent to another one, if it may be sent twice, or answered with 502.

Must not know how replicas answer.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bytelm_server.errors import ErrorDetail, answer

SESSION_HEADER = "x-session-id"
"""Where Ray looks for the key of its routing (its ``RAY_SERVE_SESSION_ID_HEADER_KEY``)."""

MOST_KEPT_BYTES = 1 << 16
"""The largest body that is kept to send a call again."""

_SESSIONS = "/v1/sessions/"
STATELESS = {f"/v1/{call}" for call in ("next_bytes", "greedy", "sample", "score", "rows")}
STATELESS |= {"/v1/token_logprobs", "/v1/completions", "/v1/chat/completions"}
STATELESS |= {"/tokenize", "/detokenize"}
"""Calls that change nothing, though they have a body."""

_LOST = ErrorDetail(
    type="unavailable",
    message="the server ended before it had answered; a session's GET tells whether it moved on",
    param=None,
    code="replica_lost",
)
_NOT_HERE = ErrorDetail(
    type="not_found",
    message="every replica has metrics of its own, which are not behind this address",
    param=None,
    code="not_found",
)


def middlewares() -> list[Middleware]:
    """What a proxy puts around its own work."""
    return [Middleware(Gateway)]


class Gateway:
    """ASGI middleware around Ray's proxy, which is the application."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, and once more if nobody answered it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["path"] == "/metrics":
            return await answer(404, _NOT_HERE)(scope, receive, send)
        _mark(scope)
        request = _Request(receive)
        has_begun = False

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        # Ray itself leaves out replicas that are dead already, so a second attempt is enough; with
        # more, a call that kills its server would kill more of them.
        for _ in range(2 if may_be_sent_twice(scope) else 1):
            # Ray changes the scope on its way.
            await self.app({**scope}, request.from_the_beginning(), noted)
            if has_begun or not request.is_whole:
                break
        if not has_begun and not request.is_gone:
            return await answer(502, _LOST)(scope, receive, send)
        return None


def may_be_sent_twice(scope: Scope) -> bool:
    """Whether a call that a server has begun may be begun by another one: it changes nothing, or
    carries the key by which the second is known.
    """
    return (
        scope["method"] in ("GET", "HEAD")
        or scope["path"] in STATELESS
        or "idempotency-key" in Headers(scope=scope)
    )


def session_of(path: str) -> str | None:
    """The id of the session that a call is for; None if it is for none."""
    if not path.startswith(_SESSIONS):
        return None
    return path.removeprefix(_SESSIONS).partition("/")[0] or None


def _mark(scope: Scope) -> None:
    """Put the session's id where Ray looks for it; what a client put there does not count."""
    scope["headers"] = list(scope["headers"])
    headers = MutableHeaders(scope=scope)
    for name in (SESSION_HEADER, SESSION_HEADER.replace("-", "_")):
        del headers[name]
    if (session := session_of(scope["path"])) is not None:
        headers[SESSION_HEADER] = session


class _Request:
    """What a client sends, kept so that it can be read again.

    Attributes:
        is_whole: whether all of it was kept.
        is_gone: whether the client has left.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept: list[Message] = []
        self._bytes = 0
        self.is_whole = True
        self.is_gone = False

    def from_the_beginning(self) -> Receive:
        """Reads what was kept, then what comes."""
        place = 0

        async def receive() -> Message:
            nonlocal place
            if place < len(self._kept):
                place += 1
                return self._kept[place - 1]
            message = await self._receive()
            self._keep(message)
            place = len(self._kept)
            return message

        return receive

    def _keep(self, message: Message) -> None:
        self.is_gone = self.is_gone or message["type"] == "http.disconnect"
        self._bytes += len(message.get("body", b""))
        self.is_whole = not self.is_gone and self._bytes <= MOST_KEPT_BYTES
        if self.is_whole:
            self._kept.append(message)
        else:
            self._kept.clear()
