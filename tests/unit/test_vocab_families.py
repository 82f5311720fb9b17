"""Vocabularies of every tokenizer family, on tiny tokenizers trained here and on shipped files."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mistral_common
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as splitters
from transformers import BertGenerationTokenizer

from bytelm.errors import UnknownModel, VocabError
from bytelm.vocabulary.vocab import ByteVocab

SHIPPED = Path(mistral_common.__file__).parent / "data"
TEXTS = [
    "The quick brown fox jumps over the lazy dog, 1234 times a day.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 22))\ttwo  spaces",
    "The capital of France is Paris. The café is naïve: déjà vu!",
    "日本語 の 文章 です。 中国 的 首都 是 北京。 🎉🎉",
] * 3
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIALS = ["<unk>", "<s>", "</s>"]
ORDINARY = st.text("abcdeTho 日本é🎉13,.:\n\t", max_size=30).filter(lambda t: not t.startswith(" "))


def gpt2(splitter: Any = None, normalizer: Any = None) -> Tokenizer:
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter or splitters.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = splitters.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def llama3(normalizer: Any = None) -> Tokenizer:
    """Byte-level BPE split by a pattern, whole words looked up before merging."""
    split = splitters.Split(Regex(WORDS), "isolated")
    level = splitters.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = gpt2(splitters.Sequence([split, level]), normalizer)
    tokenizer.model.ignore_merges = True
    return tokenizer


def byte_normalized() -> Tokenizer:
    """Byte-level BPE whose normalizer writes the byte alphabet."""
    return gpt2(splitters.Split(Regex(" ?[^ ]+| +"), "isolated"), normalizers.ByteLevel())


def with_added(tokenizer: Tokenizer) -> Tokenizer:
    """Added tokens of all kinds."""
    tokenizer.add_tokens(
        [
            AddedToken("<think>", normalized=False),
            AddedToken("naïve 日本", normalized=True),
            AddedToken("    ", normalized=False),
            AddedToken("<wide>", lstrip=True, rstrip=True),
        ]
    )
    tokenizer.add_special_tokens([AddedToken("<|end|>", lstrip=True, rstrip=True, normalized=True)])
    return tokenizer


def sentencepiece_bpe(normalizer: Any = None, splitter: Any = None) -> Tokenizer:
    """BPE with byte fallback, as conversions of SentencePiece models have it."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = splitters.Metaspace()
    trained.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=250, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    texts = dict.fromkeys([*SPECIALS, *BYTE_PIECES, *model["vocab"]])
    vocab = {text: token_id for token_id, text in enumerate(texts)}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.add_special_tokens(SPECIALS)
    if normalizer:
        tokenizer.normalizer = normalizer
    if splitter:
        tokenizer.pre_tokenizer = splitter
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return tokenizer


def llama2() -> Tokenizer:
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    return sentencepiece_bpe(normalizers.Sequence(spaces))


