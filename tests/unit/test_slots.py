import asyncio
import fcntl
import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm.errors import EngineError
from bytelm.models.ordered_rows import OrderedRow, RowOrder
from bytelm.vllm.slots import LINE, SlotPool, Slots, SlotsAddress, attach, sweep

WIDTH = 5
ORDER = RowOrder(np.array([3, 1, 0, 4, 2]), np.array([0, 2, WIDTH]))


def write(address, slot: int, nonce: int, values, masses=(0.25, 0.75)) -> None:
    mapped = attach(address)
    mapped.nonces[slot] = nonce
    mapped.values[slot] = values
    mapped.masses[slot] = masses


@pytest.fixture
def slots(tmp_path):
    slots = Slots(3, ORDER, directory=tmp_path)
    yield slots
    slots.close()


def test_memory_is_private_to_the_user(slots):
    mode = os.stat(slots.address.path).st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_memory_is_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        slots = Slots(1, ORDER, directory=tmp_path)
        assert stat.S_IMODE(os.stat(slots.address.path).st_mode) == 0o600
        slots.close()
    finally:
        os.umask(before)


def test_a_row_arrives_as_it_was_written(slots):
    values = np.array([-1.5, -2.5, -np.inf, -0.25, -3], np.float32)
    write(slots.address, 1, 77, values, (0.1, 1e-300))
    row = slots.read(1, 77)
    np.testing.assert_array_equal(row.values, values)
    np.testing.assert_array_equal(row.masses, (0.1, 1e-300))
    assert row.order is ORDER


def test_workers_find_the_order(slots):
    mapped = attach(slots.address)
    np.testing.assert_array_equal(mapped.ids, ORDER.ids)
    np.testing.assert_array_equal(mapped.bounds, ORDER.bounds)


def test_neighbouring_slots_do_not_overlap(slots):
    for slot in range(3):
        write(slots.address, slot, 10 + slot, np.full(WIDTH, slot), (slot, -slot))
    for slot in range(3):
        row = slots.read(slot, 10 + slot)
        np.testing.assert_array_equal(row.values, np.full(WIDTH, slot))
        np.testing.assert_array_equal(row.masses, (slot, -slot))


@pytest.mark.parametrize("width", [1, 16, 17, 32_000])
@pytest.mark.parametrize("ranges", [1, 7, 8, 9, 257])
def test_parts_begin_at_cache_lines_and_do_not_overlap(width, ranges):
    address = SlotsAddress("", 2, width, ranges)
    assert address.order_bytes >= 8 * (width + ranges + 1)
    assert 4 * address.masses.start >= 8
    assert 4 * address.masses.start + 8 * ranges <= 4 * address.values.start
    assert address.values.stop <= address.stride
    for begin in (address.order_bytes, 4 * address.stride, 4 * address.values.start):
        assert begin % LINE == 0


def test_a_row_that_moved_stays_when_the_slot_is_written_again(slots):
    write(slots.address, 0, 1, np.zeros(WIDTH))
    row = slots.read(0, 1)
    row.move()
    write(slots.address, 0, 2, np.ones(WIDTH), (1, 1))
    np.testing.assert_array_equal(row.values, np.zeros(WIDTH))
    np.testing.assert_array_equal(row.masses, (0.25, 0.75))


def test_a_row_outlives_the_memory_that_others_see(tmp_path):
    slots = Slots(1, ORDER, directory=tmp_path)
    write(slots.address, 0, 1, np.zeros(WIDTH))
    row = slots.read(0, 1)
    slots.close()
    np.testing.assert_array_equal(row.values, np.zeros(WIDTH))


def test_another_requests_row_is_refused(slots):
    write(slots.address, 0, 1, np.zeros(WIDTH))
    with pytest.raises(EngineError, match="row of request 1 instead of request 2"):
        slots.read(0, 2)


def test_a_slot_that_was_never_written_is_refused(slots):
    with pytest.raises(EngineError, match="instead of request 1"):
        slots.read(0, 1)


def test_close_removes_the_file(tmp_path):
    slots = Slots(1, ORDER, directory=tmp_path)
    slots.close()
    assert list(tmp_path.iterdir()) == []


def test_workers_stay_attached_when_the_name_is_gone(slots):
    mapped = attach(slots.address)
    slots.unlink()
    mapped.nonces[2] = 9
    assert slots.read(2, 9).values.shape == (WIDTH,)


def test_no_room_is_an_error_that_leaves_nothing_behind(tmp_path):
    with pytest.raises(OSError, match=r"."):
        Slots(1 << 50, ORDER, directory=tmp_path)
    assert list(tmp_path.iterdir()) == []


def left_behind_by(pid: int, started: int, directory):
    path = directory / f"bytelm-{pid}-{started}-0123456789abcdef"
    path.write_bytes(b"\0")
    return path


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_sweep_removes_what_a_dead_owner_left(tmp_path):
    path = left_behind_by(dead_pid(), 123, tmp_path)
    assert sweep(directory=tmp_path) == [path.name]
    assert not path.exists()


def test_sweep_knows_a_reused_pid_by_its_start_time(tmp_path):
    path = left_behind_by(os.getpid(), 1, tmp_path)
    sweep(directory=tmp_path)
    assert not path.exists()


def test_sweep_spares_a_living_owner(slots, tmp_path):
    assert sweep(directory=tmp_path) == []
    assert os.path.exists(slots.address.path)


def test_sweep_spares_an_owner_in_another_container(tmp_path):
    path = left_behind_by(dead_pid(), 123, tmp_path)
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert sweep(directory=tmp_path) == []
    assert path.exists()


