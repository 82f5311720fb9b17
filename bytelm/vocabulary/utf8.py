"""UTF-8 as a small automaton over bytes (RFC 3629): what may come next, and how much is missing.

States are small integers. ``BOUNDARY`` is between characters; the others are inside one and differ
in what the next byte may be, so that overlong forms, surrogates and code points above U+10FFFF are
rejected at the first byte that cannot be completed. This module must not know models or states.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bytelm.models.logprobs import EOS, SIZE

BOUNDARY = 0
REJECT = 8

# Inside a character: the range of the next byte, and the state after it.
_ONE, _TWO, _AFTER_E0, _AFTER_ED, _THREE, _AFTER_F0, _AFTER_F4 = range(1, 8)
_INSIDE = {
    _ONE: (0x80, 0xBF, BOUNDARY),
    _TWO: (0x80, 0xBF, _ONE),
    _AFTER_E0: (0xA0, 0xBF, _ONE),
    _AFTER_ED: (0x80, 0x9F, _ONE),
    _THREE: (0x80, 0xBF, _TWO),
    _AFTER_F0: (0x90, 0xBF, _TWO),
    _AFTER_F4: (0x80, 0x8F, _TWO),
}
_FIRST = [
    (0x00, 0x7F, BOUNDARY),
    (0xC2, 0xDF, _ONE),
    (0xE0, 0xE0, _AFTER_E0),
    (0xE1, 0xEC, _TWO),
    (0xED, 0xED, _AFTER_ED),
    (0xEE, 0xEF, _TWO),
    (0xF0, 0xF0, _AFTER_F0),
    (0xF1, 0xF3, _THREE),
    (0xF4, 0xF4, _AFTER_F4),
]
LONGEST = 4
"""How many bytes a character has at most."""

MISSING = (0, 1, 2, 2, 2, 3, 3, 3)
"""How many bytes each state needs to reach a boundary."""


def _transitions() -> tuple[tuple[int, ...], ...]:
    table = [[REJECT] * 256 for _ in range(REJECT + 1)]
    for low, high, state in _FIRST:
        table[BOUNDARY][low : high + 1] = [state] * (high + 1 - low)
    for before, (low, high, state) in _INSIDE.items():
        table[before][low : high + 1] = [state] * (high + 1 - low)
    return tuple(map(tuple, table))


NEXT = _transitions()
"""``NEXT[state][byte]``: the state after a byte, or ``REJECT``."""


def _masks() -> NDArray[np.bool_]:
    masks = np.zeros((REJECT, LONGEST + 1, SIZE), np.bool_)
    for state in range(REJECT):
        for left in range(1, LONGEST + 1):
            for byte, after in enumerate(NEXT[state]):
                masks[state, left, byte] = after != REJECT and MISSING[after] < left
    masks[BOUNDARY, :, EOS] = True
    masks.flags.writeable = False
    return masks


_MASKS = _masks()


def allowed(state: int, left: int) -> NDArray[np.bool_]:
    """Which symbols may follow, bool ``[258]``: bytes of characters that fit, EOS at a boundary.

    Args:
        state: where the text stands, not ``REJECT``.
        left: how many bytes there may still be; with fewer than the character under way needs,
            nothing may follow.
    """
    mask: NDArray[np.bool_] = _MASKS[state, min(left, LONGEST)]
    return mask


def state_after(context: bytes) -> int:
    """The state at the end of any bytes: inside their last character if it can be completed.

    Where the bytes end in something invalid, that is ``BOUNDARY``.
    """
    for start in range(len(context) - 1, max(len(context) - LONGEST, -1), -1):
        if context[start] >= 0xC0:
            state = BOUNDARY
            for byte in context[start:]:
                state = NEXT[state][byte]
            return BOUNDARY if state == REJECT else state
        if context[start] < 0x80:
            break
    return BOUNDARY