def unigram(byte_fallback: bool) -> Tokenizer:
    """Unigram pieces; without byte fallback with T5's normalization and splitting."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = splitters.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=250, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator(TEXTS, trainer)
    pieces = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["vocab"]]
    if byte_fallback:
        pieces += [(text, -20.0) for text in BYTE_PIECES]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=byte_fallback))
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.pre_tokenizer = splitters.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    if not byte_fallback:
        steps = [normalizers.NFKC(), normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
        tokenizer.normalizer = normalizers.Sequence(steps)
        split = [splitters.WhitespaceSplit(), splitters.Metaspace()]
        tokenizer.pre_tokenizer = splitters.Sequence(split)
    return tokenizer


def id_of(tokenizer: Tokenizer, text: str) -> int:
    token_id = tokenizer.token_to_id(text)
    assert token_id is not None
    return token_id


# Each family: how to make it, and the prefix that its tokenizer puts before a text.
LOSSLESS: dict[str, tuple[Callable[[], Tokenizer], bytes]] = {
    "gpt2": (gpt2, b""),
    "roberta": (lambda: gpt2(splitters.ByteLevel(add_prefix_space=True)), b" "),
    "llama3": (llama3, b""),
    "qwen": (lambda: llama3(normalizers.NFC()), b""),
    "starcoder": (
        lambda: gpt2(
            splitters.Sequence(
                [splitters.Digits(True), splitters.ByteLevel(add_prefix_space=False)]
            )
        ),
        b"",
    ),
    "byte normalized": (byte_normalized, b""),
    "gpt2 with added": (lambda: with_added(gpt2()), b""),
    "llama2": (llama2, b" "),
    "llama2 with added": (lambda: with_added(llama2()), b" "),
    "gemma": (lambda: sentencepiece_bpe(normalizers.Replace(" ", "▁")), b""),
    "metaspace first": (
        lambda: sentencepiece_bpe(
            splitter=splitters.Metaspace(prepend_scheme="first", split=False)
        ),
        b" ",
    ),
    "metaspace always": (lambda: sentencepiece_bpe(splitter=splitters.Metaspace()), b" "),
    "metaspace never": (
        lambda: sentencepiece_bpe(splitter=splitters.Metaspace(prepend_scheme="never")),
        b"",
    ),
    "unigram": (lambda: unigram(byte_fallback=True), b" "),
}


@pytest.fixture(scope="module", params=LOSSLESS)
def family(request) -> tuple[Tokenizer, ByteVocab, bytes]:
    make, prefix = LOSSLESS[request.param]
    tokenizer = make()
    return tokenizer, ByteVocab.from_tokenizer(tokenizer), prefix


@given(text=st.text())
def test_random_text_comes_back(family, text):
    _, vocab, _ = family
    ids = vocab.encode(text.encode())
    assert vocab.decode(ids) == text.encode()
    assert not vocab.special_ids & set(ids)


@given(data=st.binary())
def test_random_bytes_come_back(family, data):
    _, vocab, _ = family
    assert vocab.decode(vocab.encode(data)) == data


@given(text=ORDINARY)
def test_ids_of_ordinary_text_are_the_tokenizers_own(family, text):
    tokenizer, vocab, prefix = family
    assert vocab.prefix == prefix
    own = tokenizer.encode(text, add_special_tokens=False).ids
    assert vocab.encode(prefix + text.encode() if text else b"") == own


@pytest.mark.parametrize("spelling", [*SPECIALS, "<|end|>", " <|end|> ", "x</s>y", "<0x0A>"])
def test_a_special_spelling_is_text(family, spelling):
    _, vocab, _ = family
    ids = vocab.encode(spelling.encode())
    assert not vocab.special_ids & set(ids)
    assert vocab.decode(ids) == spelling.encode()
    assert len(ids) > 1


@pytest.mark.parametrize("data", ["e\u0301 \ufb01 ½", "a▁b", "  x  ", "\x00\x01", "<unk>▁"])
def test_what_a_tokenizer_would_change_comes_back(family, data):
    _, vocab, _ = family
    assert vocab.decode(vocab.encode(data.encode())) == data.encode()


def test_text_around_a_changed_place_keeps_its_canonical_ids():
    vocab = ByteVocab.from_tokenizer(llama3(normalizers.NFC()))
    ids = vocab.encode("The capital e\u0301 The capital".encode())
    half = vocab.encode(b"The capital")
    assert ids[: len(half)] == half
    assert ids[-len(vocab.encode(b" The capital")) :] == vocab.encode(b" The capital")


def test_a_dummy_prefix_space_belongs_to_the_first_word():
    tokenizer = llama2()
    vocab = ByteVocab.from_tokenizer(tokenizer)
    assert vocab.encode(b" The") == tokenizer.encode("The", add_special_tokens=False).ids
    assert vocab.encode(b"The") != vocab.encode(b" The")


def test_byte_pieces_are_bytes_and_the_mark_is_a_space():
    vocab = ByteVocab.from_tokenizer(llama2())
    by_text = dict(zip(vocab.token_text, vocab.token_bytes, strict=True))
    assert by_text["<0x0A>"] == b"\n"
    assert by_text["▁The"] == b" The"


def test_ids_with_equal_bytes_are_all_kept():
    vocab = ByteVocab.from_tokenizer(llama2())
    assert [vocab.token_text[i] for i, data in enumerate(vocab.token_bytes) if data == b" "] == [
        "<0x20>",
        "▁",
    ]


def test_added_tokens_are_text_in_plain_characters():
    tokenizer = with_added(gpt2())
    vocab = ByteVocab.from_tokenizer(tokenizer)
    assert vocab.token_bytes[id_of(tokenizer, "naïve 日本")] == "naïve 日本".encode()
    assert vocab.encode(b"<think>") == [id_of(tokenizer, "<think>")]
    assert id_of(tokenizer, "<think>") in vocab.added_ids - vocab.special_ids


def test_an_added_token_does_not_swallow_the_spaces_around_it():
    tokenizer = with_added(gpt2())
    vocab = ByteVocab.from_tokenizer(tokenizer)
    ids = vocab.encode(b"a <wide> b")
    assert id_of(tokenizer, "<wide>") in ids
    assert vocab.decode(ids) == b"a <wide> b"


def test_an_added_piece_that_the_model_has_is_read_as_a_piece():
    tokenizer = sentencepiece_bpe(normalizers.Replace(" ", "▁"))
    tokenizer.add_tokens([AddedToken("▁The", normalized=False)])
    vocab = ByteVocab.from_tokenizer(tokenizer)
    assert vocab.token_bytes[id_of(tokenizer, "▁The")] == b" The"
    assert vocab.decode(vocab.encode("▁The".encode())) == "▁The".encode()


def test_an_added_token_that_the_model_has_is_read_in_the_byte_alphabet():
    tokenizer = gpt2()
    tokenizer.add_tokens(["Ġa"])
    vocab = ByteVocab.from_tokenizer(tokenizer)
    assert tokenizer.decode([id_of(tokenizer, "Ġa")]) == " a"
    assert vocab.token_bytes[id_of(tokenizer, "Ġa")] == b" a"
    assert vocab.encode(b"b a") == tokenizer.encode("b a").ids
    assert vocab.decode(vocab.encode("Ġa".encode())) == "Ġa".encode()


NORMALIZED = [
    ("gemma", "foo", "foo"),
    ("gemma", "▁foo", " foo"),
    ("gemma", " foo", " foo"),
    ("llama2", "foo", " foo"),
    ("llama2", "▁foo", "  foo"),
]


@pytest.mark.parametrize(("layout", "content", "stands_for"), NORMALIZED)
def test_a_normalized_added_token_stands_for_the_text_that_it_is_found_in(
    layout, content, stands_for
):
    tokenizer = LOSSLESS[layout][0]()
    tokenizer.add_tokens([AddedToken(content, normalized=True)])
    added = id_of(tokenizer, content)
    vocab = ByteVocab.from_tokenizer(tokenizer)
    assert vocab.token_bytes[added] == stands_for.encode()
    for text in (f"a{stands_for}b", f"a{stands_for}{stands_for}", f"a foo{stands_for}", "afoo"):
        own = tokenizer.encode(text, add_special_tokens=False).ids
        assert vocab.encode(vocab.prefix + text.encode()) == own
    assert added in vocab.encode(b"a" + stands_for.encode())
    assert vocab.decode(vocab.encode("a▁foo".encode())) == "a▁foo".encode()


def test_special_tokens_have_no_bytes_but_their_text():
    tokenizer = with_added(gpt2())
    vocab = ByteVocab.from_tokenizer(tokenizer)
    end = id_of(tokenizer, "<|end|>")
    assert (vocab.token_bytes[end], vocab.token_text[end]) == (b"", "<|end|>")
    assert vocab.literal().token_bytes[end] == b"<|end|>"


def test_a_given_eos_is_special():
    tokenizer = gpt2()
    vocab = ByteVocab.from_tokenizer(tokenizer, eos_token_ids=[id_of(tokenizer, "a")])
    assert vocab.token_bytes[id_of(tokenizer, "a")] == b""
    assert id_of(tokenizer, "a") in vocab.special_ids


def test_ids_beyond_the_tokenizer_have_no_bytes():
    tokenizer = gpt2()
    size = tokenizer.get_vocab_size()
    vocab = ByteVocab.from_tokenizer(tokenizer, vocab_size=size + 7)
    assert vocab.size == size + 7
    assert vocab.token_bytes[size:] == (b"",) * 7
    assert vocab.token_text[size:] == ("",) * 7


def test_tokens_beyond_the_model_are_not_used():
    tokenizer = with_added(gpt2())
    narrow = ByteVocab.from_tokenizer(tokenizer, vocab_size=id_of(tokenizer, "<think>"))
    ids = narrow.encode(b"The <think> fox")
    assert narrow.decode(ids) == b"The <think> fox"


def test_an_eos_beyond_the_model_is_refused():
    with pytest.raises(VocabError, match="tokenizer and model belong together"):
        ByteVocab.from_tokenizer(gpt2(), vocab_size=100, eos_token_ids=[100])


def test_missing_ids_have_no_bytes_and_added_ids_keep_their_place():
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 6}, []))
    tokenizer.add_tokens(["cab", "bb"])
    vocab = ByteVocab.from_tokenizer(tokenizer)
    assert vocab.token_bytes == (b"a", b"b", b"", b"cab", b"bb", b"", b"c")
    assert vocab.encode(b"abcabbbc") == tokenizer.encode("abcabbbc").ids == [0, 1, 3, 4, 6]


def changed_model(tokenizer: Tokenizer, **changes: Any) -> Tokenizer:
    whole = json.loads(tokenizer.to_str())
    whole["model"] |= changes
    return Tokenizer.from_str(json.dumps(whole))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_what_stands_for_unknown_text_is_no_text_though_nobody_says_that_it_is_special(kind):
    if kind == "bpe":
        ids = {text: i for i, text in enumerate(["<unk>", *"<unk>"])}
        tokenizer = Tokenizer(models.BPE(ids, [], unk_token="<unk>"))
    else:
        pieces = [(text, -1.0) for text in ["<unk>", "a", *BYTE_PIECES]]
        tokenizer = Tokenizer(models.Unigram(pieces, 0, True))
    vocab = ByteVocab.from_tokenizer(tokenizer)
    assert (vocab.token_bytes[0], vocab.special_ids) == (b"", {0})
    assert vocab.decode(vocab.encode(b"<unk>")) == b"<unk>"


def test_a_unigram_model_that_knows_no_unknown_token_spells_unknown_text_by_its_bytes():
    tokenizer = unigram(byte_fallback=True)
    vocab = ByteVocab.from_tokenizer(changed_model(tokenizer, unk_id=None))
    text = " The quick ☂ fox<unk>"
    own = tokenizer.encode(text[1:], add_special_tokens=False).ids
    assert vocab.encode(text[:-5].encode()) == own[:-1]
    assert own[-1] == 0
    assert vocab.decode(vocab.encode(text.encode())) == text.encode()


@pytest.mark.parametrize(
    "tokenizer",
    [
        Tokenizer(models.BPE({"a": 0, "b": 1}, [], unk_token="<unk>")),
        Tokenizer(models.Unigram([("a", -1.0), ("b", -1.0)], None, False)),
    ],
    ids=["bpe", "unigram"],
)
def test_unknown_text_is_named_where_the_model_has_no_token_for_it(tokenizer):
    tokenizer.add_special_tokens(["<unk>"])
    tokenizer.add_tokens(["cc"])
    vocab = ByteVocab.from_tokenizer(tokenizer)
    assert vocab.encode(b"abccb") == [0, 1, 3, 1]
    with pytest.raises(VocabError, match="byte 0x63 at offset 1"):
        vocab.encode(b"acb")


def test_sampling_of_merges_is_left_out():
    tokenizer = gpt2()
    vocab = ByteVocab.from_tokenizer(changed_model(tokenizer, dropout=0.9))
    assert vocab.encode(b"The quick brown") == tokenizer.encode("The quick brown").ids


def test_sampling_of_pieces_is_left_out():
    tokenizer = unigram(byte_fallback=True)
    vocab = ByteVocab.from_tokenizer(changed_model(tokenizer, alpha=0.1, nbest_size=-1))
    assert vocab.encode(b" The quick brown") == tokenizer.encode("The quick brown").ids


def test_without_byte_fallback_words_have_their_canonical_ids():
    tokenizer = unigram(byte_fallback=False)
    vocab = ByteVocab.from_tokenizer(tokenizer)
    own = tokenizer.encode("The lazy dog", add_special_tokens=False).ids
    assert vocab.encode(vocab.prefix + b"The lazy dog") == own


def test_without_byte_fallback_spaces_come_back():
    vocab = ByteVocab.from_tokenizer(unigram(byte_fallback=False))
    assert vocab.decode(vocab.encode(b"  The  dog ")) == b"  The  dog "


def test_without_byte_fallback_a_byte_that_no_piece_has_is_named():
    vocab = ByteVocab.from_tokenizer(unigram(byte_fallback=False))
    with pytest.raises(VocabError, match="byte 0x3C at offset 4"):
        vocab.encode(b"The <s>")


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2})), "WordPiece drops the spaces"),
        (Tokenizer(models.WordLevel({"[UNK]": 0}, "[UNK]")), "word-level"),
        (Tokenizer(models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>")), "'</w>' marks"),
        (Tokenizer(models.BPE({"a": 0}, [], continuing_subword_prefix="##")), "'##' stands in"),
    ],
    ids=["wordpiece", "wordlevel", "end of word", "continuing"],
)
def test_a_family_that_drops_spaces_is_refused_with_the_reason(tokenizer, reason):
    with pytest.raises(VocabError, match=reason):
        ByteVocab.from_tokenizer(tokenizer)


def test_a_splitter_that_drops_spaces_is_refused_with_the_reason():
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    tokenizer.pre_tokenizer = splitters.Whitespace()
    with pytest.raises(VocabError, match="pre-tokenizer Whitespace drops spaces"):
        ByteVocab.from_tokenizer(tokenizer)


def test_a_decoder_that_replaces_by_a_pattern_is_refused_with_the_reason():
    tokenizer = Tokenizer(models.BPE({"a": 0, "_": 1}, []))
    tokenizer.decoder = decoders.Sequence([decoders.Replace(Regex("_+"), " "), decoders.Fuse()])
    with pytest.raises(VocabError, match="its decoder replaces whatever a regular expression"):
        ByteVocab.from_tokenizer(tokenizer)


def test_an_unknown_kind_of_tokenizer_is_refused():
    with pytest.raises(VocabError, match="class object says nothing"):
        ByteVocab.from_tokenizer(object())


@pytest.fixture(scope="module", params=["tokenizer.model.v1", "*241114.model.v7", "tekken_240911*"])
def shipped(request) -> tuple[Callable[[str], list[int]], ByteVocab]:
    """The tokenizer's own ids of a text, and its vocabulary."""
    (path,) = SHIPPED.glob(request.param)
    if path.suffix == ".json":
        tekken = Tekkenizer.from_file(path)
        return lambda text: tekken.encode(text, bos=False, eos=False), ByteVocab.from_file(path)
    return SentencePieceProcessor(model_file=str(path)).encode, ByteVocab.from_file(path)


