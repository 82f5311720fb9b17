"""bytelm on Ray over a StubLM, whose evaluations are counted in a file."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bytelm.settings import ServerSettings
from bytelm.token_lm import AsyncTokenLM
from bytelm_server.on_ray.deployment import Arguments, application
from tests.server.stub_server import SteeredLM


class CountedLM(SteeredLM):
    """A StubLM of which each evaluation, in whatever process, makes a file one byte longer."""

    def __init__(self, evaluations: Path, delay: float) -> None:
        super().__init__()
        self._evaluations = evaluations
        self._delay = delay

    async def next_token_logprobs(self, token_ids: Sequence[int]):
        with self._evaluations.open("ab") as file:
            file.write(b".")
        await asyncio.sleep(self._delay)
        return await super().next_token_logprobs(token_ids)


class OpenStub:
    """Makes one in a replica."""

    def __init__(self, evaluations: str, delay: float) -> None:
        self._evaluations, self._delay = Path(evaluations), delay

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[AsyncTokenLM]:
        yield CountedLM(self._evaluations, self._delay)


def build(args: Arguments) -> Any:
    """As docker/ray/serve.yaml has it; the engine's settings are the stub's."""
    return application(OpenStub(**args.engine), ServerSettings(**args.server), gpus=0)
