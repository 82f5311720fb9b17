"""Adaptive healing: another tokenization of the context's end, with the right weight."""

import numpy as np
import pytest

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.errors import EmptyBeam
from bytelm.logprobs import EOS
from bytelm.testing import StubLM
from bytelm.vocab import ByteVocab

TOKENS = [b"", b"", b"a", b"b", b"c", b"ab", b"abc", b"bc"]
VOCAB = ByteVocab.from_bytes(TOKENS, bos_token_id=0, eos_token_ids=[1])
A, B, C, AB, ABC, BC = range(2, 8)


class OneWay(StubLM):
    """All but a millionth of the probability is on one token of each context."""

    def __init__(self, ways: dict[tuple[int, ...], int], vocab: ByteVocab = VOCAB) -> None:
        super().__init__(vocab)
        self.ways = ways

    def row(self, token_ids):
        probs = np.full(self.vocab.size, 1e-6)
        probs[self.ways.get(tuple(token_ids), A)] = 1.0
        return np.log(probs / probs.sum()).astype(np.float32)

    def log_p(self, *tokens: int) -> float:
        """Log-probability of tokens after BOS, with BOS itself never drawn."""
        total = 0.0
        for i, token in enumerate(tokens):
            row = np.exp(self.row((0, *tokens[:i])).astype(np.float64))
            total += np.log(row[token] / row[1:].sum())
        return total


async def narrow(lm, text: bytes, **changes) -> ByteBeamState:
    """The state after ``text`` in a beam of one candidate that keeps only what is likely."""
    params = BeamParams(**{"K": 1, "prune_threshold": 0.1, **changes})
    return await (await ByteBeamState.initial(lm, params)).prefill(text, mode="exact")


async def test_a_token_that_cannot_go_on_is_ended_earlier():
    """The beam holds ``abc`` only; after ``ab`` comes ``a``, which needs ``ab|a``."""
    lm = OneWay({(0,): ABC})
    state = await narrow(lm, b"ab")
    assert [c.tokens for c in state] == [(0,)]
    healed = await (state << ord("a"))
    assert [(c.tokens, c.partial) for c in healed] == [((0, AB), b"a")]
    want = lm.log_p(AB) + np.log(sum(np.exp(lm.log_p(AB, t) - lm.log_p(AB)) for t in (A, AB, ABC)))
    assert healed.logZ == pytest.approx(want, abs=1e-5)


class Spelled(OneWay):
    """``ab`` and ``bc`` are never tokens."""

    def row(self, token_ids):
        row = super().row(token_ids).copy()
        row[[AB, BC]] = -np.inf
        return row


async def test_taken_back_bytes_are_read_in_several_tokens():
    lm = Spelled({(0,): ABC})
    healed = await ((await narrow(lm, b"ab")) << ord("a"))
    assert [(c.tokens, c.partial) for c in healed] == [((0, A, B), b"a")]


@pytest.mark.parametrize("limit", ["heal_max_splits", "heal_max_backoff"])
async def test_healing_goes_no_further_than_allowed(limit):
    lm = Spelled({(0,): ABC})
    with pytest.raises(EmptyBeam):
        await ((await narrow(lm, b"ab", **{limit: 0})) << ord("a"))
    healed = await ((await narrow(lm, b"ab", **{limit: 1})) << ord("a"))
    assert [c.tokens for c in healed] == [(0, A, B)]


async def test_without_healing_an_empty_beam_is_an_error():
    state = await narrow(Spelled({(0,): ABC}), b"ab", heal=False)
    with pytest.raises(EmptyBeam, match="or allow heal"):
        await (state << ord("a"))


async def test_eos_can_be_healed_to():
    """``ab`` is inside ``abc``; EOS needs ``ab`` to have ended."""
    lm = OneWay({(0,): ABC, (0, AB): 1})
    state = await narrow(lm, b"ab")
    healed = await (state << EOS)
    assert healed.terminated
    assert healed.logZ == pytest.approx(lm.log_p(AB, 1), abs=1e-5)


async def test_a_healed_state_goes_on_as_one_that_was_never_narrow():
    lm = StubLM(VOCAB, spread=6.0, seed=1)
    for seed in range(20):
        lm = StubLM(VOCAB, spread=6.0, seed=seed)
        state = await narrow(lm, b"abcab", prune_threshold=0.4)
        after = await (state << ord("c"))
        q = await after.logp_next()
        assert np.exp(q.ps).sum() == pytest.approx(1.0)
        assert after.context == b"abcabc"


async def test_verbose_healing_tells_what_it_took_back(capsys):
    state = await narrow(Spelled({(0,): ABC}), b"ab", verbose=True)
    await (state << ord("a"))
    assert "[heal] took back 1 of b'ab'" in capsys.readouterr().out