@given(data=st.one_of(st.binary(), st.text().map(str.encode)))
def test_bytes_come_back_through_shipped_tokenizers(shipped, data):
    _, vocab = shipped
    ids = vocab.encode(data)
    assert vocab.decode(ids) == data
    assert not vocab.special_ids & set(ids)


@given(text=st.text("abcdeTho 日本é🎉13,.:\n\t", min_size=1, max_size=30))
def test_ids_are_the_shipped_tokenizers_own(shipped, text):
    own, vocab = shipped
    assert vocab.encode(vocab.prefix + text.encode()) == own(text)


def test_shipped_tokenizers_know_their_marks(shipped):
    _, vocab = shipped
    assert (vocab.bos_token_id, vocab.eos_token_ids) == (1, (2,))
    assert vocab.token_text[1:3] == ("<s>", "</s>")
    assert {0, 1, 2} <= vocab.special_ids
    assert vocab.decode(vocab.encode(b"</s>[INST]")) == b"</s>[INST]"


def test_a_normalizing_sentencepiece_model_without_fallback(tmp_path):
    lines = iter(["the quick brown fox", "the lazy dog ate the fox", "a quick dog"] * 20)
    SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_prefix=str(tmp_path / "m"),
        vocab_size=40,
        hard_vocab_limit=False,
        user_defined_symbols=["<x>"],
        minloglevel=2,
    )
    processor = SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    vocab = ByteVocab.from_tokenizer(processor)
    assert vocab.encode(b" the quick dog") == processor.encode("the quick dog")
    assert vocab.decode(vocab.encode(b"the  dog ")) == b"the  dog "
    assert processor.piece_to_id("<x>") in vocab.added_ids - vocab.special_ids
    assert vocab.encode(b"<x>") == [processor.piece_to_id("<x>")]
    with pytest.raises(VocabError, match="byte 0xC3 at offset 4"):
        vocab.encode("the é".encode())


