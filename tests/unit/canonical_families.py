"""Vocabularies of the families whose canonical tokenizations are known, and texts to try them on.

The tokenizers are trained here, with the real patterns, on little text that is full of what
patterns treat alike in one place and differently in another; or they come with packages.
"""

import functools
import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mistral_common
import tiktoken
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as splitters

from bytelm import download as default_models
from bytelm.errors import VocabError
from bytelm.vocabulary.canonical_paths import CanonicalPaths
from bytelm.vocabulary.vocab import ByteVocab

SHIPPED = Path(mistral_common.__file__).parent / "data"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENDING}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENDING}|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
R50K = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog, 1234 times a day.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 22))\ttwo  spaces",
    "The capital of France is Paris. The café is naïve: déjà vu!",
    "日本語 の 文章 です。 中国 的 首都 是 北京。 🎉🎉 日本A Éé",
    "don't we'll they've I'm you're HE'S 'LL's\n\n\n   indented\n\t\tcode  x\r\n\r\n'll 's",
    "ABCあDe ÀÉbc ÑandÚ x=1;\n    y = 22333;\n\n\n\n\n          z \n \n\n  \n   \n",
] * 5
SPECIALS = ["<unk>", "<s>", "</s>"]


def byte_level(splitter: Any, size: int = 500) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIALS,
        initial_alphabet=splitters.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def split(*patterns: str) -> Any:
    parts = [splitters.Split(Regex(pattern), "isolated") for pattern in patterns]
    return splitters.Sequence([*parts, splitters.ByteLevel(False, use_regex=False)])


def gpt2() -> Tokenizer:
    return byte_level(splitters.ByteLevel(add_prefix_space=False))


def llama3() -> Tokenizer:
    """Whole words are looked up before merging, and merges do not reach some of them."""
    layout = json.loads(byte_level(split(LLAMA3)).to_str())
    vocab = layout["model"]["vocab"]
    for word in ["hello", "Ġhello", "Ġdon", "ĠHEL", "zzz", "ĊĠĊĊ", "'ll", "ĠĠĠx", "abc", "ĠT"]:
        vocab.setdefault(word, len(vocab))
    layout["model"]["ignore_merges"] = True
    tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(layout))
    return tokenizer


def starcoder() -> Tokenizer:
    digits = splitters.Digits(individual_digits=True)
    return byte_level(splitters.Sequence([digits, splitters.ByteLevel(add_prefix_space=False)]))


def normalized(tokenizer: Tokenizer, normalizer: Any) -> Tokenizer:
    tokenizer.normalizer = normalizer
    return tokenizer


def with_added(tokenizer: Tokenizer) -> Tokenizer:
    texts = ["<think>", "<th", "think>>", "    ", "'ll x"]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in texts])
    return tokenizer


def sentencepiece(normalizer: Any = None, splitter: Any = None) -> Tokenizer:
    """As conversions of SentencePiece models have it: merges of characters, byte fallback."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = splitters.Metaspace()
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=250, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    pieces = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocab = {text: token_id for token_id, text in enumerate(dict.fromkeys(pieces))}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.add_special_tokens(SPECIALS)
    if normalizer:
        tokenizer.normalizer = normalizer
    if splitter:
        tokenizer.pre_tokenizer = splitter
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def llama2() -> Tokenizer:
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    return sentencepiece(normalizers.Sequence(spaces))


def encoding(pattern: str) -> tiktoken.Encoding:
    """Ranks from other pieces than the pattern's: some tokens are never found."""
    tokens = ByteVocab.from_tokenizer(byte_level(split(LLAMA3), 700)).token_bytes
    singles = [bytes([byte]) for byte in range(256)]
    longer = [data for data in tokens if len(data) > 1]
    ranks = {data: rank for rank, data in enumerate([*singles, *longer])}
    return tiktoken.Encoding(
        "small", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|end|>": len(ranks)}
    )


TRAINED: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2,
    "gpt2 with added": lambda: with_added(gpt2()),
    "llama3": llama3,
    "qwen2 unnormalized": lambda: byte_level(split(QWEN2)),
    "o200k": lambda: byte_level(split(O200K)),
    "starcoder": starcoder,
    "deepseek": lambda: byte_level(split(*DEEPSEEK)),
    "tiktoken r50k": lambda: encoding(R50K),
    "tiktoken cl100k": lambda: encoding(CL100K),
    "tiktoken o200k": lambda: encoding(O200K),
    "qwen2": lambda: normalized(byte_level(split(QWEN2)), normalizers.NFC()),
    "llama2": llama2,
    "llama2 with added": lambda: with_added(llama2()),
    "gemma": lambda: sentencepiece(normalizers.Replace(" ", "▁")),
    "metaspace": lambda: sentencepiece(splitter=splitters.Metaspace()),
    "metaspace unsplit": lambda: sentencepiece(splitter=splitters.Metaspace(split=False)),
}
SHIPPED_FILES = {
    "mistral v1": "tokenizer.model.v1",
    "mistral v7": "*241114.model.v7",
    "tekken": "tekken_240911*",
}
FAMILIES = [*TRAINED, *SHIPPED_FILES, "default model"]


@functools.cache
def family(name: str) -> ByteVocab:
    """The vocabulary of a family."""
    if name in TRAINED:
        return ByteVocab.from_tokenizer(TRAINED[name]())
    if name in SHIPPED_FILES:
        return ByteVocab.from_file(next(SHIPPED.glob(SHIPPED_FILES[name])))
    return ByteVocab.from_pretrained(default_models.resolve())


