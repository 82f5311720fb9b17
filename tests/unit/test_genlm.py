"""Models of genlm.backend's shape, as token LMs and back; genlm itself is not needed here."""

import asyncio
import sys
from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.compat.genlm import as_token_lm, from_genlm, to_genlm
from bytelm.errors import InputError, VocabError
from bytelm.models.logprobs import EOS
from bytelm.models.testing import StubLM
from bytelm.models.token_lm import StatefulTokenizedLM
from bytelm.vocabulary.vocab import ByteVocab

TEXTS = [b"<s>", b"</s>", b"<pad>", b"a", b"b", b"ab", b"ab", b"\xff"]
SPECIAL = [0, 1, 2]


@dataclass(frozen=True)
class SpelledToken:
    """As genlm.backend's Token."""

    token_id: int
    byte_string: bytes


class SpelledTokenizer:
    """A tokenizer that says nothing about its tokens' bytes."""

    bos_token_id = 0
    eos_token_id = 1
    all_special_ids = SPECIAL


class BackendModel:
    """A model of genlm.backend's shape over fixed logits."""

    def __init__(self, texts=TEXTS, logits=None, spelled=True, eos=None, dtype=torch.float32):
        self.model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=eos))
        self.tokenizer = SpelledTokenizer()
        self.byte_vocab = [SpelledToken(i, b) if spelled else b for i, b in enumerate(texts)]
        self.logits = torch.linspace(-1.0, 1.0, len(texts)) if logits is None else logits
        self.dtype = dtype
        self.asked = []

    async def next_token_logprobs(self, token_ids):
        self.asked.append(token_ids)
        return torch.log_softmax(self.logits, dim=0).to(self.dtype)


