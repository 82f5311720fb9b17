"""Canonical paths against brute force over all texts, and against tokenizers of every family."""

import itertools
import random
from collections.abc import Iterator

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers
from tokenizers import pre_tokenizers as splitters

from bytelm.errors import VocabError
from bytelm.models.testing import merging_vocab
from bytelm.vocabulary.canonical_paths import CanonicalPaths, ChangeReading, PathState, Reading
from bytelm.vocabulary.vocab import ByteVocab
from tests.unit import canonical_families as families


def admitted(vocab: ByteVocab, most: int) -> dict[tuple[int, ...], bool]:
    """Every admitted sequence of tokens of at most so many bytes, and whether it is whole."""
    found: dict[tuple[int, ...], bool] = {}
    waiting: list[tuple[tuple[int, ...], PathState]] = [((), CanonicalPaths.of(vocab).start)]
    while waiting:
        path, state = waiting.pop()
        found[path] = state.is_whole
        for token_id in range(vocab.size):
            longer = (*path, token_id)
            if len(vocab.decode(longer)) <= most and (after := state.step(token_id)):
                waiting.append((longer, after))
    return found


def begun(vocab: ByteVocab, texts: Iterator[bytes], most: int) -> dict[tuple[int, ...], bool]:
    """What canonical tokenizations of texts begin with, up to so many bytes; which are whole."""
    found: dict[tuple[int, ...], bool] = {}
    for text in texts:
        try:
            ids = tuple(vocab.encode(text))
        except VocabError:
            continue
        for n in range(len(ids) + 1):
            if len(vocab.decode(ids[:n])) <= most:
                found[ids[:n]] = found.get(ids[:n], False) or n == len(ids)
    return found


def all_texts(alphabet: bytes, most: int) -> Iterator[bytes]:
    for length in range(most + 1):
        yield from map(bytes, itertools.product(alphabet, repeat=length))


# alphabet, pattern, tokens besides the alphabet's, bytes of a path, bytes that a witness may add
TOYS = {
    "merges alone": (b"ab", None, "ab ba bab aba abab bb", 6, 4),
    "overlapping merges": (b"a", None, "aa aaa aaaaa", 8, 6),
    "spaces": (b"a ", r" ?a+|\s+(?!\S)|\s+", "aa_a _ _aa __ ___ aaa_", 6, 4),
    "spaces and lines": (b"a \n", r" ?a+|\s*[\n]+|\s+(?!\S)|\s+", "_ __ n_ _n nn n_n _a", 5, 3),
    "possessive": (b"a \n", r"a++|\s++$|\s*[\n]|\s+(?!\S)|\s", "_ __ n_ _n nn n_n aa", 5, 3),
    "contractions": (b"'lsa", r"'s|'ll| ?[a-z]+|'+", "'l l' ll 'll al '' 's ls", 5, 3),
    "contractions behind words": (b"'la", r"[a-z]+(?:'ll)?|'", "'l l' ll 'll a'l la a'", 5, 3),
    "capitals": (b"aAb", r"[Ab]*[ab]+|[Ab]+[ab]*", "ab bA Ab Aa AA AAa aA bAA", 5, 3),
    "numbers": (b"123", r"\d{1,3}", "11 111 12 123 1111 23", 6, 3),
    "characters": ("é a".encode() + b"\xa8", r" ?\w+|[^\w]+", "é aé éa __ _é èa", 4, 2),
}


@pytest.mark.parametrize("whole_pieces", [False, True])
@pytest.mark.parametrize("name", TOYS)
def test_exactly_what_begins_a_canonical_tokenization_is_admitted(name, whole_pieces):
    alphabet, pattern, more, most, witness = TOYS[name]
    spelled = [t.replace("_", " ").replace("n", "\n") for t in more.split()]
    tokens = [bytes([b]) for b in dict.fromkeys(alphabet)]
    tokens += [data for t in spelled if (data := t.encode()) not in tokens]
    vocab = merging_vocab([*tokens, b""], pattern, whole_pieces=whole_pieces)
    texts = all_texts(bytes(dict.fromkeys(alphabet)), most + witness)
    assert admitted(vocab, most) == begun(vocab, texts, most)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_the_canonical_tokenization_of_a_text_is_never_dropped(name):
    vocab, chance = families.family(name), random.Random(name)
    assert sum(families.check_text(vocab, families.text(chance)) for _ in range(60)) > 300


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_admitted_path_has_a_witness(name):
    vocab, chance = families.family(name), random.Random(name)
    assert sum(families.check_walk(vocab, chance) for _ in range(25)) > 60


