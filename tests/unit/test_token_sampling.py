"""Sampling by tokens against exact enumeration, against the walk, and cut by a naive reading."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.errors import InputError, MethodError, Terminated
from bytelm.generating.draws import Draw
from bytelm.generating.generation import Generated, collect, generate
from bytelm.generating.token_sampling import by_tokens, sample, sample_tokens
from bytelm.models.logprobs import EOS
from bytelm.models.testing import BruteForce, StubLM, assert_drawn_from, assert_reproducible
from bytelm.models.token_lm import Chunk, GeneratingTokenLM
from bytelm.prompts.context import Context, Special, Text, begin
from bytelm.vocabulary.vocab import ByteVocab

DRAWS = 2000
exact = BeamParams(K=None)


def toy_vocab(*tokens: bytes, eos: tuple[int, ...] = (1,)) -> ByteVocab:
    """BOS, EOS, a special id and the single bytes, then ``tokens``."""
    return ByteVocab.from_bytes(
        [b"", b"", b"", b"a", b"b", *tokens], bos_token_id=0, eos_token_ids=eos
    )


TOY = toy_vocab(b"ab", b"ab", b"ba", b"aba", b"bb", b"abab")


async def state_after(
    context: bytes, lm: StubLM, params: BeamParams = exact, **options: Any
) -> ByteBeamState:
    state = await ByteBeamState.initial(lm, params, **options)
    return await state.prefill(context, mode="exact")


async def drawn(
    state: ByteBeamState, steps: int, count: int = DRAWS, seed: int = 0
) -> Counter[tuple[bytes, str]]:
    """How often each text came, with the reason for its end."""
    parent = Draw(seed=seed)
    made = [await collect(sample_tokens(state, steps, parent.spawn(i))) for i in range(count)]
    return Counter((one.data, one.finish_reason) for one in made)


def enumerated(
    brute: BruteForce,
    context: bytes,
    steps: int,
    alphabet: bytes = b"ab",
    context_ids: tuple[int, ...] | None = None,
) -> dict[tuple[bytes, str], float]:
    """The probability of each text of up to ``steps`` bytes after a context."""
    base = brute.prefix(context, context_ids)
    found: dict[tuple[bytes, str], float] = {}
    level = [b""]
    for _ in range(steps):
        found |= {(text, "eos"): brute.whole(context + text, context_ids) / base for text in level}
        level = [text + bytes([b]) for text in level for b in alphabet]
    return found | {
        (text, "steps"): brute.prefix(context + text, context_ids) / base for text in level
    }


# The distribution


@pytest.mark.parametrize("context", [b"", b"a", b"aba", b"bbab"])
@pytest.mark.parametrize("seed", [0, 1])
async def test_the_first_bytes_are_drawn_as_enumerated(context, seed):
    """With duplicates, EOS, special ids, and contexts that end inside and at the end of tokens."""
    lm = StubLM(TOY, seed, spread=1.0)
    state = await state_after(context, lm)
    assert_drawn_from(await drawn(state, 3), enumerated(BruteForce(lm.row, TOY), context, 3))


async def test_enumeration_tells_the_current_token_from_a_new_one():
    """What would be drawn if the context's canonical tokens were taken as they are."""
    lm = StubLM(TOY, spread=1.0)
    wrong = await ByteBeamState.initial(lm, exact, initial_context=[0, *TOY.encode(b"aba")])
    want = enumerated(BruteForce(lm.row, TOY), b"aba", 3)
    with pytest.raises(AssertionError, match="chi-squared"):
        assert_drawn_from(await drawn(wrong, 3), want)