MISTRAL = SHIPPED / "tokenizer.model.v1"


def test_a_slow_tokenizer_is_read_with_the_tokens_added_to_it():
    added = {32000: AddedToken("<|im_end|>", rstrip=True, special=True)}
    marks = {"eos_token": "<|im_end|>", "pad_token": "<s>", "sep_token": "<s>"}
    tokenizer = BertGenerationTokenizer(str(MISTRAL), added_tokens_decoder=added, **marks)
    tokenizer.add_tokens([AddedToken("<tool>"), AddedToken("the"), AddedToken("▁the")])
    tokenizer.add_tokens(["<|im_start|>"], special_tokens=True)
    vocab = ByteVocab.from_tokenizer(tokenizer)
    end, tool, the, start = tokenizer.convert_tokens_to_ids(
        ["<|im_end|>", "<tool>", "the", "<|im_start|>"]
    )
    assert (vocab.eos_token_ids, vocab.bos_token_id, vocab.prefix) == ((end,), 1, b" ")
    assert vocab.special_ids == {0, 1, 2, end, start}
    assert vocab.strips_right == {end}
    assert (vocab.token_bytes[end], vocab.token_text[end]) == (b"", "<|im_end|>")
    assert vocab.token_bytes[tool] == b"<tool>"
    assert vocab.token_bytes[tokenizer.convert_tokens_to_ids("▁the")] == b" the"
    assert vocab.added_ids >= {end, tool, the, start}
    for text in ("The<tool>the ☂<tool>", "<tool><tool> other", "x<|im_end|>"):
        ids = vocab.encode(b" " + text.encode())
        own = [i for i in tokenizer.encode(text, add_special_tokens=False) if i != end]
        # Behind an added token transformers puts another prefix, which is no byte of the text.
        assert [i for i in ids if i in vocab.added_ids] == [i for i in own if i in vocab.added_ids]
        assert vocab.decode(ids) == b" " + text.encode()
    assert vocab.encode(b" The quick fox") == tokenizer.encode(
        "The quick fox", add_special_tokens=False
    )


