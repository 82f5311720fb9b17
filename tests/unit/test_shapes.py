"""What bodies are refused before anything is made of them, and how much of them is held."""

import json
import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm_server import shapes
from bytelm_server.errors import LimitExceeded
from bytelm_server.intake import BodiesFull, Room
from bytelm_server.shapes import check_counts, check_parts

TOO_MANY = {
    "numbers": ([1] * (shapes.MOST_VALUES + 1), "values"),
    "lists": ([[]] * shapes.MOST_LISTS, "lists and objects"),
    "objects": ([{}] * shapes.MOST_LISTS, "lists and objects"),
    "texts": (["a"] * (shapes.MOST_STRINGS + 1), "texts and fields"),
    "fields": ({str(i): 1 for i in range(shapes.MOST_STRINGS + 1)}, "texts and fields"),
    "texts with escapes": (['"\\', "\\", '"'] * shapes.MOST_STRINGS, "texts and fields"),
}


@pytest.mark.parametrize(("data", "what"), TOO_MANY.values(), ids=TOO_MANY)
def test_bodies_with_too_many_parts_are_refused(data: Any, what: str) -> None:
    with pytest.raises(LimitExceeded, match=f"at most [0-9]+ {what}"):
        check_counts(orjson.dumps(data))


def test_what_stands_in_texts_are_no_parts() -> None:
    texts = [",[{" * 1_000_000, '\\",\\"[' * 100_000, "\\" * 100_001, '\\\\",' * 100_000]
    check_counts(orjson.dumps({"contexts": texts}))


json_values = st.recursive(
    st.integers() | st.text('a,"\\[{}]: ', max_size=8) | st.none(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('a"\\,', max_size=3), inner),
)


@given(json_values)
def test_parts_are_counted_as_they_are(data: Any) -> None:
    strings = lists = 0
    left = [data]
    while left:
        part = left.pop()
        strings += isinstance(part, str)
        lists += isinstance(part, dict | list)
        if isinstance(part, dict):
            strings += len(part)
            left += part.values()
        elif isinstance(part, list):
            left += part
    body = json.dumps(data).encode() + b" " * shapes.MOST_LISTS
    for name, count in (("MOST_STRINGS", strings), ("MOST_LISTS", lists)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shapes, name, count)
            check_counts(body) if name == "MOST_STRINGS" or count > 3 else None
            if count:
                patch.setattr(shapes, name, count - 1)
                with pytest.raises(LimitExceeded):
                    check_counts(body)


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


WRONG = {
    "too deep": ({"beam": nested(shapes.DEEPEST)}, r"beam(\[0\]){15}"),
    "fields": ({"context": {str(i): 1 for i in range(65)}}, "context"),
    "text": ({"contexts": ["a", {"text": "a" * 11}]}, r"contexts\[1\]\.text"),
    "text in a list of numbers": ({"x": [1, 2, "a" * 11]}, r"x\[2\]"),
}


@pytest.mark.parametrize(("data", "place"), WRONG.values(), ids=WRONG)
def test_parts_that_no_call_has_are_refused_by_their_place(data: Any, place: str) -> None:
    with pytest.raises(LimitExceeded) as error:
        check_parts(data, 10)
    assert error.value.param is not None
    assert re.fullmatch(place, error.value.param)


@pytest.mark.parametrize("data", [3, None, "a", nested(shapes.DEEPEST), [1, "a", {"b": [2.0]}]])
def test_other_parts_are_taken(data: Any) -> None:
    check_parts(data, 10)


def test_a_key_may_hold_as_much_as_is_free_besides() -> None:
    room = Room(100)
    room.take("one", 50)
    with pytest.raises(BodiesFull):
        room.take("one", 1)
    room.take("two", 25)
    with pytest.raises(BodiesFull):
        room.take("two", 1)
    room.take("three", 12)
    room.give_back("one", 50)
    room.take("two", 10)
    for key, size in (("two", 35), ("three", 12)):
        room.give_back(key, size)
    room.take("four", 50)
