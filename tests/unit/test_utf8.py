"""The UTF-8 automaton against Python's own decoder."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm.models.logprobs import EOS, EOT
from bytelm.vocabulary.utf8 import BOUNDARY, LONGEST, MISSING, NEXT, REJECT, allowed, state_after


def walk(data: bytes, state: int = BOUNDARY) -> int:
    for b in data:
        state = NEXT[state][b]
    return state


COMPLETIONS = [first + b"\x80" * more for first in (b"\x80", b"\xbf") for more in range(3)]


def decodes(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def status(data: bytes) -> str:
    """What Python's decoder says: a whole text, the beginning of one, or neither."""
    if decodes(data):
        return "whole"
    return "inside" if any(decodes(data + end) for end in COMPLETIONS) else "invalid"


def status_here(data: bytes) -> str:
    return {BOUNDARY: "whole", REJECT: "invalid"}.get(walk(data), "inside")


def test_every_text_of_up_to_two_bytes_is_read_as_python_reads_it():
    texts = [b"", *(bytes([a]) for a in range(256))]
    texts += [bytes([a, b]) for a in range(256) for b in range(256)]
    assert [t for t in texts if status(t) != status_here(t)] == []


def test_every_third_byte_inside_a_character_is_read_as_python_reads_it():
    """Texts of three bytes that stand at a boundary or are invalid after two add nothing new."""
    begun = [bytes([a, b]) for a in range(0xC0, 256) for b in range(256)]
    texts = [t + bytes([c]) for t in begun if status_here(t) == "inside" for c in range(256)]
    assert len(texts) > 100_000
    assert [t for t in texts if status(t) != status_here(t)] == []


def test_random_texts_of_four_bytes_are_read_as_python_reads_them():
    random.seed(0)
    leads = [*range(0x70, 0x90), *range(0xC0, 256)]
    texts = [
        bytes([random.choice(leads), *random.choices(range(0x78, 0xC4), k=3)])
        for _ in range(100_000)
    ]
    assert {status(t) for t in texts} == {"whole", "inside", "invalid"}
    assert [t for t in texts if status(t) != status_here(t)] == []


def test_exactly_the_characters_of_unicode_are_whole():
    """All of them are accepted, and there are as many paths of each length as characters."""
    for code in range(0x110000):
        if not 0xD800 <= code < 0xE000:
            assert walk(chr(code).encode()) == BOUNDARY
    paths, lengths = {BOUNDARY: 1}, []
    for _ in range(LONGEST):
        after: dict[int, int] = {}
        for state, count in paths.items():
            for b in range(256):
                after[NEXT[state][b]] = after.get(NEXT[state][b], 0) + count
        lengths.append(after.pop(BOUNDARY))
        after.pop(REJECT)
        paths = after
    assert lengths == [0x80, 0x800 - 0x80, 0x10000 - 0x800 - 0x800, 0x110000 - 0x10000]
    assert not paths


@given(st.characters(exclude_categories=["Cs"]), st.integers(1, 3))
def test_missing_counts_the_bytes_that_complete_a_character(character, length):
    data = character.encode()
    begun = data[: min(length, len(data))]
    assert MISSING[walk(begun)] == len(data) - len(begun)


def test_nothing_follows_a_rejected_byte():
    assert set(NEXT[REJECT]) == {REJECT}


@pytest.mark.parametrize("left", [1, 2, 3, 4, 5, 100])
def test_characters_longer_than_what_is_left_are_not_begun(left):
    mask = allowed(BOUNDARY, left)
    whole = {chr(c).encode()[0] for c in [*range(0xD800), *range(0xE000, 0x110000, 64)]}
    length = {b: 1 if b < 0x80 else 2 if b < 0xE0 else 3 if b < 0xF0 else 4 for b in whole}
    assert set(np.flatnonzero(mask[:256])) == {b for b in whole if length[b] <= left}


def test_eos_is_allowed_at_a_boundary_only_and_eot_never():
    assert allowed(BOUNDARY, 1)[EOS]
    for state in range(REJECT):
        assert allowed(state, 4)[EOS] == (state == BOUNDARY)
        assert not allowed(state, 4)[EOT]


def test_a_character_that_no_longer_fits_cannot_go_on():
    inside = walk("😀".encode()[:1])
    assert not allowed(inside, 2).any()
    assert allowed(inside, 3).any()


@given(st.binary(max_size=6), st.characters(exclude_categories=["Cs"]), st.integers(0, 4))
def test_a_context_is_inside_its_last_character_whatever_is_before(before, character, length):
    begun = character.encode()[:length]
    if length and len(begun) < len(character.encode()):
        assert state_after(before + begun) == walk(begun)
    elif begun:
        assert state_after(before + begun) == BOUNDARY


@pytest.mark.parametrize(
    "context", [b"", b"abc", b"\xff", b"\x80\x80", b"\xe4\xb8\xadx", b"\xe0\x80", b"\xc3\xa9\xa9"]
)
def test_a_context_that_is_whole_or_ends_in_invalid_bytes_is_at_a_boundary(context):
    assert state_after(context) == BOUNDARY
