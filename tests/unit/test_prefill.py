"""Trunks: tokens that no later byte can change, and the states behind them."""

import re
from pathlib import Path

import mistral_common
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from bytelm.beam import BeamParams, ByteBeamState, prefill, prefilling
from bytelm.beam.prefill import (
    LEAST_BYTES,
    LEAST_TOKENS,
    MOST_BYTES,
    MOST_TOKENS,
    Trunk,
    TrunkFinder,
)
from bytelm.beam.ration import MOST
from bytelm.beam.snapshot import Snapshot
from bytelm.errors import BeamError, ContextTooLong, EmptyBeam, VocabError
from bytelm.models.logprobs import EOS
from bytelm.models.testing import BruteForce, StubLM, assert_exact, assert_normalised
from bytelm.vocabulary.vocab import ByteVocab

SHIPPED = Path(mistral_common.__file__).parent / "data"
# The splitting patterns of GPT-2, Llama 3 and GPT-4o, which differ in what joins across a boundary.
PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
TRAINING = [
    "The capital of France is Paris, isn't it? We're sure that they'll say it's so.",
    "def total(items):\n    return sum(item.price * 1.25 for item in items)\n\n\n",
    "北京是中国的首都，上海是最大的城市。我们都知道。",
    "naïve café, 12345 and 67890; don't, can't, I've, you'd.   \n  \n\tend",
] * 5


def trained(pattern: str) -> ByteVocab:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING, trainer)
    return ByteVocab.from_tokenizer(tokenizer)


@pytest.fixture(
    scope="module",
    params=[
        *PATTERNS,
        "tekken_240911.json",
        "tokenizer.model.v1",
        "mistral_instruct_tokenizer_240323.model.v3",
    ],
)
def vocab(request) -> ByteVocab:
    if request.param in PATTERNS:
        return trained(PATTERNS[request.param])
    return ByteVocab.from_file(SHIPPED / request.param)


WORDS_AND_MARKS = """The| capital| of| don|'t|'|I|'r|e| |  |\n|\t|1|23|4567|.|,|)|](|。|，|北京|是|é
|e\u0301|/|_|-|def|X|😀|\u200b|ประเทศไทย|aaaa|====|مُحَمَّدٌ|👩\u200d👧|👍🏽|3f9a|ABCd""".replace(
    "é\n", "é"
)
words = st.sampled_from(WORDS_AND_MARKS.split("|"))
texts = st.lists(words, max_size=40).map("".join)
runs = st.tuples(words, st.integers(1, 60), texts).map(lambda made: made[0] * made[1] + made[2])
tails = st.one_of(texts.map(str.encode), st.binary(max_size=6))


@settings(max_examples=300)
@given(text=texts | runs, cut=st.integers(0, 2), after=tails, tail=st.integers(1, 3))
def test_no_later_byte_changes_a_trunk(vocab, text, cut, after, tail):
    data = vocab.prefix + text.encode()
    data = data[: len(data) - cut]
    trunk = TrunkFinder.of(vocab).find(data, tail)
    assert vocab.decode(trunk.tokens) + trunk.rest == data
    assert [*trunk.tokens, *trunk.rest_tokens] == vocab.encode(data)
    if trunk.is_certain:
        assert vocab.encode(data + after)[: len(trunk.tokens)] == list(trunk.tokens)


@settings(max_examples=300)
@given(text=texts | runs | st.binary(max_size=200), tail=st.integers(1, 9))
def test_what_is_walked_is_bounded_whatever_the_text(vocab, text, tail):
    data = vocab.prefix + (text if isinstance(text, bytes) else text.encode())
    trunk = TrunkFinder.of(vocab).find(data, tail)
    longest = max(map(len, vocab.token_bytes))
    assert len(trunk.rest) <= max(MOST_BYTES, LEAST_BYTES + longest)
    assert len(trunk.rest_tokens) <= MOST_TOKENS
    walked = len(trunk.rest) >= LEAST_BYTES or len(trunk.rest_tokens) >= LEAST_TOKENS
    assert walked or trunk.rest == data