def test_a_slow_tokenizer_that_moves_the_models_ids_is_refused():
    class Moved(BertGenerationTokenizer):
        def _convert_id_to_token(self, index):
            return self.sp_model.IdToPiece(index - (index > 100))

    with pytest.raises(VocabError, match="calls token 101 .* cannot be read, give the fast"):
        ByteVocab.from_tokenizer(Moved(str(MISTRAL)))


@pytest.fixture
def ranks() -> dict[bytes, int]:
    singles = {bytes([byte]): byte for byte in range(256)}
    return singles | {b"th": 256, b"the": 257, b" the": 258, "é".encode(): 259}


def test_a_tiktoken_encoding(ranks):
    encoding = tiktoken.Encoding(
        "tiny", pat_str=r" ?\w+|\W", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 262}
    )
    vocab = ByteVocab.from_tokenizer(encoding)
    assert vocab.eos_token_ids == (262,)
    assert vocab.token_bytes[259:] == ("é".encode(), b"", b"", b"")
    assert vocab.encode("the thé<|endoftext|>".encode()) == encoding.encode_ordinary(
        "the thé<|endoftext|>"
    )
    assert vocab.decode(vocab.encode(b"\xffthe\xc3")) == b"\xffthe\xc3"


def test_an_ordinary_token_that_is_spelled_like_a_special_one_is_text(ranks):
    ranks |= {b"<s>": 260, b"<|endoftext|>": 261}
    specials = {"<s>": 262, "<|endoftext|>": 263}
    encoding = tiktoken.Encoding(
        "tiny", pat_str=r"<s>|\w+|\W", mergeable_ranks=ranks, special_tokens=specials
    )
    vocab = ByteVocab.from_tokenizer(encoding)
    assert (vocab.special_ids, vocab.eos_token_ids) == ({262, 263}, (263,))
    assert vocab.token_bytes[260:] == (b"<s>", b"<|endoftext|>", b"", b"")
    assert vocab.encode(b"the<s>") == encoding.encode_ordinary("the<s>") == [257, 260]


