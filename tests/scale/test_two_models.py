"""An ensemble over two real servers is what it says of their distributions."""

import math
import os
from collections.abc import Iterator

import numpy as np
import pytest

from bytelm.models.ensemble import Ensemble, Mode
from bytelm.models.logprobs import LazyByteProbs
from bytelm_client import RemoteByteLM
from tests.server.processes import RealProcess

PROMPTS = ["The capital of France is ", "The capital of Germany is "]
CLOSE = 1e-4


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    cores = sorted(os.sched_getaffinity(0))
    servers = [
        RealProcess(
            tmp_path_factory.mktemp(f"server{i}"),
            *("--omp-threads-bind", str(cores[i % len(cores)])),
            *("--kv-cache-memory-bytes", str(1 << 29)),
        )
        for i in range(2)
    ]
    try:
        for server in servers:
            server.start()
        yield [server.url for server in servers]
    finally:
        for server in servers:
            server.clean_up()


async def states(urls: list[str]) -> list[RemoteByteLM]:
    return [
        await RemoteByteLM.initial(url, prompt) for url, prompt in zip(urls, PROMPTS, strict=True)
    ]


@pytest.mark.parametrize("mode", ["mixture", "pool", "product"])
async def test_real_distributions_are_mixed_and_multiplied(urls: list[str], mode: Mode) -> None:
    own = await states(urls)
    both = Ensemble(own, [3, 1], mode)
    logs = np.log([0.75, 0.25])
    text = b""
    for _ in range(6):
        told: list[LazyByteProbs] = [await state.logp_next() for state in own]
        ps = np.array([one.ps for one in told])
        if mode == "product":
            want = np.exp(logs) @ np.where(np.isfinite(ps), ps, -1e9)
            want -= np.logaddexp.reduce(want)
        else:
            want = np.logaddexp.reduce(logs[:, None] + ps) - np.logaddexp.reduce(logs)
        have = (await both.logp_next()).ps
        likely = want > -20
        assert np.abs(have[likely] - want[likely]).max() < CLOSE
        b = int(want.argmax())
        if mode == "mixture":
            logs = logs + ps[:, b]
        both = await (both.prune() << b)
        own = [await (state.prune() << b) for state in own]
        text += bytes([b])
    assert both.context == text
    if mode == "mixture":
        assert both.log_weights == pytest.approx(logs, abs=10 * CLOSE)
        assert math.isfinite(logs.max())
    await both.cleanup()
    for state in own:
        await state.cleanup()
