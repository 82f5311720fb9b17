"""Beams over canonical tokenizations: the definition by brute force, the reference, the beam."""

import itertools
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from tokenizers import pre_tokenizers as splitters

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.beam.reference import ReferenceState
from bytelm.beam.reference_rows import Model
from bytelm.beam.snapshot import Snapshot
from bytelm.errors import VocabError
from bytelm.models.logprobs import EOS
from bytelm.models.testing import StubLM
from bytelm.vocabulary.canonical_paths import CanonicalPaths
from bytelm.vocabulary.splitting import Splitter
from bytelm.vocabulary.vocab import ByteVocab

ALPHABET = "ab "
MERGES = [("a", "b"), ("Ġ", "a"), ("ab", "a"), ("Ġ", "ab"), ("b", "b"), ("Ġ", "Ġ"), ("Ġa", "b")]
slow = settings(max_examples=60, deadline=None)
texts = st.text(ALPHABET, max_size=6).map(str.encode)


def byte_level() -> ByteVocab:
    """A vocabulary of eleven tokens, with GPT-2's way to split."""
    tokens = ["<s>", "</s>", "a", "b", "Ġ"]
    tokens += [merged for a, b in MERGES if (merged := a + b) not in tokens]
    tokens = list(dict.fromkeys(tokens))
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
    tokenizer.pre_tokenizer = splitters.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    return ByteVocab.from_tokenizer(tokenizer, eos_token_ids=[1], bos_token_id=0)


VOCAB = byte_level()
LONGEST = 9
"""Some text of so many characters tells of any text of six whether its tokens can be canonical."""


class ByTrying:
    """Canonical tokens by looking at all texts."""

    def __init__(self) -> None:
        self._begun: set[tuple[int, ...]] = set()
        for length in range(LONGEST + 1):
            for text in itertools.product(ALPHABET, repeat=length):
                ids = tuple(VOCAB.encode("".join(text).encode()))
                self._begun.update(ids[:n] for n in range(len(ids) + 1))

    def begins(self, tokens: Sequence[int]) -> bool:
        return tuple(tokens) in self._begun

    def is_whole(self, tokens: Sequence[int]) -> bool:
        return VOCAB.encode(VOCAB.decode(tokens)) == list(tokens)


@cache
def by_trying() -> ByTrying:
    return ByTrying()


def admitted_mass(lm: StubLM, text: bytes, ends: bool = False, path: tuple[int, ...] = ()) -> float:
    """The mass of a text over tokenizations whose ended tokens can begin a canonical one."""
    row = np.exp(lm.row((0, *path)).astype(np.float64))
    spelled = [i for i, data in enumerate(VOCAB.token_bytes) if data]
    whole = row[spelled].sum() + row[1]
    if not text:
        return row[1] / whole * by_trying().is_whole(path) if ends else 1.0
    total = 0.0
    for i in spelled:
        data = VOCAB.token_bytes[i]
        if data.startswith(text) and not (ends and data == text) and not ends:
            total += row[i] / whole
        elif text.startswith(data) and by_trying().begins((*path, i)):
            total += row[i] / whole * admitted_mass(lm, text[len(data) :], ends, (*path, i))
    return total


def brute_force(lm: StubLM, text: bytes) -> np.ndarray:
    total = np.zeros(258)
    for b in ALPHABET.encode():
        total[b] = admitted_mass(lm, text + bytes([b]))
    total[EOS] = admitted_mass(lm, text, ends=True)
    with np.errstate(divide="ignore"):
        return np.log(total / total.sum())


def close(have: np.ndarray, want: np.ndarray, atol: float) -> None:
    assert np.array_equal(np.isfinite(have), np.isfinite(want))
    finite = np.isfinite(want)
    np.testing.assert_allclose(have[finite], want[finite], atol=atol)


@slow
@given(texts, st.integers(0, 99), st.booleans())
async def test_canonical_equals_brute_force(text, seed, deferred):
    lm = StubLM(VOCAB, seed)
    params = BeamParams(K=None, tokenizations="canonical", deferred=deferred, heal=False)
    want = ReferenceState(Model(lm.row, VOCAB, by_trying()), params)
    have = await ByteBeamState.initial(lm, params)
    for b in text:
        want, have = want.prune() << b, await have.prune().advanced(b)
    close(want.logp_next(), brute_force(lm, text), 1e-9)
    close((await have.logp_next()).ps, brute_force(lm, text), 2e-5)


