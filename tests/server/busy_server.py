"""A real server process over the default model's own vocabulary and chat template, on a stand-in
for the model that answers at once; run with the port as its argument, and ``name=value`` for
settings.

Like an engine it takes so many evaluations at a time, and computes nothing on the event loop.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bytelm import download as models
from bytelm.models.testing import StubLM
from bytelm.models.token_lm import Chunk
from bytelm.prompts.context import ChatTemplate
from bytelm.settings import ServerSettings
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server.app import create_app
from bytelm_server.process import listen, serve, url_of

SECONDS = 0.005
"""What an evaluation takes."""
AT_A_TIME = 128


class QuickLM(StubLM):
    """Rows are made beforehand."""

    def __init__(self) -> None:
        path = models.resolve()
        super().__init__(ByteVocab.from_pretrained(path), rows=16, max_context_tokens=4095)
        self.chat_template = ChatTemplate.from_pretrained(path)
        self._slots = asyncio.Semaphore(AT_A_TIME)
        self._plain = [i for i, data in enumerate(self.vocab.token_bytes) if data]

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        async with self._slots:
            await asyncio.sleep(SECONDS)
            return await super().next_token_logprobs(token_ids)

    async def generate(
        self, token_ids: Sequence[int], max_tokens: int, **options: Any
    ) -> AsyncGenerator[Chunk, None]:
        for i in range(max_tokens):
            async with self._slots:
                await asyncio.sleep(SECONDS)
            token = self._plain[(len(token_ids) + 7 * i) % len(self._plain)]
            yield Chunk((token,), "length" if i == max_tokens - 1 else None)


if __name__ == "__main__":
    changes = dict(argument.split("=", 1) for argument in sys.argv[2:])
    settings = ServerSettings(
        port=int(sys.argv[1]),
        keys_file=None,
        session_store="memory",
        server_log_level="WARNING",
        **changes,  # type: ignore[arg-type]
    )
    app = create_app(QuickLM(), settings)
    sock = listen(settings)
    print(url_of(sock), flush=True)
    sys.exit(serve(app, settings, sock, lambda service: None))
