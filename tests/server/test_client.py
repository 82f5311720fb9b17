"""Both clients against a real server: the same answers as plain HTTP, and errors as exceptions."""

import asyncio
import base64
import http.server
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from bytelm_client import (
    AsyncClient,
    BadAnswer,
    Beam,
    CannotConnect,
    Client,
    InvalidRequest,
    ItemsFailed,
    NotReady,
    ServerFailed,
    TimedOut,
    messages,
    segments,
    special,
)


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture
async def async_client(url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url) as client:
        yield client


def test_health(client: Client) -> None:
    assert client.health() == "ready"


def test_models(client: Client) -> None:
    (model,) = client.models()
    assert model.name == "SteeredLM"
    assert model.limits["steps"] == 64
    assert len(model.initial_context) == 1


def test_next_bytes_is_a_distribution_over_bytes_and_eos(client: Client) -> None:
    result = client.next_bytes("hello")
    assert result.logprobs.shape == (257,)
    assert math.isclose(np.exp(result.logprobs).sum(), 1, rel_tol=1e-9)
    assert result.eos == result.logprobs[256]
    assert result.usage.bytes_in == 5


def test_top_is_best_first(client: Client) -> None:
    result = client.next_bytes("hello")
    top = result.top(3)
    assert [value for _, value in top] == sorted(result.logprobs[:256], reverse=True)[:3]
    assert result.logprobs[top[0][0][0]] == top[0][1]


def test_greedy_is_what_the_server_says(client: Client, http: httpx.Client) -> None:
    result = client.greedy("hello", 20, logprobs=True, beam={"K": 3, "prune_threshold": 0.1})
    body = {
        "context": "hello",
        "steps": 20,
        "logprobs": True,
        "beam": {"K": 3, "prune_threshold": 0.1},
    }
    (want,) = http.post("/v1/greedy", json=body).json()["results"]
    assert result.logprob == want["logprob"]
    assert result.finish_reason == want["finish_reason"]
    assert result.bytes.decode(errors="replace") == result.text


def test_logprob_is_none_unless_asked_for(client: Client) -> None:
    assert client.greedy("hello", 2).logprob is None


def test_text_and_its_bytes_are_the_same_context(client: Client) -> None:
    assert client.greedy("é", 9).bytes == client.greedy("é".encode(), 9).bytes


def test_a_list_gives_a_list(client: Client) -> None:
    contexts: list[str | bytes] = [b"\xff", "hello"]
    results = client.greedy(contexts, 9)
    assert [r.bytes for r in results] == [client.greedy(c, 9).bytes for c in contexts]
    assert len(client.next_bytes(contexts)) == 2
    assert len(client.sample(["hello"], 3)) == 1


CHAT = [{"role": "user", "content": "hello <|im_end|>"}]
WRITTEN = segments(
    *(special("<|im_start|>"), "user\nhello ", b"<|im_end|>", special("<|im_end|>"), "\n"),
    *(special("<|im_start|>"), "assistant\n"),
)


def test_segments_and_messages_are_contexts(client: Client, http: httpx.Client) -> None:
    by_messages = client.greedy(messages(CHAT), 9, logprobs=True)
    assert by_messages == client.greedy(WRITTEN, 9, logprobs=True)
    body = {"context": {"messages": CHAT}, "steps": 9, "logprobs": True}
    (want,) = http.post("/v1/greedy", json=body).json()["results"]
    assert by_messages.logprob == want["logprob"]
    without = messages(CHAT, add_generation_prompt=False)
    several = client.next_bytes((WRITTEN, messages(CHAT), without, "hello"))
    logprobs = [list(r.logprobs) for r in several]
    assert logprobs[0] == logprobs[1] == list(client.next_bytes(WRITTEN).logprobs)
    assert logprobs[1] != logprobs[2]


def test_every_option_reaches_the_server(client: Client, http: httpx.Client) -> None:
    beam: Beam = {
        "K": 3,
        "prune_threshold": 0.1,
        "eos_tokens": [b".", 267],
        "heal": True,
        "heal_max_backoff": 3,
        "heal_max_splits": 1,
        "special_tokens": "special",
    }
    result = client.sample(
        "hello",
        20,
        n=1,
        stop=(b"\xff", "q"),
        logprobs=True,
        temperature=0.8,
        top_k=100,
        top_p=0.9,
        min_p=0.01,
        seed=5,
        method="byte",
        valid_utf8=True,
        beam=beam,
        prefill="exact",
    )
    body = {
        "context": "hello",
        "steps": 20,
        "stop": [{"base64": "/w=="}, "q"],
        "logprobs": True,
        "temperature": 0.8,
        "top_k": 100,
        "top_p": 0.9,
        "min_p": 0.01,
        "seed": 5,
        "method": "byte",
        "valid_utf8": True,
        "prefill": "exact",
        "beam": {**beam, "eos_tokens": [[46], 267]},
    }
    (want,) = http.post("/v1/sample", json=body).json()["results"]
    assert result.bytes == base64.b64decode(want["bytes"]["base64"])
    assert (result.logprob, result.finish_reason) == (want["logprob"], want["finish_reason"])


