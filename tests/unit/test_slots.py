import asyncio
import fcntl
import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from bytelm.errors import EngineError
from bytelm.ordered_rows import RowOrder
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


def test_a_row_that_was_read_stays_when_the_slot_is_written_again(slots):
    write(slots.address, 0, 1, np.zeros(WIDTH))
    row = slots.read(0, 1)
    write(slots.address, 0, 2, np.ones(WIDTH), (1, 1))
    np.testing.assert_array_equal(row.values, np.zeros(WIDTH))
    np.testing.assert_array_equal(row.masses, (0.25, 0.75))


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
