"""What a call took of a token LM that many share."""

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bytelm.models.testing import StubLM
from bytelm.models.token_lm import GeneratingTokenLM, Usage
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server.counting import CountingLM, counting, of_request, usage_of
from bytelm_server.shares import Shares

VOCAB = ByteVocab.from_bytes([b"a", b"b", b""], eos_token_ids=[2])


class MeteredLM(StubLM):
    """A StubLM that has the first two tokens of every context in a cache."""

    salts: tuple[str | None, ...] = ()

    async def evaluate(
        self, token_ids: Sequence[int], usage: Usage, *, cache_salt: str | None = None
    ) -> NDArray[np.float32]:
        self.salts += (cache_salt,)
        usage.evaluations += 1
        usage.tokens_cached += 2
        usage.tokens_computed += len(token_ids) - 2
        return await self.next_token_logprobs(token_ids)


async def test_each_call_has_its_own_count() -> None:
    shared = StubLM(VOCAB)
    first, second = CountingLM(shared), CountingLM(shared)
    rows = [await first.next_token_logprobs([0, 1]), await first.next_token_logprobs([0])]
    await second.next_token_logprobs([1])
    assert (first.usage.evaluations, second.usage.evaluations) == (2, 1)
    assert not first.knows_tokens
    assert np.array_equal(rows[0], shared.row([0, 1]))


async def test_tokens_are_counted_where_the_model_says_them() -> None:
    lm = CountingLM(MeteredLM(VOCAB))
    row = await lm.next_token_logprobs([0, 1, 0])
    await lm.next_token_logprobs([0, 1, 0, 1])
    assert lm.knows_tokens
    assert lm.usage == Usage(evaluations=2, tokens_computed=3, tokens_cached=4)
    assert np.array_equal(row, StubLM(VOCAB).row([0, 1, 0]))


async def test_the_calls_of_a_request_are_counted_together() -> None:
    token = of_request.set([])
    first, second = counting(MeteredLM(VOCAB)), counting(MeteredLM(VOCAB))
    lms = of_request.get()
    of_request.reset(token)
    counting(MeteredLM(VOCAB))
    assert lms == [first, second]
    await first.next_token_logprobs([0, 1, 0])
    await second.next_token_logprobs([0, 1, 0, 1])
    first.bytes_in, second.bytes_in, second.bytes_out = 3, 4, 5
    both = {"bytes_in": 7, "bytes_out": 5, "evaluations": 2}
    assert usage_of(*lms) == {**both, "tokens_computed": 3, "tokens_cached": 4}


class EvaluatingLM:
    """A token LM that does not generate."""

    vocab = VOCAB
    max_context_tokens: int | None = None

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        return StubLM(VOCAB).row(token_ids)


async def test_it_generates_what_the_model_generates() -> None:
    lm = counting(StubLM(VOCAB))
    assert isinstance(lm, GeneratingTokenLM)
    want = [chunk async for chunk in StubLM(VOCAB).generate([0], 9, seed=1, stop_token_ids=[2])]
    assert [c async for c in lm.generate([0], 9, seed=1, stop_token_ids=[2])] == want


def test_it_generates_only_if_the_model_does() -> None:
    assert not isinstance(counting(EvaluatingLM()), GeneratingTokenLM)


async def test_what_a_generation_takes_is_counted() -> None:
    class MeteredGeneratingLM(MeteredLM):
        async def generate(self, token_ids, max_tokens, *, usage=None, **options):
            async for chunk in super().generate(token_ids, max_tokens, **options):
                usage.tokens_computed += 1
                yield chunk

    lm = counting(MeteredGeneratingLM(VOCAB))
    assert isinstance(lm, GeneratingTokenLM)
    tokens = [chunk async for chunk in lm.generate([0], 7)]
    assert lm.usage.tokens_computed == len(tokens) == 7


async def test_all_that_a_call_asks_for_has_its_salt() -> None:
    class SaltedLM(MeteredLM):
        async def generate(self, token_ids, max_tokens, *, cache_salt=None, **options):
            self.salts += (cache_salt,)
            async for chunk in super().generate(token_ids, max_tokens, **options):
                yield chunk

    lm = SaltedLM(VOCAB)
    await counting(lm, "a").next_token_logprobs([0])
    await counting(lm).next_token_logprobs([0])
    generating = counting(lm, "b")
    assert isinstance(generating, GeneratingTokenLM)
    assert len([chunk async for chunk in generating.generate([0], 2)]) == 2
    assert lm.salts == ("a", None, "b")


async def test_a_callers_many_evaluations_do_not_keep_anothers_one_waiting() -> None:
    class SlowLM(MeteredLM):
        """One that answers one at a time, in the order of asking."""

        turn = asyncio.Lock()

        async def evaluate(self, token_ids, usage, *, cache_salt=None):
            async with self.turn:
                await asyncio.sleep(0)
                self.salts += (cache_salt,)
                return self.row(token_ids)

    lm, shares = SlowLM(VOCAB), Shares(4, {"a": 100, "b": 1})
    many, other = counting(lm, "a", shares), counting(lm, "b", shares)

    async def walk(one: CountingLM, length: int) -> None:
        for _ in range(length):
            await one.next_token_logprobs([0])

    crowd = [asyncio.create_task(walk(many, 3)) for _ in range(100)]
    await asyncio.sleep(0)
    await walk(other, 10)
    assert lm.salts.count("a") <= 10 * 4
    await asyncio.gather(*crowd)
    assert lm.salts.count("a") == 300
