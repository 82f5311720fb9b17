"""Where a template writes what it is given: its frame, found by sentinels.

A template is rendered twice, with values and with sentinels in their place. What lies between the
sentinels is its own; the first rendering must have the same text between the values, which may have
lost white space at their ends. This module knows strings; it must not know tokens or templates.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bytelm.errors import InputError
from bytelm.threads import go_on

Render = Callable[[Sequence[str]], str]
"""From a value for each field to the rendering."""


@dataclass(frozen=True)
class Field:
    """Something that a template is given.

    Attributes:
        name: what errors call it.
        value: the text.
        once: whether it must be written out once; else any number of times.
    """

    name: str
    value: str
    once: bool = True


def framed(render: Render, fields: Sequence[Field]) -> list[str]:
    """The rendering of the fields in pieces: the template's own text and values in turn.

    The first piece and the last are the template's own.

    Raises:
        InputError: when the template refuses the values, or does more with one than to write it
            out. Names the field.
    """
    values = [field.value for field in fields]
    sentinels, places = _sentinels(values)
    try:
        frame = render(sentinels)
    except InputError:
        render(values)  # tells what is wrong, unless it is the sentinels
        raise InputError(_reads(next((f for f in fields if not f.once), fields[0]))) from None
    pieces = places.split(frame)
    # A template may write the values in another order than they were given in.
    order = [int(number) for number in pieces[1::2]]
    own = pieces[::2]
    written = Counter(order)
    for i, field in enumerate(fields):
        if field.once and written[i] != 1:
            raise InputError(
                f"the chat template writes {field.name} {written[i]} times, not once: give "
                "segments instead of messages"
            )

    def read(candidates: Sequence[str]) -> list[str] | None:
        go_on()
        try:
            return _values_in(render(candidates), own, [candidates[i] for i in order])
        except InputError:
            if candidates is values:
                raise
            return None

    found = read(values)
    if found is None:
        # Sentinels alone are read and all values are not: in between lies a field whose value
        # makes the difference.
        good, bad = 0, len(fields)
        while bad - good > 1:
            middle = (good + bad) // 2
            if read([*values[:middle], *sentinels[middle:]]) is None:
                bad = middle
            else:
                good = middle
        raise InputError(_reads(fields[good]))
    pieces[1::2] = found
    return pieces


def _reads(field: Field) -> str:
    return (
        f"the chat template writes something else because of {field.name}: change it, or give "
        "segments instead of messages"
    )


def _sentinels(values: Sequence[str]) -> tuple[list[str], re.Pattern[str]]:
    """A text for each value that no value has, nor anybody can guess; what finds them all."""
    while True:
        nonce = f"x{secrets.token_hex(16)}x"
        if not any(nonce in value for value in values):
            return [f"{nonce}{i}x" for i in range(len(values))], re.compile(f"{nonce}([0-9]+)x")


def _values_in(rendered: str, own: Sequence[str], values: Sequence[str]) -> list[str] | None:
    """The values as they stand between a template's own texts; None where they do not.

    White space may be the value's or the template's; whichever way it is read, all else has only
    one place.
    """
    if not rendered.startswith(own[0]):
        return None
    # Where each value and the text behind it may end: from where, and in which form.
    steps: list[dict[int, tuple[int, str]]] = [{len(own[0]): (0, "")}]
    for value, behind in zip(values, own[1:], strict=True):
        go_on()
        step: dict[int, tuple[int, str]] = {}
        forms = _trimmed(value)
        for at in steps[-1]:
            for form in forms:
                if rendered.startswith(form, at) and rendered.startswith(behind, at + len(form)):
                    step[at + len(form) + len(behind)] = (at, form)
        steps.append(step)
    at = len(rendered)
    if at not in steps[-1]:
        return None
    written = []
    for step in reversed(steps[1:]):
        at, form = step[at]
        written.append(form)
    return written[::-1]


def _trimmed(value: str) -> list[str]:
    """A value, and what templates make of its ends."""
    forms = [value]
    for characters in (None, "\n"):
        forms += [value.strip(characters), value.lstrip(characters), value.rstrip(characters)]
    return list(dict.fromkeys(forms))
