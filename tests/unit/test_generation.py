"""Generation against a naive loop that generates everything and cuts afterwards."""

import math
import weakref
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.errors import ByteError, DrawError, InputError, Terminated, Utf8Error
from bytelm.generating.draws import Draw, chooser
from bytelm.generating.generation import Generated, Piece, collect, generate
from bytelm.generating.score import score
from bytelm.models.byte_lm import StatefulByteLM
from bytelm.models.logprobs import EOS, EOT, SIZE, LazyByteProbs
from bytelm.models.testing import StubLM, assert_reproducible
from bytelm.vocabulary import utf8
from bytelm.vocabulary.vocab import ByteVocab

slow = settings(max_examples=40)
greedy = LazyByteProbs.argmax
texts = st.text("abc", max_size=4).map(str.encode)
stop_strings = st.lists(st.text("abc", min_size=1, max_size=4).map(str.encode), max_size=4)


class Recital(StatefulByteLM):
    """A byte LM that recites a text: each byte has probability 1/2, then EOS; the rest is even."""

    alive: ClassVar[weakref.WeakSet["Recital"]] = weakref.WeakSet()

    def __init__(self, text: bytes, at: int = 0, limit: int | None = None) -> None:
        self.text, self.at, self.limit = text, at, limit
        Recital.alive.add(self)

    @property
    def context(self) -> bytes:
        return self.text[: self.at]

    @property
    def at_limit(self) -> bool:
        return self.limit is not None and self.at >= self.limit

    async def __lshift__(self, b: int) -> "Recital":
        if b != self.text[self.at]:
            raise ByteError(f"{b} is not what comes next")
        return Recital(self.text, self.at + 1, self.limit)

    def prune(self) -> "Recital":
        return self

    async def logp_next(self) -> LazyByteProbs:
        ps = np.full(SIZE, math.log(0.5 / 256))
        ps[EOT] = -np.inf
        ps[self.text[self.at] if self.at < len(self.text) else EOS] = math.log(0.5)
        return LazyByteProbs(ps)

    async def prefill(self, bs):
        return Recital(self.text, self.at + len(bytes(bs)), self.limit)


async def pieces_of(text: bytes, steps: int = 99, **options) -> list[Piece[Recital]]:
    state = Recital(text, limit=options.pop("limit", None))
    return [piece async for piece in generate(state, steps, greedy, **options)]


async def beam_after(
    context: bytes, vocab: ByteVocab, seed: int = 0, threshold: float = 0.01
) -> ByteBeamState:
    params = BeamParams(K=3, prune_threshold=threshold)
    state = await ByteBeamState.initial(StubLM(vocab, seed), params)
    return await state.prefill(context, mode="exact")


def toy_vocab(extra: list[bytes]) -> ByteVocab:
    return ByteVocab.from_bytes(
        [b"", b"", b"a", b"b", b"c", *extra], bos_token_id=0, eos_token_ids=(1,)
    )


TOY = toy_vocab([b"ab", b"bc", b"abc", b"ca", b"aa"])
BYTES = ByteVocab.from_bytes(
    [b"", b"", *(bytes([b]) for b in range(256))]
    + [t.encode() for t in ("é", "中", "文", "😀", "ab", "a中", "中文")]
    + [b"\xe4\xb8", b"\xf0\x9f", b"\x98\x80", b"a\xe4", b"\xad\xc3", b"\xc3(", b"\xff\xfe"],
    bos_token_id=0,
    eos_token_ids=(1,),
)


def cut(data: bytes, stops: list[bytes]) -> bytes | None:
    """What is left before the stop string that ends first, the longest of these; None without."""
    for end in range(1, len(data) + 1):
        lengths = [len(s) for s in stops if data[:end].endswith(s)]
        if lengths:
            return data[: end - max(lengths)]
    return None


async def naive(state: StatefulByteLM, steps: int, choose) -> tuple[bytes, str]:
    data = bytearray()
    for _ in range(steps):
        b = choose(await state.logp_next())
        if b == EOS:
            return bytes(data), "eos"
        data.append(b)
        state = await (state.prune() << b)
    return bytes(data), "steps"


@slow
@given(texts, stop_strings, st.integers(0, 12), st.integers(0, 99), st.booleans())
async def test_stop_strings_cut_what_would_be_generated_without(context, stops, steps, seed, draw):
    state = await beam_after(context, TOY, seed % 7)
    data, finish = await naive(state, steps, Draw(seed=seed) if draw else greedy)
    before = cut(data, stops)
    made = await collect(generate(state, steps, Draw(seed=seed) if draw else greedy, stop=stops))
    assert made.data == (data if before is None else before)
    assert made.finish_reason == (finish if before is None else "stop")


