"""What Ray's proxies do around their own work; a function stands for that work."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from bytelm_server.on_ray.proxy import MOST_KEPT_BYTES, Gateway, middlewares, session_of


class Ray:
    """Passes calls on to replicas, some of which die before they have answered."""

    def __init__(self, deaths: int = 0, dies_after: int = 1 << 30) -> None:
        self.deaths = deaths
        self.dies_after = dies_after
        self.bodies: list[bytes] = []
        self.headers: list[dict[bytes, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers.append(dict(scope["headers"]))
        # As Ray does for its applications' prefixes.
        scope["path"] = scope["root_path"] = "/changed"
        body, more = b"", True
        dies = len(self.bodies) < self.deaths
        while more and not (dies and len(body) >= self.dies_after):
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message.get("more_body", False)
        self.bodies.append(body)
        if dies:
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


def client(ray: Callable[..., Awaitable[None]]) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=Gateway(ray))
    return httpx.AsyncClient(transport=transport, base_url="http://gateway")


KEY = {"Idempotency-Key": "a"}


@pytest.mark.parametrize(
    ("path", "session"),
    [
        ("/v1/sessions/ses_1/advance", "ses_1"),
        ("/v1/sessions/ses_1", "ses_1"),
        ("/v1/sessions/", None),
        ("/v1/sessions", None),
        ("/v1/sessions:batch", None),
        ("/v1/greedy", None),
    ],
)
async def test_a_call_is_marked_with_its_session_alone(path: str, session: str | None) -> None:
    ray = Ray()
    forged = {"x-session-id": "mine", "x_session_id": "mine"}
    async with client(ray) as http:
        await http.post(path, headers=forged)
    assert session_of(path) == session
    want = {} if session is None else {b"x-session-id": session.encode()}
    assert {k: v for k, v in ray.headers[0].items() if b"session" in k} == want


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/v1/sessions/ses_1/advance", KEY),
        ("POST", "/v1/greedy", {}),
        ("GET", "/v1/sessions/ses_1/next", {}),
    ],
)
async def test_what_may_be_sent_twice_is_sent_again_whole(
    method: str, path: str, headers: dict[str, str]
) -> None:
    ray = Ray(deaths=1, dies_after=3)

    async def pieces() -> Any:
        yield b"one"
        yield b"two"

    async with client(ray) as http:
        answer = await http.request(method, path, headers=headers, content=pieces())
        assert answer.status_code == 200
        assert answer.content == b"onetwo"
    assert ray.bodies == [b"one", b"onetwo"]
    assert ray.headers[0] == ray.headers[1]


async def test_what_may_have_changed_something_is_not_sent_again() -> None:
    ray = Ray(deaths=1)
    async with client(ray) as http:
        answer = await http.post("/v1/sessions/ses_1/advance", content=b"{}")
        assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "replica_lost"
    assert len(ray.bodies) == 1


async def test_a_call_that_ends_two_servers_is_given_up() -> None:
    ray = Ray(deaths=9)
    async with client(ray) as http:
        assert (await http.post("/v1/greedy", content=b"{}")).status_code == 502
    assert len(ray.bodies) == 2


@pytest.mark.parametrize(("size", "attempts"), [(MOST_KEPT_BYTES, 2), (MOST_KEPT_BYTES + 1, 1)])
async def test_a_large_body_is_passed_on_and_not_kept(size: int, attempts: int) -> None:
    ray = Ray(deaths=9)
    async with client(ray) as http:
        assert (await http.post("/v1/greedy", content=b"x" * size)).status_code == 502
    assert [len(body) for body in ray.bodies] == [size] * attempts


async def test_nobody_is_answered_who_has_left() -> None:
    ray = Ray()
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": []}
    await Gateway(ray)(scope, receive, send)
    assert (sent, len(ray.headers)) == ([], 1)


async def test_an_answer_that_breaks_off_is_left_broken() -> None:
    calls = 0

    async def ray(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal calls
        calls += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": []}
    await Gateway(ray)(scope, receive, send)
    assert calls == 1
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


async def test_metrics_are_not_here() -> None:
    ray = Ray()
    async with client(ray) as http:
        assert (await http.get("/metrics")).status_code == 404
    assert ray.headers == []


async def test_ray_is_given_the_gateway() -> None:
    ray = Ray()
    (middleware,) = middlewares()
    app = middleware.cls(ray, *middleware.args, **middleware.kwargs)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://a") as http:
        await http.get("/v1/sessions/ses_1")
    assert ray.headers[0][b"x-session-id"] == b"ses_1"
