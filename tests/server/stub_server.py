"""A real server process over a StubLM; run with the port as its argument (0 for a free one; it says
where it is), and ``--set name=value`` for settings; with ``--wait`` its model starts when it is
told to, with ``--again`` a dead one is started again.

Besides the API it has ``/test/…`` routes, by which a test sees and steers the model.
"""

import asyncio
import faulthandler
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

from bytelm.errors import EngineDead, InputError
from bytelm.models.testing import StubLM
from bytelm.models.token_lm import Usage
from bytelm.prompts.context import ChatTemplate
from bytelm.settings import ServerSettings
from bytelm.vllm.engine import EngineStats
from bytelm.vllm.tail_index import TailCounts
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server.app import create_app
from bytelm_server.process import listen, serve, url_of

WORDS = [b"he", b"the", b" the", b" th", b"ing", b"an", b" a", b"\xc3\xa9", b"\xa9\xc3", b"llo"]
TOKENS = [*(bytes([b]) for b in range(256)), *WORDS, b"<|im_start|>", b"<|im_end|>"]
BOS, EOS = len(TOKENS) - 2, len(TOKENS) - 1

SETTINGS = ServerSettings(
    max_steps=64,
    max_contexts=40,
    max_context_bytes=1000,
    max_body_bytes=50_000,
    max_K=10,
    max_results=50,
    max_total_steps=1500,
    concurrency=8,
    max_walked_bytes=150,
    max_row_values=39 * 256,
    server_log_level="WARNING",
    session_store="memory",
)


def render(messages: list[dict[str, str]], prompt: bool, now: datetime) -> str:
    """A chat as ChatML."""
    if any(m["role"] == "nobody" for m in messages):
        raise InputError("the chat template refuses the messages: who is nobody?")
    parts = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
    return "".join(parts) + ("<|im_start|>assistant\n" if prompt else "")


class SteeredLM(StubLM):
    """A StubLM that can be slow, dead or broken."""

    def __init__(self) -> None:
        vocab = ByteVocab.from_bytes(TOKENS, eos_token_ids=[EOS], bos_token_id=BOS)
        super().__init__(vocab, seed=5, max_context_tokens=200)
        self.delay = 0.0
        self.is_alive = True
        self.broken = False
        self.fingerprint: str | None = None
        self.chat_template = ChatTemplate(render)

    async def next_token_logprobs(self, token_ids: Sequence[int]):
        if self.broken:
            raise RuntimeError("a secret of the server")
        if not self.is_alive:
            raise EngineDead("a process of the engine ended")
        if self.delay:
            await asyncio.sleep(self.delay)
        return await super().next_token_logprobs(token_ids)


class LettersLM(SteeredLM):
    """One whose vocabulary spells printable ASCII only."""

    def __init__(self) -> None:
        super().__init__()
        tokens = [*(bytes([b]) for b in range(32, 127)), b"<|im_start|>", b"<|im_end|>"]
        vocab = ByteVocab.from_bytes(tokens, eos_token_ids=[96], bos_token_id=95)
        StubLM.__init__(self, vocab, seed=5, max_context_tokens=200)


class MeteredLM(SteeredLM):
    """One that also sees whose cache it is asked to use."""

    def __init__(self) -> None:
        super().__init__()
        self.salts: set[str | None] = set()
        self.computed = 0

    async def evaluate(
        self, token_ids: Sequence[int], usage: Usage, *, cache_salt: str | None = None
    ):
        self.salts.add(cache_salt)
        usage.evaluations += 1
        usage.tokens_computed += len(token_ids)
        self.computed += len(token_ids)
        return await self.next_token_logprobs(token_ids)

    @property
    def stats(self) -> EngineStats:
        """As the engine has them."""
        tails = TailCounts(hits=3, misses=2, tokens=40, evictions=1)
        return EngineStats(self.evaluations, 4, self.computed, 5, tails, 6, 8, 7)

    async def generate(self, *arguments, cache_salt: str | None = None, **options):
        self.salts.add(cache_salt)
        async for chunk in super().generate(*arguments, **options):
            yield chunk


def main() -> None:
    faulthandler.register(signal.SIGUSR1)
    lm = MeteredLM() if "--metered" in sys.argv else SteeredLM()
    if "--letters" in sys.argv:
        lm = LettersLM()
    if "--no-template" in sys.argv:
        lm.chat_template = ChatTemplate(None)
    if "--other" in sys.argv:
        lm.fingerprint = "another model"
    start = asyncio.Event()

    @asynccontextmanager
    async def open_lm() -> AsyncIterator[StubLM]:
        nonlocal lm
        if "--wait" in sys.argv:
            await start.wait()
        if not lm.is_alive:
            await asyncio.sleep(1)
            lm = type(lm)()
        yield lm

    changes = dict(
        value.split("=", 1) for flag, value in itertools.pairwise(sys.argv) if flag == "--set"
    )
    settings = ServerSettings(**SETTINGS.model_dump(exclude_unset=True) | changes)
    opened = {"--wait", "--again"} & set(sys.argv)
    app = create_app(open_lm if opened else lm, settings)

    @app.get("/test/evaluations", include_in_schema=False)
    async def evaluations() -> int:
        return lm.evaluations

    @app.get("/test/generated", include_in_schema=False)
    async def generated() -> int:
        return lm.tokens_generated

    @app.get("/test/salts", include_in_schema=False)
    async def salts() -> list[str | None]:
        return list(lm.salts) if isinstance(lm, MeteredLM) else []

    @app.post("/test/{what}", include_in_schema=False)
    async def steer(what: str, value: float = 1.0) -> None:
        match what:
            case "start":
                start.set()
            case "delay":
                lm.delay = value
            case "die":
                lm.is_alive = False
            case "break":
                lm.broken = bool(value)
            case "crash":
                asyncio.get_running_loop().call_later(0.05, os._exit, 1)

    settings = settings.model_copy(update={"port": int(sys.argv[1])})
    sock = listen(settings)
    print(url_of(sock), flush=True)
    sys.exit(serve(app, settings, sock, lambda service: None))


if __name__ == "__main__":
    main()
