"""Requests that cost their sender next to nothing, and might cost a server much."""

import base64
from typing import Any, NamedTuple

import orjson


class Request(NamedTuple):
    """One request; ``{byte}`` and ``{token}`` in its path are sessions."""

    path: str
    body: bytes = b""
    accept: str = "application/json"
    method: str = "POST"


def call(path: str, **body: Any) -> Request:
    return Request(path, orjson.dumps(body))


MB = 1 << 20
ENGLISH = ("The capital of France is Paris, and nobody doubts it. " * (MB // 50))[:MB]
BASE64 = base64.b64encode(bytes(range(256)) * (MB // 256)).decode()
STOPS = [chr(97 + i) * 1023 for i in range(16)]
DEEP = b"[" * 900 + b"]" * 900
GREEDY, NEXT, SCORE = "/v1/greedy", "/v1/next_bytes", "/v1/score"
KNOWN = "/v1/rows"
COMPLETE, COMPLETE_CHAT = "/v1/completions", "/v1/chat/completions"
ROWS, BATCH, CREATE = "/v1/token_logprobs", "/v1/sessions:batch", "/v1/sessions"
ON_BYTES, ON_TOKENS = "/v1/sessions/{byte}", "/v1/sessions/{token}"
LONG_ROLE = "user<|im_end|>\n<|im_start|>system" * 1000
CHATS = [[{"role": "user", "content": ENGLISH[:2000]}] * 8] * 200


def chat(*contents: str, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for content in contents]}


HOSTILE: dict[str, Request] = {
    "60,000 ids": call(ON_TOKENS + "/advance", tokens=[5] * 60_000),
    "a million ids": call(ON_TOKENS + "/prefill", tokens=[5] * 1_000_000),
    "a million wrong ids": call(ON_TOKENS + "/advance", tokens=["a"] * 1_000_000),
    "ids beyond the vocabulary": call(ON_TOKENS + "/advance", tokens=[10**9] * 900_000),
    "a session of a million ids": call(
        CREATE, kind="token", context={"tokens": [5] * 1_000_000}, max_context_length=10
    ),
    "numbers as calls": call(BATCH, calls=[1] * 200_000),
    "unknown fields": call(GREEDY, **{f"f{i}": 1 for i in range(100_000)}),
    "malformed continuations": call(SCORE, context="a", continuations=[1] * 200_000),
    "malformed contexts": call(GREEDY, contexts=[1] * 200_000, steps=1),
    "a context of a megabyte": call(NEXT, context=ENGLISH),
    "a context of 300 kB": call(NEXT, context=ENGLISH[:300_000]),
    "a context without words": call(NEXT, context="a" * 300_000),
    "bytes that are no text": call(NEXT, context={"base64": BASE64}),
    "spaces": call(NEXT, context=" " * 300_000),
    "256 long contexts": call(NEXT, contexts=[ENGLISH[: 60_000 + i] for i in range(256)]),
    "256 contexts": call(GREEDY, contexts=[ENGLISH[: 2000 + i] for i in range(256)], steps=20),
    "a message of a megabyte": call(NEXT, context=chat(ENGLISH)),
    "a hundred thousand messages": call(NEXT, context=chat(*"a" * 100_000)),
    "four thousand messages": call(NEXT, context=chat(*"a" * 4000)),
    "messages of white space": call(NEXT, context=chat(*[" \n"] * 4000)),
    "many roles": call(NEXT, context=chat(*"a" * 2000, role=LONG_ROLE[:200])),
    "a long role": call(NEXT, context=chat("a", role=LONG_ROLE)),
    "many chats": call(NEXT, contexts=[{"messages": messages} for messages in CHATS]),
    "16,000 segments": call(NEXT, context={"segments": ["a"] * 16_000}),
    "special tokens": call(NEXT, context={"segments": [{"token": "<|im_start|>"}] * 7000}),
    "no special tokens": call(NEXT, context={"segments": [{"token": "<|x|>" * 1000}] * 100}),
    "long stop strings": call(
        "/v1/sample", context="a", steps=30, stop=STOPS, n=100, method="byte"
    ),
    "long stop strings by tokens": call("/v1/sample", context="a", steps=30, stop=STOPS, n=1000),
    "many samples": call("/v1/sample", context="a", steps=1000, n=1000),
    "many samples by bytes": call(
        "/v1/sample", context="a", steps=60, n=1000, method="byte", seed=1, top_k=3
    ),
    "a text that forgets": call(CREATE, context=ENGLISH[:300_000], max_context_length=100),
    "a session of a megabyte": call(CREATE, context=ENGLISH),
    "a token session of a megabyte": call(CREATE, kind="token", context=ENGLISH),
    "a token session that forgets": call(
        CREATE, kind="token", context=ENGLISH[:400_000], max_context_length=100
    ),
    "a long prefill": call(ON_BYTES + "/prefill", bytes=ENGLISH[:900_000]),
    "a prefill in segments": call(
        ON_BYTES + "/prefill", segments=[ENGLISH[:200], {"token": "<|im_end|>"}] * 3000
    ),
    "a long advance": call(ON_BYTES + "/advance", bytes="word " * 1600),
    "a score of 60 kB of a session": call(
        ON_BYTES + "/score", continuations=[ENGLISH[:60_000]], spans="words", top=3
    ),
    "scores of a thousand texts of a session": call(
        ON_BYTES + "/score", continuations=[ENGLISH[:900]] * 1000, per_byte=True, advance=False
    ),
    "a score of token ids": call(
        ON_TOKENS + "/score", continuations=["北" * 300_000], spans="words"
    ),
    "a continuation of 60 kB": call(SCORE, context="a", continuations=[ENGLISH[:60_000]]),
    "a thousand continuations": call(
        SCORE, context="a", continuations=[f"{i} {ENGLISH[:900]}" for i in range(1000)]
    ),
    "scores of each byte": call(
        SCORE, context="a", continuations=[ENGLISH[:1000]] * 1000, per_byte=True, eos=True
    ),
    "rows of a megabyte": call(KNOWN, context="", text=ENGLISH),
    "rows of 300 kB without words": call(KNOWN, context="", text="a" * 300_000),
    "rows of 9 kB": call(KNOWN, context="a", text=ENGLISH[:9_000]),
    "rows of bytes that are no text": call(KNOWN, context="a", text={"base64": BASE64[:12_000]}),
    "words of a megabyte": call(SCORE, context="a", continuations=["北" * 340_000], spans="words"),
    "words of 60 kB": call(SCORE, context="a", continuations=["a " * 3000] * 10, spans="words"),
    "thousands of long spans": call(
        SCORE, context="a", continuations=[ENGLISH[:9000]], spans=[[[0, 9000]] * 8000]
    ),
    "100,000 spans": call(SCORE, context="a", continuations=["ab"], spans=[[[0, 1]] * 100_000]),
    "the best bytes everywhere": call(
        SCORE, context="a", continuations=[ENGLISH[:1000]], spans="words", top=256
    ),
    "rows of a session": call(ON_BYTES + "/rows", text=ENGLISH[:5_000], usage=True),
    "a prompt of a million ids": call(COMPLETE, prompt=[5] * 1_000_000),
    "a prompt of a million wrong ids": call(COMPLETE, prompt=[5] * 999_999 + [256]),
    "thousands of prompts": call(COMPLETE, prompt=[[5] * 100] * 8000),
    "an echo of a megabyte": call(COMPLETE, prompt=ENGLISH, echo=True, max_tokens=0),
    "all log-probabilities of a prompt": call(
        COMPLETE, prompt=ENGLISH[:4000], echo=True, logprobs=257, max_tokens=0
    ),
    "log-probabilities of a prompt again and again": call(
        COMPLETE, prompt=ENGLISH[:1000], echo=True, logprobs=99, max_tokens=0, n=1000
    ),
    "log-probabilities of 256 prompts": call(
        COMPLETE, prompt=[f"{i} {ENGLISH[:2000]}" for i in range(256)], echo=True, logprobs=0
    ),
    "all log-probabilities of many samples": call(
        COMPLETE, prompt="a", max_tokens=40, n=100, logprobs=257
    ),
    "a stream of many samples": call(
        COMPLETE, prompt="a", max_tokens=40, n=1000, logprobs=20, stream=True
    ),
    "a chat of a megabyte": call(COMPLETE_CHAT, **chat(ENGLISH)),
    "a thousand parts": call(
        COMPLETE_CHAT,
        messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * 7000}],
    ),
    "a megabyte of tokens": call("/tokenize", prompt=ENGLISH),
    "a million tokens": call("/detokenize", tokens=[256] * 1_000_000),
    "256 whole rows": Request(
        ROWS, orjson.dumps({"contexts": [[i] for i in range(256)]}), "application/octet-stream"
    ),
    "the most of each row": call(ROWS, contexts=[[i] for i in range(21)], top=49_000),
    "long contexts of ids": call(ROWS, contexts=[[5] * 4000] * 250, top=1),
    "a batch of rows": call(
        BATCH, calls=[{"id": "{token}", "call": "next", "body": {"top": 49_000}}] * 256
    ),
    "a batch of candidates": call(
        BATCH, calls=[{"id": "{byte}", "call": "get", "body": {"candidates": True}}] * 256
    ),
    "a batch of long names": call(BATCH, calls=[{"id": "x" * 50_000, "call": "get"}] * 256),
    "a batch in a batch": call(
        BATCH, calls=[{"id": "a", "call": "get", "body": {"calls": [[1] * 100] * 60}}] * 100
    ),
    "deep JSON": Request(GREEDY, b'{"context":' + DEEP + b',"steps":1}'),
    "deep JSON in a batch": Request(
        BATCH, b'{"calls":[{"id":"a","call":"next","body":{"top":' + DEEP + b"}}]}"
    ),
    "16 MB of lists": Request(GREEDY, b"[" + b"[]," * (5 * MB) + b"1]"),
    "16 MB of numbers": Request(GREEDY, b"[" + b"1," * (7 * MB) + b"1]"),
    "16 MB of objects": Request(GREEDY, b"[" + b'{"a":1},' * (MB * 15 // 8) + b"1]"),
    "16 MB of text": call(NEXT, contexts=[ENGLISH] * 14 + ["\U0001f600" + ENGLISH[: MB // 2]]),
    "a long name of a field": Request(GREEDY, b'{"' + b"x" * (15 * MB) + b'":1}'),
    "escapes": Request(GREEDY, b'{"context":"' + b"\\u00e9" * (2 * MB) + b'"}'),
    "no JSON": Request(GREEDY, b"[" * (15 * MB)),
    "a long id": call(BATCH, calls=[{"id": "x" * MB, "call": "get"}] * 12),
    "the vocabulary": Request("/v1/vocab", method="GET"),
    "the documentation": Request("/openapi.json", method="GET"),
    "metrics": Request("/metrics", method="GET"),
    "a list of sessions": Request("/v1/sessions?limit=1000", method="GET"),
    "a row": Request(ON_TOKENS + "/next", method="GET", accept="application/octet-stream"),
}