SPACES = [*" \n\t\r", "  ", "\n\n", "\u00a0", "\u3000", "\u2028", "\x85"]
LETTERS = [
    *"abcdeThoxsvrlmtdABCSL",
    "é",
    "ё",
    "Ж",
    "ß",
    "ſ",
    "ǅ",
    "ʰ",
    *"日本語あいก한글",
    "ᄒ",
    "\u212a",
]
MARKS = [
    "\u2581",
    "e\u0301",
    "\u0323",
    "\u0301",
    "\u0308",
    "\u0e33",
    "\u0e38",
    "\u064f",
    "\u0651",
    "\u200d",
    "\u093c",
]
OTHERS = [*"13209½Ⅷ", *"'.,:;!/_-<>", *"🎉👩🏽", "\U0010fffd", "\x00", "\x01"]
WORDS = ["'ll", "'re", "'s", "'LL", "<think>", "<th", "ink>", "    ", "The", " quick", " don't"]
ALPHABETS = [
    [*SPACES, *"'la1."],
    [*"aAあ'sb1 ", "\u0301"],
    [*LETTERS, *MARKS, " "],
    [*SPACES, *LETTERS, *MARKS, *OTHERS, *WORDS],
]
BROKEN = [0x80, 0xBF, 0xC3, 0xE6, 0x97, 0xF0, 0x9F, 0xE2, 0x96, 0xED, 0xA0]


def text(chance: random.Random, longest: int = 14) -> bytes:
    """A random text: of few characters, or of many kinds, with code or words, or with bad bytes."""
    alphabet = chance.choice(ALPHABETS)
    drawn = "".join(chance.choices(alphabet, k=chance.randrange(1, longest)))
    if chance.random() < 0.2:
        words = chance.choice(CORPUS)
        start = chance.randrange(len(words))
        drawn = words[start : start + chance.randrange(40)] + drawn
    data = bytearray(drawn.encode())
    if chance.random() < 0.2:
        for _ in range(chance.randrange(1, 4)):
            data.insert(chance.randrange(len(data) + 1), chance.choice(BROKEN))
    return bytes(data[: -1 if chance.random() < 0.1 else None])


def encoded(vocab: ByteVocab, data: bytes) -> list[int] | None:
    """The canonical ids; None for what the vocabulary cannot spell."""
    try:
        return vocab.encode(data)
    except VocabError:
        return None


def check_text(vocab: ByteVocab, data: bytes) -> int:
    """Fails where the canonical tokenization of a text is dropped; how many tokens it has."""
    state = CanonicalPaths.of(vocab).start
    ids = encoded(vocab, data) or []
    for n, token_id in enumerate(ids):
        after = state.step(token_id)
        assert after is not None, f"{spelled(vocab, ids[: n + 1])} of {data!r} was dropped"
        state = after
    assert state.is_whole, f"{spelled(vocab, ids)} is all of {data!r}"
    return len(ids)


def check_walk(vocab: ByteVocab, chance: random.Random, steps: int = 6) -> int:
    """Walks by random tokens, likely and unlikely; fails where one is judged otherwise than by
    texts that begin with it. How many were admitted.
    """
    state = CanonicalPaths.of(vocab).start
    ids: list[int] = []
    for _ in range(steps):
        token_id = chance.randrange(vocab.size)
        if chance.random() < 0.6 and (likely := encoded(vocab, text(chance, 4))):
            token_id = likely[0]
        data = vocab.decode([*ids, token_id])
        after = state.step(token_id)
        alone = encoded(vocab, data)
        if after is None:
            for suffix in ("", "x", " ", "\n", "1", ".", " x", "\n\n", "'s"):
                whole = encoded(vocab, data + suffix.encode()) or []
                assert whole[: len(ids) + 1] != [*ids, token_id] or not vocab.token_bytes[token_id]
            continue
        state = after
        ids.append(token_id)
        if changes(vocab, data):
            continue
        assert state.is_whole == (alone == ids), spelled(vocab, ids)
        if not state.is_whole and CanonicalPaths.of(vocab).change is None:
            assert has_witness(vocab, ids), f"{spelled(vocab, ids)}: no witness"
    return len(ids)


def changes(vocab: ByteVocab, data: bytes) -> bool:
    """Whether the tokenizer reads a text as another one."""
    change = CanonicalPaths.of(vocab).change
    return change is not None and change(text := data.decode(errors="ignore")) != text


def has_witness(vocab: ByteVocab, ids: list[int]) -> bool:
    """Whether some text's canonical ids begin with these, found by trying what may follow."""
    data = vocab.decode(ids)
    for suffix in itertools.chain(_suffixes(vocab), _completions(data)):
        if (encoded(vocab, data + suffix) or [])[: len(ids)] == ids:
            return True
    return False


@functools.cache
def _singles(vocab: ByteVocab) -> list[bytes]:
    short = sorted({data for data in vocab.token_bytes if data}, key=len)
    return short[: max(2000, sum(len(data) == 1 for data in short))]


def _suffixes(vocab: ByteVocab) -> Iterator[bytes]:
    """Tokens, and two of the short ones."""
    yield from _singles(vocab)
    yield from map(b"".join, itertools.product(_singles(vocab)[:400], repeat=2))


def _completions(data: bytes) -> Iterator[bytes]:
    """The rest of the character that bytes end in, and little more: runs of rare spaces need it."""
    for length in (1, 2, 3):
        start = data[-length:]
        codes = itertools.chain(range(0x80, 0xD800), range(0x10000, 0x110000, 7))
        for code in codes if start[0] >= 0xC0 else ():
            if (character := chr(code).encode()).startswith(start):
                yield from (character[length:] + more for more in (b"", b"\n", b"a", b" \n"))


def spelled(vocab: ByteVocab, ids: list[int]) -> list[bytes]:
    return [vocab.token_bytes[token_id] for token_id in ids]
