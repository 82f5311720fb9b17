"""What is known of the blocks of a context from those that were evaluated lately."""

from types import SimpleNamespace

import numpy as np

from bytelm.vllm.known_blocks import EACH, Beginning, KnownBlocks

BLOCK = 4


def context(*ids: int) -> bytes:
    return np.array(ids, np.int32).tobytes()


def keep(known: KnownBlocks, *ids: int, salt: str | None = None) -> None:
    hashes = [ids[: BLOCK * (n + 1)] for n in range(len(ids) // BLOCK)]
    known.add(context(*ids), salt, hashes, known.longest(context(*ids), salt))


def test_a_context_that_goes_on_has_the_full_blocks_of_the_other():
    known = KnownBlocks(BLOCK)
    keep(known, *range(9))
    for ids in (range(8), range(10), range(15)):
        found = known.longest(context(*ids), None)
        assert found.hashes == (tuple(range(4)), tuple(range(8)))


def test_other_tokens_and_other_salts_are_other_contexts():
    known = KnownBlocks(BLOCK)
    keep(known, *range(9), salt="a")
    assert known.longest(context(*range(9)), None).hashes == ()
    assert known.longest(context(*range(9)), "b").hashes == ()
    assert known.longest(context(0, 1, 2, 3, 4, 5, 6, 8, 8), "a").hashes == ()


def test_a_context_without_a_full_block_has_none():
    known = KnownBlocks(BLOCK)
    keep(known, 1, 2, 3, 4)
    assert known.longest(context(1, 2, 3), None).hashes == ()


def test_what_was_used_last_is_kept():
    known = KnownBlocks(BLOCK, most=3 * (EACH + 4 * BLOCK))
    for first in (10, 20, 30):
        keep(known, first, *range(3))
    assert known.longest(context(10, *range(3)), None).hashes
    keep(known, 40, *range(3))
    found = [bool(known.longest(context(n, *range(3)), None).hashes) for n in (10, 20, 30, 40)]
    assert found == [True, False, True, True]


def test_blocks_are_known_while_nobody_else_fills_them():
    blocks = [SimpleNamespace(block_hash=n) for n in range(3)]
    beginning = Beginning()
    assert beginning.still(1) is None
    beginning.found(blocks)
    assert beginning.still(3) == blocks
    assert beginning.still(4) is None
    blocks[2].block_hash = None
    assert beginning.still(2) == blocks[:2]
    assert beginning.still(3) is None
    blocks[2].block_hash = 7
    assert beginning.still(3) is None
