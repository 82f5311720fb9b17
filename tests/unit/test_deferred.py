"""Deferred mass in the beam: what the reference says, and what users see of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.beam.reference import ReferenceState
from bytelm.beam.reference_rows import Model
from bytelm.errors import EmptyBeam
from bytelm.models.logprobs import EOS
from bytelm.models.testing import StubLM, assert_normalised
from bytelm.vocabulary.vocab import ByteVocab

slow = settings(max_examples=60, deadline=None)
tokens = st.lists(st.text("abc", min_size=1, max_size=4).map(str.encode), min_size=1, max_size=8)
texts = st.text("abc", max_size=8).map(str.encode)
singles = st.sampled_from([b"abc", b"abc", b"ab", b"a"])
params = st.builds(
    BeamParams,
    K=st.sampled_from([1, 2, 3, None]),
    prune_threshold=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    deferred=st.booleans(),
    keep_canonical=st.booleans(),
    heal=st.just(False),
)


def toy(tokens: list[bytes], singles: bytes = b"abc", eos: int = 1) -> ByteVocab:
    spelled = [bytes([b]) for b in singles]
    return ByteVocab.from_bytes(
        [b"", *[b""] * eos, b"", *spelled, *tokens],
        bos_token_id=0,
        eos_token_ids=tuple(range(1, 1 + eos)),
    )


def close(have: np.ndarray, want: np.ndarray) -> None:
    """The kernels sum blocks in float32."""
    assert np.array_equal(np.isfinite(have), np.isfinite(want))
    finite = np.isfinite(want)
    np.testing.assert_allclose(have[finite], want[finite], atol=2e-5)


@slow
@given(tokens, singles, texts, params, st.integers(0, 2), st.integers(0, 99), st.integers(2, 9))
async def test_the_beam_is_the_reference(extra, singles, text, params, eos, seed, most):
    vocab = toy(extra, singles, eos)
    lm = StubLM(vocab, seed, spread=4.0, max_context_tokens=most)
    want = ReferenceState(Model(lm.row, vocab, most=most), params)
    have = await ByteBeamState.initial(lm, params)
    for b in [*text, EOS]:
        try:
            report = want.logp_next()
        except EmptyBeam:
            with pytest.raises(EmptyBeam):
                await have.logp_next()
        else:
            q = await have.logp_next()
            close(q.ps, report)
            close(q.drawable.ps, want.logp_kept())
        try:
            want = want.prune() << b
        except EmptyBeam:
            with pytest.raises(EmptyBeam):
                await have.prune().advanced(b)
            return
        have = await have.prune().advanced(b)
        assert have.logZ == pytest.approx(want.log_z, abs=2e-5)
        assert len(have) == len(want.kept)
        if b != EOS:
            assert have._deferred.rest == pytest.approx(want.rest, abs=2e-5)
            have_items = sorted(have._deferred.items, key=lambda item: -item.share)
            assert [i.since for i in have_items] == [i.since for i in want.items]


async def test_every_report_is_normalised():
    state = await ByteBeamState.initial(
        StubLM(toy([b"ab", b"abc", b"ca"]), spread=6.0),
        BeamParams(K=1, prune_threshold=0.3, deferred=True),
    )
    for b in b"abcabc":
        await assert_normalised(state, 1e-9)
        state = await (state.prune() << b)