@pytest.fixture
def genlm_tokens(monkeypatch):
    """Something importable where genlm.backend has its Token."""
    for name in ("genlm", "genlm.backend", "genlm.backend.tokenization"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(
        sys.modules["genlm.backend.tokenization"], "Token", SpelledToken, raising=False
    )


@pytest.mark.parametrize("spelled", [True, False])
def test_byte_vocab_gives_the_bytes_and_special_tokens_have_none(spelled):
    vocab = from_genlm(BackendModel(spelled=spelled)).vocab
    assert vocab.token_bytes == (b"", b"", b"", b"a", b"b", b"ab", b"ab", b"\xff")
    assert (vocab.bos_token_id, vocab.eos_token_ids) == (0, (1,))
    assert vocab.special_ids == frozenset(SPECIAL)


def test_the_literal_reading_spells_special_tokens():
    literal = from_genlm(BackendModel()).vocab.literal()
    assert literal.token_bytes == tuple(TEXTS)


def test_a_tokenizer_that_can_be_read_is_preferred_to_byte_vocab():
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = {c: i for i, c in enumerate(tokenizers.pre_tokenizers.ByteLevel.alphabet())}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    model = BackendModel(texts=[b"?"] * 256)
    model.tokenizer = tokenizer
    assert sorted(from_genlm(model).vocab.token_bytes) == [bytes([b]) for b in range(256)]


@pytest.mark.parametrize("eos", [2, [1, 2]])
def test_eos_tokens_of_the_models_generation_settings_count(eos):
    assert from_genlm(BackendModel(eos=eos)).vocab.eos_token_ids == (1, 2)


def test_an_empty_byte_vocab_is_refused():
    with pytest.raises(VocabError, match="empty"):
        from_genlm(BackendModel(texts=[]))


async def test_rows_are_normalised_float32_whatever_the_model_gives():
    model = BackendModel(dtype=torch.bfloat16)
    low = torch.exp((await model.next_token_logprobs([0])).double()).sum().item()
    assert low != pytest.approx(1.0, abs=1e-6)
    row = await from_genlm(model).next_token_logprobs((0,))
    assert row.dtype == np.float32
    assert np.exp(row.astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-6)
    assert row == pytest.approx(torch.log_softmax(model.logits, dim=0).numpy(), abs=0.02)


async def test_contexts_reach_the_model_as_lists_of_ints():
    model = BackendModel()
    context: tuple[Any, ...] = (np.int64(0), 3)
    await from_genlm(model).next_token_logprobs(context)
    assert model.asked == [[0, 3]]
    assert all(type(i) is int for i in model.asked[0])


async def test_logits_that_pad_the_vocabulary_are_cut_off():
    model = BackendModel(logits=torch.linspace(-1.0, 1.0, len(TEXTS) + 3))
    row = await from_genlm(model).next_token_logprobs([0])
    assert len(row) == len(TEXTS)
    assert np.exp(row.astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-6)


async def test_fewer_logits_than_tokens_are_refused():
    model = BackendModel(logits=torch.zeros(3))
    with pytest.raises(VocabError, match="3 log-probabilities for 8 tokens"):
        await from_genlm(model).next_token_logprobs([0])


def test_a_token_lm_of_bytelm_is_taken_as_it_is():
    lm = StubLM(ByteVocab.from_bytes(TEXTS, bos_token_id=0))
    assert as_token_lm(lm) is lm


def test_what_is_no_token_lm_is_refused():
    with pytest.raises(InputError, match="neither vocab"):
        as_token_lm(SimpleNamespace(tokenizer=SpelledTokenizer()))


async def test_a_beam_begins_on_a_backend_model():
    model = BackendModel()
    state = await ByteBeamState.initial(model, BeamParams(K=5), {"max_batch_size": 8})
    q = np.exp((await state.logp_next()).ps)
    p = torch.softmax(model.logits, dim=0).double().numpy()
    spelled = p[[1, 3, 4, 5, 6, 7]].sum()
    assert q[ord("a")] == pytest.approx(p[[3, 5, 6]].sum() / spelled, abs=1e-6)
    assert q[257] == pytest.approx(p[1] / spelled, abs=1e-6)


@pytest.mark.usefixtures("genlm_tokens")
async def test_a_token_lm_gives_genlm_its_rows_as_tensors():
    lm = StubLM(ByteVocab.from_bytes(TEXTS, eos_token_ids=(1,), bos_token_id=0))
    model = to_genlm(lm)
    row = await model.next_token_logprobs([0, 3])
    assert row.dtype == torch.float32
    assert row.numpy() == pytest.approx(lm.row([0, 3]), abs=1e-6)
    both = await model.batch_next_token_logprobs([[0], [0, 3]])
    assert torch.equal(both[1], row)


@pytest.mark.usefixtures("genlm_tokens")
def test_genlm_reads_special_tokens_as_their_texts():
    model = to_genlm(StubLM(ByteVocab.from_bytes(TEXTS, eos_token_ids=(1,), bos_token_id=0)))
    assert [token.byte_string for token in model.byte_vocab] == TEXTS
    assert [token.token_id for token in model.byte_vocab] == list(range(len(TEXTS)))
    assert (model.tokenizer.bos_token_id, model.tokenizer.eos_token_id) == (0, 1)


@pytest.mark.usefixtures("genlm_tokens")
def test_a_model_without_bos_begins_with_eos_in_genlm_too():
    model = to_genlm(StubLM(ByteVocab.from_bytes(TEXTS, eos_token_ids=(1,))))
    assert model.tokenizer.bos_token_id == 1


@pytest.mark.usefixtures("genlm_tokens")
async def test_ids_without_a_text_get_no_probability_in_genlm():
    model = to_genlm(StubLM(ByteVocab.from_bytes([*TEXTS, b""], bos_token_id=0)))
    row = (await model.next_token_logprobs([0])).double()
    assert row[-1] == -torch.inf
    assert torch.exp(row).sum().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.usefixtures("genlm_tokens")
def test_texts_go_to_ids_and_back():
    tokenizer = to_genlm(StubLM(ByteVocab.from_bytes(TEXTS, bos_token_id=0))).tokenizer
    assert tokenizer.encode("aba") == [0, 5, 3]
    assert tokenizer.decode(tokenizer.encode("aba", add_special_tokens=False)) == "aba"


@pytest.mark.usefixtures("genlm_tokens")
async def test_lora_adapters_are_refused():
    model = to_genlm(StubLM(ByteVocab.from_bytes(TEXTS, bos_token_id=0)))
    with pytest.raises(InputError, match="LoRA"):
        await model.next_token_logprobs([0], lora_name="x")


@pytest.mark.usefixtures("genlm_tokens")
async def test_there_and_back_gives_the_same_distribution():
    lm = StubLM(ByteVocab.from_bytes(TEXTS, eos_token_ids=(1,), bos_token_id=0))
    params = BeamParams(K=None, special_tokens="literal")
    here, there = await asyncio.gather(
        ByteBeamState.initial(lm, params), ByteBeamState.initial(to_genlm(lm), params)
    )
    for b in b"aba":
        here, there = await (here << b), await (there << b)
        want = (await here.logp_next()).ps
        assert (await there.logp_next()).ps == pytest.approx(want, abs=1e-6)


def test_eos_tokens_is_deprecated():
    with pytest.warns(DeprecationWarning, match="'eos_tokens' is deprecated") as warned:
        params = BeamParams(K=3, eos_tokens=[b".", 7])
    assert warned[0].filename == __file__
    assert (params.eos_byte_strings, params.eos_tokens) == ({b".", 7}, None)


def test_eos_tokens_under_both_names_are_a_type_error():
    with pytest.raises(TypeError, match="Cannot specify both"):
        BeamParams(K=3, eos_byte_strings=[b"."], eos_tokens=[b"!"])


def test_parameters_with_eos_tokens_can_be_changed():
    params = BeamParams(K=3, eos_byte_strings=[b"."])
    assert replace(params, K=4) == BeamParams(K=4, eos_byte_strings=[b"."])


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("eos", [b"<pad>", 2, SpelledToken(2, b"<pad>")])
async def test_eos_is_named_by_a_special_tokens_bytes_or_by_a_token(eos, literal):
    reading = "literal" if literal else "special"
    params = BeamParams(K=None, eos_byte_strings=[eos], special_tokens=reading)
    state = await ByteBeamState.initial(BackendModel(), params)
    assert state.source.eos_ids == [2]
    assert (await state.logp_next())[EOS] > -np.inf


async def test_a_token_is_itself_alone_and_bytes_are_all_that_have_them():
    for eos, ids in ((SpelledToken(6, b"ab"), [6]), (b"ab", [5, 6])):
        params = BeamParams(K=None, eos_byte_strings=[eos])
        state = await ByteBeamState.initial(BackendModel(), params)
        assert state.source.eos_ids == ids
        assert state.states[0].trie.trie.eos_token_ids == ids


async def test_candidates_read_as_in_genlm_bytes():
    model = BackendModel()
    state = await ByteBeamState.initial(model, BeamParams(K=None, eos_byte_strings=[b"b", 1]))
    (first,) = state.states
    assert (first.lm_state.context, first.node, first.weight, first.partial) == ([0], 0, 0.0, [])
    assert first.lm_state.model is model
    assert isinstance(await first.lm_state.logp_next(), torch.Tensor)
    trie = first.trie.trie
    assert trie.eos_byte_strings == trie.eos_tokens == {b"b", b"</s>"}
    assert trie.eos_node is not None
    with pytest.raises(ValueError, match="not yet materialized"):
        first.mass[trie.eos_node]


async def test_a_candidates_mass_is_that_of_the_tokens_below_each_node():
    model = BackendModel()
    p = torch.softmax(model.logits.double(), dim=0).numpy()
    begun = await ByteBeamState.initial(model, BeamParams(K=None, eos_byte_strings=[b"b", 1]))
    state = await (begun << ord("a"))
    (one,) = state.states
    trie = one.trie.source.trie
    a, ab, b = (trie.descend(data) for data in (b"a", b"ab", b"b"))
    assert (one.node, one.partial, one.weight) == (a, [ord("a")], state.logZ)
    want = {a: np.log(p[3] + p[5] + p[6]), ab: np.log(p[5] + p[6]), b: -np.inf, 0: -np.inf}
    assert {node: one.mass[node] for node in want} == pytest.approx(want, abs=1e-6)
    assert one.mass[one.trie.eos_node] == -np.inf
    whole = await one.materialize()
    eos = p[1] + p[4]
    want |= {0: np.log(p[[1, 3, 4, 5, 6, 7]].sum()), whole.trie.eos_node: np.log(eos)}
    assert {node: whole.mass[node] for node in want} == pytest.approx(want, abs=1e-6)
    (first,) = begun.states
    assert (await first.materialize()).mass == pytest.approx(whole.mass, abs=1e-6)


async def test_a_candidate_moves_within_its_token_as_the_beam_does():
    state = await ByteBeamState.initial(BackendModel(), BeamParams(K=None))
    (first,) = [await one.materialize() for one in state.states]
    state = await (await (state << ord("a")) << ord("b"))
    moved = first << ord("a") << ord("b")
    (same,) = [one for one in state.states if one.lm_state.context == [0]]
    unit = first.mass[0]
    assert (moved.node, moved.partial) == (same.node, same.partial)
    assert moved.weight == pytest.approx(same.weight, abs=1e-6)
    assert first.mass[0] == unit
    assert moved << ord("a") is None
    assert moved << EOS is None
    ended = first << EOS
    assert (ended.terminated, ended.node, ended << EOS) == (True, first.trie.eos_node, None)


async def test_a_terminated_candidate_does_not_move():
    state = await (await ByteBeamState.initial(BackendModel(), BeamParams(K=None)) << EOS)
    (ended,) = state.states
    assert (ended.terminated, ended.partial, ended.node) == (True, [], ended.trie.eos_node)
    assert ended << ord("a") is None


async def test_a_token_state_runs_on_a_backend_model():
    model = BackendModel()
    state = StatefulTokenizedLM.initial(model)
    assert (state.model, state.context) == (model, [0])
    assert repr(state << 5 << 1) == "<s>|ab|</s>"
    assert isinstance(await (state << 5).logp_next(), torch.Tensor)
    assert model.asked == [[0, 5]]
    with pytest.raises(InputError, match=r"8 is not in 0\.\.7"):
        state << 8
