"""The worker-side adapters on CPU tensors, without an engine."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext

from bytelm.errors import EngineError
from bytelm.models.ordered_rows import OrderedRow, RowOrder
from bytelm.vllm import capture
from bytelm.vllm.capture import CaptureV1, CaptureV2, Flag, Mask, Sink, ban, flag, flag_of
from bytelm.vllm.row_maker import RowMaker
from bytelm.vllm.slots import Slots

WIDTH = 11
ORDER = RowOrder(np.random.default_rng(0).permutation(WIDTH), np.array([0, 4, 5, 9, WIDTH]))
CPU = torch.device("cpu")


@pytest.fixture
def slots(tmp_path):
    slots = Slots(8, ORDER, directory=tmp_path)
    yield slots
    slots.close()


def params(slot: int | None = None, nonce: int = 0) -> SamplingParams:
    return SamplingParams(extra_args=None if slot is None else flag(slot, nonce))


def banning(*ids: int) -> SamplingParams:
    return SamplingParams(extra_args=ban(ids))


def assert_banned(logits: torch.Tensor, *banned: set[int], seeds: tuple[int, ...]) -> None:
    """Each row is that of its seed, but without what is banned in it."""
    expected = logits_of(*seeds)
    for row, ids in zip(expected, banned, strict=True):
        row[list(ids)] = -torch.inf
    assert torch.equal(logits, expected)


def logits_of(*seeds: int) -> torch.Tensor:
    """One recognisable row per seed."""
    return torch.stack(
        [torch.randn(WIDTH, generator=torch.Generator().manual_seed(s)) * 4 for s in seeds]
    )


def assert_row(slots: Slots, slot: int, nonce: int, seed: int) -> None:
    assert_made(slots.read(slot, nonce), logits_of(seed)[0])


def assert_made(row: OrderedRow, logits: torch.Tensor) -> None:
    expected = torch.log_softmax(logits.double(), -1).numpy()
    np.testing.assert_allclose(row.by_id(), expected, atol=1e-6)
    masses = np.add.reduceat(np.exp(expected[ORDER.ids]), ORDER.bounds[:-1])
    np.testing.assert_allclose(row.masses, masses, rtol=1e-6)


def assert_unwritten(slots: Slots, slot: int, nonce: int) -> None:
    with pytest.raises(EngineError):
        slots.read(slot, nonce)


def test_a_flag_survives_the_parameters():
    assert flag_of(params(3, 42)) == (3, 42)


def test_other_requests_have_no_flag():
    assert flag_of(SamplingParams()) is None
    assert flag_of(SamplingParams(extra_args={"other": 1})) is None
    assert flag_of(SamplingParams.for_sampler_warmup()) is None


# The sink


def test_sink_writes_the_log_softmax_of_each_row(slots):
    Sink(slots.address, CPU).write(logits_of(1, 2, 3), {0: Flag(5, 50), 2: Flag(1, 51)})
    assert_row(slots, 5, 50, seed=1)
    assert_row(slots, 1, 51, seed=3)


def test_sink_writes_all_rows_in_another_order(slots):
    Sink(slots.address, CPU).write(logits_of(1, 2), {1: Flag(0, 7), 0: Flag(1, 8)})
    assert_row(slots, 0, 7, seed=2)
    assert_row(slots, 1, 8, seed=1)


@pytest.mark.parametrize("count", range(1, 11))
def test_sink_writes_any_number_of_rows_wherever_they_are(slots, monkeypatch, count):
    monkeypatch.setattr(capture, "CPU_ROWS", 3)
    sink = Sink(slots.address, CPU)
    for begin in range(11 - count):
        rows = random.Random(begin).sample(range(11), min(count, 8))
        flags = {row: Flag(slot, 100 * begin + slot) for slot, row in enumerate(rows)}
        sink.write(logits_of(*range(11)), flags)
        for row, (slot, nonce) in flags.items():
            assert_row(slots, slot, nonce, seed=row)


def test_sink_shares_out_no_tensor_and_leaves_threads_as_they_were(slots, monkeypatch):
    threads, make = [], RowMaker.make

    def counted(self, *args):
        threads.append(torch.get_num_threads())
        make(self, *args)

    monkeypatch.setattr(RowMaker, "make", counted)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        sink = Sink(slots.address, CPU)
        sink.write(logits_of(1), {0: Flag(0, 1)})
        with pytest.raises(IndexError):
            sink.write(logits_of(1), {0: Flag(99, 1)})
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert threads == [1, 1]


def test_sink_touches_no_other_slot(slots):
    Sink(slots.address, CPU).write(logits_of(1), {0: Flag(3, 9)})
    for slot in set(range(8)) - {3}:
        assert_unwritten(slots, slot, 9)


def test_sink_does_not_change_the_logits(slots):
    logits = logits_of(1, 2)
    before = logits.clone()
    Sink(slots.address, CPU).write(logits, {0: Flag(0, 1), 1: Flag(1, 2)})
    assert torch.equal(logits, before)


def test_sink_normalises_in_float32_what_comes_in_less(slots):
    Sink(slots.address, CPU).write(logits_of(1).bfloat16(), {0: Flag(0, 1)})
    assert_made(slots.read(0, 1), logits_of(1)[0].bfloat16())


def test_sink_keeps_large_nonces(slots):
    nonce = (1 << 62) + 12345
    Sink(slots.address, CPU).write(logits_of(1), {0: Flag(0, nonce)})
    assert_row(slots, 0, nonce, seed=1)


def test_sink_refuses_logits_of_another_width(slots):
    with pytest.raises(RuntimeError, match="7 wide, slots 11"):
        Sink(slots.address, CPU).write(torch.zeros(1, 7), {0: Flag(0, 1)})


# The mask


@pytest.fixture
def mask():
    return Mask(CPU)


def test_mask_bans_in_every_row(mask):
    logits, banned = logits_of(1, 2), mask.banned_by(banning(3, 10))
    mask.apply(logits, {0: banned, 1: banned})
    assert_banned(logits, {3, 10}, {3, 10}, seeds=(1, 2))


def test_mask_bans_in_its_rows_only(mask):
    logits, banned = logits_of(1, 2, 3, 4), mask.banned_by(banning(0))
    mask.apply(logits, {3: banned, 1: banned})
    assert_banned(logits, set(), {0}, set(), {0}, seeds=(1, 2, 3, 4))


def test_mask_bans_in_each_row_what_is_banned_there(mask):
    logits = logits_of(1, 2, 3)
    wanted = [banning(0, 1), banning(5), banning(0, 1)]
    mask.apply(logits, {row: mask.banned_by(params) for row, params in enumerate(wanted)})
    assert_banned(logits, {0, 1}, {5}, {0, 1}, seeds=(1, 2, 3))


def test_mask_holds_ids_once_while_a_request_bans_them(mask):
    first = mask.banned_by(banning(3, 4))
    assert mask.banned_by(banning(3, 4)) is first
    assert mask.banned_by(banning(3, 5)) is not first
    del first
    assert not mask._known


def test_mask_finds_no_ban_in_other_requests(mask):
    for other in (SamplingParams(), params(1, 2), SamplingParams.for_sampler_warmup(), banning()):
        assert mask.banned_by(other) is None


# Which rank writes


@pytest.mark.parametrize(
    ("pipeline_last", "tensor_rank", "prefill_rank", "writes"),
    [(True, 0, 0, True), (False, 0, 0, False), (True, 1, 0, False), (True, 0, 1, False)],
)
def test_only_the_rank_that_the_engine_waits_for_writes(
    slots, monkeypatch, pipeline_last, tensor_rank, prefill_rank, writes
):
    from vllm.distributed import parallel_state

    for name, group in {
        "get_pp_group": SimpleNamespace(is_last_rank=pipeline_last),
        "get_tp_group": SimpleNamespace(rank_in_group=tensor_rank),
        "get_pcp_group": SimpleNamespace(rank_in_group=prefill_rank),
    }.items():
        monkeypatch.setattr(parallel_state, name, lambda group=group: group)
    adapter = CaptureV1(SimpleNamespace(additional_config=slots.address), CPU, False)
    adapter.update_state(BatchUpdate(1, [], [(0, params(0, 1), None, [])], []))
    assert torch.equal(adapter.apply(logits_of(1)), logits_of(1))
    if writes:
        assert_row(slots, 0, 1, seed=1)
    else:
        assert_unwritten(slots, 0, 1)


# Which adapter


def config(*, v2: bool, speculative=None, sharded: bool = False):
    return SimpleNamespace(
        use_v2_model_runner=v2,
        speculative_config=speculative,
        parallel_config=SimpleNamespace(enable_batch_sharded_sampling=sharded),
    )


def test_the_adapter_is_that_of_the_model_runner():
    assert capture.processor(config(v2=False)) == "bytelm.vllm.capture:CaptureV1"
    assert capture.processor(config(v2=True)) == "bytelm.vllm.capture:CaptureV2"


def test_vllm_accepts_each_adapter_for_its_runner():
    from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns

    assert _load_logitsprocs_by_fqcns([capture.processor(config(v2=False))]) == [CaptureV1]
    assert _load_v2_logitsprocs_by_fqcns([capture.processor(config(v2=True))]) == [CaptureV2]


@pytest.mark.parametrize("refused", [{"speculative": object()}, {"sharded": True}])
@pytest.mark.parametrize("v2", [False, True])
def test_configurations_whose_rows_cannot_be_told_apart_are_refused(v2, refused):
    with pytest.raises(ValueError, match="turn it off"):
        capture.processor(config(v2=v2, **refused))


# Model runner V1


@pytest.fixture
def v1(slots, monkeypatch):
    monkeypatch.setattr(capture, "_sink", lambda config, device: Sink(slots.address, device))
    return CaptureV1(None, CPU, False)


def update(v1, *, size=8, removed=(), added=(), moved=()):
    v1.update_state(BatchUpdate(size, removed, [(index, p, None, []) for index, p in added], moved))


def test_v1_takes_part_in_greedy_steps(v1):
    assert v1.is_argmax_invariant() is False


def test_v1_writes_flagged_rows_only(v1, slots):
    update(v1, added=[(0, params()), (1, params(4, 40))])
    assert torch.equal(v1.apply(logits_of(1, 2)), logits_of(1, 2))
    assert_row(slots, 4, 40, seed=2)


def test_v1_keeps_its_rows_when_nothing_changes(v1, slots):
    update(v1, added=[(0, params(0, 1))])
    v1.update_state(None)
    v1.apply(logits_of(9))
    assert_row(slots, 0, 1, seed=9)


def test_v1_forgets_what_was_removed(v1, slots):
    update(v1, added=[(0, params(0, 1))])
    update(v1, removed=[0])
    v1.apply(logits_of(1))
    assert_unwritten(slots, 0, 1)


def test_v1_an_index_that_is_taken_over_loses_its_flag(v1, slots):
    update(v1, added=[(0, params(0, 1))])
    update(v1, added=[(0, params())])
    v1.apply(logits_of(1))
    assert_unwritten(slots, 0, 1)


def test_v1_follows_a_one_way_move(v1, slots):
    update(v1, added=[(0, params(0, 1)), (2, params(1, 2))])
    update(v1, removed=[0], moved=[(2, 0, MoveDirectionality.UNIDIRECTIONAL)])
    v1.apply(logits_of(5))
    assert_row(slots, 1, 2, seed=5)
    assert_unwritten(slots, 0, 1)


def test_v1_a_one_way_move_overwrites(v1, slots):
    update(v1, added=[(0, params(0, 1)), (1, params())])
    update(v1, moved=[(1, 0, MoveDirectionality.UNIDIRECTIONAL)])
    v1.apply(logits_of(5))
    assert_unwritten(slots, 0, 1)


def test_v1_follows_a_swap_with_an_unflagged_request(v1, slots):
    update(v1, added=[(0, params(0, 1)), (1, params())])
    update(v1, moved=[(0, 1, MoveDirectionality.SWAP)])
    v1.apply(logits_of(5, 6))
    assert_row(slots, 0, 1, seed=6)


def test_v1_bans_beside_rows_that_are_written(v1, slots):
    update(v1, added=[(0, banning(2)), (1, params(4, 40)), (2, params())])
    assert_banned(v1.apply(logits_of(1, 2, 3)), {2}, set(), set(), seeds=(1, 2, 3))
    assert_row(slots, 4, 40, seed=2)


def test_v1_a_row_is_written_before_what_is_banned_in_it(v1, slots):
    both = SamplingParams(extra_args=flag(4, 40) | ban([2]))
    update(v1, added=[(0, both)])
    assert_banned(v1.apply(logits_of(1)), {2}, seeds=(1,))
    assert_row(slots, 4, 40, seed=1)


def test_v1_bans_follow_their_requests(v1):
    update(v1, added=[(0, banning(1)), (1, banning(2)), (2, params()), (3, banning(3))])
    update(v1, removed=[0], moved=[(3, 0, MoveDirectionality.UNIDIRECTIONAL)])
    update(v1, moved=[(1, 2, MoveDirectionality.SWAP)])
    assert_banned(v1.apply(logits_of(1, 2, 3)), {3}, set(), {2}, seeds=(1, 2, 3))
    update(v1, added=[(0, params())])
    assert_banned(v1.apply(logits_of(1, 2, 3)), set(), set(), {2}, seeds=(1, 2, 3))


def test_v1_every_rank_bans(v1, monkeypatch):
    monkeypatch.setattr(capture, "_sink", lambda config, device: None)
    silent = CaptureV1(None, CPU, False)
    update(silent, added=[(0, banning(1))])
    assert_banned(silent.apply(logits_of(1)), {1}, seeds=(1,))


def test_v1_follows_any_history_of_its_batch(v1):
    """Against a batch that is kept as a plain list of requests, one per index."""
    choose = random.Random(1)
    batch: list[tuple[int, int] | None] = [None] * 6
    for nonce in range(2000):
        removed, added, moved = [], [], []
        for index in range(6):
            if batch[index] and choose.random() < 0.2:
                removed.append(index)
                batch[index] = None
        for index in range(6):
            if choose.random() < 0.2:
                batch[index] = (index, nonce) if choose.random() < 0.7 else None
                added.append((index, params(*batch[index]) if batch[index] else params()))
        for _ in range(choose.randrange(3)):
            a, b = choose.sample(range(6), 2)
            if choose.random() < 0.5:
                batch[a], batch[b] = batch[b], batch[a]
                moved.append((a, b, MoveDirectionality.SWAP))
            else:
                batch[a], batch[b] = None, batch[a]
                moved.append((a, b, MoveDirectionality.UNIDIRECTIONAL))
        update(v1, removed=removed, added=added, moved=moved)
        assert v1._flags == {i: f for i, f in enumerate(batch) if f is not None}


# Model runner V2


@pytest.fixture
def prefill_len():
    return np.full(8, 4, np.int32)


@pytest.fixture
def v2(slots, monkeypatch, prefill_len):
    monkeypatch.setattr(capture, "_sink", lambda config, device: Sink(slots.address, device))
    states = SimpleNamespace(device=CPU, prefill_len=SimpleNamespace(np=prefill_len))
    return CaptureV2(None, states)


def step(indices: list[int], seq_lens: list[int]) -> LogitsContext:
    mapping = torch.tensor(indices)
    return LogitsContext(
        expanded_idx_mapping=mapping,
        idx_mapping=mapping,
        idx_mapping_np=mapping.numpy(),
        expanded_local_pos=torch.zeros_like(mapping),
        input_ids=torch.zeros_like(mapping),
        pos=torch.tensor(seq_lens[: len(indices)]) - 1,
        seq_lens_upper_bound_np=np.array(seq_lens, np.int32),
    )


def test_v2_asks_for_processing_of_flagged_requests_only(v2):
    assert v2.add_request(0, params(0, 1)) is True
    assert v2.add_request(1, params()) is False


def test_v2_survives_warm_up(v2, slots):
    assert v2.add_request(0, SamplingParams.for_sampler_warmup()) is False
    assert torch.equal(v2.apply(logits_of(1), step([0], [4])), logits_of(1))
    assert_unwritten(slots, 0, 1)


def test_v2_finds_rows_by_the_steps_own_order(v2, slots):
    v2.add_request(3, params(0, 1))
    v2.add_request(5, params(1, 2))
    v2.apply(logits_of(7, 8, 9), step([5, 2, 3], [4, 4, 4]))
    assert_row(slots, 0, 1, seed=9)
    assert_row(slots, 1, 2, seed=7)


def test_v2_a_recycled_index_loses_its_flag(v2, slots):
    v2.add_request(3, params(0, 1))
    v2.add_request(3, params())
    v2.apply(logits_of(1), step([3], [4]))
    assert_unwritten(slots, 0, 1)


def test_v2_leaves_out_unfinished_prompts(v2, slots):
    v2.add_request(0, params(0, 1))
    v2.apply(logits_of(1), step([0], [3]))
    assert_unwritten(slots, 0, 1)
    v2.apply(logits_of(2), step([0], [4]))
    assert_row(slots, 0, 1, seed=2)


def test_v2_a_resumed_request_is_as_long_as_its_last_fill(v2, slots, prefill_len):
    v2.add_request(0, params(0, 1))
    prefill_len[0] = 6  # noticed although it changes after the adapter was made
    v2.apply(logits_of(1), step([0], [5]))
    assert_unwritten(slots, 0, 1)


def test_v2_ignores_the_padding_of_host_lengths(v2, slots):
    v2.add_request(0, params(0, 1))
    v2.apply(logits_of(1), step([0], [4, 0, 0, 0]))
    assert_row(slots, 0, 1, seed=1)


def test_v2_asks_for_processing_of_bans(v2):
    assert v2.add_request(0, banning(1)) is True
    assert v2.add_request(1, banning()) is False


def test_v2_bans_by_the_steps_own_order(v2, slots):
    v2.add_request(3, banning(1))
    v2.add_request(5, params(1, 2))
    v2.add_request(2, banning(0, 10))
    found = v2.apply(logits_of(7, 8, 9), step([5, 2, 3], [4, 4, 4]))
    assert_banned(found, set(), {0, 10}, {1}, seeds=(7, 8, 9))
    assert_row(slots, 1, 2, seed=7)


def test_v2_a_recycled_index_loses_its_ban(v2):
    v2.add_request(3, banning(1))
    v2.add_request(3, params())
    assert_banned(v2.apply(logits_of(1), step([3], [4])), set(), seeds=(1,))


def test_v2_every_rank_bans(prefill_len, monkeypatch):
    monkeypatch.setattr(capture, "_sink", lambda config, device: None)
    states = SimpleNamespace(device=CPU, prefill_len=SimpleNamespace(np=prefill_len))
    silent = CaptureV2(None, states)
    silent.add_request(0, banning(1))
    assert_banned(silent.apply(logits_of(1), step([0], [4])), {1}, seeds=(1,))