async def test_the_walk_draws_the_same():
    lm = StubLM(TOY, 3, spread=1.0)
    state = await state_after(b"ab", lm)
    parent = Draw(seed=5)
    made = [await collect(generate(state, 3, parent.spawn(i))) for i in range(DRAWS // 2)]
    walked = Counter((one.data, one.finish_reason) for one in made)
    want = enumerated(BruteForce(lm.row, TOY), b"ab", 3)
    assert_drawn_from(walked, want)
    assert_drawn_from(await drawn(state, 3), want)


async def test_an_eos_token_with_bytes_ends_the_text_without_them():
    """In the context its bytes are text, so that it may be the current token; not behind it."""
    vocab = toy_vocab(b"ab", b"ba", b"c", b"ac")
    lm = StubLM(vocab, 2, spread=1.0)
    state = await state_after(b"a", lm, BeamParams(K=None, eos_byte_strings=[b"ac", b"c"]))
    # The vocabulary's own EOS is none now.
    brute = BruteForce(lm.row, toy_vocab(b"ab", b"ba", b"", b"", eos=(7, 8)))
    row = np.exp(lm.row([0]))
    current = [i for i, token in enumerate(vocab.token_bytes) if token.startswith(b"a")]
    want: dict[tuple[bytes, str], float] = {}
    for token in current:
        p, rest = float(row[token] / row[current].sum()), vocab.token_bytes[token][1:]
        behind = enumerated(brute, b"", 2 - len(rest), context_ids=(0, token))
        for (text, reason), q in behind.items():
            want[rest + text, reason] = want.get((rest + text, reason), 0.0) + p * q
    assert_drawn_from(await drawn(state, 2), want)


async def test_special_tokens_are_never_generated():
    """Although the model gives them nearly everything."""
    vocab = toy_vocab(b"ab", b"ba")

    class SpecialLM(StubLM):
        def row(self, token_ids):
            row = super().row(token_ids).copy()
            row[[0, 2]] += 8.0
            return row

    lm = SpecialLM(vocab, spread=1.0)
    state = await state_after(b"a", lm)
    # Enumeration leaves out the special ids, as the byte LM does.
    assert_drawn_from(await drawn(state, 3), enumerated(BruteForce(lm.row, vocab), b"a", 3))


async def test_special_tokens_of_a_context_are_gone_on_from():
    lm = StubLM(TOY, 4, spread=1.0)
    context = Context([Text(b"ab"), Special(1)])
    state = await begin(lm, exact, context)
    brute = BruteForce(lm.row, TOY, context.tokens(TOY))
    assert_drawn_from(await drawn(state, 3), enumerated(brute, b"", 3))


async def test_a_prefix_of_the_tokenizer_is_no_output():
    vocab = ByteVocab.from_bytes(
        [b"", b"", b" ", b" a", b"a", b"b", b" ab"], bos_token_id=0, eos_token_ids=(1,)
    )
    vocab = replace(vocab, prefix=b" ")
    lm = StubLM(vocab, spread=1.0)
    state = await ByteBeamState.initial(lm, exact)
    want = enumerated(BruteForce(lm.row, vocab), b" ", 2, b" ab")
    assert_drawn_from(await drawn(state, 2), want)


async def test_literal_special_tokens_are_text():
    vocab = replace(toy_vocab(b"ab", b"ba"), token_text=("a", "b", "", "a", "b", "ab", "ba"))
    lm = StubLM(vocab, spread=1.0)
    state = await state_after(b"a", lm, BeamParams(K=None, special_tokens="literal"))
    brute = BruteForce(lm.row, vocab.literal(), [0])
    counts = await drawn(state, 3)
    assert_drawn_from(counts, enumerated(brute, b"a", 3))


async def test_a_beam_draws_among_the_candidates_that_it_has():
    lm = StubLM(TOY, spread=1.0)
    state = (await state_after(b"aba", lm)).prune()
    weights = np.exp([c.weight - state.logZ for c in state])
    draw = Draw(seed=1)
    picked = Counter(state.draw_tokens(draw.uniform)[0][:-1] for _ in range(DRAWS))
    want: dict[tuple[int, ...], float] = {}
    for candidate, weight in zip(state, weights, strict=True):
        want[candidate.tokens] = want.get(candidate.tokens, 0.0) + float(weight)
    assert len(want) > 2
    assert_drawn_from(picked, want)


# Where it ends


class Recital(StubLM):
    """Generates given tokens in given chunks, then EOS."""

    def __init__(self, tokens: Sequence[int], cuts: Sequence[int] = ()) -> None:
        super().__init__(TOY)
        self.tokens = [*tokens, 1]
        bounds = sorted({c for c in cuts if 0 < c < len(self.tokens)})
        self.bounds = [0, *bounds, len(self.tokens)]
        self.asked: dict[str, Any] = {}
        self.closed = False

    async def generate(
        self, token_ids: Sequence[int], max_tokens: int, **asked: Any
    ) -> AsyncGenerator[Chunk, None]:
        self.asked = {"token_ids": tuple(token_ids), "max_tokens": max_tokens, **asked}
        try:
            for start, end in zip(self.bounds, self.bounds[1:], strict=False):
                last = end == len(self.tokens)
                yield Chunk(tuple(self.tokens[start:end]), "stop" if last else None)
        finally:
            self.closed = True


def cut(data: bytes, stops: list[bytes]) -> bytes | None:
    """What is left before the stop string that ends first, the longest of these; None without."""
    for end in range(1, len(data) + 1):
        lengths = [len(s) for s in stops if data[:end].endswith(s)]
        if lengths:
            return data[: end - max(lengths)]
    return None


async def recited(lm: Recital, steps: int, stop: Any = ()) -> list[Any]:
    state = await ByteBeamState.initial(lm, exact)
    return [piece async for piece in sample_tokens(state, steps, Draw(seed=0), stop=stop)]


@settings(max_examples=300)
@given(
    st.lists(st.integers(3, TOY.size - 1), max_size=6),
    st.lists(st.integers(0, 7), max_size=6),
    st.lists(st.text("ab", min_size=1, max_size=4).map(str.encode), max_size=3),
    st.integers(0, 14),
)
async def test_texts_are_cut_alike_in_whatever_chunks_they_come(tokens, cuts, stops, steps):
    whole = TOY.decode(tokens)
    pieces = await recited(Recital(tokens, cuts), steps, stops)
    before = cut(whole[:steps], stops)
    data = b"".join(p.data for p in pieces)
    assert data == (whole[:steps] if before is None else before)
    reason = "stop" if before is not None else "steps" if len(whole) >= steps else "eos"
    assert [p.finish_reason for p in pieces] == [None] * (len(pieces) - 1) + [reason]
    assert all(p.data for p in pieces[:-1])
    assert all(p.state is None and p.logprob is None for p in pieces)


async def test_bytes_are_given_as_soon_as_no_stop_string_can_take_them():
    tokens = TOY.encode(b"bb") + TOY.encode(b"ab") + TOY.encode(b"a") + TOY.encode(b"bb")
    pieces = await recited(Recital(tokens, range(9)), 99, b"abb")
    # "ab" is held until the next byte shows that it is no stop string; so is the last "a".
    assert [(p.data, p.finish_reason) for p in pieces] == [
        (b"bb", None),
        (b"ab", None),
        (b"", "stop"),
    ]


async def test_steps_cut_inside_a_token():
    state = await state_after(b"ab", StubLM(TOY, spread=0.1))
    for n in range(1, 6):
        counts = await drawn(state, n, 200)
        assert all(len(text) == n for text, reason in counts if reason == "steps")
        assert all(len(text) < n for text, reason in counts if reason == "eos")


@pytest.mark.parametrize("stop", [(), b"ab"])
async def test_the_generation_is_closed_where_the_text_ends_before_it(stop):
    lm = Recital(TOY.encode(b"abababab"), range(9))
    (last,) = [p for p in await recited(lm, 3, stop) if p.finish_reason]
    assert last.finish_reason == ("stop" if stop else "steps")
    assert lm.closed


async def test_the_generation_is_closed_where_the_reader_leaves():
    lm = Recital(TOY.encode(b"abababab"), range(9))
    state = await ByteBeamState.initial(lm, exact)
    pieces = sample_tokens(state, 99, Draw(seed=0))
    await anext(pieces)
    await anext(pieces)
    await pieces.aclose()
    assert lm.closed


async def test_the_token_lm_is_asked_for_no_more_than_can_be_used():
    lm = Recital([])
    state = await ByteBeamState.initial(lm, BeamParams(K=None, eos_byte_strings=[1, b"bb"]))
    await collect(sample_tokens(state, 7, Draw(seed=0)))
    asked = lm.asked
    assert (asked["token_ids"], asked["max_tokens"]) == ((0,), 7)
    assert sorted(asked["stop_token_ids"]) == [1, TOY.token_bytes.index(b"bb")]
    assert list(asked["banned_token_ids"]) == [0, 2]


async def test_no_steps_take_nothing_of_the_model():
    lm = Recital([3])
    (only,) = await recited(lm, 0)
    assert (only.data, only.finish_reason, lm.asked) == (b"", "steps", {})


async def test_a_text_ends_at_the_models_limit():
    vocab = toy_vocab(b"ab")
    lm = StubLM(vocab, spread=0.1, max_context_tokens=4, silent=[1])
    counts = await drawn(await state_after(b"", lm), 99, 400)
    # BOS and three tokens can be evaluated, so that there are four.
    assert {reason for _, reason in counts} == {"length"}
    assert {len(text) for text, _ in counts} == {4, 5, 6, 7, 8}


async def test_a_current_token_that_fills_the_model_is_the_last():
    lm = StubLM(toy_vocab(b"ab", b"bb"), spread=0.1, max_context_tokens=2, silent=[1])
    counts = await drawn(await state_after(b"ab", lm), 99, 300)
    # a|b and a|bb can have nothing behind them, ab has one token.
    assert {reason for _, reason in counts} == {"length"}
    assert {text for text, _ in counts} == {b"", b"a", b"b", b"ab", b"bb"}


async def test_a_text_that_ended_cannot_go_on():
    state = await (await state_after(b"a", StubLM(TOY)) << EOS)
    with pytest.raises(Terminated):
        await collect(sample_tokens(state, 3, Draw(seed=0)))


async def test_negative_steps_are_refused():
    with pytest.raises(InputError, match="-1"):
        await collect(sample_tokens(await state_after(b"a", StubLM(TOY)), -1, Draw(seed=0)))


async def test_the_state_afterwards_is_that_of_the_bytes():
    lm = StubLM(TOY, spread=1.0)
    state = await state_after(b"ab", lm)
    made = await collect(sample_tokens(state, 3, Draw(seed=1)))
    after = await state.prefill(made.data, mode="exact")
    want = BruteForce(lm.row, TOY).logp_next(b"ab" + made.data)
    have = (await after.logp_next()).ps
    assert np.allclose(np.exp(have), np.exp(want), atol=1e-6)


# Randomness


async def test_the_same_seed_gives_the_same_text_whatever_else_runs():
    state = await state_after(b"ab", StubLM(TOY))

    async def one() -> bytes:
        return (await collect(sample_tokens(state, 30, Draw(seed=5).spawn(1, 2)))).data

    await assert_reproducible(one)


async def test_places_of_one_seed_draw_each_their_own():
    state = await state_after(b"ab", StubLM(TOY, silent=[1]))
    parent = Draw(seed=5)
    texts = [(await collect(sample_tokens(state, 30, parent.spawn(i)))).data for i in range(20)]
    assert len(set(texts)) == 20


async def test_one_draw_goes_on_in_its_stream():
    state = await state_after(b"ab", StubLM(TOY, silent=[1]))
    draw = Draw(seed=5)
    texts = [(await collect(sample_tokens(state, 30, draw))).data for _ in range(5)]
    assert len(set(texts)) == 5


@pytest.mark.parametrize("seeded", [True, False])
async def test_the_token_lm_is_seeded_only_where_the_caller_gave_a_seed(seeded):
    lm = Recital([3, 4])
    state = await ByteBeamState.initial(lm, exact)
    draw = Draw(seed=1) if seeded else Draw()
    await collect(sample_tokens(state, 7, draw.spawn(1)))
    assert (lm.asked["seed"] is not None) == seeded


# Which method


class EvaluatingLM:
    """A token LM that does not generate."""

    vocab = TOY
    max_context_tokens = None

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> Any:
        return StubLM(TOY).row(token_ids)


def test_which_token_lms_generate():
    assert isinstance(StubLM(TOY), GeneratingTokenLM)
    assert not isinstance(EvaluatingLM(), GeneratingTokenLM)


NEUTRAL: list[dict[str, Any]] = [{}, {"top_p": 1.0}, {"min_p": 0.0}, {"seed": 3}]


@pytest.mark.parametrize("parameters", NEUTRAL)
def test_tokens_are_drawn_where_nothing_stands_against_it(parameters):
    assert by_tokens("auto", StubLM(TOY), Draw(**parameters))
    assert by_tokens("token", StubLM(TOY), Draw(**parameters))
    assert not by_tokens("byte", StubLM(TOY), Draw(**parameters))


AGAINST: list[tuple[str, Any, dict[str, bool]]] = [
    ("temperature", Draw(0.5), {}),
    ("temperature", Draw(0.0), {}),
    ("top_k", Draw(top_k=3), {}),
    ("top_p", Draw(top_p=0.9), {}),
    ("min_p", Draw(min_p=0.1), {}),
    ("draw", lambda chart: 97, {}),
    ("valid_utf8", Draw(), {"valid_utf8": True}),
    ("logprobs", Draw(), {"logprobs": True}),
]


@pytest.mark.parametrize(("option", "draw", "wanted"), AGAINST)
def test_what_stands_against_tokens_is_named(option, draw, wanted):
    assert not by_tokens("auto", StubLM(TOY), draw, **wanted)
    assert not by_tokens("byte", StubLM(TOY), draw, **wanted)
    with pytest.raises(MethodError, match=option) as caught:
        by_tokens("token", StubLM(TOY), draw, **wanted)
    assert caught.value.option == option


@pytest.mark.parametrize("lm", [EvaluatingLM(), None])
def test_tokens_need_a_model_that_generates(lm):
    assert not by_tokens("auto", lm, Draw())
    with pytest.raises(MethodError, match="generates tokens") as caught:
        by_tokens("token", lm, Draw())
    assert caught.value.option == "method"


def test_there_is_no_other_method():
    with pytest.raises(InputError, match="letter"):
        by_tokens("letter", StubLM(TOY), Draw())


async def made_by(lm: Any, draw: Any, **options: Any) -> Generated[Any]:
    return await collect(sample(await state_after(b"ab", lm), 12, draw, **options))


async def test_sample_takes_the_method():
    lm = StubLM(TOY)
    tokens = await collect(sample_tokens(await state_after(b"ab", lm), 12, Draw(seed=2)))
    walk = await collect(generate(await state_after(b"ab", lm), 12, Draw(seed=2)))
    assert tokens.data != walk.data
    assert (await made_by(lm, Draw(seed=2))).data == tokens.data
    assert (await made_by(lm, Draw(seed=2), method="token")).data == tokens.data
    assert (await made_by(lm, Draw(seed=2), method="byte")).data == walk.data
    assert (await made_by(lm, Draw(seed=2), logprobs=True)).data == walk.data
    assert (await made_by(EvaluatingLM(), Draw(seed=2))).data == walk.data
    with pytest.raises(MethodError):
        await made_by(lm, Draw(seed=2), method="token", logprobs=True)


async def test_a_state_samples_by_tokens_where_it_can():
    state = await ByteBeamState.initial(StubLM(TOY), exact)
    tokens = await collect(sample_tokens(await state.prefill(b"ab"), 12, Draw(seed=2)))
    walk = await collect(generate(await state.prefill(b"ab"), 12, Draw(seed=2)))
    assert await state.sample(b"ab", 12, Draw(seed=2)) == b"ab" + tokens.data
    assert await state.sample(b"ab", 12, Draw(seed=2), method="byte") == b"ab" + walk.data
    assert await state.sample(b"ab", 12, lambda chart: 97) == b"ab" + 12 * b"a"


async def test_texts_side_by_side_do_not_disturb_each_other():
    state = await state_after(b"ab", StubLM(TOY))
    draws = [Draw(seed=1).spawn(i) for i in range(20)]
    alone = [(await collect(sample_tokens(state, 20, d.spawn(*d.key)))).data for d in draws]
    together = await asyncio.gather(*[collect(sample_tokens(state, 20, d)) for d in draws])
    assert [one.data for one in together] == alone
