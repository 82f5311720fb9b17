"""Byte states with a longest context: they go on with its end, behind the first token."""

import math
from pathlib import Path

import mistral_common
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.beam.prefill import TrunkFinder
from bytelm.errors import BeamError, MethodError
from bytelm.generating.draws import Draw
from bytelm.generating.generation import collect, generate
from bytelm.generating.token_sampling import sample
from bytelm.models.logprobs import LazyByteProbs
from bytelm.models.testing import StubLM, assert_immutable, assert_normalised
from bytelm.prompts.context import Context, Special, Text, begin
from bytelm.vocabulary.vocab import ByteVocab

SHIPPED = Path(mistral_common.__file__).parent / "data"
BOS, END, MARK = 0, 1, 2
WORDS = ByteVocab.from_bytes(
    [b"", b"", b"", *[bytes([b]) for b in range(32, 127)], b"the", b" the", b" c", b"at", b" cat"],
    bos_token_id=BOS,
    eos_token_ids=[END],
)


class _Recording(StubLM):
    """Remembers which contexts were evaluated, or generated from."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.contexts: list[tuple[int, ...]] = []

    async def next_token_logprobs(self, token_ids):
        self.contexts.append(tuple(token_ids))
        return await super().next_token_logprobs(token_ids)


async def initial(lm, most: int | None, k: int | None = 3, threshold: float = 0.01):
    params = BeamParams(k, threshold, max_context_length=most)
    return await ByteBeamState.initial(lm, params)


async def walk(state: ByteBeamState, text: bytes) -> ByteBeamState:
    for b in text:
        state = await (state.prune() << b)
    return state


def tokens_of(state: ByteBeamState) -> tuple[int, ...]:
    return next(iter(state)).tokens


def knows_the_end_of(state: ByteBeamState, text: bytes) -> bool:
    """Whether the state's bytes are the last ones of a text, all that its tokens spell."""
    best = next(iter(state))
    spelled = state.source.vocab.decode(best.tokens) + best.partial
    return text.endswith(state.context) and len(text) > len(state.context) == len(spelled) > 0


TEXT = b"the cat the cat" + b" the cat" * 20


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from([b"the", b" the", b" cat", b"z", b".", b" "]), max_size=30),
    st.integers(2, 12),
    st.sampled_from([1, 3]),
    st.sampled_from([0.0, 0.05]),
)
async def test_no_context_is_ever_longer(words, most, k, threshold):
    lm, text = _Recording(WORDS), b"".join(words)
    state = await walk(await initial(lm, most, k, threshold), text)
    await assert_normalised(state)
    assert text.endswith(state.context)
    assert max(map(len, lm.contexts)) <= most
    assert all(context[0] == BOS for context in lm.contexts)


@settings(max_examples=100)
@given(
    seed=st.integers(0, 1000),
    words=st.lists(st.sampled_from([b"the", b" the", b" cat", b"z", b"."]), min_size=20),
    most=st.integers(2, 12),
    k=st.sampled_from([1, 2, 3]),
    threshold=st.sampled_from([0.0, 0.05, 0.5]),
    deferred=st.booleans(),
    fast=st.booleans(),
)
async def test_it_empties_no_beam(seed, words, most, k, threshold, deferred, fast):
    """Whatever tokenizations are left, there is room behind them."""
    params = BeamParams(k, threshold, deferred=deferred, max_context_length=most)
    state = await ByteBeamState.initial(StubLM(WORDS, seed), params)
    for word in words:
        state = await state.prefill(word) if fast else await walk(state, word)
        assert all(len(candidate.tokens) < most for candidate in state)
        await assert_normalised(state.prune())


@pytest.mark.parametrize("mode", ["fast", "exact"])
async def test_a_prefill_may_be_longer(mode):
    lm = _Recording(WORDS)
    state = await (await initial(lm, 10)).prefill(TEXT, mode)
    await assert_normalised(state)
    assert knows_the_end_of(state, TEXT)
    assert max(map(len, lm.contexts)) <= 10


async def test_the_models_own_limit_counts_where_it_is_lower():
    lm = _Recording(WORDS, max_context_tokens=6)
    state = await walk(await (await initial(lm, 100)).prefill(TEXT), TEXT)
    assert knows_the_end_of(state, TEXT + TEXT)
    assert max(map(len, lm.contexts)) <= 6


async def test_a_state_goes_on_as_one_that_only_had_the_end():
    """From a word end on, with half as many tokens as there may be."""
    state = before = await initial(StubLM(WORDS), 12)
    for b in TEXT:
        before, state = state, await (state.prune() << b)
        if len(tokens_of(state)) < len(tokens_of(before)):
            break
    tokens = tokens_of(state)
    assert tokens[0] == BOS
    rest = TrunkFinder.of(WORDS).last(state.context, 6)
    assert rest.startswith(b" ")
    assert len(WORDS.encode(rest)) <= 6
    only_the_end = await (await initial(StubLM(WORDS), 12)).prefill(rest)
    assert [c.tokens for c in state] == [c.tokens for c in only_the_end]
    assert (await state.logp_next()).ps.tolist() == (await only_the_end.logp_next()).ps.tolist()


