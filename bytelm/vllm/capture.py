"""Worker side: what vLLM's own sampler cannot do for a request, done to its logits.

A request says by ``extra_args`` what it wants. :func:`flag` names a slot and a nonce: the request's
full log-probabilities are handed out there, through shared memory. :func:`ban` lists ids that are
never sampled for it. vLLM gives its logits to *logits processors*; it has two model runners with an
interface each, so two thin adapters (:class:`CaptureV1`, :class:`CaptureV2`) find out which row of
the logits belongs to which request; one :class:`Sink` writes, one :class:`Mask` bans. The logits of
requests that want neither are untouched.

vLLM imports this module in the frontend as well (to check parameters), where CUDA must not be
touched: all of that happens in the constructors, which run in workers only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as LogitsProcessorV1
from vllm.v1.worker.gpu.sample.logits_processor.interface import (
    LogitsProcessor as LogitsProcessorV2,
)

from bytelm.vllm.row_maker import RowMaker
from bytelm.vllm.slots import SlotsAddress, attach

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.worker.gpu.sample.logits_processor.interface import (
        LogitsContext,
        LogitsProcRequestState,
    )

CPU_ROWS, DEVICE_ROWS = 4, 32
"""How many rows are made together: what fits into a core's cache; what a GPU is busy with, and has
memory for."""

KEY = "bytelm_row"
BANNED_KEY = "bytelm_banned"

T = TypeVar("T")


class Flag(NamedTuple):
    """Where a request's row goes, and the number that is written beside it."""

    slot: int
    nonce: int


def flag(slot: int, nonce: int) -> dict[str, Any]:
    """The ``extra_args`` of a request whose row is to be written."""
    return {KEY: [slot, nonce]}


def flag_of(params: SamplingParams) -> Flag | None:
    """What :func:`flag` put there; None for every other request, vLLM's own warm-up included."""
    found = (params.extra_args or {}).get(KEY)
    return None if found is None else Flag(*found)


def ban(token_ids: Sequence[int] | NDArray[np.integer]) -> dict[str, Any]:
    """The ``extra_args`` of a request for which some ids are never sampled."""
    # As bytes, which travel between processes at no cost that grows with their number.
    return {BANNED_KEY: np.asarray(token_ids, np.int32).tobytes()}


def processor(config: VllmConfig) -> str:
    """The adapter that fits the model runner of a configuration, as vLLM wants it named.

    Raises:
        ValueError: a feature is on with which a row cannot be told from another.
    """
    if config.speculative_config is not None:
        raise ValueError("speculative decoding gives a request several rows; turn it off")
    if getattr(config.parallel_config, "enable_batch_sharded_sampling", False):
        raise ValueError("batch-sharded sampling scatters the rows over ranks; turn it off")
    return f"{__name__}:{'CaptureV2' if config.use_v2_model_runner else 'CaptureV1'}"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """No tensor is shared out among threads: on cores that are not theirs alone they wait for each
    other at every step, for longer than all of a row takes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Sink:
    """Writes rows of logits, normalised and in the order that the slots begin with, into the slots.

    A row is complete when the engine reports its request's output: the copy runs on the current
    stream, which the engine's own copy of the sampled tokens follows.

    Args:
        address: the slots.
        device: where the logits are.
    """

    def __init__(self, address: SlotsAddress, device: torch.device) -> None:
        self._address = address
        mapped = attach(address)
        self._slots = torch.from_numpy(mapped.slots)
        if device.type == "cuda":
            # Into pageable memory a copy from the GPU would block the host.
            begin = mapped.ids.ctypes.data
            error = torch.cuda.cudart().cudaHostRegister(begin, address.nbytes, 0)
            if error.value != 0:
                raise RuntimeError(f"the slots cannot be pinned: cudaHostRegister says {error}")
        ids, bounds = (torch.from_numpy(a.copy()).to(device) for a in (mapped.ids, mapped.bounds))
        self._most = CPU_ROWS if device.type == "cpu" else DEVICE_ROWS
        self._maker = RowMaker(ids, bounds, self._most)
        self._packed = torch.zeros((self._most, address.stride), device=device)
        self._nonces = self._packed[:, :2].view(torch.int64)[:, 0]
        self._masses = self._packed[:, address.masses].view(torch.float64)
        self._values = self._packed[:, address.values]

    def write(self, logits: torch.Tensor, rows: Mapping[int, Flag]) -> None:
        """Write ``logits[row]`` as log-probabilities into the slot that each row is flagged with.

        Args:
            logits: [rows, width]; not changed.
            rows: row → its flag.
        """
        if not rows:
            return
        if logits.shape[1] != self._address.width:
            raise RuntimeError(f"logits are {logits.shape[1]} wide, slots {self._address.width}")
        flagged = sorted(rows.items())
        with _one_thread():
            for begin in range(0, len(flagged), self._most):
                self._write(logits, flagged[begin : begin + self._most])

    def _write(self, logits: torch.Tensor, flagged: Sequence[tuple[int, Flag]]) -> None:
        n, (first, _), (last, _) = len(flagged), flagged[0], flagged[-1]
        # Row numbers and nonces travel to the device together, without waiting for it.
        numbers = torch.tensor(
            [[row for row, _ in flagged], [nonce for _, (_, nonce) in flagged]],
            dtype=torch.int64,
            pin_memory=logits.is_cuda,
        ).to(logits.device, non_blocking=True)
        # A nonce goes the way of its row, in one copy: it stands for the row having arrived.
        self._nonces[:n] = numbers[1]
        chosen = logits[first : last + 1] if last - first < n else logits[numbers[0]]
        self._maker.make(chosen, self._values[:n], self._masses[:n])
        for source, (_, (slot, _)) in zip(self._packed, flagged, strict=False):
            self._slots[slot].copy_(source, non_blocking=True)


class Mask:
    """Takes all probability from the banned ids of each row, on every rank that samples.

    Args:
        device: where the logits are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._never = torch.full((), float("-inf"), device=device)
        # Most requests ban the same ids, which are on the device once while any of them lives.
        self._known: WeakValueDictionary[bytes, torch.Tensor] = WeakValueDictionary()

    def banned_by(self, params: SamplingParams) -> torch.Tensor | None:
        """The ids that :func:`ban` put there, int64 on the device; None where there are none."""
        packed = (params.extra_args or {}).get(BANNED_KEY)
        if not packed:
            return None
        found = self._known.get(packed)
        if found is None:
            found = self._known[packed] = self._sent(np.frombuffer(packed, np.int32))
        return found

    def apply(self, logits: torch.Tensor, rows: Mapping[int, torch.Tensor]) -> None:
        """Set the logits of banned ids to -inf, in place and without waiting for the device.

        Args:
            logits: [rows, width].
            rows: row → the ids that are banned there, as :meth:`banned_by` gave them.
        """
        alike: dict[int, list[int]] = {}
        for row, banned in rows.items():
            alike.setdefault(id(banned), []).append(row)
        for members in alike.values():
            banned = rows[members[0]]
            if len(members) == len(logits):
                logits.index_fill_(1, banned, float("-inf"))
            else:
                logits.index_put_((self._sent(members).unsqueeze(1), banned), self._never)

    def _sent(self, numbers: Sequence[int] | NDArray[np.int32]) -> torch.Tensor:
        on_host = torch.from_numpy(np.array(numbers, np.int64))
        if self._device.type == "cuda":
            on_host = on_host.pin_memory()
        return on_host.to(self._device, non_blocking=True)


