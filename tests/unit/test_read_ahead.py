"""Reading ahead: fewer steps of the model, and the same answers."""

import asyncio

import numpy as np
import pytest

from bytelm.beam import BeamParams, ByteBeamState, read_ahead
from bytelm.beam.read_ahead import Ahead
from bytelm.generating.generation import collect, generate
from bytelm.models.logprobs import LazyByteProbs
from bytelm.models.testing import StubLM
from bytelm.vocabulary.trie import TokenTrie
from bytelm.vocabulary.vocab import ByteVocab

WORDS = ByteVocab.from_bytes(
    [
        b"",
        b"",
        *(bytes([b]) for b in b" cdegort"),
        b" d",
        b" do",
        b" doc",
        b" doctor",
        b" dog",
        b"do",
        b"tor",
        b"er",
    ],
    bos_token_id=0,
    eos_token_ids=(1,),
)


class SlowLM(StubLM):
    """A model that takes steps, in each of which it answers all that was asked for before."""

    is_idle = True

    def __init__(self, vocab, **kwargs):
        super().__init__(vocab, **kwargs)
        self.steps = 0
        self.under_way = []

    async def next_token_logprobs(self, token_ids):
        self.under_way.append(row := asyncio.get_running_loop().create_future())
        if len(self.under_way) == 1:
            task = asyncio.ensure_future(self._step())
            row.add_done_callback(lambda _: task)
        await asyncio.shield(row)
        return await super().next_token_logprobs(token_ids)

    async def _step(self):
        for _ in range(20):
            await asyncio.sleep(0)
        self.steps += 1
        rows, self.under_way = self.under_way, []
        for row in rows:
            row.set_result(None)


class BusyLM(SlowLM):
    is_idle = False


async def walk(lm, text=b"", steps=60, threshold=0.02):
    params = BeamParams(5, threshold, eos_byte_strings=())
    state = await ByteBeamState.initial(lm, params)
    return await collect(generate(await state.prefill(text), steps, LazyByteProbs.argmax))


@pytest.mark.parametrize("seed", range(8))
async def test_a_walk_takes_fewer_steps_and_gives_the_same_bytes(seed):
    alone, ahead = BusyLM(WORDS, seed=seed), SlowLM(WORDS, seed=seed)
    assert (await walk(ahead)).data == (await walk(alone)).data
    assert ahead.steps <= alone.steps
    assert ahead.evaluations >= alone.evaluations


async def test_over_several_texts_it_pays():
    """In steps of the model, which is what a walk waits for."""
    steps = {}
    for kind in BusyLM, SlowLM:
        lms = [kind(WORDS, seed=seed) for seed in range(8)]
        for lm in lms:
            await walk(lm)
        steps[kind] = sum(lm.steps for lm in lms)
    assert steps[SlowLM] < 0.9 * steps[BusyLM]


async def test_distributions_and_candidates_are_the_same():
    params = BeamParams(5, 0.02)
    states = [await ByteBeamState.initial(kind(WORDS, seed=3), params) for kind in (BusyLM, SlowLM)]
    for b in b" doctor do dog":
        one, other = [(await state.logp_next()).ps for state in states]
        assert np.array_equal(one, other)
        states = [await (state.prune() << b) for state in states]
        assert repr(states[0]) == repr(states[1])


async def test_what_was_asked_for_is_not_asked_for_again():
    lm = SlowLM(WORDS, seed=1)
    asked = []
    answer = lm.next_token_logprobs

    async def note(token_ids):
        asked.append(tuple(token_ids))
        return await answer(token_ids)

    lm.next_token_logprobs = note
    await walk(lm, b" doctor")
    assert len(asked) == len(set(asked))