LONG = ["a" * 300, " " * 300, "\n " * 100, "_" * 300, "日本" * 100, "Aあ" * 100, "e\u0301" * 50]


@pytest.mark.parametrize("name", ["gpt2", "o200k", "llama2", "mistral v1", "default model"])
def test_long_runs_are_followed(name):
    for data in LONG:
        families.check_text(families.family(name), data.encode())


CHANGED = [
    "cafe\u0301",
    " e\u0301e\u0301 a",
    "nai\u0308ve",
    "\u212b",
    "a\u0301\u0323 x",
    "ᄒ\u1161\u11ab 글",
]
MARKED = ["\u2581", "a\u2581The  \u2581", " \u2581The quick\u2581brown fox", "x\u2581\u2581y z"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *itertools.product(["qwen2"], CHANGED),
        *itertools.product(["llama2", "gemma", "metaspace", "mistral v1"], MARKED),
    ],
)
def test_text_that_a_tokenizer_would_change_is_not_dropped(name, text):
    families.check_text(families.family(name), text.encode())


REFUSED = {
    "Unigram": Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False)),
    "NFKC": families.byte_level(families.split(families.QWEN2)),
    "Punctuation": Tokenizer(models.BPE({"a": 0}, [])),
    r"\(\?<=x": families.byte_level(families.split(r"(?<=x)\s+|\S+|\s+")),
    "Removed": Tokenizer(models.BPE({"a": 0}, [])),
    "single words": Tokenizer(models.BPE({"a": 0}, [])),
    "no byte fallback": Tokenizer(models.BPE({"ab": 0}, [])),
}
REFUSED["NFKC"].normalizer = normalizers.NFKC()
REFUSED["Punctuation"].pre_tokenizer = splitters.Punctuation()
REFUSED["Removed"].pre_tokenizer = splitters.Split(Regex(" "), "removed")
REFUSED["single words"].add_tokens([AddedToken("aa", single_word=True)])


@pytest.mark.parametrize("reason", REFUSED)
def test_a_tokenizer_for_which_nothing_is_proven_is_refused_by_name(reason):
    vocab = ByteVocab.from_tokenizer(REFUSED[reason])
    with pytest.raises(
        VocabError, match=f"canonical tokenizations are not known.*{reason}|{reason}"
    ):
        CanonicalPaths.of(vocab)


def test_a_vocabulary_without_a_tokenizer_is_refused():
    with pytest.raises(VocabError, match="without a tokenizer"):
        CanonicalPaths.of(ByteVocab.from_bytes([b"a", b"b"]))


def test_a_model_that_lacks_some_of_the_tokenizers_tokens_is_refused():
    with pytest.raises(VocabError, match="tokens that the model does not have"):
        CanonicalPaths.of(ByteVocab.from_tokenizer(families.gpt2(), vocab_size=400))


def test_states_are_equal_where_their_futures_are():
    vocab = families.family("gpt2")
    start = CanonicalPaths.of(vocab).start
    one, other = (walked(vocab, start, data) for data in (b"The dog x", b"brown fox over x"))
    assert one == other
    assert hash(one) == hash(other)
    assert one != walked(vocab, start, b"The dogx")


@pytest.mark.parametrize("name", families.FAMILIES)
def test_the_state_behind_known_tokens_is_that_of_stepping_through_them(name):
    vocab, chance = families.family(name), random.Random(name)
    paths = CanonicalPaths.of(vocab)
    for _ in range(40):
        data = b"".join(families.text(chance) for _ in range(3))
        if (ids := families.encoded(vocab, data)) is not None:
            assert text_readings(paths.after(ids)) == text_readings(
                walked(vocab, paths.start, data)
            )


@pytest.mark.parametrize("name", ["gpt2", "o200k", "deepseek", "mistral v1", "default model"])
def test_the_state_behind_known_tokens_needs_only_the_last_of_them(name, monkeypatch):
    vocab = families.family(name)
    paths = CanonicalPaths.of(vocab)
    ids = vocab.encode(b"The quick brown fox, and the lazy dog. " * 20)
    steps: list[int] = []
    step = PathState.step

    def counted(state: PathState, token_id: int) -> PathState | None:
        steps.append(token_id)
        return step(state, token_id)

    monkeypatch.setattr(PathState, "step", counted)
    paths.after(ids)
    assert len(steps) < 6


def text_readings(state: PathState) -> set[Reading]:
    return {one for one in state.readings if not isinstance(one, ChangeReading)}


def walked(vocab: ByteVocab, state: PathState, data: bytes) -> PathState:
    for token_id in vocab.encode(data):
        after = state.step(token_id)
        assert after is not None
        state = after
    return state