def words_vocab(*spelled: bytes) -> ByteVocab:
    """All single bytes, and these tokens; BOS is 0, EOS 1, 2 another special token."""
    tokens = [b"", b"", b"", *[bytes([b]) for b in range(256)], *spelled]
    return ByteVocab.from_bytes(tokens, bos_token_id=0, eos_token_ids=[1])


SPOKEN = b"I said that some mathematicians congratulated enthusiastically, on Par"


@pytest.mark.parametrize(
    ("tail", "rest"),
    [
        (1, b" enthusiastically, on Par"),
        (2, b" enthusiastically, on Par"),
        (3, b" enthusiastically, on Par"),
        (4, b" congratulated enthusiastically, on Par"),
        # Five words are more than may be walked.
        (5, b" congratulated enthusiastically, on Par"),
    ],
)
def test_a_trunk_leaves_as_many_word_ends_as_asked_for(tail, rest):
    spoken = re.findall(rb" ?\w+|,", SPOKEN)
    assert TrunkFinder.of(words_vocab(*spoken)).find(SPOKEN, tail).rest == rest


def test_a_short_text_has_no_trunk(vocab):
    text = vocab.prefix + b"capital, Par"
    trunk = TrunkFinder.of(vocab).find(text)
    assert trunk == Trunk((), text, tuple(vocab.encode(text)))


@pytest.mark.parametrize(
    ("tokens", "text", "rest"),
    [
        # Nothing speaks against any place: as much as may be is walked.
        ([b"zzzz"], "z" * 100, "z" * 48),
        # No token spans the place before the run.
        ([b"zzzz", b"yyyy"], "y" * 80 + "z" * 20, "z" * 20),
        # Nor those inside a character count, nor those before a mark.
        ([], "ก" * 40, "ก" * 5),
        ([], "ab" * 40 + "e\u0301" * 6, "e\u0301" * 5),
    ],
)
def test_where_no_word_ends_a_trunk_ends_where_the_least_speaks_against(tokens, text, rest):
    vocab = words_vocab(*tokens)
    trunk = TrunkFinder.of(vocab).find(text.encode())
    assert trunk.rest.decode() == rest
    assert vocab.decode(trunk.tokens) + trunk.rest == text.encode()


WORDS = ByteVocab.from_bytes(
    [b"", b"", b"", *[bytes([b]) for b in range(32, 127)], b"the", b" the", b" c", b"at", b" cat"],
    bos_token_id=0,
    eos_token_ids=[1],
)


class _Recording(StubLM):
    """Remembers which contexts were evaluated."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.contexts: list[tuple[int, ...]] = []

    async def next_token_logprobs(self, token_ids):
        self.contexts.append(tuple(token_ids))
        return await super().next_token_logprobs(token_ids)


async def initial(lm, params=None, **kwargs) -> ByteBeamState:
    return await ByteBeamState.initial(lm, params or BeamParams(K=None), **kwargs)


async def test_a_fast_prefill_is_exact_behind_its_trunk(monkeypatch):
    """As brute force gives it, with the trunk's tokens as the context."""
    monkeypatch.setattr(prefill, "LEAST_BYTES", 1)
    lm = StubLM(WORDS)
    text = b"the cat the cat"
    trunk = TrunkFinder.of(WORDS).find(text)
    assert WORDS.decode(trunk.tokens) == b"the cat"
    state = await (await initial(lm)).prefill(text)
    want = BruteForce(lm.row, WORDS, (0, *trunk.tokens))
    await assert_exact(state, trunk.rest, want)
    assert np.exp(state.log_weight) == pytest.approx(want.prefix(trunk.rest), rel=1e-6)
    assert state.context == text