async def test_what_is_likely_to_come_is_on_the_way_through_the_likeliest_token():
    trie = TokenTrie.of(WORDS)
    node = trie.descend(b" d")
    shares = {b" d": 0.2, b" do": 0.004, b" doc": 0.1, b" doctor": 0.6, b" dog": 0.09}
    tokens = [WORDS.token_bytes[i] for i in trie.order[trie.lo[node] : trie.hi[node]]]
    piece = np.array([shares[token] for token in tokens], np.float32)

    def coming(threshold):
        return [WORDS.token_bytes[t] for t in read_ahead.coming(trie, node, piece, threshold)]

    assert coming(0.01) == [b" doc", b" doctor"]
    assert coming(0.001) == [b" do", b" doc", b" doctor"]
    assert coming(0.9) == [b" doctor"]
    piece[tokens.index(b" d")] = 1.0
    assert coming(0.01) == []  # the likeliest ends here


async def test_where_the_model_has_more_to_do_nothing_is_read_ahead():
    busy, plain = BusyLM(WORDS, seed=2), StubLM(WORDS, seed=2)
    await walk(busy)
    await walk(plain)
    assert busy.evaluations == plain.evaluations


async def test_an_evaluation_ahead_that_fails_is_made_again():
    lm = SlowLM(WORDS, seed=4)
    expected = (await walk(StubLM(WORDS, seed=4))).data
    answer, failed = lm.next_token_logprobs, set()

    async def fail_once(token_ids):
        row = await answer(token_ids)
        if len(token_ids) > 2 and tuple(token_ids) not in failed:
            failed.add(tuple(token_ids))
            raise RuntimeError("not now")
        return row

    class Failing(SlowLM):
        async def next_token_logprobs(self, token_ids):
            return await fail_once(token_ids)

    state = await ByteBeamState.initial(Failing(WORDS), BeamParams(5, 0.02, eos_byte_strings=()))
    data = bytearray()
    while len(data) < len(expected):
        try:
            b = (await state.logp_next()).argmax()
            state = await (state.prune() << b)
        except RuntimeError:
            continue
        data.append(b)
    assert bytes(data) == expected
    assert failed


async def test_a_caller_that_goes_away_does_not_take_the_answer_from_others():
    lm = SlowLM(WORDS, seed=5)
    tokens = (0,)
    ahead = Ahead().asking(lm, [(tokens, 4)])
    answer = ahead.find(tokens, 4)
    state = await ByteBeamState.initial(lm, BeamParams(5, 0.02))
    waiting = asyncio.ensure_future(asyncio.shield(answer))
    await asyncio.sleep(0)
    waiting.cancel()
    assert np.array_equal(await answer, lm.row((0, 4)))
    assert state.nbytes == 0


async def test_only_what_may_still_extend_a_candidate_is_kept():
    lm, trie = SlowLM(WORDS), TokenTrie.of(WORDS)
    mine, other = (1, 2), (1, 3)
    do, dog, tor = (WORDS.token_bytes.index(token) for token in (b" do", b" dog", b"tor"))
    ahead = Ahead().asking(lm, [(mine, do), (mine, dog), (mine, tor), (other, dog)])
    size = (await ahead.find(other, dog)).nbytes
    assert ahead.nbytes == 4 * size
    assert ahead.asking(lm, [(mine, do)]) is ahead

    def kept(text):
        left = ahead.of_candidates(trie, [mine], np.array([trie.descend(text)], np.int32))
        found = [token for token in (do, dog, tor) if left.find(mine, token)]
        assert left.nbytes == len(found) * size
        assert left.find(other, dog) is None
        return found

    assert kept(b" d") == [do, dog]
    assert kept(b" do") == [do, dog]
    assert kept(b" dog") == [dog]
    assert kept(b"d") == []
    assert ahead.without([(*mine, do)]).find(mine, do) is None


async def test_a_fast_prefill_asks_in_advance_for_canonical_tokens_alone(monkeypatch):
    """What it guesses would count to what it may take, whatever the text."""
    lm = SlowLM(WORDS)
    state = await ByteBeamState.initial(lm, BeamParams(5, 0.02))
    monkeypatch.setattr(read_ahead, "coming", lambda *_: pytest.fail("it guessed"))
    state = await state.prefill(b" doctor dog do" * 3)
    assert state.context == b" doctor dog do" * 3
