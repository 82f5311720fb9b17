"""Worker side: hands the full log-probabilities of flagged requests out through shared memory.

A request is flagged by ``extra_args`` (:func:`flag`), which names its slot and its nonce. vLLM
gives its logits to *logits processors*; it has two model runners with an interface each, so two
thin adapters (:class:`CaptureV1`, :class:`CaptureV2`) find out which row of the logits belongs to
which request, and one :class:`Sink` writes. Logits are never changed, so other requests are
untouched.

vLLM imports this module in the frontend as well (to check parameters), where CUDA must not be
touched: all of that happens in the constructors, which run in workers only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as LogitsProcessorV1
from vllm.v1.worker.gpu.sample.logits_processor.interface import (
    LogitsProcessor as LogitsProcessorV2,
)

from bytelm.vllm.slots import ROW_START, SlotsAddress, attach

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.worker.gpu.sample.logits_processor.interface import (
        LogitsContext,
        LogitsProcRequestState,
    )

KEY = "bytelm_row"


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


class Sink:
    """Writes rows of logits, normalised, into the slots.

    A row is complete when the engine reports its request's output: the copy runs on the current
    stream, which the engine's own copy of the sampled tokens follows.

    Args:
        address: the slots.
        device: where the logits are.
    """

    def __init__(self, address: SlotsAddress, device: torch.device) -> None:
        self._width = address.width
        self._on_cpu = device.type == "cpu"
        floats = torch.frombuffer(attach(address), dtype=torch.float32)
        if device.type == "cuda":
            # Into pageable memory a copy from the GPU would block the host.
            error = torch.cuda.cudart().cudaHostRegister(floats.data_ptr(), address.nbytes, 0)
            if error.value != 0:
                raise RuntimeError(f"the slots cannot be pinned: cudaHostRegister says {error}")
        self._slots = floats.view(address.count, address.stride)

    def write(self, logits: torch.Tensor, rows: Mapping[int, Flag]) -> None:
        """Write the log-softmax of ``logits[row]`` into the slot that each row is flagged with.

        Args:
            logits: [rows, width]; not changed.
            rows: row → its flag.
        """
        if not rows:
            return
        if logits.shape[1] != self._width:
            raise RuntimeError(f"logits are {logits.shape[1]} wide, slots {self._width}")
        count = len(rows)
        # Row numbers and nonces travel to the device together, without waiting for it.
        numbers = torch.tensor(
            [list(rows), [f.nonce for f in rows.values()]],
            dtype=torch.int64,
            pin_memory=not self._on_cpu,
        ).to(logits.device, non_blocking=True)
        # A nonce goes the way of its row, in one copy: it stands for the row having arrived.
        packed = logits.new_empty((count, self._slots.shape[1]), dtype=torch.float32)
        packed[:, :2].view(torch.int64)[:, 0] = numbers[1]
        chosen = logits if list(rows) == list(range(len(logits))) else logits[numbers[0]]
        packed[:, ROW_START : ROW_START + self._width] = torch.log_softmax(chosen.float(), dim=-1)
        for source, (slot, _) in zip(packed, rows.values(), strict=True):
            self._slots[slot].copy_(source, non_blocking=True)


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
        self._flags: dict[int, Flag] = {}

    def is_argmax_invariant(self) -> bool:
        """False, although nothing changes: else vLLM leaves it out when all requests are greedy."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests as they leave, enter and move within the batch, in this order."""
        if batch_update is None:
            return
        flags = self._flags
        for index in batch_update.removed:
            flags.pop(index, None)
        for index, params, _, _ in batch_update.added:
            _put(flags, index, flag_of(params))
        for source, target, direction in batch_update.moved:
            moved, replaced = flags.pop(source, None), flags.pop(target, None)
            _put(flags, target, moved)
            if direction == MoveDirectionality.SWAP:
                _put(flags, source, replaced)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Write the flagged rows."""
        if self._sink is not None:
            self._sink.write(logits, self._flags)
        return logits


class CaptureV2(LogitsProcessorV2):
    """For model runner V2 (CUDA): rows are sorted anew each step and name their request's index."""

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        self._sink = _sink(vllm_config, req_states.device)
        self._flags: dict[int, Flag] = {}
        self._prefill_len: Sequence[int] = req_states.prefill_len.np

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Note a request's flag; its index may have been another's. True if it has one."""
        found = flag_of(sampling_params)
        _put(self._flags, req_idx, found)
        return found is not None

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Write the flagged rows of requests whose prompt is complete."""
        if self._sink is not None:
            self._sink.write(logits, self._final_rows(ctx))
        return logits

    def _final_rows(self, ctx: LogitsContext) -> dict[int, Flag]:
        # All on the host: to ask the device would stall it.
        rows = {}
        for row, index in enumerate(ctx.idx_mapping_np.tolist()):
            found = self._flags.get(index)
            if found is not None and ctx.seq_lens_upper_bound_np[row] >= self._prefill_len[index]:
                rows[row] = found
        return rows


def _put(flags: dict[int, Flag], index: int, found: Flag | None) -> None:
    if found is None:
        flags.pop(index, None)
    else:
        flags[index] = found