async def test_a_fast_prefill_never_evaluates_what_lies_inside_its_trunk():
    lm = _Recording(WORDS)
    text = b"the cat the cat the cat"
    trunk = TrunkFinder.of(WORDS).find(text)
    await (await initial(lm)).prefill(text)
    assert all(context[1 : 1 + len(trunk.tokens)] == trunk.tokens for context in lm.contexts)
    assert len(set(lm.contexts)) == len(lm.contexts)


TRAINED = trained(PATTERNS["gpt2"])
USUAL = BeamParams(K=5, prune_threshold=0.01)
DEFERRED = BeamParams(K=3, prune_threshold=0.003, deferred=True, keep_canonical=True)


@settings(max_examples=60)
@given(
    text=(texts | runs).map(str.encode) | st.binary(min_size=40, max_size=200),
    seed=st.integers(0, 9),
    beam=st.sampled_from([USUAL, DEFERRED]),
)
@example(b" " * 31, 0, USUAL)
@example(b" " * 67, 3, USUAL)
@example(b" " * 64, 2, DEFERRED)
@example(b" " * 19, 3, DEFERRED)
async def test_what_a_fast_prefill_evaluates_is_bounded_whatever_the_text(text, seed, beam):
    """And the distribution after it; of a model that makes nothing of canonical tokens."""
    lm = _Recording(TRAINED, seed)
    state = await (await initial(lm, beam, initial_context=[0])).prefill(text)
    await state.logp_next()
    assert len(lm.contexts) <= 40


@pytest.mark.parametrize("most", [MOST, 12, 0])
@pytest.mark.parametrize(
    "text", [b" " * 64, b"The capital of France is Paris, isn't it? We're sure tha"]
)
async def test_all_that_a_prefill_knows_is_of_its_text_with_exact_weights(text, most, monkeypatch):
    """However early its walk ends."""
    monkeypatch.setattr(prefilling, "MOST", most)
    lm = _Recording(TRAINED, 2)
    state = await (await initial(lm, DEFERRED, initial_context=[0])).prefill(text)
    assert list(state)
    for one in state:
        assert TRAINED.decode(one.tokens[1:]) + one.partial == text
    for item in state._deferred.items:
        assert TRAINED.decode(item.path[1:]) + item.since == text
    # They begin with the trunk, whose weight is 0.
    trunk = len(TrunkFinder.of(TRAINED).find(text).tokens) + 1
    for one in state:
        weight = 0.0
        for n in range(trunk, len(one.tokens)):
            weight += (await state.source.evaluate(one.tokens[:n])).log_prob(one.tokens[n])
        row, node = await state.source.evaluate(one.tokens), state.source.trie.descend(one.partial)
        weight += row.log_mass(state.source.trie.lo[node], state.source.trie.hi[node])
        assert one.weight == pytest.approx(weight, abs=1e-4)
    assert np.exp((await state.logp_next()).ps).sum() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
async def test_a_walk_that_spent_its_ration_still_takes_what_is_canonical(seed, monkeypatch):
    monkeypatch.setattr(prefilling, "RATION", 0)
    lm, text = (
        _Recording(TRAINED, seed),
        b"The capital of France is Paris, isn't it? We're sure tha",
    )
    beam = BeamParams(K=None, prune_threshold=1e-9)
    state = await (await initial(lm, beam, initial_context=[0])).prefill(text)
    canonical = (0, *TRAINED.encode(text))
    assert canonical[:-1] in [one.tokens for one in state]


@pytest.mark.parametrize("text", [b"a" * 9000, b" " * 100_000, b"_" * 50_000, b"Zq" * 20_000])
async def test_a_long_run_is_answered_at_once(text):
    lm = _Recording(TRAINED)
    state = await (await initial(lm, USUAL, initial_context=[0])).prefill(text)
    await assert_normalised(state)
    assert state.context == TRAINED.decode([0]) + text
    assert len(lm.contexts) <= 40


