import asyncio
import os

import numpy as np
import pytest

from bytelm.models.testing import StubLM
from bytelm.vocabulary.vocab import ByteVocab
from tests.benchmarks.accuracy import Journal, interval
from tests.benchmarks.row_store import RowStore, StoredLM

VOCAB = ByteVocab.from_bytes([b"", b"a", b"b", b"ab"], eos_token_ids=(0,), bos_token_id=0)
ROOM_FOR_THREE = 3 * 4 * VOCAB.size


class Other(StubLM):
    """The token LM behind the store."""

    closed = False

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.f32"


def row(value):
    return np.full(VOCAB.size, value, np.float32)


def loaded(store, *context):
    found = store.load(context)
    return None if found is None else found.tolist()


def test_rows_are_there_after_opening_again(path):
    store = RowStore(path, VOCAB.size, ROOM_FOR_THREE)
    store.save((0, 1), row(1))
    store.save((0, 2), row(2))
    store.close()
    store = RowStore(path, VOCAB.size, ROOM_FOR_THREE)
    assert loaded(store, 0, 1) == row(1).tolist()
    assert loaded(store, 0, 2) == row(2).tolist()
    assert loaded(store, 0, 3) is None


def test_a_full_store_forgets_the_oldest_even_when_opened_again(path):
    store = RowStore(path, VOCAB.size, ROOM_FOR_THREE)
    for i in range(4):
        store.save((0, i), row(i))
    store.close()
    store = RowStore(path, VOCAB.size, ROOM_FOR_THREE)
    store.save((0, 4), row(4))
    assert [loaded(store, 0, i) for i in range(5)] == [
        None,
        None,
        *[row(i).tolist() for i in (2, 3, 4)],
    ]
    assert path.stat().st_size == ROOM_FOR_THREE


def test_a_row_without_its_name_does_not_count(path):
    store = RowStore(path, VOCAB.size, ROOM_FOR_THREE)
    store.save((0, 1), row(1))
    os.pwrite(store._rows, row(9).tobytes(), 4 * VOCAB.size)
    store.close()
    store = RowStore(path, VOCAB.size, ROOM_FOR_THREE)
    assert len(store) == 1
    store.save((0, 2), row(2))
    assert loaded(store, 0, 2) == row(2).tolist()


def test_a_store_is_open_once(path):
    store = RowStore(path, VOCAB.size, ROOM_FOR_THREE)
    with pytest.raises(SystemExit, match="another process"):
        RowStore(path, VOCAB.size, ROOM_FOR_THREE)
    store.close()
    RowStore(path, VOCAB.size, ROOM_FOR_THREE).close()


async def test_each_context_is_evaluated_once(path):
    other = Other(VOCAB)

    async def start():
        return other

    lm = StoredLM(VOCAB, None, RowStore(path, VOCAB.size, ROOM_FOR_THREE), start)
    rows = await asyncio.gather(*[lm.next_token_logprobs((0, i % 2)) for i in range(6)])
    rows.append(await lm.next_token_logprobs((0, 1)))
    for i in range(6):
        assert rows[i].tolist() == other.row((0, i % 2)).tolist()
    assert (lm.evaluated, lm.remembered) == (2, 1)
    await lm.close()
    assert other.closed


async def test_what_is_remembered_starts_nothing(path):
    store = RowStore(path, VOCAB.size, ROOM_FOR_THREE)
    store.save((0,), row(1))

    async def start():
        raise AssertionError("must not be started")

    lm = StoredLM(VOCAB, None, store, start)
    assert (await lm.next_token_logprobs((0,)))[0] == 1
    await lm.close()


async def test_an_evaluation_nobody_waits_for_is_kept(path):
    reached, go = asyncio.Event(), asyncio.Event()

    class Slow(Other):
        async def next_token_logprobs(self, token_ids):
            reached.set()
            await go.wait()
            return await super().next_token_logprobs(token_ids)

    async def start():
        return Slow(VOCAB)

    store = RowStore(path, VOCAB.size, ROOM_FOR_THREE)
    lm = StoredLM(VOCAB, None, store, start)
    waiting = asyncio.create_task(lm.next_token_logprobs((0, 1)))
    await reached.wait()
    waiting.cancel()
    await asyncio.wait({waiting})
    go.set()
    await lm.next_token_logprobs((0, 1))
    assert lm.evaluated == 1
    assert store.load((0, 1)) is not None
    await lm.close()


def test_a_journal_drops_what_a_kill_left_of_its_last_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, {"model": "m"})
    journal.add([1.5], K=5)
    journal.close()
    with path.open("ab") as file:
        file.write(b'["half a li')
    journal = Journal(path, {"model": "m"})
    journal.add([2.5], K=3)
    journal.close()
    journal = Journal(path, {"model": "m"})
    assert (journal.get(K=5), journal.get(K=3), journal.get(K=1)) == ([1.5], [2.5], None)
    assert Journal(path, {"model": "other"}).get(K=5) is None


def test_an_interval_covers_the_mean_and_is_a_point_without_variance():
    clusters = [np.array([0.0, 1.0]), np.array([2.0]), np.array([3.0, 4.0])]
    mean, low, high = interval([clusters])
    assert mean == 2.0
    assert low < 2.0 < high
    assert interval([[np.ones(2), np.ones(3)], [np.ones(1)]]) == (1.0, 1.0, 1.0)
