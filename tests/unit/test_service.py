"""What a call does to the model: how much at a time, and how often."""

import asyncio
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bytelm.models.testing import StubLM
from bytelm.settings import ServerSettings
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server.requests import GreedyCall, SampleCall
from bytelm_server.service import ByteService

VOCAB = ByteVocab.from_bytes([b"a", b"b", b""], eos_token_ids=[2])


class BusyLM(StubLM):
    """A StubLM that takes a while, and knows how many evaluations it had at a time."""

    def __init__(self) -> None:
        super().__init__(VOCAB, silent=[2])
        self.now = self.most = 0

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        return await super().next_token_logprobs(token_ids)


async def test_only_so_many_texts_of_a_call_are_worked_on_at_a_time() -> None:
    lm = BusyLM()
    service = ByteService(lm, ServerSettings(concurrency=3))
    # One candidate, so that a text has one evaluation at a time.
    beam = {"K": 1, "prune_threshold": 0.9}
    call = GreedyCall.model_validate({"contexts": [""] * 20, "steps": 5, "beam": beam})
    assert len((await service.greedy(call))["results"]) == 20
    assert lm.most == 3


async def test_samples_of_one_context_count_as_texts() -> None:
    lm = BusyLM()
    service = ByteService(lm, ServerSettings(concurrency=4))
    beam = {"K": 1, "prune_threshold": 0.9}
    body = {"context": "", "n": 20, "steps": 5, "beam": beam, "method": "byte"}
    call = SampleCall.model_validate(body)
    assert len((await service.sample(call))["results"]) == 20
    assert lm.most == 4


async def test_a_large_call_leaves_others_their_turn() -> None:
    """Even on a model that answers without waiting."""
    service = ByteService(StubLM(VOCAB, silent=[2]), ServerSettings())
    large = GreedyCall.model_validate({"contexts": [""] * 20, "steps": 50})
    small = GreedyCall.model_validate({"context": "", "steps": 2})
    running = asyncio.create_task(service.greedy(large))
    await asyncio.sleep(0)
    await service.greedy(small)
    assert not running.done()
    assert len((await running)["results"]) == 20


COMPILED = """
import asyncio, bytelm_server.service
from bytelm.beam import rows
from bytelm.vocabulary import trie
from bytelm.beam import BeamParams, ByteBeamState, kernels
from bytelm.settings import ServerSettings
from bytelm.models.testing import StubLM
from bytelm.vocabulary.vocab import ByteVocab

def compiled():
    found = [f for module in (rows, trie, kernels) for f in vars(module).values()]
    return {f.__name__: len(f.signatures) for f in found if hasattr(f, "signatures")}

async def main():
    tokens = [b"", b"", *(bytes([b]) for b in range(256)), b"ab", b"abc"]
    vocab = ByteVocab.from_bytes(tokens, bos_token_id=0, eos_token_ids=[1])
    await bytelm_server.service.ByteService(StubLM(vocab), ServerSettings()).warm_up()
    before = compiled()
    for spread in (2.0, 40.0):
        state = await ByteBeamState.initial(StubLM(vocab, spread=spread), BeamParams(3, 0.01))
        state = await state.prefill(b"abcabcab", mode="exact")
        await state.logp_next()
    assert compiled() == before, (before, compiled())

asyncio.run(main())
"""


def test_what_is_ready_has_compiled_what_rows_of_any_model_need() -> None:
    """Else the first caller with a sharp one keeps all the others waiting for a second."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