async def test_a_later_long_prefill_takes_the_trunk_of_the_whole_text():
    lm = StubLM(WORDS)
    params = BeamParams(K=5)
    first = await (await initial(lm, params)).prefill(b"the cat the")
    rest = b" cat the cat the cat the cat the cat"
    both = await (await initial(lm, params)).prefill(b"the cat the" + rest)
    later = await first.prefill(rest)
    assert (await later.logp_next()).ps.tolist() == (await both.logp_next()).ps.tolist()
    assert later.context == b"the cat the" + rest


async def test_a_later_short_prefill_walks():
    state = await (await initial(StubLM(WORDS))).prefill(b"the cat the")
    walked = state
    for b in b" cat":
        walked = await (walked.prune() << b)
    prefilled = await state.prefill(b" cat")
    assert (await prefilled.logp_next()).ps.tolist() == (await walked.logp_next()).ps.tolist()


async def test_a_few_bytes_behind_a_long_text_read_nothing_of_it(monkeypatch):
    first = await initial(StubLM(TRAINED), DEFERRED, initial_context=[0])
    state = await first.prefill(b"The capital of France is Paris. " * 20)
    read: list[int] = []
    monkeypatch.setattr(ByteVocab, "encode", lambda self, data: read.append(len(data)))
    monkeypatch.setattr(ByteVocab, "decode", lambda self, tokens: read.append(len(tokens)))
    for mode in ("fast", "exact"):
        have, want = await state.prefill(b"x", mode=mode), await (state.prune() << ord("x"))
        assert [(c.weight, c.tokens) for c in have] == [(c.weight, c.tokens) for c in want]
    assert not read


async def test_prefilling_nothing_changes_nothing():
    lm = _Recording(WORDS)
    state = await initial(lm)
    assert await state.prefill(b"") is state
    assert lm.contexts == []


async def test_the_tokenizers_prefix_is_consumed_before_the_first_byte():
    vocab = ByteVocab.from_file(SHIPPED / "tokenizer.model.v1")
    lm = StubLM(vocab, rows=8)
    params = BeamParams(K=3, prune_threshold=0.01)
    state = await initial(lm, params)
    await assert_normalised(state)
    assert state.context == b""
    assert state.logZ == pytest.approx(0.0)
    for mode in ("fast", "exact"):
        prefilled = await state.prefill(b"The capital of Fran", mode=mode)
        assert prefilled.context == b"The capital of Fran"
    assert (
        next(iter(await state.prefill(b"The capital of Fran"))).tokens[1]
        == vocab.encode(b" The")[0]
    )


async def test_eos_can_follow_a_fast_prefill():
    state = await (await initial(StubLM(WORDS))).prefill(b"the cat the cat")
    assert (await (state << EOS)).terminated


@pytest.mark.parametrize("mode", ["fast", "exact"])
async def test_a_context_that_is_too_long_is_refused_before_any_evaluation(mode):
    lm = _Recording(WORDS, max_context_tokens=4)
    state = await initial(lm)
    with pytest.raises(ContextTooLong, match="6 tokens long.*at most 4"):
        await state.prefill(b"the cat the cat the", mode=mode)
    assert lm.contexts == []


@pytest.mark.parametrize("wrong", [{"mode": "slow"}, {"tail": 0}])
async def test_an_unknown_mode_or_tail_is_refused(wrong):
    with pytest.raises(BeamError):
        await (await initial(StubLM(WORDS))).prefill(b"the", **wrong)


async def test_behind_what_nobody_weighed_there_is_no_logz():
    """Not even after more bytes; what was weighed before a text without a trunk counts."""
    lm = StubLM(WORDS)
    state = await initial(lm, BeamParams(2, 0.05, deferred=True))
    short, long = b"the c", b"the cat" * 20
    walked = await state.prefill(short, mode="exact")
    assert (await state.prefill(short)).logZ == pytest.approx(walked.logZ)
    fast = await walked.prefill(long)
    assert [fast.logZ, (await fast.prefill(b"at")).logZ, fast.insert([2]).logZ] == [None] * 3
    assert (await Snapshot.of(fast).restored(lm, fast.params)).logZ is None
    assert "Z: None" in repr(fast)
    assert (await Snapshot.of(walked).restored(lm, walked.params)).logZ == walked.logZ
    assert state.insert([2], b"the").logZ is None
    after = await walked.insert([2]).prefill(b"cat")
    again = await walked.insert([2]).prefill(b"cat", mode="exact")
    assert walked.logZ > after.logZ == pytest.approx(again.logZ)


