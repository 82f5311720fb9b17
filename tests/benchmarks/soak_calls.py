"""The calls of a soak: everyday ones, and what a careless or hostile client does."""

from __future__ import annotations

import base64
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

LONGEST_SESSION = 600
NOVEL_WORDS, LONG_WORDS = 60, 600
"""The most words of a prompt that nobody has sent before, and of a long one."""


@dataclass
class Calls:
    """What came of them.

    Attributes:
        seconds: latencies by call.
        errors: answers that were none, by call and status.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: Counter[str] = field(default_factory=Counter)


class Client:
    """One of the clients: a call after the other, drawn from all kinds.

    Args:
        http: the server.
        calls: where it notes what came of them.
        texts: what contexts are cut from.
        number: makes its draws its own.
    """

    def __init__(
        self, http: httpx.AsyncClient, calls: Calls, texts: list[str], number: int
    ) -> None:
        self._http = http
        self._calls = calls
        self._random = random.Random(number)
        self._texts = texts
        self._words = " ".join(texts).split()
        self._session: str | None = None

    async def run(self, end: float) -> None:
        """Make calls until the clock shows ``end``."""
        kinds: list[tuple[str, float, Callable[[], Awaitable[None]]]] = [
            ("next_bytes", 2, self._next_bytes),
            ("next_bytes, 4 contexts", 1, self._several),
            ("next_bytes, novel", 2, self._novel),
            ("next_bytes, novel, long", 0.3, self._long),
            ("next_bytes, random bytes", 0.5, self._random_bytes),
            ("greedy, 16 bytes", 2, self._greedy),
            ("greedy, 16 bytes, streamed", 1, self._streamed),
            ("greedy, stream left early", 1, self._left_early),
            ("sample, 32 bytes", 2, self._sample),
            ("score, 3 continuations", 1, self._score),
            ("score, novel", 0.5, self._score_novel),
            ("token_logprobs, top 5", 1, self._token_logprobs),
            ("session: advance, 4 bytes", 3, self._advance),
            ("session: advance, sent twice", 1, self._retried),
            ("session: next", 2, self._next),
            ("session: fork and end", 1, self._fork),
        ]
        weights = [weight for _, weight, _ in kinds]
        while time.monotonic() < end:
            name, _, call = self._random.choices(kinds, weights)[0]
            if name.startswith("session") and self._session is None:
                name, call = "session: create", self._create
            began = time.monotonic()
            try:
                await call()
            except (httpx.HTTPError, ValueError, LookupError) as error:
                self._calls.errors[f"{name}: {error!r}"[:300]] += 1
            else:
                self._calls.seconds[name].append(time.monotonic() - began)

    def _context(self) -> str:
        text = self._random.choice(self._texts)
        return text[: self._random.randint(20, len(text))]

    def _never_seen(self, most: int) -> str:
        return " ".join(self._random.choices(self._words, k=self._random.randint(1, most)))

    async def _post(self, path: str, headers: dict[str, str] | None = None, **body: Any) -> Any:
        answer = await self._http.post(path, json=body, headers=headers)
        answer.raise_for_status()
        found = answer.json()
        if any("error" in result for result in found.get("results", [])):
            raise ValueError(found)
        return found

    async def _next_bytes(self) -> None:
        await self._post("/v1/next_bytes", context=self._context())

    async def _several(self) -> None:
        await self._post("/v1/next_bytes", contexts=[self._context() for _ in range(4)], top=5)

    async def _novel(self) -> None:
        await self._post("/v1/next_bytes", context=self._never_seen(NOVEL_WORDS), top=5)

    async def _long(self) -> None:
        await self._post("/v1/next_bytes", context=self._never_seen(LONG_WORDS), top=5)

    async def _random_bytes(self) -> None:
        data = base64.b64encode(self._random.randbytes(self._random.randint(1, 60))).decode()
        body = {"context": {"base64": data}, "top": 5}
        answer = await self._http.post("/v1/next_bytes", json=body)
        # Refused where the vocabulary cannot spell a byte.
        if answer.status_code != httpx.codes.BAD_REQUEST:
            answer.raise_for_status()

    async def _greedy(self) -> None:
        await self._post("/v1/greedy", context=self._context(), steps=16)

    async def _streamed(self) -> None:
        body = {"context": self._context(), "steps": 16, "stream": True}
        async with self._http.stream("POST", "/v1/greedy", json=body) as answer:
            answer.raise_for_status()
            lines = [line async for line in answer.aiter_lines() if line]
        if lines[-1] != "data: [DONE]" or '"error"' in lines[-2]:
            raise ValueError(lines[-2:])

    async def _left_early(self) -> None:
        body = {"context": self._never_seen(NOVEL_WORDS), "steps": 200, "stream": True}
        events = self._random.randint(0, 3)
        async with self._http.stream("POST", "/v1/greedy", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                events -= bool(line)
                if events < 0:
                    return

    async def _sample(self) -> None:
        seed = self._random.getrandbits(32)
        await self._post("/v1/sample", context=self._context(), steps=32, seed=seed)

    async def _score(self) -> None:
        choices = [" the", " a", ". "]
        await self._post("/v1/score", context=self._context(), continuations=choices)

    async def _score_novel(self) -> None:
        text = " " + self._never_seen(NOVEL_WORDS // 4)
        await self._post("/v1/score", context=self._context(), continuations=[text])

    async def _token_logprobs(self) -> None:
        ids = [self._random.randrange(100, 20_000) for _ in range(20)]
        await self._post("/v1/token_logprobs", contexts=[ids], top=5)

    async def _create(self) -> None:
        made = await self._post("/v1/sessions", context=self._context())
        self._session = f"/v1/sessions/{made['id']}"

    async def _advance(self) -> None:
        text = self._random.choice([" the", ". It", " and", "s in"])
        await self._moved(await self._post(f"{self._session}/advance", bytes=text))

    async def _retried(self) -> None:
        key = {"Idempotency-Key": f"{self._random.getrandbits(64):x}"}
        first, again = [
            await self._post(f"{self._session}/advance", key, bytes=" so") for _ in range(2)
        ]
        if again != first:
            raise ValueError(f"{first} became {again}")
        await self._moved(first)

    async def _moved(self, session: dict[str, Any]) -> None:
        if session["length"] > LONGEST_SESSION:
            await self._end()

    async def _next(self) -> None:
        (await self._http.get(f"{self._session}/next")).raise_for_status()

    async def _fork(self) -> None:
        child = await self._post(f"{self._session}/fork")
        await self._end()
        self._session = f"/v1/sessions/{child['id']}"

    async def _end(self) -> None:
        (await self._http.delete(str(self._session))).raise_for_status()
        self._session = None