def _sink(config: VllmConfig, device: torch.device) -> Sink | None:
    """The sink of the one rank whose reply the engine waits for; None on all others.

    Every rank of the last pipeline stage samples, but only for one of them does the engine's
    report of a request's end say that the row is there.
    """
    from vllm.distributed import parallel_state

    writes = (
        parallel_state.get_pp_group().is_last_rank
        and parallel_state.get_tp_group().rank_in_group == 0
        and parallel_state.get_pcp_group().rank_in_group == 0
    )
    return Sink(config.additional_config, device) if writes else None


class CaptureV1(LogitsProcessorV1):
    """For model runner V1 (CPU; CUDA with VLLM_USE_V2_MODEL_RUNNER=0): row i is batch index i.

    Prompts that are computed in several chunks have a row at each, which cannot be told from the
    last one: it is written each time, and the last write stands when the request ends.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._sink = _sink(vllm_config, device)
        self._mask = Mask(device)
        self._flags: dict[int, Flag] = {}
        self._banned: dict[int, torch.Tensor] = {}

    def is_argmax_invariant(self) -> bool:
        """False: a ban changes it, and rows must be written when all requests are greedy, too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests as they leave, enter and move within the batch, in this order."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._flags.pop(index, None)
            self._banned.pop(index, None)
        for index, params, _, _ in batch_update.added:
            _put(self._flags, index, flag_of(params))
            _put(self._banned, index, self._mask.banned_by(params))
        for source, target, direction in batch_update.moved:
            _move(self._flags, source, target, direction)
            _move(self._banned, source, target, direction)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Write the flagged rows, and ban what is banned."""
        if self._sink is not None:
            self._sink.write(logits, self._flags)
        self._mask.apply(logits, self._banned)
        return logits


class CaptureV2(LogitsProcessorV2):
    """For model runner V2 (CUDA): rows are sorted anew each step and name their request's index."""

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        self._sink = _sink(vllm_config, req_states.device)
        self._mask = Mask(req_states.device)
        self._flags: dict[int, Flag] = {}
        self._banned: dict[int, torch.Tensor] = {}
        self._prefill_len: Sequence[int] = req_states.prefill_len.np

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Note what a request wants; its index may have been another's. True if it wants it."""
        found, banned = flag_of(sampling_params), self._mask.banned_by(sampling_params)
        _put(self._flags, req_idx, found)
        _put(self._banned, req_idx, banned)
        return found is not None or banned is not None

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Write the flagged rows of requests whose prompt is complete, and ban what is banned."""
        if self._sink is not None:
            self._sink.write(logits, self._final_rows(ctx))
        indices = enumerate(ctx.idx_mapping_np.tolist())
        self._mask.apply(logits, {row: self._banned[i] for row, i in indices if i in self._banned})
        return logits

    def _final_rows(self, ctx: LogitsContext) -> dict[int, Flag]:
        # All on the host: to ask the device would stall it.
        rows = {}
        for row, index in enumerate(ctx.idx_mapping_np.tolist()):
            found = self._flags.get(index)
            if found is not None and ctx.seq_lens_upper_bound_np[row] >= self._prefill_len[index]:
                rows[row] = found
        return rows


def _put(wanted: dict[int, T], index: int, found: T | None) -> None:
    if found is None:
        wanted.pop(index, None)
    else:
        wanted[index] = found


def _move(wanted: dict[int, T], source: int, target: int, direction: MoveDirectionality) -> None:
    moved, replaced = wanted.pop(source, None), wanted.pop(target, None)
    _put(wanted, target, moved)
    if direction == MoveDirectionality.SWAP:
        _put(wanted, source, replaced)