@slow
@given(texts, stop_strings, st.integers(0, 12), st.integers(0, 99))
async def test_each_state_stands_exactly_after_the_bytes_given_so_far(context, stops, steps, seed):
    start = await beam_after(context, TOY, seed % 7)
    data = b""
    async for piece in generate(start, steps, Draw(1.5, seed=seed), stop=stops):
        assert piece.data or piece.finish_reason
        data += piece.data
        want = await start.prefill(data, mode="exact")
        assert piece.state.context == context + data
        have = (await piece.state.logp_next()).ps
        assert np.array_equal(have, (await want.logp_next()).ps)


@slow
@given(texts, stop_strings, st.integers(0, 12), st.integers(0, 99))
async def test_the_logprob_is_the_score_of_what_is_returned(context, stops, steps, seed):
    """Of the unfiltered distribution, EOS included where it ended the text."""
    start = await beam_after(context, TOY, seed % 7)
    draw = Draw(0.7, top_k=3, seed=seed)
    made = await collect(generate(start, steps, draw, stop=stops, logprobs=True))
    want = await score(start, made.data, eos=made.finish_reason == "eos")
    assert made.logprob == pytest.approx(want.logprob, abs=1e-12)


async def test_without_logprobs_there_is_none():
    made = await collect(generate(Recital(b"abc"), 2, greedy))
    assert made == Generated(b"ab", None, made.state, "steps")


async def test_pieces_come_as_they_are_final():
    pieces = await pieces_of(b"xababc!", stop=[b"abc"])
    assert [(p.data, p.finish_reason) for p in pieces] == [
        (b"x", None),
        (b"ab", None),
        (b"", "stop"),
    ]
    assert [p.state.at for p in pieces] == [1, 3, 3]


async def test_the_last_byte_comes_with_the_reason():
    pieces = await pieces_of(b"abc", steps=2)
    assert [(p.data, p.finish_reason) for p in pieces] == [(b"a", None), (b"b", "steps")]


async def test_eos_ends_and_the_state_stands_before_it():
    made = await collect(generate(Recital(b"ab"), 9, greedy, logprobs=True))
    assert (made.data, made.finish_reason, made.state.at) == (b"ab", "eos", 2)
    assert made.logprob == pytest.approx(3 * math.log(0.5))


@pytest.mark.parametrize("reason", ["steps", "eos"])
async def test_what_was_held_back_is_given_at_the_end(reason):
    steps = {"steps": 2, "eos": 9}[reason]
    pieces = await pieces_of(b"ab", steps=steps, stop=b"abc")
    assert [(p.data, p.finish_reason, p.state.at) for p in pieces] == [(b"ab", reason, 2)]


@pytest.mark.parametrize(
    ("stops", "want"),
    [
        ([b"bcd", b"c"], b"ab"),
        ([b"c", b"bc", b"abcx"], b"a"),
        ([b"abcx", b"bcd"], b"a"),
        ([b"abcd", b"cd"], b""),
        (b"cd", b"ab"),
    ],
)
async def test_the_earliest_end_wins_and_of_equal_ends_the_longest(stops, want):
    made = await collect(generate(Recital(b"abcde"), 9, greedy, stop=stops))
    assert (made.data, made.finish_reason) == (want, "stop")
    assert made.state.at == len(want)


async def test_a_stop_string_lies_within_the_generated_bytes():
    made = await collect(generate(Recital(b"abcabc", at=1), 9, greedy, stop=b"abc"))
    assert (made.data, made.finish_reason) == (b"bc", "stop")


async def test_only_as_many_states_are_kept_as_the_longest_stop_needs():
    most = 0
    async for _ in generate(Recital(b"a" * 60), 60, greedy, stop=[b"aaaa!", b"b"]):
        most = max(most, len([s for s in Recital.alive if s.text == b"a" * 60]))
    assert most <= 4 + 3


async def test_the_models_limit_ends_a_generation():
    made = await collect(generate(Recital(b"abcdef", limit=4), 9, greedy, logprobs=True))
    assert (made.data, made.finish_reason, made.state.at) == (b"abcd", "length", 4)
    assert made.logprob == pytest.approx(4 * math.log(0.5))


