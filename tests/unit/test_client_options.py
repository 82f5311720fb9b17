"""What clients can be told beside what to compute; no server."""

import asyncio
import contextlib
import gc
import logging
import socket
import warnings
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import bytelm_client as api
from bytelm_client import AsyncClient, CannotConnect, Client, NotReady, RemoteTokenLM, TimedOut

SESSION = {
    "id": "a/b?c",
    "kind": "byte",
    "version": 1,
    "length": 3,
    "at_limit": False,
    "n_calls": 0,
    "expires_at": 0.0,
}


class Sent(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Notes requests, and answers all with a session."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = {"results": [], "data": [], "next": None, "tokens": [], **SESSION}
        return httpx.Response(200, json=answer)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)

    @property
    def waits(self) -> Any:
        """How long the last request is waited for."""
        return self.requests[-1].extensions["timeout"]["read"]


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def client(sent: Sent) -> Client:
    return Client("http://nowhere", http=httpx.Client(transport=sent, timeout=1), timeout=77)


CALLS: list[Callable[..., Any]] = [
    lambda c, **o: c.health(**o),
    lambda c, **o: c.models(**o),
    lambda c, **o: c.call("/v1/greedy", {}, **o),
    lambda c, **o: c.next_bytes(["a"], **o),
    lambda c, **o: c.greedy(["a"], 3, **o),
    lambda c, **o: c.sample(["a"], 3, **o),
    lambda c, **o: c.score("a", ["b"], **o),
    lambda c, **o: c.session("a", **o),
    lambda c, **o: c.resume("a", **o),
    lambda c, **o: list(c.sessions(**o)),
    lambda c, **o: c.batch([], **o),
    lambda c, **o: c.stream_greedy("a", 3, **o).close() or next(c.stream_sample("a", 3, **o)),
    lambda c, **o: c.session("a").refresh(**o),
    lambda c, **o: c.session("a").advance("b", **o),
    lambda c, **o: c.session("a").prefill("b", **o),
    lambda c, **o: c.session("a").fork("b", **o),
    lambda c, **o: c.session("a").next(**o),
    lambda c, **o: c.session("a").candidates(**o),
    lambda c, **o: c.session("a").greedy(3, **o),
    lambda c, **o: c.session("a").sample(3, **o),
    lambda c, **o: c.session("a").score("b", **o),
    lambda c, **o: c.session("a").delete(**o),
    lambda c, **o: next(c.session("a").stream_greedy(3, **o)),
]


@pytest.mark.parametrize("call", CALLS)
def test_every_call_takes_a_timeout(client: Client, sent: Sent, call: Callable[..., Any]) -> None:
    for options, waits in (({}, 77), ({"timeout": 2.5}, 2.5), ({"timeout": None}, None)):
        # What it is answered with does not matter here.
        with contextlib.suppress(api.BadAnswer, api.ConnectionLost):
            call(client, **options)
        assert sent.waits == waits
        assert b"timeout" not in sent.requests[-1].content
    for wrong in (0, -1, "5"):
        with pytest.raises(ValueError, match="a timeout is a number of seconds above 0"):
            call(client, timeout=wrong)


def test_a_misspelt_option_is_refused_where_there_are_no_others(client: Client) -> None:
    for call in (client.session("a").advance, client.resume, client.session("a").fork):
        with pytest.raises(TypeError, match="no option 'tiemout'"):
            call("a", tiemout=3)  # type: ignore[call-arg]


def test_a_batch_has_one_timeout(client: Client) -> None:
    session = client.session("a")
    with pytest.raises(TypeError, match="give it the timeout"):
        client.batch([session.plan.advance("b", timeout=3)])
    token = client.session([1], kind="token")
    token._calls.info = api.SessionInfo.from_json({**SESSION, "kind": "token"})
    with pytest.raises(TypeError, match="call next_tokens or rows by itself"):
        client.batch([token.plan.next_tokens()])
    with pytest.raises(TypeError, match="a token session has next_tokens"):
        token.plan.next(prune=True)


def test_a_silent_server_is_waited_for_as_long_as_the_call_says() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with client, pytest.raises(TimedOut):
            client.greedy("a", 3, timeout=0.2)