async def test_logz_goes_on():
    state, total = await initial(StubLM(WORDS), 12, k=None, threshold=0.0), 0.0
    for b in TEXT[:40]:
        total += (await state.logp_next())[b]
        state = await (state << b)
        assert state.logZ == pytest.approx(total, abs=1e-6)


async def test_a_state_never_changes():
    state = await initial(StubLM(WORDS), 8, k=None, threshold=0.0)
    for b in TEXT[:30]:
        await assert_immutable(state, [b, ord(" ")])
        state = await (state.prune() << b)


async def test_what_was_submitted_to_begin_again_is_not_kept():
    lm = _Recording(WORDS)
    state = await walk(await initial(lm, 12), TEXT)
    assert knows_the_end_of(state, TEXT)
    assert not any(map(state.source.knows, lm.contexts))


@pytest.mark.parametrize("heal", [True, False])
async def test_prefilled_bytes_of_an_eos_token_are_read_again(heal):
    params = BeamParams(3, 0.01, eos_byte_strings=[b"!"], heal=heal, max_context_length=12)
    state = await ByteBeamState.initial(StubLM(WORDS), params)
    text = b"the cat the cat the cat the cat the!"
    state = await walk(await state.prefill(text), b" cat")
    assert knows_the_end_of(state, text + b" cat")
    assert b"!" in state.context
    assert (await state.logp_next())[ord("!")] == -math.inf
    await assert_normalised(state)


async def test_without_a_word_end_the_last_tokens_are_kept():
    state = await walk(await initial(StubLM(WORDS), 9, k=1), b"z" * 50)
    assert knows_the_end_of(state, b"z" * 50)
    assert 4 <= len(tokens_of(state)) <= 9


def test_a_late_word_end_does_not_cost_nearly_everything():
    finder = TrunkFinder.of(WORDS)
    assert finder.last(b"z" * 50 + b" the", 20) == b"z" * 19 + b" the"
    assert finder.last(b"zzzz cat" + b"z" * 15, 18) == b" cat" + b"z" * 15
    assert finder.last(b"the cat", 9) == b"the cat"


async def test_what_the_tokenizer_puts_before_a_text_is_no_part_of_the_context():
    vocab = ByteVocab.from_file(SHIPPED / "tokenizer.model.v1")
    text = b"The capital of France is Paris, and that of Spain is Madrid"
    state = await walk(await initial(StubLM(vocab, rows=8), 8), text)
    assert len(tokens_of(state)) <= 8
    for made in (state, await (await initial(StubLM(vocab, rows=8), 8)).prefill(text)):
        assert knows_the_end_of(made, text)


async def test_special_tokens_are_forgotten_like_others():
    lm = _Recording(WORDS)
    state = await (await initial(lm, 10)).prefill(b"the cat")
    for _ in range(5):
        state = state.insert([MARK], b" the cat")
        assert len(tokens_of(state)) <= 10
    assert tokens_of(state)[-3:] == (*WORDS.encode(b" the cat"), MARK)
    assert knows_the_end_of(state, b"the cat" + b" the cat" * 5)
    state = await walk(state, b" the cat the cat")
    assert knows_the_end_of(state, b"the cat" + b" the cat" * 7)
    assert max(map(len, lm.contexts)) <= 10


@pytest.mark.parametrize("text", [b"", b" the cat"])
async def test_a_context_of_segments_may_be_longer(text):
    lm = _Recording(WORDS, max_context_tokens=10)
    context = Context([Text(TEXT), Special(END), Text(text)])
    state = await begin(lm, BeamParams(3, max_context_length=10), context)
    await assert_normalised(state)
    assert knows_the_end_of(state, TEXT + text)
    assert END in tokens_of(state)
    assert max(map(len, lm.contexts)) <= 10


async def test_a_generation_does_not_end_there():
    state = await (await initial(StubLM(WORDS, silent=[END]), 8)).prefill(b"the cat")
    made = await collect(generate(state, 60, LazyByteProbs.argmax))
    assert (len(made.data), made.finish_reason) == (60, "steps")
    assert knows_the_end_of(made.state, b"the cat" + made.data)


async def test_texts_are_drawn_by_tokens_where_there_is_room_for_them():
    lm = StubLM(WORDS, silent=[END])
    state = await (await initial(lm, 20)).prefill(b"the cat")
    await collect(sample(state, 10, Draw(seed=1), method="token"))
    assert lm.tokens_generated > 0
    lm.tokens_generated = 0
    with pytest.raises(MethodError, match="max_context_length has no room for 30"):
        sample(state, 30, Draw(seed=1), method="token")
    made = await collect(sample(state, 30, Draw(seed=1)))
    assert (len(made.data), lm.tokens_generated) == (30, 0)


@pytest.mark.parametrize("most", [1, 0, -5])
def test_less_than_two_tokens_are_refused(most):
    with pytest.raises(BeamError, match="at least 2"):
        BeamParams(5, max_context_length=most)