async def test_a_beam_that_fills_the_model_ends_with_what_it_had():
    """At K=1 up to the limit it is the generation without a limit."""
    params = BeamParams(K=1, prune_threshold=0.01)

    async def made(most: int | None) -> Generated[ByteBeamState]:
        lm = StubLM(toy_vocab([b"ab", b"abc"]), max_context_tokens=most)
        start = await ByteBeamState.initial(lm, params)
        return await collect(generate(start, 40, lambda q: int(q.ps[:256].argmax())))

    limited, unlimited = await made(6), await made(None)
    assert (limited.finish_reason, unlimited.finish_reason) == ("length", "steps")
    assert 0 < len(limited.data) < 40
    assert unlimited.data.startswith(limited.data)


@settings(max_examples=100)
@given(
    seed=st.integers(0, 1000),
    most=st.integers(1, 8),
    k=st.sampled_from([1, 2, 3, None]),
    threshold=st.sampled_from([0.0, 0.05, 0.5, 0.9]),
    deferred=st.booleans(),
    drawn=st.booleans(),
    valid_utf8=st.booleans(),
)
async def test_no_beam_fails_at_the_models_limit(
    seed, most, k, threshold, deferred, drawn, valid_utf8
):
    """Where a candidate ought to be extended but cannot, whatever else is left of the beam."""
    params = BeamParams(k, threshold, deferred=deferred)
    vocab = toy_vocab([b"ab", b"ba", b"aab", b"bbb", b"abab"])
    lm = StubLM(vocab, seed, max_context_tokens=most, silent=vocab.eos_token_ids)
    state = await ByteBeamState.initial(lm, params)
    choose = Draw(seed=seed) if drawn else greedy
    made = await collect(generate(state, 60, choose, valid_utf8=valid_utf8))
    assert made.finish_reason == "length"


async def test_no_steps_give_no_bytes():
    pieces = await pieces_of(b"abc", steps=0, stop=b"a", valid_utf8=True, logprobs=True)
    assert [tuple(p)[:2] for p in pieces] == [(b"", 0.0)]
    assert pieces[0].finish_reason == "steps"


async def test_greedy_and_sample_return_the_context_too():
    state = await beam_after(b"", TOY)
    after = await state.prefill(b"ab")
    made = await collect(generate(after, 6, greedy))
    assert await state.greedy(b"ab", 6) == b"ab" + made.data
    drawn = await collect(generate(after, 6, Draw(seed=3)))
    assert await state.sample(b"ab", 6, Draw(seed=3), method="byte") == b"ab" + drawn.data


async def test_the_same_seed_gives_the_same_bytes_whatever_else_runs():
    start = await beam_after(b"ab", BYTES)

    async def one():
        draw = Draw(1.1, top_p=0.95, seed=5)
        return (await collect(generate(start, 12, draw, valid_utf8=True))).data

    await assert_reproducible(one)


@slow
@given(
    st.one_of(st.binary(max_size=3), st.text("aé中😀", max_size=3).map(str.encode)),
    st.integers(0, 3),
    st.integers(0, 10),
    st.integers(0, 999),
    st.booleans(),
)
async def test_valid_utf8_decodes_and_fits(context, dropped, steps, seed, as_greedy):
    """After any context, whole or not, valid or not.

    A threshold could leave only candidates inside tokens that are not valid here.
    """
    context = context[: len(context) - dropped]
    start = await beam_after(context, BYTES, seed % 5, threshold=0.0)
    inside = utf8.state_after(context)
    draw = greedy if as_greedy else Draw(1.5, seed=seed)
    if 0 < steps < utf8.MISSING[inside]:
        with pytest.raises(Utf8Error, match=r"needs \d more bytes"):
            await collect(generate(start, steps, draw, valid_utf8=True))
        return
    pending = next(
        (context[-n:] for n in (1, 2, 3) if inside and context[-n:][0] >= 0xC0),
        b"",
    )
    data = b""
    async for piece in generate(start, steps, draw, valid_utf8=True):
        data += piece.data
        if data:
            (pending + data).decode()
    assert len(data) <= steps
    assert piece.finish_reason in ("steps", "eos")
    if piece.finish_reason == "steps":
        assert steps - len(data) < utf8.LONGEST


async def test_valid_utf8_chooses_the_likeliest_of_what_is_allowed():
    """Recital wants 中 where two bytes are left: the first of the even rest is taken instead."""
    with pytest.raises(ByteError, match="0 is not what comes next"):
        await pieces_of("é中".encode(), steps=4, valid_utf8=True)
    pieces = await pieces_of("é中".encode(), steps=5, valid_utf8=True)
    assert [p.data.decode() for p in pieces] == ["é", "中"]