def test_a_stop_string_is_the_reason_of_the_end(client: Client) -> None:
    whole = client.greedy("hello", 20).bytes
    cut = client.greedy("hello", 20, stop=whole[5:8])
    assert cut.bytes == whole[: whole.index(whole[5:8])]
    assert cut.finish_reason == "stop"


def test_more_than_one_sample_is_a_list(client: Client) -> None:
    results = client.sample("hello", 9, n=3, seed=2)
    assert isinstance(results, list)
    assert [(r.index, r.sample) for r in results] == [(0, 0), (0, 1), (0, 2)]
    assert results[0].bytes == client.sample("hello", 9, seed=2).bytes
    both = client.sample(["hello", "a"], 9, n=2, seed=2)
    assert [(r.index, r.sample) for r in both] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [r.bytes for r in both[:2]] == [r.bytes for r in results[:2]]
    assert [r.index for r in client.greedy(["hello", "a"], 2)] == [0, 1]


def test_scores_are_what_the_server_says(client: Client, http: httpx.Client) -> None:
    given = ("llo", b"\xc3\xa9", "")
    one, several = client.score("he", "llo"), client.score("he", given, eos=True, per_byte=True)
    texts = ["llo", "é", ""]
    body = {"context": "he", "continuations": texts, "eos": True, "per_byte": True}
    wanted = http.post("/v1/score", json=body).json()["results"]
    for score, want in zip(several, wanted, strict=True):
        assert (score.logprob, score.eos) == (want["logprob"], want["eos"])
        assert score.bits_per_byte == want["bits_per_byte"]
        assert score.logprobs is not None
        assert list(score.logprobs) == want["logprobs"]
    assert one.logprobs is None
    assert one.eos is None
    assert one.logprob == math.fsum(wanted[0]["logprobs"])
    assert one.usage.bytes_in == 5


def test_parts_of_scores_are_what_the_server_says(client: Client, http: httpx.Client) -> None:
    given = [b"the ant\xff", b""]
    body = {
        "context": "he",
        "continuations": [{"base64": base64.b64encode(text).decode()} for text in given],
        "eos": True,
        "top": 2,
        "spans": [[[0, 3], [2, 8]], []],
    }
    wanted = http.post("/v1/score", json=body).json()["results"]
    spans: Any = [[(0, 3), (2, 8)], np.zeros((0, 2), np.int64)]
    for score, want in zip(
        client.score("he", given, eos=True, top=2, spans=spans), wanted, strict=True
    ):
        assert score.spans is not None
        assert [(s.start, s.end, s.logprob, s.bits) for s in score.spans] == [
            (s["start"], s["end"], s["logprob"], s["bits"]) for s in want["spans"]
        ]
        assert score.top is not None
        assert [[{"byte": b[0], "logprob": x} for b, x in best or ()] for best in score.top] == (
            want["top"]
        )
    one = client.score("he", given[0], spans=[(2, 8)])
    assert one.spans is not None
    assert (one.spans[0].bytes, one.spans[0].text) == (b"e ant\xff", "e ant\ufffd")
    assert one.top is None
    words = client.score("he", "the ant", spans="words").spans
    assert words is not None
    assert [span.bytes for span in words] == [b"the", b" ant"]
    assert client.score("he", "a").spans is None


def test_the_impossible_has_infinite_surprisal(client: Client) -> None:
    beam: Beam = {"K": 1, "prune_threshold": 0.9, "deferred": False}
    result = client.score("hheth", "ing", beam=beam, prefill="exact", spans="words", top=1)
    assert result.spans is not None
    assert (result.spans[0].logprob, result.spans[0].bits) == (-math.inf, math.inf)
    assert result.top is not None
    assert result.top[1:] == (None, None)


def test_the_impossible_scores_minus_infinity(client: Client) -> None:
    beam: Beam = {"K": 1, "prune_threshold": 0.9, "deferred": False}
    result = client.score("hheth", "ing", beam=beam, prefill="exact", per_byte=True)
    assert result.logprobs is not None
    assert list(result.logprobs) == [-math.inf] * 3
    assert (result.logprob, result.bits_per_byte) == (-math.inf, math.inf)


def test_one_score_that_fails_is_its_error(client: Client) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.score("he", "x" * 300)
    assert caught.value.code == "context_too_long"
    with pytest.raises(ItemsFailed) as several:
        client.score("he", ["a", "x" * 300])
    assert list(several.value.errors) == [1]


