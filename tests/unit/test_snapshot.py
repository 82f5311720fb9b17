"""A state made again from its snapshot is the same state."""

import asyncio
import itertools
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.beam.healing import heal
from bytelm.beam.snapshot import GROWTH, Snapshot
from bytelm.errors import EmptyBeam, SnapshotError
from bytelm.models.logprobs import EOS
from bytelm.models.testing import StubLM
from bytelm.prompts.context import Context, Special, Text, begin
from bytelm.vocabulary.vocab import ByteVocab

ALPHABET = b"abc "
WORDS = [b"ab", b"abc", b"bca", b" a", b" ab", b"ab", b"cab", b"caa", b" ca"]
TOKENS = [b"", b"", b"", *(bytes([b]) for b in ALPHABET), *WORDS]
BOS, END, SPECIAL = range(3)
VOCAB = ByteVocab.from_bytes(TOKENS, bos_token_id=BOS, eos_token_ids=[END])

texts = st.text(ALPHABET.decode(), max_size=9).map(str.encode)
beams = st.builds(
    BeamParams,
    K=st.sampled_from([1, 2, 5, None]),
    prune_threshold=st.sampled_from([0.0, 0.01, 0.3]),
    eos_byte_strings=st.sampled_from([None, [b"c"], [b"ab", b" a"]]),
    max_context_length=st.sampled_from([None, 3, 8]),
    deferred=st.booleans(),
)


def numbers_of(state: ByteBeamState) -> list[object]:
    return [(c.weight, c.tokens, c.partial, c.terminated) for c in state]


async def assert_same(one: ByteBeamState, other: ByteBeamState, then: bytes = b"abca b") -> None:
    """The same numbers to the last bit, now and along ``then``."""
    assert numbers_of(one) == numbers_of(other)
    assert one._deferred == other._deferred
    assert one.context == other.context
    for b in then:
        assert np.array_equal((await one.logp_next()).ps, (await other.logp_next()).ps)
        try:
            one = await one.prune().advanced(b)
        except EmptyBeam:
            with pytest.raises(EmptyBeam):
                await other.prune().advanced(b)
            return
        other = await other.prune().advanced(b)
        assert numbers_of(one) == numbers_of(other)


async def walked(state: ByteBeamState, text: bytes) -> ByteBeamState:
    """The state after as much of a text as the beam can follow."""
    for b in text:
        try:
            state = await state.prune().advanced(b)
        except EmptyBeam:
            break
    return state


async def again(state: ByteBeamState, lm: StubLM) -> ByteBeamState:
    return await Snapshot.of(state).restored(lm, state.params)


@settings(max_examples=60)
@given(texts, beams, st.booleans(), st.booleans(), st.integers(0, 99))
async def test_restored_states_give_the_same_distributions_bitwise(
    text, params, prefilled, pruned, seed
):
    """Walked or prefilled, which reads EOS tokens that have bytes in another way."""
    lm = StubLM(VOCAB, seed)
    state = await ByteBeamState.initial(lm, params)
    if prefilled:
        try:
            state = await state.prefill(text)
        except EmptyBeam:
            return
    else:
        state = await walked(state, text)
    if pruned:
        state = state.prune()
    await assert_same(await again(state, lm), state)


async def test_one_evaluation_for_each_candidate_under_way():
    lm = StubLM(VOCAB)
    state = await (await ByteBeamState.initial(lm, BeamParams(K=None))).prefill(b"abcab")
    lm.evaluations = 0
    restored = await again(state, lm)
    assert lm.evaluations == len(restored) == len(state) > 2


async def test_a_state_before_any_byte_needs_no_evaluation():
    lm = StubLM(VOCAB)
    state = await ByteBeamState.initial(lm, BeamParams(K=5))
    restored = await again(state, lm)
    assert lm.evaluations == 0
    await assert_same(restored, state)


async def test_behind_special_tokens():
    lm = StubLM(VOCAB)
    context = Context([Special(BOS), Text(b"abc"), Special(END), Text(b"ab")])
    state = await begin(lm, BeamParams(K=5), context)
    restored = await again(state, lm)
    await assert_same(restored, state)
    # Where the text begins is kept, too.
    assert numbers_of(await restored.prefill(b"ca" * 20)) == numbers_of(
        await state.prefill(b"ca" * 20)
    )


async def test_at_eos():
    lm = StubLM(VOCAB)
    state = await ((await ByteBeamState.initial(lm, BeamParams(K=5))).prune() << EOS)
    restored = await again(state, lm)
    assert restored.terminated
    assert numbers_of(restored) == numbers_of(state)


