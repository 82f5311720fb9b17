"""How many parts the JSON of a call may have, checked before anything is made of them.

What a call costs before its own limits are looked at grows with the parts of its body: a megabyte
of ``[[],[],…]`` is seconds of work. Must not know which fields there are.
"""

from typing import Any

from bytelm_server.errors import LimitExceeded

MOST_VALUES = 1 << 20
"""Numbers, texts, lists and objects in one body."""
MOST_STRINGS = 1 << 14
"""Texts in one body, names of fields included."""
MOST_LISTS = 1 << 13
"""Lists and objects in one body."""
MOST_FIELDS = 64
"""Fields of one object; none of the API has so many."""
DEEPEST = 16
"""Lists and objects inside each other; none of the API are so deep."""

_HOLDS = {str, list, dict}


def check_counts(body: bytes) -> None:
    """Refuse a body with too many parts by looking at its bytes; LimitExceeded.

    What is no JSON may pass.
    """
    if len(body) <= MOST_LISTS:
        return
    # Without escapes each text is what lies between two quotes.
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    strings = plain.count(b'"') // 2
    if strings > MOST_STRINGS:
        raise _too_many(MOST_STRINGS, "texts and fields")
    bare = b"".join(plain.split(b'"')[::2])
    lists = bare.count(b"[") + bare.count(b"{")
    if lists > MOST_LISTS:
        raise _too_many(MOST_LISTS, "lists and objects")
    if bare.count(b",") + lists >= MOST_VALUES:
        raise _too_many(MOST_VALUES, "values")


def _too_many(most: int, what: str) -> LimitExceeded:
    return LimitExceeded(f"a body can have at most {most} {what}: make several calls of it")


def check_parts(data: Any, longest: int) -> None:
    """Refuse what no call has: LimitExceeded, naming its place.

    Args:
        data: a body, read.
        longest: how many characters a text may have.
    """
    left = [(data, "", 0)] if type(data) in _HOLDS else []
    while left:
        part, place, depth = left.pop()
        if isinstance(part, str):
            if len(part) > longest:
                raise LimitExceeded(
                    f"a text can have at most {longest} characters here, not {len(part)}", place
                )
            continue
        if depth == DEEPEST:
            raise LimitExceeded(f"lists and objects can be {DEEPEST} deep here, not more", place)
        if isinstance(part, dict):
            if len(part) > MOST_FIELDS:
                raise LimitExceeded(
                    f"an object can have at most {MOST_FIELDS} fields here, not {len(part)}", place
                )
            inner = [
                (value, f"{place}.{name}" if place else name, depth + 1)
                for name, value in part.items()
                if type(value) in _HOLDS
            ]
        elif _HOLDS.isdisjoint(map(type, part)):
            continue
        else:
            inner = [
                (value, f"{place}[{i}]", depth + 1)
                for i, value in enumerate(part)
                if type(value) in _HOLDS
            ]
        left += reversed(inner)