def test_the_vocabulary_is_the_models(client: Client, stub: dict[str, Any]) -> None:
    vocab, wanted = client.vocab(), stub["SteeredLM"]().vocab
    assert vocab.token_bytes == wanted.token_bytes
    assert vocab.token_text == wanted.token_text
    assert (vocab.special_ids, vocab.added_ids) == (wanted.special_ids, wanted.added_ids)
    assert (vocab.bos, vocab.eos) == (wanted.bos_token_id, wanted.eos_token_ids)
    assert (vocab.prefix, vocab.fingerprint) == (b"", wanted.fingerprint())
    assert repr(vocab) == "Vocab(268 tokens, bos=266, eos=(267,))"


def test_a_misspelt_option_is_refused(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="temprature: unknown field"):
        client.sample("hello", 3, temprature=0.5)  # type: ignore[call-overload]


def test_a_seed_repeats_a_sample(client: Client) -> None:
    first, again, other = (client.sample("hello", 20, seed=s).bytes for s in (1, 1, 2))
    assert first == again != other


async def test_the_async_client_gives_the_same(client: Client, async_client: AsyncClient) -> None:
    assert await async_client.health() == client.health()
    assert await async_client.models() == client.models()
    result = await async_client.next_bytes("hello")
    assert np.array_equal(result.logprobs, client.next_bytes("hello").logprobs)
    assert await async_client.greedy(["a", "b"], 9) == client.greedy(["a", "b"], 9)
    ours, theirs = await async_client.sample("a", 9, seed=4), client.sample("a", 9, seed=4)
    assert ours == theirs
    assert await async_client.sample("a", 9, n=2, seed=4) == client.sample("a", 9, n=2, seed=4)
    assert (await async_client.score("a", "b")).logprob == client.score("a", "b").logprob
    assert await async_client.vocab() == client.vocab()
    stopped = await async_client.greedy(messages(CHAT), 9, stop=" ", prefill="exact")
    assert stopped == client.greedy(messages(CHAT), 9, stop=" ", prefill="exact")


async def test_32_async_calls_at_once(client: Client, async_client: AsyncClient) -> None:
    contexts = [f"call {i} " for i in range(32)]
    together = await asyncio.gather(*[async_client.greedy(c, 9) for c in contexts])
    assert together == [client.greedy(c, 9) for c in contexts]


def test_a_wrong_field_is_an_invalid_request(client: Client) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.greedy("hello", 0)
    assert (caught.value.status, caught.value.param) == (400, "steps")
    assert caught.value.code == "invalid_value"


def test_failed_items_leave_the_results_of_the_others(client: Client) -> None:
    with pytest.raises(ItemsFailed) as caught:
        client.greedy(["hello", "x" * 300], 5)
    good, bad = caught.value.results
    assert good.bytes == client.greedy("hello", 5).bytes
    assert bad is None
    assert caught.value.errors[1].code == "context_too_long"


def test_a_server_that_is_starting_is_not_ready(start_stub: Callable[..., str]) -> None:
    client = Client(start_stub("--wait"), retries=0)
    assert client.health() == "starting"
    with pytest.raises(NotReady) as caught:
        client.greedy("hello", 3)
    assert caught.value.code == "starting"


def test_a_fault_of_the_server(client: Client, http: httpx.Client) -> None:
    http.post("/test/break", params={"value": 1})
    try:
        with pytest.raises(ServerFailed):
            client.greedy("hello", 3)
    finally:
        http.post("/test/break", params={"value": 0})
    assert client.greedy("hello", 3).bytes


def test_no_server_there() -> None:
    with pytest.raises(CannotConnect, match="is the server running"):
        Client("http://127.0.0.1:9").health()


def test_an_address_that_is_none() -> None:
    with pytest.raises(CannotConnect, match="'nonsense' is no address of a server"):
        Client("nonsense")


def test_a_server_that_takes_too_long(start_stub: Callable[..., str]) -> None:
    url = start_stub()
    httpx.post(f"{url}/test/delay", params={"value": 5})
    with pytest.raises(TimedOut):
        Client(url, timeout=0.3).greedy("hello", 3)


def test_another_server_at_the_address() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(BadAnswer, match="is the address right"):
            Client(f"http://127.0.0.1:{other.server_port}").health()
        other.shutdown()


def test_the_address_comes_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYTELM_URL", url + "/")
    assert Client().health() == "ready"


def test_the_key_is_sent_with_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def sent(api_key: str | None = None) -> str | None:
        keys = []

        def answer(request: httpx.Request) -> httpx.Response:
            keys.append(request.headers.get("authorization"))
            return httpx.Response(200, json={"status": "ready"})

        client = Client(
            "http://nowhere",
            api_key=api_key,
            http=httpx.Client(transport=httpx.MockTransport(answer)),
        )
        client.health()
        assert str(api_key) not in repr(client)
        return keys[0]

    assert sent() is None
    assert sent("a key") == "Bearer a key"
    monkeypatch.setenv("BYTELM_API_KEY", "another")
    assert sent() == "Bearer another"
