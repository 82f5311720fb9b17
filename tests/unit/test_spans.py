"""The words that a text consists of."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm.generating.spans import words


def split(text: str | bytes) -> list[bytes]:
    data = text.encode() if isinstance(text, str) else text
    return [data[start:end] for start, end in words(data)]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", []),
        ("cat", ["cat"]),
        ("The cat sat.", ["The", " cat", " sat."]),
        ("  don't\tstop — “no”\n\nNow", ["  don't", "\tstop", " —", " “no”", "\n\nNow"]),
        ("a b ", ["a", " b", " "]),
        (" \n", [" \n"]),
        ("a\u00a0b\u3000c\u2028d", ["a", "\u00a0b", "\u3000c", "\u2028d"]),
        ("café cafe\u0301", ["café", " cafe\u0301"]),
        ("안녕하세요 세계", ["안녕하세요", " 세계"]),
    ],
)
def test_words_begin_with_the_white_space_before_them(text: str, want: list[str]) -> None:
    assert split(text) == [word.encode() for word in want]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("北京，2008年。", ["北", "京，", "2008", "年。"]),
        ("《红楼梦》 GPT模型", ["《红", "楼", "梦》", " GPT", "模", "型"]),
        ("好，GPT", ["好，", "GPT"]),
        ("コーヒーを", ["コー", "ヒー", "を"]),
        ("ที่นี่ ๒๕๖๓ น้ำ", ["ที่", "นี่", " ๒๕๖๓", " น้ำ"]),
        ("か\u3099き", ["か\u3099", "き"]),
    ],
)
def test_where_no_spaces_are_written_each_character_is_a_word(text: str, want: list[str]) -> None:
    assert split(text) == [word.encode() for word in want]


def test_bytes_that_are_no_text_belong_to_the_word_that_they_are_in() -> None:
    assert split(b"a\xffb \xc3 c\xed\xa0\x80d") == [b"a\xffb", b" \xc3", b" c\xed\xa0\x80d"]
    # The end of a character that began before, and the beginning of one that goes on behind.
    assert split("é x".encode()[1:]) == [b"\xa9", b" x"]
    assert split("北京".encode()[:-1]) == ["北".encode(), b"\xe4\xba"]


@given(st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode)))
def test_words_are_all_of_a_text_and_have_white_space_at_their_beginning_only(data: bytes) -> None:
    found = words(data)
    assert [start for start, _ in found] == [0, *(end for _, end in found)][: len(found)]
    assert b"".join(split(data)) == data
    for word in split(data):
        inside = word.decode("utf-8", "surrogateescape").lstrip()
        assert not any(char.isspace() for char in inside)
        assert inside or word == split(data)[-1]


@given(st.text(alphabet="a 北、か\u3099(ท\u0e34", max_size=20))
def test_no_word_but_the_first_begins_with_a_mark(text: str) -> None:
    for word in split(text)[1:]:
        assert not unicodedata.category(word.decode()[0]).startswith("M")
