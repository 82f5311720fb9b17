"""ByteVocab by itself: toy vocabularies, longest match, the literal reading, fingerprints."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm.errors import UnknownModel, VocabError
from bytelm.prompts.context import ChatTemplate
from bytelm.vocabulary.canonical import CanonicalEncoder, Span
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_client.results import Vocab
from bytelm_server.vocabulary import VocabBody

vocabularies = st.lists(st.text("abc", max_size=3).map(str.encode), min_size=1, max_size=8)


def test_longest_match_takes_the_longest_token_from_the_left():
    vocab = ByteVocab.from_bytes([b"a", b"b", b"ab", b"abc", b"c"])
    assert vocab.encode(b"ababc") == [2, 3]


def test_longest_match_tries_shorter_tokens_where_the_longest_leads_nowhere():
    vocab = ByteVocab.from_bytes([b"a", b"ab", b"bc"])
    assert vocab.encode(b"abc") == [0, 2]


def test_of_ids_with_equal_bytes_the_lowest_is_canonical():
    assert ByteVocab.from_bytes([b"x", b"a", b"a"]).encode(b"a") == [1]


def test_nothing_is_no_tokens():
    assert ByteVocab.from_bytes([b"a"]).encode(b"") == []


@given(vocabularies, st.text("abc", max_size=8).map(str.encode))
def test_what_can_be_spelled_is_spelled(tokens, data):
    vocab = ByteVocab.from_bytes(tokens)
    reachable = {0}
    for start in range(len(data)):
        if start in reachable:
            reachable |= {start + len(t) for t in tokens if t and data.startswith(t, start)}
    if len(data) in reachable:
        ids = vocab.encode(data)
        assert b"".join(tokens[i] for i in ids) == data
    else:
        with pytest.raises(VocabError, match=f"at offset {max(reachable)}:"):
            vocab.encode(data)


def test_a_byte_without_a_token_is_named():
    with pytest.raises(VocabError, match="byte 0x7A at offset 2"):
        ByteVocab.from_bytes([b"a"]).encode(b"aaza")


def test_eos_and_bos_have_no_bytes_and_are_never_text():
    tokens = [b"</s>", b"<s>", b"<", b"/", b"s", b">"]
    vocab = ByteVocab.from_bytes(tokens, eos_token_ids=[0], bos_token_id=1)
    assert vocab.token_bytes[:2] == (b"", b"")
    assert vocab.special_ids == {0, 1}
    assert vocab.encode(b"</s>") == [2, 3, 4, 5]


def test_a_context_starts_with_bos_or_else_eos():
    tokens = [b"a", b"", b"", b""]
    assert ByteVocab.from_bytes(tokens, eos_token_ids=[3, 2], bos_token_id=1).initial_context == (
        1,
    )
    assert ByteVocab.from_bytes(tokens, eos_token_ids=[3, 2]).initial_context == (3,)


def test_without_bos_and_eos_an_initial_context_is_asked_for():
    with pytest.raises(VocabError, match="give an explicit initial context"):
        _ = ByteVocab.from_bytes([b"a"]).initial_context


@pytest.mark.parametrize("token_id", [-1, 2])
def test_an_id_outside_the_vocabulary_is_refused(token_id):
    vocab = ByteVocab.from_bytes([b"a", b"b"])
    with pytest.raises(VocabError, match=rf"{token_id} is not in 0\.\.1"):
        vocab.decode([0, token_id])
    with pytest.raises(VocabError, match=rf"{token_id} is not in 0\.\.1"):
        ByteVocab.from_bytes([b"a", b"b"], eos_token_ids=[token_id])


def test_a_vocabulary_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ByteVocab.from_bytes([b"a"]).prefix = b" "


def test_the_literal_reading_gives_every_token_its_text():
    vocab = ByteVocab.from_bytes([b"<s>", b"</s>", b"a"], eos_token_ids=[1], bos_token_id=0)
    literal = vocab.literal()
    assert literal.token_bytes == (b"<s>", b"</s>", b"a")
    assert literal.eos_token_ids == ()
    assert literal.special_ids == frozenset()
    assert literal.initial_context == vocab.initial_context


def test_the_literal_reading_starts_where_the_ordinary_one_does_without_bos():
    vocab = ByteVocab.from_bytes([b"a", b"</s>"], eos_token_ids=[1])
    assert vocab.literal().initial_context == (1,)


def test_equal_vocabularies_have_equal_fingerprints():
    one, two = (ByteVocab.from_bytes([b"a", b"bc"], eos_token_ids=[]) for _ in range(2))
    assert one.fingerprint() == two.fingerprint()


@pytest.mark.parametrize(
    "other",
    [
        ByteVocab.from_bytes([b"ab", b"c", b"", b""]),
        ByteVocab.from_bytes([b"a", b"bc", b""]),
        ByteVocab.from_bytes([b"a", b"bc", b"", b""], eos_token_ids=[2]),
        ByteVocab.from_bytes([b"a", b"bc", b"", b""], bos_token_id=2),
        dataclasses.replace(ByteVocab.from_bytes([b"a", b"bc", b"", b""]), prefix=b" "),
        dataclasses.replace(
            ByteVocab.from_bytes([b"a", b"bc", b"", b""]), special_ids=frozenset([3])
        ),
    ],
    ids=["bytes", "size", "eos", "bos", "prefix", "special"],
)
def test_whatever_differs_changes_the_fingerprint(other):
    assert other.fingerprint() != ByteVocab.from_bytes([b"a", b"bc", b"", b""]).fingerprint()


def test_a_vocabulary_that_was_sent_says_all_that_it_said():
    vocab = dataclasses.replace(
        ByteVocab.from_bytes([b"a", b"\xff", b"", b""], eos_token_ids=[3], bos_token_id=2),
        added_ids=frozenset([1]),
        strips_left=frozenset([0, 3]),
        strips_right=frozenset([1]),
        prefix=b" ",
    )
    told = Vocab.from_json(json.loads(VocabBody.of(vocab).body))
    for name in ("token_bytes", "token_text", "special_ids", "added_ids", "prefix"):
        assert getattr(told, name) == getattr(vocab, name)
    assert (told.bos, told.eos) == (2, (3,))
    assert (told.strips_left, told.strips_right) == ({0, 3}, {1})


class Upper:
    """A tokenizer of single letters that upper-cases "x" and drops "-"."""

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens

    def ids(self, text: str) -> list[int]:
        return [span.token_id for span in self.spans(text)]

    def spans(self, text: str) -> list[Span]:
        shown = text.replace("x", "X")
        return [
            Span(self.tokens.index(character.encode()), place, place + 1)
            for place, character in enumerate(shown)
            if character != "-"
        ]


def test_places_that_a_tokenizer_changes_are_spelled_by_longest_match():
    tokens = [b"a", b"b", b"X", b"x", b"-", b"x-", b"ab"]
    encoder = CanonicalEncoder(tuple(tokens), Upper(tokens))
    assert encoder.encode(b"abx-ab") == [0, 1, 5, 0, 1]


@given(st.lists(st.sampled_from([*range(0x80, 0xC2), *range(0xF5, 0x100)]), min_size=1))
def test_invalid_bytes_are_spelled_around_valid_text(invalid):
    tokens = [b"a", b"b", b"ab", *(bytes([byte]) for byte in range(128, 256))]
    encoder = CanonicalEncoder(tuple(tokens), Upper(tokens))
    spelled = [byte - 125 for byte in invalid]
    assert encoder.encode(b"ab" + bytes(invalid) + b"ab") == [0, 1, *spelled, 0, 1]


@pytest.mark.parametrize("trusted", [False, True])
def test_code_that_comes_with_a_model_runs_only_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    model, proof = tmp_path / "model", tmp_path / "it ran"
    model.mkdir()
    (model / "custom.py").write_text(f"open({str(proof)!r}, 'w').close()\nclass Mine: pass\n")
    (model / "config.json").write_text('{"model_type": "custom"}')
    names = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["custom.Mine", None]}}
    (model / "tokenizer_config.json").write_text(json.dumps(names))
    for read in (ByteVocab.from_pretrained, ChatTemplate.from_pretrained):
        proof.unlink(missing_ok=True)
        with pytest.raises(UnknownModel):
            read(model, trust_remote_code=trusted)
        assert proof.exists() == trusted
        for module in [m for m in sys.modules if m.startswith("transformers_modules")]:
            del sys.modules[module]
