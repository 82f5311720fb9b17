"""Places between the bytes of a text: where no token spans them, and how others compare."""

import pytest

from bytelm.beam.places import Places
from bytelm.vocabulary.trie import TokenTrie

TOKENS = [b"the", b" the", b"cat", b"aaaa", b"a", b"):", b"d's", b"\n\n", "กข".encode()]
TRIE = TokenTrie([*[bytes([b]) for b in range(256)], *TOKENS])


def places(text: str) -> tuple[Places, int]:
    """Those of a text, and the one that ``|`` marks."""
    before, after = text.split("|")
    data = (before + after).encode()
    return Places(TRIE, 6, data), len(before.encode())


@pytest.mark.parametrize(
    "text", ["the| cat", "1|, 2", "cat|s sat", "x (|y", "end.|\nNew", "\n\n|def", "é|,", "กา| the"]
)
def test_a_place_that_no_token_spans_is_certain(text):
    made, at = places(text)
    assert made.is_certain(at)


@pytest.mark.parametrize(
    "text",
    [
        "f(x)|: pass",
        "he'd|'s not",
        "aaaa|aaaa",
        "a |the cat",
        "kก|ขx",
        # A longer text may have a token there.
        "cats|",
        "see c|a",
        # It matters where white space ends.
        "x | y",
        "x\n|\t",
        # What belongs to the character before.
        "e|\u0301x",
        "👍|🏽!",
        "👩|\u200d👧",
        "👩\u200d|👧",
    ],
)
def test_other_places_are_not_certain(text):
    made, at = places(text)
    assert not made.is_certain(at)


def test_a_place_inside_a_character_is_not_certain():
    made = Places(TRIE, 6, "x é y".encode())
    assert [at for at in range(7) if not made.is_certain(at)] == [0, 3, 6]


@pytest.mark.parametrize("text", ["the| cat", "1|, 2", "กา| the", "مُ| ح", "x2|)y", "a|=b"])
def test_words_and_numbers_end_before_spaces_and_signs(text):
    made, at = places(text)
    assert made.is_word_end(at)


@pytest.mark.parametrize("text", ["ca|ts", "),| the", "the |cat", "f(x)|:", "d|'s", "x|2"])
def test_no_word_ends_elsewhere(text):
    made, at = places(text)
    assert not made.is_word_end(at)


def test_places_compare_by_what_speaks_against_parting_there():
    better = ["the| cat", "cat|s sat", "kก|ขx", "aaaa|aaaa", "e|\u0301x"]
    risks = [made.risk(at) for made, at in map(places, better)]
    inside = Places(TRIE, 6, "é".encode()).risk(1)
    assert [*risks, inside] == sorted([*risks, inside])