@slow
@example(b"a  ", 0, 1, 0.1, "canonical", False)  # the last item ended nothing, the resort does
@example(b"aabbab", 89, 1, 0.01, "canonical", True)  # an item gave the last resort again
@given(
    texts,
    st.integers(0, 99),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    st.sampled_from(["all", "canonical"]),
    st.booleans(),
)
async def test_the_beam_is_the_reference(text, seed, k, threshold, tokenizations, keep):
    lm = StubLM(VOCAB, seed, spread=4.0)
    params = BeamParams(
        K=k,
        prune_threshold=threshold,
        tokenizations=tokenizations,
        deferred=True,
        keep_canonical=keep,
    )
    want = ReferenceState(Model(lm.row, VOCAB, by_trying()), params)
    have = await ByteBeamState.initial(lm, params)
    for b in [*text, EOS]:
        close((await have.logp_next()).ps, want.logp_next(), 2e-5)
        want, have = want.prune() << b, await have.prune().advanced(b)
        assert have.logZ == pytest.approx(want.log_z, abs=2e-5)
        assert len({(one.tokens, one.partial) for one in have}) == len(have)


@slow
@given(texts, st.integers(0, 99), st.sampled_from(["all", "canonical"]))
async def test_a_kept_canonical_candidate_is_never_dropped(text, seed, tokenizations):
    lm = StubLM(VOCAB, seed, spread=6.0)
    params = BeamParams(K=1, tokenizations=tokenizations, deferred=True, keep_canonical=True)
    state = await ByteBeamState.initial(lm, params)
    for i, b in enumerate(text):
        moved = await (state << b)
        state = moved.prune()
        *ended, last = VOCAB.encode(text[: i + 1])
        canonical = ((0, *ended), VOCAB.token_bytes[last])
        before, after = ([(c.tokens, c.partial) for c in one] for one in (moved, state))
        assert (canonical in before) == (canonical in after)


@slow
@given(
    st.text(ALPHABET, min_size=40, max_size=90).map(str.encode),
    st.sampled_from(["all", "canonical"]),
    st.integers(0, 9),
)
async def test_behind_a_trunk_and_from_a_snapshot(text, tokenizations, seed):
    """However its paths came about, a beam knows where they stand."""
    lm = StubLM(VOCAB, seed)
    params = BeamParams(
        K=1,
        prune_threshold=0.05,
        tokenizations=tokenizations,
        deferred=True,
        keep_canonical=True,
    )
    state = await (await ByteBeamState.initial(lm, params)).prefill(text[:-9])
    for b in text[-9:]:
        state = await state.prune().advanced(b)
    again = await Snapshot.of(state).restored(lm, params)
    for b in b"ab a":
        ps = (await state.logp_next()).ps
        assert np.exp(ps).sum() == pytest.approx(1.0, abs=1e-9)
        assert [(c.tokens, c.partial) for c in again] == [(c.tokens, c.partial) for c in state]
        close((await again.logp_next()).ps, ps, 1e-9)
        state, again = await state.prune().advanced(b), await again.prune().advanced(b)


async def test_a_vocabulary_without_a_tokenizer_is_refused():
    vocab = ByteVocab.from_bytes([b"", b"a", b"b"], bos_token_id=0)
    with pytest.raises(VocabError, match="canonical"):
        await ByteBeamState.initial(StubLM(vocab), BeamParams(K=5, tokenizations="canonical"))


def test_the_texts_that_were_tried_are_long_enough():
    """Longer ones admit nothing more: what is cut at six characters looks no further."""
    longer = set()
    for text in itertools.product(ALPHABET, repeat=LONGEST + 1):
        ids = tuple(VOCAB.encode("".join(text).encode()))
        longer.update(ids[:n] for n in range(len(ids)) if len(VOCAB.decode(ids[:n])) <= 6)
    assert all(by_trying().begins(ids) for ids in longer)


def test_a_search_through_all_tokens_reads_none_that_warming_up_has_read():
    paths = CanonicalPaths.of(byte_level())
    paths.warm_up()
    read = paths._read.cache_info().misses
    assert read == VOCAB.size
    assert paths._fitting(Splitter.start)
    assert paths._read.cache_info().misses == read