async def test_healed_states(monkeypatch):
    """Healing cuts a row where its candidate stands, not below the first byte."""
    healed = []

    async def noted(state: ByteBeamState, b: int) -> ByteBeamState | None:
        healed.append(await heal(state, b))
        return healed[-1]

    monkeypatch.setattr("bytelm.beam.moving.heal", noted)
    # Below a node with many tokens the sums of the two ways to cut differ.
    many = [b"bc" + bytes(end) for end in itertools.product(b"abc", repeat=5)]
    tokens = [b"", *(bytes([b]) for b in b"abc"), b"abb", b"abcc", b"bbb", *many]
    lm = StubLM(ByteVocab.from_bytes(tokens, bos_token_id=0), spread=5.0)
    params = BeamParams(K=1, prune_threshold=0.9)
    for text in (b"ababa", b"abbab", b"bbaba", b"abcabc"):
        state = await ByteBeamState.initial(lm, params)
        for b in text:
            state = await state.prune().advanced(b)
            await assert_same(await again(state, lm), state)
    assert sum(state is not None for state in healed) > 5


class Faint(StubLM):
    """Gives some tokens so little probability that float32 sums would lose it."""

    def _row(self, name: bytes):
        row = super()._row(name).copy()
        row[[3, 7, 8]] = -95.0
        row.flags.writeable = False
        return row


async def test_candidates_of_almost_no_probability():
    lm = Faint(VOCAB)
    state = await ByteBeamState.initial(lm, BeamParams(K=None))
    for b in b"abab":
        state = await (state << b)
        await assert_same(await again(state, lm), state)


async def test_the_trunk_only_grows():
    lm = StubLM(VOCAB)
    state = await ByteBeamState.initial(lm, BeamParams(K=3, prune_threshold=0.05))
    trunk: tuple[int, ...] = ()
    grown = 0
    for b in b"abca bc" * 60:
        state = await state.prune().advanced(b)
        snapshot = Snapshot.of(state, trunk)
        assert snapshot.trunk[: len(trunk)] == trunk
        assert (len(snapshot.trunk) - len(trunk)) % GROWTH == 0
        grown += len(snapshot.trunk) > len(trunk)
        trunk = snapshot.trunk
    assert grown >= 2
    restored = await snapshot.restored(lm, state.params)
    await assert_same(restored, state)
    assert len(snapshot.head) < 4 * (2 * GROWTH * len(state) + 10) + 28 * len(state)


async def test_a_trunk_that_candidates_have_left_is_replaced():
    lm = StubLM(VOCAB)
    state = await (await ByteBeamState.initial(lm, BeamParams(K=3))).prefill(b"abc")
    assert Snapshot.of(state, (BOS, 14, 14)).trunk[:1] != (BOS, 14)
    await assert_same(await Snapshot.of(state, (5, 5)).restored(lm, state.params), state)


async def test_what_is_no_snapshot_is_refused():
    lm = StubLM(VOCAB)
    params = BeamParams(K=3)
    state = await (await ByteBeamState.initial(lm, params)).prefill(b"abc")
    good = Snapshot.of(state)
    small = StubLM(ByteVocab.from_bytes([b"", b"", b"", b"a"], bos_token_id=0))
    count, longest = struct.unpack_from("<II", good.head, 10)
    at = 18 + longest + 4 * count  # where the lengths of the partials are
    for bad, model in [
        (Snapshot((), b""), lm),
        (Snapshot((), good.head[:-1]), lm),
        (Snapshot((), b"\x63" + good.head[1:]), lm),
        (Snapshot((BOS,), good.head), lm),
        (Snapshot((), good.head[:at] + struct.pack("<i", longest + 1) + good.head[at + 4 :]), lm),
        (Snapshot((), good.head[:at] + struct.pack("<i", -1) + good.head[at + 4 :]), lm),
        (good, small),
    ]:
        with pytest.raises(SnapshotError):
            await bad.restored(model, params)


async def test_a_state_goes_on_with_another_model_object():
    class Other(StubLM):
        calls: list[tuple[int, ...]]

        async def next_token_logprobs(self, token_ids: Sequence[int]):
            self.calls.append(tuple(token_ids))
            await asyncio.sleep(0)
            return await super().next_token_logprobs(token_ids)

    lm, other = StubLM(VOCAB), Other(VOCAB)
    other.calls = []
    state = await (await ByteBeamState.initial(lm, BeamParams(K=5))).prefill(b"abc")
    lm.evaluations = 0
    moved = await (state.on(other) << b"a"[0])
    assert lm.evaluations == 0
    assert other.calls
    await assert_same(moved, await (state << b"a"[0]))


async def test_memory_counts_rows_that_are_kept():
    lm = StubLM(VOCAB)
    state = await (await ByteBeamState.initial(lm, BeamParams(K=5))).prefill(b"abc")
    bare = (await again(state, lm)).nbytes
    await state.logp_next()
    assert state.nbytes >= bare + len(VOCAB.token_bytes) * 8
