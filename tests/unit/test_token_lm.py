"""Token states: immutable contexts of token ids."""

import numpy as np
import pytest

from bytelm.errors import InputError, VocabError
from bytelm.models.testing import StubLM
from bytelm.models.token_lm import AsyncTokenLM, StatefulTokenizedLM
from bytelm.vocabulary.vocab import ByteVocab

VOCAB = ByteVocab.from_bytes([b"", b"", b"a", b"b c"], bos_token_id=0, eos_token_ids=[1])


@pytest.fixture
def state() -> StatefulTokenizedLM:
    return StatefulTokenizedLM.initial(StubLM(VOCAB))


def test_a_stub_is_a_token_lm():
    assert isinstance(StubLM(VOCAB), AsyncTokenLM)


def test_the_initial_context_is_bos(state):
    assert state.context == [0]


def test_an_initial_context_can_be_given():
    assert StatefulTokenizedLM.initial(StubLM(VOCAB), [3, 2]).context == [3, 2]


def test_a_model_without_bos_and_eos_needs_an_initial_context():
    with pytest.raises(VocabError, match="initial context"):
        StatefulTokenizedLM.initial(StubLM(ByteVocab.from_bytes([b"a"])))


def test_a_step_adds_a_token_and_never_changes_the_state(state):
    after = state << 2
    assert (state.context, after.context, (after << 3).context) == ([0], [0, 2], [0, 2, 3])


async def test_logp_next_is_the_models_and_is_counted(state):
    after = state << 2
    row = await after.logp_next()
    assert np.array_equal(row, StubLM(VOCAB).row([0, 2]))
    assert (state.n_calls, after.n_calls, (after << 2).n_calls) == (0, 1, 1)


def test_max_context_length_keeps_the_last_tokens_and_is_inherited(state):
    state = StatefulTokenizedLM.initial(StubLM(VOCAB), max_context_length=3)
    for token in (1, 2, 3, 1):
        before = list(state.context)
        after = state << token
        assert state.context == before
        state = after
    assert state.context == [2, 3, 1]
    assert state.max_context_length == 3


def test_max_context_length_1_keeps_the_new_token_alone():
    state = StatefulTokenizedLM.initial(StubLM(VOCAB), max_context_length=1)
    assert (state << 2).context == [2]


def test_a_max_context_length_below_1_is_refused():
    with pytest.raises(InputError, match="at least 1"):
        StatefulTokenizedLM.initial(StubLM(VOCAB), max_context_length=0)


@pytest.mark.parametrize("token", [-1, 4, "a", 1.0, True])
def test_what_is_no_token_is_refused(state, token):
    with pytest.raises(InputError, match=str(token)):
        state << token


def test_repr_shows_tokens(state):
    assert repr((state << 3) << 1) == "<0>|b␣c|<1>"