async def test_valid_utf8_renormalises_for_the_draw_but_not_for_the_logprob():
    seen = []

    def draw(chart):
        seen.append(chart)
        return ord("x")

    made = await collect(generate(Recital(b"xy"), 1, chooser(draw), valid_utf8=True, logprobs=True))
    assert sum(seen[0].values()) == pytest.approx(1.0)
    assert seen[0][0xE4] == 0.0
    assert made.logprob == pytest.approx(math.log(0.5))


async def test_at_the_limit_an_incomplete_character_is_left_out():
    pieces = await pieces_of("a中".encode(), limit=3, valid_utf8=True)
    assert [(p.data, p.finish_reason, p.state.at) for p in pieces] == [
        (b"a", None, 1),
        (b"", "length", 1),
    ]


class Narrow(Recital):
    """A byte LM that allows a few symbols only, whatever the context."""

    symbols: tuple[int, ...] = ()

    async def logp_next(self) -> LazyByteProbs:
        ps = np.full(SIZE, -np.inf)
        ps[list(self.symbols)] = -math.log(len(self.symbols))
        return LazyByteProbs(ps)

    async def __lshift__(self, b: int) -> "Narrow":
        child = type(self)(self.text + bytes([b]), self.at + 1)
        child.symbols = self.symbols
        return child


def narrow(context: bytes, *symbols: int) -> Narrow:
    state = Narrow(context, len(context))
    state.symbols = symbols
    return state


async def test_bytes_that_no_likely_character_fits_into_are_left_unused():
    made = await collect(generate(narrow(b"", 0xC3, 0xA9), 5, greedy, valid_utf8=True))
    assert (made.data.decode(), made.finish_reason) == ("éé", "steps")


@pytest.mark.parametrize(
    ("context", "symbols", "where"),
    [(b"", (0x80, 0xFF), "whole"), (b"\xe4", (0x41, EOS), "incomplete")],
)
async def test_no_byte_that_continues_valid_utf8_is_an_error(context, symbols, where):
    with pytest.raises(Utf8Error, match=rf"{where} character no byte.*lower prune_threshold"):
        await collect(generate(narrow(context, *symbols), 9, greedy, valid_utf8=True))
    assert issubclass(Utf8Error, InputError)


async def test_a_draw_must_keep_to_valid_utf8():
    with pytest.raises(DrawError, match="255"):
        await collect(generate(Recital(b"\xff"), 9, lambda q: 255, valid_utf8=True))


@pytest.mark.parametrize("stop", [b"", [b"a", b""], "text", ["text"], [3]])
async def test_what_is_no_stop_string_is_refused(stop):
    with pytest.raises(InputError, match="stop string"):
        await pieces_of(b"abc", stop=stop)


async def test_a_stop_string_inside_a_character_is_refused_with_valid_utf8():
    stop = "é".encode()[1:]
    assert (await pieces_of("é".encode(), stop=stop))[-1].finish_reason == "stop"
    with pytest.raises(InputError, match="inside a character"):
        await pieces_of("é".encode(), stop=stop, valid_utf8=True)


async def test_negative_steps_are_refused():
    with pytest.raises(InputError, match="steps"):
        await pieces_of(b"abc", steps=-1)


async def test_nothing_is_generated_after_eos():
    ended = await ((await beam_after(b"ab", TOY)) << EOS)
    with pytest.raises(Terminated):
        await collect(generate(ended, 3, greedy))


@slow
@given(st.text("abc", max_size=6).map(str.encode), stop_strings, st.integers(0, 8))
async def test_a_note_is_kept_for_each_byte_that_is_given(text, stop, steps):
    def note(q, symbol):
        return symbol, q.ps[symbol]

    pieces = [p async for p in generate(Recital(text), steps, greedy, stop=stop, note=note)]
    for piece in pieces[:-1]:
        assert bytes(symbol for symbol, _ in piece.notes) == piece.data
    made = await collect(generate(Recital(text), steps, greedy, stop=stop, note=note))
    assert made.notes == tuple(n for piece in pieces for n in piece.notes)
    ends = [EOS] if made.finish_reason == "eos" else []
    assert made.notes == tuple((symbol, math.log(0.5)) for symbol in [*made.data, *ends])


async def test_a_note_is_of_what_no_mask_changed():
    class Odd(Recital):
        async def logp_next(self) -> LazyByteProbs:
            ps = np.full(SIZE, -np.inf)
            ps[[0xFF, ord("a")]] = np.log([0.75, 0.25])
            return LazyByteProbs(ps)

    pieces = generate(Odd(b"a"), 1, greedy, valid_utf8=True, note=lambda q, b: q.ps[b])
    assert (await collect(pieces)).notes == (math.log(0.25),)