def test_sweep_spares_names_of_others(tmp_path):
    for name in ("psm_1", "bytelm-notes", "bytelm-1-x-ff"):
        (tmp_path / name).write_bytes(b"\0")
    assert sweep(directory=tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 3


async def test_pool_never_lends_a_slot_twice():
    pool = SlotPool(4)
    assert sorted([await pool.acquire() for _ in range(4)]) == [0, 1, 2, 3]
    assert len(pool) == 0


async def test_pool_serves_those_who_wait_in_order():
    pool = SlotPool(1)
    slot = await pool.acquire()
    served = []

    async def wait(name: str) -> None:
        got = await pool.acquire()
        served.append(name)
        pool.release(got)

    waiting = [asyncio.create_task(wait(name)) for name in "abc"]
    await asyncio.sleep(0)
    assert served == []
    pool.release(slot)
    await asyncio.gather(*waiting)
    assert served == ["a", "b", "c"]
    assert len(pool) == 1


async def test_pool_skips_who_left_while_waiting():
    pool = SlotPool(1)
    slot = await pool.acquire()
    left, stays = asyncio.create_task(pool.acquire()), asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.sleep(0)
    pool.release(slot)
    assert await stays == slot


async def test_pool_takes_back_what_was_lent_to_one_who_left_at_that_moment():
    pool = SlotPool(1)
    slot = await pool.acquire()
    left = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    pool.release(slot)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert len(pool) == 1


async def test_pool_skips_one_who_was_cancelled_but_has_not_run_since():
    pool = SlotPool(1)
    slot = await pool.acquire()
    left = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    left.cancel()
    pool.release(slot)
    with pytest.raises(asyncio.CancelledError):
        await left
    assert len(pool) == 1


# Slots that are held by rows


def row_of(number: int) -> OrderedRow:
    return OrderedRow(ORDER, np.full(WIDTH, number, np.float32), np.full(2, float(number)))


async def test_pool_leaves_a_slot_to_its_row_while_there_are_others():
    pool = SlotPool(2)
    row = row_of(1)
    values = row.values
    slot = await pool.acquire()
    pool.hold(slot, row)
    assert len(pool) == 2
    assert await pool.acquire() != slot
    assert row.values is values
    assert len(pool) == 1


async def test_pool_has_a_slot_again_when_nobody_has_its_row():
    pool = SlotPool(1)
    for number in range(3):
        row = row_of(number)
        pool.hold(await pool.acquire(), row)
        del row
    assert len(pool) == 1


async def test_pool_lets_the_row_move_that_is_there_the_longest():
    pool = SlotPool(3)
    rows = [row_of(number) for number in range(3)]
    before = [row.values for row in rows]
    slots = [await pool.acquire() for _ in rows]
    for slot, row in zip(slots, rows, strict=True):
        pool.hold(slot, row)
    assert await pool.acquire() == slots[0]
    del rows[1], before[1]
    assert await pool.acquire() == slots[1]
    assert rows[0].values is not before[0]
    assert rows[1].values is before[1]


async def test_pool_lets_a_row_move_at_once_where_somebody_waits():
    pool = SlotPool(1)
    slot, row = await pool.acquire(), row_of(1)
    before = row.values
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    pool.hold(slot, row)
    assert await waiting == slot
    assert row.values is not before
    assert len(pool) == 0


async def test_pool_hears_of_a_row_that_another_thread_freed():
    pool, rows = SlotPool(1), [row_of(1)]
    pool.hold(await pool.acquire(), rows[0])
    thread = threading.Thread(target=rows.clear)
    thread.start()
    thread.join()
    assert await pool.acquire() == 0
    assert len(pool) == 0


async def test_pool_frees_no_slot_again_whose_row_moved_before_it_was_freed():
    pool, row = SlotPool(1), row_of(1)
    pool.hold(await pool.acquire(), row)
    slot = await pool.acquire()
    del row
    again = row_of(2)
    pool.hold(slot, again)
    assert await pool.acquire() == slot
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()


async def test_pool_cleared_holds_nothing():
    pool, rows = SlotPool(3), [row_of(1), row_of(2)]
    before = [row.values for row in rows]
    for row in rows:
        pool.hold(await pool.acquire(), row)
    pool.clear()
    assert all(row.values is not values for row, values in zip(rows, before, strict=True))
    assert len(pool) == 3


@given(st.lists(st.tuples(st.sampled_from(["ask", "end", "abort", "drop"]), st.integers(0, 9))))
async def test_no_row_changes_and_no_slot_is_lost_whatever_comes_when(steps):
    """Against a worker that writes into a slot as soon as a request has it."""
    count = 3
    with tempfile.TemporaryDirectory() as folder:
        slots, pool = Slots(count, ORDER, directory=Path(folder)), SlotPool(count)
        asked: list[asyncio.Task[int]] = []
        rows: dict[int, OrderedRow] = {}
        for nonce, (step, which) in enumerate(steps):
            if step == "ask":
                asked.append(asyncio.create_task(pool.acquire()))
                await asyncio.sleep(0)
            elif step == "drop" and rows:
                del rows[list(rows)[which % len(rows)]]
            elif lent := [task for task in asked if task.done()]:
                task = lent[which % len(lent)]
                asked.remove(task)
                write(slots.address, task.result(), nonce, nonce, nonce)
                if step == "abort":
                    pool.release(task.result())
                else:
                    row = rows[nonce] = slots.read(task.result(), nonce)
                    pool.hold(task.result(), row)
                    del row
                await asyncio.sleep(0)
            lent = sum(task.done() for task in asked)
            assert lent == min(count, len(asked))
            assert len(pool) == count - lent
            for nonce, row in rows.items():
                assert row.values.tolist() == [nonce] * WIDTH
                assert row.masses.tolist() == [nonce] * 2
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        slots.close()