def test_a_tiktoken_file_needs_its_pattern(tmp_path, ranks):
    path = tmp_path / "tiny.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % r for t, r in ranks.items()))
    vocab = ByteVocab.from_file(path, pattern=r" ?\w+|\W", special_tokens={"<e>": 260})
    assert vocab.encode(b"the the") == [257, 258]
    assert vocab.special_ids == {260}
    with pytest.raises(VocabError, match="give its pattern"):
        ByteVocab.from_file(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x").write_text("no tokenizer")
    with pytest.raises(VocabError, match="is no tokenizer.json"):
        ByteVocab.from_file(tmp_path / "x")
    with pytest.raises(UnknownModel, match="no tokenizer file"):
        ByteVocab.from_file(tmp_path / "missing")


DAMAGED = {
    "json": b"{",
    "no tokenizer": b"{}",
    "no model": b'{"model": {}}',
    "tekken": b'{"config": {}, "vocab": []}',
    "sentencepiece": b"\n\x0e\n",
    "no utf-8": b'{"model": "\xff"}',
    "no ranks": b"",
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused(tmp_path, data):
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(VocabError, match="x' is damaged, or no tokenizer.json"):
        ByteVocab.from_file(path, pattern=".")


def test_a_tokenizer_json_file(tmp_path):
    gpt2().save(str(tmp_path / "tokenizer.json"))
    vocab = ByteVocab.from_file(tmp_path / "tokenizer.json", eos_token_ids=[2])
    assert vocab.fingerprint() == ByteVocab.from_tokenizer(gpt2(), eos_token_ids=[2]).fingerprint()


@pytest.fixture
def model_directory(tmp_path) -> Path:
    gpt2().save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "<s>"}))
    return tmp_path


