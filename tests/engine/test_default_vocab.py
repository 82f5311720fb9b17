"""The default model's vocabulary."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bytelm.errors import VocabError
from bytelm.vocabulary.vocab import ByteVocab


@pytest.fixture(scope="session")
def tokenizer(model_path: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path)


@pytest.fixture(scope="session")
def vocab(model_path: str) -> ByteVocab:
    return ByteVocab.from_pretrained(model_path)


def test_its_marks(vocab):
    assert (vocab.size, vocab.prefix) == (49152, b"")
    assert vocab.initial_context == (1,)
    assert vocab.eos_token_ids == (2,)
    assert vocab.special_ids == frozenset(range(17))


@given(text=st.text("abcdeTho 日本é🎉13,.:\n\t", max_size=40))
def test_ids_are_the_tokenizers_own(vocab, tokenizer, text):
    assert vocab.encode(text.encode()) == tokenizer.encode(text, add_special_tokens=False)


def test_a_special_spelling_is_ten_ordinary_bytes(vocab, tokenizer):
    assert len(tokenizer.encode("<|im_end|>", add_special_tokens=False)) == 1
    ids = vocab.encode(b"<|im_end|>")
    assert vocab.decode(ids) == b"<|im_end|>"
    assert not vocab.special_ids & set(ids)


@given(data=st.one_of(st.binary(), st.text().map(str.encode)))
def test_bytes_come_back_unless_the_model_lacks_them(vocab, data):
    spellable = {token[0] for token in vocab.token_bytes if len(token) == 1}
    if spellable.issuperset(data):
        assert vocab.decode(vocab.encode(data)) == data
    kept = bytes(byte for byte in data if byte in spellable)
    assert vocab.decode(vocab.encode(kept)) == kept


def test_a_byte_that_the_model_lacks_is_named(vocab):
    with pytest.raises(VocabError, match="byte 0xFF at offset 3"):
        vocab.encode(b"abc\xff")