async def test_an_http_client_of_ones_own_is_used_and_left_open(sent: Sent) -> None:
    with httpx.Client(transport=sent, headers={"X-Own": "1"}) as http:
        with Client("http://nowhere", http=http, api_key="a key") as client:
            client.session("a")
        assert not http.is_closed
    assert sent.requests[-1].headers["X-Own"] == "1"
    assert sent.requests[-1].headers["Authorization"] == "Bearer a key"
    async with httpx.AsyncClient(transport=sent) as own:
        async with AsyncClient("http://nowhere", http=own) as awaited:
            await awaited.session("a")
        assert not own.is_closed
    with pytest.raises(TypeError, match=r"http is an httpx\.Client, not"):
        Client(http=own)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"http is an httpx\.AsyncClient, not"):
        AsyncClient(http=http)  # type: ignore[arg-type]


def test_what_is_sent_again_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    later = {"type": "unavailable", "message": "starting", "code": "starting", "param": None}
    answers = [
        lambda: httpx.Response(503, json={"error": later}, headers={"Retry-After": "0"}),
        lambda: (_ for _ in ()).throw(httpx.ConnectError("nobody is there")),
        lambda: httpx.Response(503, json={"error": later}, headers={"Retry-After": "0"}),
    ]
    transport = httpx.MockTransport(lambda request: answers.pop(0)())
    client = Client("http://nowhere", http=httpx.Client(transport=transport), retries=2)
    with caplog.at_level(logging.INFO, "bytelm_client"), pytest.raises(NotReady) as caught:
        client.greedy("a", 3)
    first, second = (r.getMessage() for r in caplog.records if r.name == "bytelm_client")
    assert "POST http://nowhere/v1/greedy is sent again in 0.0 s: status 503" in first
    assert "nobody is there" in second
    assert str(caught.value.request_id) in first


@pytest.mark.parametrize("name", ["a/b?c#d", "../models", "ä b", "%2F"])
def test_an_id_is_quoted(client: Client, sent: Sent, name: str) -> None:
    client.resume(name)
    path = sent.requests[-1].url.raw_path.decode()
    assert path.startswith("/v1/sessions/")
    assert path.count("/") == 3
    assert httpx.URL(f"http://x{path}").path == f"/v1/sessions/{name}"
    client.session("a").refresh()
    assert sent.requests[-1].url.raw_path == b"/v1/sessions/a%2Fb%3Fc"


@pytest.mark.parametrize("name", ["", None, 5])
def test_what_is_no_id(client: Client, name: Any) -> None:
    with pytest.raises(TypeError, match="a session's id is a text"):
        client.resume(name)


async def test_a_session_that_was_not_awaited_says_so(sent: Sent) -> None:
    http = httpx.AsyncClient(transport=sent)
    client = AsyncClient("http://nowhere", http=http)
    opening: Any = client.session("a")
    for name in ("advance", "id", "next"):
        with pytest.raises(AttributeError, match=f"no {name} yet: .*await client.session"):
            getattr(opening, name)
    with pytest.raises(AttributeError, match="has no 'advnace'"):
        _ = opening.advnace
    with pytest.warns(RuntimeWarning, match="a session was never awaited"):
        del opening
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = await client.session("a")
        async with session.fork("b"):
            pass
        gc.collect()
    assert hasattr(session, "advance")


async def test_starting_a_token_lm_lets_others_go_on() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    beside = asyncio.create_task(tick())
    with pytest.raises(CannotConnect):
        await RemoteTokenLM.start("http://127.0.0.1:9")
    beside.cancel()
    assert ticks > 100


def test_the_types_of_options_are_offered() -> None:
    for name in ("CallOptions", "BeamOptions", "GreedyOptions", "SampleOptions", "ScoreOptions"):
        assert name in api.__all__
    names = {"SessionOptions", "Context", "Contexts", "Texts", "Text", "Ids", "More", "EOS_INDEX"}
    assert names <= set(api.__all__)
    assert api.EOS_INDEX == 256
    for name in api.__all__:
        assert getattr(api, name) is not None
