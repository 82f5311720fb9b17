"""Bytes as text and tokens, in pieces."""

import itertools
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bytelm.models.logprobs import EOS, EOT, SIZE, LazyByteProbs
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server.openai.spelling import LEAST, Noted, Spelled, Token, eos_name, names_of, noting

NAMES = names_of(ByteVocab.from_bytes([b"a"]))


def notes(data: bytes) -> list[Noted]:
    return [Noted(b, -float(i), ()) for i, b in enumerate(data)]


@given(st.text().map(str.encode) | st.binary(), st.lists(st.integers(0, 99), max_size=8))
def test_tokens_stand_at_the_characters_of_the_text(data: bytes, cuts: list[int]) -> None:
    bounds = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    spelled, whole = Spelled(NAMES), ""
    tokens: list[Token] = []
    for start, stop in itertools.pairwise(bounds):
        last = stop == len(data) and start == bounds[-2]
        text, found = spelled.take(data[start:stop], notes(data)[start:stop], last=last)
        # What comes together belongs together.
        assert {token.offset - len(whole) for token in found} == set(range(len(text)))
        whole, tokens = whole + text, tokens + found
    assert whole == data.decode(errors="replace")
    assert bytes(token.data for token in tokens if token.data is not None) == data
    assert [token.noted for token in tokens] == notes(data)
    for offset, group in itertools.groupby(tokens, lambda token: token.offset):
        of_one = list(group)
        named = bytes(token.data or 0 for token in of_one).decode(errors="replace")
        assert named == whole[offset]
        if len(of_one) == 1 and named != "\ufffd":
            assert of_one[0].name == named
        else:
            assert all(token.name == f"bytes:\\x{token.data:02x}" for token in of_one)


def test_eos_stands_behind_all() -> None:
    ends = Noted(EOS, -1.0, ())
    text, tokens = Spelled(NAMES).take(b"a\xc3", [*notes(b"a\xc3"), ends], last=True)
    assert text == "a\ufffd"
    assert [(t.name, t.offset, t.data) for t in tokens] == [
        ("a", 0, 97),
        ("bytes:\\xc3", 1, 0xC3),
        ("<eos>", 2, None),
    ]
    assert tokens[-1].noted == ends


def test_eos_has_the_name_of_the_tokenizers_own() -> None:
    tokens = [b"a", b"<|end|>", b"</s>"]
    for ids, name in (((2, 1), "</s>"), ((1, 2), "<|end|>"), ((), "<eos>")):
        assert eos_name(ByteVocab.from_bytes(tokens, eos_token_ids=ids)) == name


def test_the_best_are_noted_without_what_no_text_has() -> None:
    ps = np.full(SIZE, -math.inf)
    ps[[65, 66, EOS]] = [-1.0, -0.5, -2.0]
    noted = noting(4)(LazyByteProbs(ps), 67)
    assert noted == Noted(67, LEAST, ((66, -0.5), (65, -1.0), (EOS, -2.0), (0, LEAST)))
    assert EOT not in dict(noting(257)(LazyByteProbs(ps), 65).top)
    assert len(noting(257)(LazyByteProbs(ps), 65).top) == 257
    assert noting(0)(LazyByteProbs(ps), 65) == Noted(65, -1.0, ())
