"""What cannot be sent is refused before anything is."""

import base64
import json
import math
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from bytelm import BeamParams
from bytelm_client import (
    AsyncClient,
    BadAnswer,
    Beam,
    CannotSend,
    Client,
    RemoteByteLM,
    RemoteTokenLM,
    messages,
    segments,
    special,
)

HALF = "\ud800"


def unreachable(request: httpx.Request) -> httpx.Response:
    raise AssertionError(f"{request.url} was called")


NOWHERE = httpx.MockTransport(unreachable)


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.greedy(HALF, 3),
        lambda client: client.greedy(["a", segments(special(HALF), "a")], 3),
        lambda client: client.sample(messages([{"role": "user", "content": HALF}]), 3),
        lambda client: client.sample("a", 3, temperature=math.nan),
        lambda client: client.next_bytes("a", beam={"prune_threshold": math.inf}),
        lambda client: list(client.stream_greedy("a", 3, stop=HALF)),
        lambda client: client.score("a", [HALF]),
        lambda client: client.resume(HALF),
        lambda client: client.call("/v1/greedy", {"context": HALF}),
    ],
)
def test_a_value_that_is_no_json(call: Callable[[Client], Any]) -> None:
    told = pytest.raises(CannotSend, match="surrogates not allowed|not JSON compliant")
    with Client("http://nowhere", http=httpx.Client(transport=NOWHERE)) as client, told:
        call(client)


async def test_a_value_that_is_no_json_is_told_by_the_other_client_too() -> None:
    async with AsyncClient("http://nowhere", http=httpx.AsyncClient(transport=NOWHERE)) as client:
        with pytest.raises(CannotSend):
            await client.greedy(HALF, 3)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("key", ["schlüssel", "a\nb", HALF])
def test_a_key_that_no_header_can_have_is_not_shown(kind: type[Client], key: str) -> None:
    with pytest.raises(CannotSend, match="the API key has characters that no key has") as caught:
        kind("http://nowhere", api_key=key)
    assert key not in str(caught.value)


IDS = [266, 104, 105]


@pytest.fixture
def sent() -> dict[str, Any]:
    """The body of the last call."""
    return {}


@pytest.fixture
def client(sent: dict[str, Any]) -> Client:
    def answer(request: httpx.Request) -> httpx.Response:
        sent.clear()
        sent.update(json.loads(request.content))
        if request.url.path == "/v1/token_logprobs":
            rows = np.zeros((len(sent["contexts"]), 4), "<f4")
            return httpx.Response(
                200, content=rows.tobytes(), headers={"X-Shape": f"{len(rows)},4"}
            )
        return httpx.Response(200, json={"results": [], "usage": USAGE, **SESSION})

    return Client("http://nowhere", http=httpx.Client(transport=httpx.MockTransport(answer)))


USAGE = {"bytes_in": 0, "bytes_out": 0, "evaluations": 0}
SESSION = {
    "id": "a",
    "kind": "token",
    "version": 1,
    "length": 3,
    "at_limit": False,
    "n_calls": 0,
    "expires_at": 0.0,
}


@pytest.mark.parametrize("ids", [IDS, tuple(IDS), np.array(IDS), list(np.array(IDS, np.int32))])
def test_token_ids_of_any_kind(client: Client, sent: dict[str, Any], ids: Any) -> None:
    session = client.session(ids, kind="token")
    assert sent["context"] == {"tokens": IDS}
    session.advance(ids)
    assert sent["tokens"] == IDS
    session.fork(ids)
    assert sent["advance"]["tokens"] == IDS
    assert client.token_logprobs(ids).logprobs.shape == (4,)
    assert sent["contexts"] == [IDS]
    assert len(client.token_logprobs([ids, ids])) == 2
    assert sent["contexts"] == [IDS, IDS]
    client.token_logprobs(np.array([IDS]))
    assert sent["contexts"] == [IDS]


@pytest.mark.parametrize("ids", [[1.5], ["a"], np.array([0.5]), 7, [None], {"a": 1}])
def test_what_is_no_token_id(client: Client, ids: Any) -> None:
    for call in (
        lambda: client.session(ids, kind="token"),
        lambda: client.session(IDS, kind="token").advance(ids),
    ):
        with pytest.raises(TypeError, match="token ids are whole numbers"):
            call()
    with pytest.raises(TypeError, match="token ids are whole numbers"):
        client.token_logprobs([[7], ids])
    with pytest.raises(TypeError, match="token ids are whole numbers"):
        client.token_logprobs([b"ab"])