def test_a_model_directory_says_width_and_eos(model_directory):
    (model_directory / "config.json").write_text('{"text_config": {"vocab_size": 600}}')
    (model_directory / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    vocab = ByteVocab.from_pretrained(model_directory)
    assert (vocab.size, vocab.eos_token_ids, vocab.bos_token_id) == (600, (2, 0), 1)


def test_a_model_directory_may_hold_a_tokenizer_alone(model_directory):
    vocab = ByteVocab.from_pretrained(model_directory)
    assert (vocab.size, vocab.eos_token_ids) == (gpt2().get_vocab_size(), (2,))


def test_a_lone_sentencepiece_file_keeps_its_dummy_prefix(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((SHIPPED / "tokenizer.model.v1").read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "mistral", "vocab_size": 32000}')
    assert ByteVocab.from_pretrained(tmp_path).prefix == b" "


@pytest.mark.parametrize("name", ["tokenizer.json", "tekken.json", "tokenizer.model"])
def test_a_damaged_tokenizer_is_an_unknown_model(tmp_path, name):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / name).write_text('{"model": {}}' if name == "tokenizer.json" else "{}")
    with pytest.raises(UnknownModel, match="no tokenizer can be loaded"):
        ByteVocab.from_pretrained(tmp_path)


def test_damaged_settings_are_an_unknown_model(model_directory):
    (model_directory / "generation_config.json").write_text("[]")
    with pytest.raises(UnknownModel, match="generation_config.json is no JSON object"):
        ByteVocab.from_pretrained(model_directory)


def test_a_path_without_a_tokenizer_is_an_unknown_model(tmp_path):
    with pytest.raises(UnknownModel, match="no tokenizer can be loaded"):
        ByteVocab.from_pretrained(tmp_path)