async def test_nothing_deferred_before_a_trunk_comes_behind_it():
    lm, params = StubLM(WORDS), BeamParams(2, 0.05, deferred=True)
    walked = await (await initial(lm, params)).prefill(b"the cat the", mode="exact")
    assert walked._deferred.items
    text = b" the cat" * 10
    have, want = (
        await walked.prefill(text),
        await (await initial(lm, params)).prefill(b"the cat the" + text),
    )
    assert have._deferred == want._deferred
    assert (await have.logp_next()).ps.tolist() == (await want.logp_next()).ps.tolist()


async def test_an_inserted_token_leaves_one_canonical_candidate_and_no_evaluation():
    lm = _Recording(WORDS)
    state = await (await initial(lm)).prefill(b"the cat", mode="exact")
    before, weight = len(lm.contexts), state.logZ
    after = state.insert([2])
    assert len(lm.contexts) == before
    assert [c.tokens for c in after] == [(0, *WORDS.encode(b"the cat"), 2)]
    assert after.logZ == pytest.approx(weight)
    assert after.context == b"the cat"
    await assert_exact(after, b"", BruteForce(lm.row, WORDS, next(iter(after)).tokens))


async def test_text_after_an_inserted_token_begins_a_trunk_of_its_own():
    lm = StubLM(WORDS)
    state = (await (await initial(lm)).prefill(b"the cat")).insert([2])
    state = await state.prefill(b"the cat the cat")
    assert next(iter(state)).tokens[:6] == (
        0,
        *WORDS.encode(b"the cat"),
        2,
        *WORDS.encode(b"the cat"),
    )
    assert state.context == b"the catthe cat the cat"


async def test_text_can_be_given_with_the_tokens_behind_it():
    lm = _Recording(WORDS)
    state = (await initial(lm)).insert([2], b"the cat")
    assert next(iter(state)).tokens == (0, *WORDS.encode(b"the cat"), 2)
    assert lm.contexts == []


async def test_the_tokenizers_prefix_belongs_to_a_text_that_comes_first():
    vocab = ByteVocab.from_file(SHIPPED / "tokenizer.model.v1")
    lm = StubLM(vocab, rows=8)
    start = await initial(lm, BeamParams(K=1))
    first = await (start.insert([2], b"hi")).prefill(b" you")
    assert first.context == b"hi you"
    assert next(iter(first)).tokens[:3] == (1, *vocab.encode(b" hi"), 2)
    special_first = await start.insert([2]).prefill(b" hi")
    assert special_first.context == b" hi"
    assert next(iter(special_first.insert([2]))).tokens == (1, 2, *vocab.encode(b" hi"), 2)
    assert next(iter(start.insert([2]).insert([2], b" "))).tokens == (1, 2, *vocab.encode(b" "), 2)


@pytest.mark.parametrize("token", [-1, 200, 10])
async def test_what_is_no_special_token_cannot_be_inserted(token):
    with pytest.raises(VocabError, match=str(token)):
        (await initial(StubLM(WORDS))).insert([token])


async def test_at_limit_tells_that_the_best_candidate_cannot_be_extended():
    lm = StubLM(WORDS, max_context_tokens=3)
    state = await (await initial(lm, BeamParams(K=1))).prefill(b"z", mode="exact")
    assert not state.at_limit
    state = await (state << ord("z"))
    state = await (state << ord("z"))
    assert state.at_limit
    with pytest.raises(EmptyBeam, match="nothing can follow b'zzz': .* takes, 3 tokens"):
        await state.advanced(ord("z"))
