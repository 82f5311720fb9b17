"""bytelm on Ray over a StubLM, seen and steered by files."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bytelm.models.token_lm import AsyncTokenLM
from bytelm.settings import ServerSettings
from bytelm_server.on_ray.deployment import Arguments, application
from tests.server.stub_server import SteeredLM


class CountedLM(SteeredLM):
    """A StubLM that makes a file one byte longer at each evaluation, in whatever process.

    It dies when another file is made, or touched, after it was born.
    """

    def __init__(self, evaluations: Path, death: Path, delay: float) -> None:
        super().__init__()
        self._evaluations, self._death, self._delay = evaluations, death, delay
        self._born = time.time()

    @property
    def is_alive(self) -> bool:
        return not (self._death.exists() and self._death.stat().st_mtime > self._born)

    @is_alive.setter
    def is_alive(self, value: bool) -> None:
        """What it is at first goes without saying."""

    async def next_token_logprobs(self, token_ids: Sequence[int]):
        with self._evaluations.open("ab") as file:
            file.write(b".")
        await asyncio.sleep(self._delay)
        return await super().next_token_logprobs(token_ids)


class OpenStub:
    """Makes one in a replica."""

    def __init__(self, evaluations: str, death: str, delay: float) -> None:
        self._files, self._delay = (Path(evaluations), Path(death)), delay

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[AsyncTokenLM]:
        yield CountedLM(*self._files, self._delay)


def build(args: Arguments) -> Any:
    """As docker/ray/serve.yaml has it; the engine's settings are the stub's."""
    return application(OpenStub(**args.engine), ServerSettings(**args.server), gpus=0)