@pytest.mark.parametrize("data", [b"\xffhi", bytearray(b"\xffhi"), memoryview(b"\xffhi")])
def test_bytes_of_any_kind_are_bytes(client: Client, sent: dict[str, Any], data: Any) -> None:
    wanted = {"base64": base64.b64encode(b"\xffhi").decode()}
    session = client.session(data, kind="token")
    assert sent["context"] == wanted
    session.advance(data)
    assert sent == {"bytes": wanted, "prune": True}
    session.fork(data)
    assert sent["advance"]["bytes"] == wanted
    client.greedy([data], 3, stop=data)
    assert (sent["contexts"], sent["stop"]) == ([wanted], [wanted])
    client.score(data, [data])
    assert (sent["context"], sent["continuations"]) == (wanted, [wanted])
    client.next_bytes([segments(data)])
    assert sent["contexts"] == [{"segments": [wanted]}]
    with pytest.raises(BadAnswer):  # one is asked for, none comes
        client.score("a", data)
    assert sent["continuations"] == [wanted]


def test_the_librarys_beam_is_a_beam(client: Client, sent: dict[str, Any]) -> None:
    client.greedy(["a"], 3, beam=BeamParams(K=3, prune_threshold=0.1, heal_max_splits=2))
    assert sent["beam"]["K"] == 3
    assert sent["beam"]["prune_threshold"] == 0.1
    assert sent["beam"]["heal_max_splits"] == 2
    assert sent["beam"]["eos_tokens"] is None
    assert set(sent["beam"]) <= set(Beam.__annotations__)
    client.greedy(["a"], 3, beam=BeamParams(K=None, eos_byte_strings=[b"."], verbose=True))
    assert sent["beam"]["K"] is None
    assert sent["beam"]["eos_tokens"] == [[46]]
    client.greedy(["a"], 3, beam={"eos_tokens": (bytearray(b"."), 7)})  # type: ignore[call-overload]
    assert sent["beam"] == {"eos_tokens": [[46], 7]}
    with pytest.raises(TypeError, match="max_context_length is an option of a session"):
        client.greedy(["a"], 3, beam=BeamParams(K=3, max_context_length=9))


@pytest.mark.parametrize("beam", [5, [("K", 3)], object(), Client])
def test_what_is_no_beam(client: Client, beam: Any) -> None:
    with pytest.raises(TypeError, match=r"a beam is .* or BeamParams"):
        client.greedy("a", 3, beam=beam)


def test_numbers_of_numpy_are_numbers(client: Client, sent: dict[str, Any]) -> None:
    client.sample(["a"], np.int64(3), top_p=np.float32(0.5), seed=np.uint8(7), logprobs=np.True_)  # type: ignore[call-overload]
    assert (sent["steps"], sent["top_p"], sent["seed"], sent["logprobs"]) == (3, 0.5, 7, True)


def test_what_cannot_be_sent_is_named(client: Client) -> None:
    with pytest.raises(CannotSend, match=r"^seed cannot be sent: .* a set$"):
        client.sample("a", 3, seed={1})  # type: ignore[call-overload]
    with pytest.raises(CannotSend, match=r"^temperature cannot be sent: .*not JSON compliant"):
        client.sample("a", 3, temperature=math.nan)
    with pytest.raises(CannotSend, match=r"^beam cannot be sent: .* a function$"):
        client.sample("a", 3, beam={"K": lambda: 3})  # type: ignore[call-overload]


async def test_a_client_of_the_other_kind_is_refused() -> None:
    with Client("http://nowhere") as client:
        with pytest.raises(TypeError, match=r"give AsyncClient\('http://nowhere'\)"):
            await RemoteByteLM.initial(client)  # type: ignore[arg-type]
        for kind in (Client, AsyncClient, RemoteTokenLM):
            with pytest.raises(TypeError, match="the server's address is a text, not Client"):
                kind(client)  # type: ignore[arg-type]
