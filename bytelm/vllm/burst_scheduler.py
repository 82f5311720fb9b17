"""vLLM's scheduler, made to take a burst of evaluations as one message.

A burst (``bursts.py``) arrives as a single request, its carrier (``burst_message.py``). Here it
becomes requests of its own, all in one moment: a step that begins afterwards has them all, and
nothing that runs meanwhile waits for them. Their ends go back as one output of the carrier's for
each step::

    owner of the engine            engine core                          worker
    ───────────────────            ───────────                          ──────
    carrier: 128 contexts  ────►   add_request: 128 requests
                                   schedule ──────────────────────────► a step, rows into slots
    128 × "ended"          ◄────   update_from_output  ◄────────────────

A carrier is never scheduled. Aborting it aborts what is left of its burst.

vLLM takes a scheduler class by configuration (``scheduler_cls``), without promising that the
interface stays. This module must not know about bytes, nor what is in a slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from operator import add
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.kv_cache_utils import get_request_block_hasher
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.kv_cache_interface import is_full_attention_spec
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.request import Request, RequestStatus

from bytelm.vllm.burst_message import Asked, Told, report, request_id, unpack
from bytelm.vllm.known_blocks import Beginning, KnownBlocks
from bytelm.vllm.row_params import RowParams, Tokens

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.outputs import ModelRunnerOutput


def scheduler(config: VllmConfig) -> str:
    """The scheduler for a configuration, as vLLM wants it named."""
    kind = BurstAsyncScheduler if config.scheduler_config.async_scheduling else BurstScheduler
    return f"{kind.__module__}.{kind.__name__}"


@dataclass(eq=False)
class _Carrier:
    """A burst under way.

    Attributes:
        request: what brought it.
        left: how many of its evaluations have not ended.
        was_told_of: some of them have, and the client knows.
    """

    request: Request
    left: int
    was_told_of: bool = False


class _Member(NamedTuple):
    """An evaluation under way: its burst, its place there, and the blocks of its context."""

    carrier: _Carrier
    position: int
    beginning: Beginning


class BurstScheduler(Scheduler):
    """For runs without async scheduling (CPU)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._members: dict[str, _Member] = {}  # by the id of the request
        self._prefilled = PrefillStats()  # what vLLM's own counters have not been told of
        cache, size = self.vllm_config.cache_config, kwargs["hash_block_size"]
        self._known = KnownBlocks(size)
        groups = self.kv_cache_config.kv_cache_groups
        # A block of all layers for every so many tokens, which is hashed as it is.
        self._is_plain = (
            len(groups) == 1
            and is_full_attention_spec(groups[0].kv_cache_spec)
            and size == self.block_size
        )
        self._hasher = None
        # As vLLM's own engine core decides it.
        if cache.enable_prefix_caching or self.connector is not None:
            algorithm = get_hash_fn_by_name(cache.prefix_caching_hash_algo)
            self._hasher = get_request_block_hasher(size, algorithm)

    def add_request(self, request: Request) -> None:
        """Queue a request, or all that a carrier brings."""
        params = request.sampling_params
        asked = None if params is None else unpack(params.extra_args)
        if asked is None:
            super().add_request(request)
            return
        carrier = _Carrier(request, len(asked))
        for position, one in enumerate(asked):
            made, beginning = self._request(request, one)
            self._members[made.request_id] = _Member(carrier, position, beginning)
            super().add_request(made)

    def _request(self, carrier: Request, asked: Asked) -> tuple[Request, Beginning]:
        known = self._known.longest(asked.tokens, asked.cache_salt)
        made = Request(
            request_id=request_id(asked.nonce),
            prompt_token_ids=cast("list[int]", Tokens("i", asked.tokens)),
            sampling_params=RowParams.of(asked.slot, asked.nonce),
            pooling_params=None,
            client_index=carrier.client_index,
            arrival_time=carrier.arrival_time,
            cache_salt=asked.cache_salt,
            priority=carrier.priority,
            block_hasher=None if self._hasher is None else self._hashes(known.hashes),
        )
        if len(known.hashes) < len(made.block_hashes):
            known = self._known.add(asked.tokens, asked.cache_salt, made.block_hashes, known)
        return made, known

    def _hashes(self, known: Sequence[Any]) -> Any:
        hasher = self._hasher
        assert hasher is not None

        def new_hashes(request: Request) -> list[Any]:
            if not request.block_hashes:
                request.block_hashes.extend(known)
            return hasher(request)

        return new_hashes

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool]:
        """What vLLM's own cache has of a request; without a search, if it is where it was."""
        member = self._members.get(request.request_id)
        # The last token is always computed.
        count = (request.num_tokens - 1) // self.block_size
        if member is None or not count or not self._is_plain:
            return super()._get_local_prefix_cache_hit(request)
        blocks = member.beginning.still(count)
        if blocks is not None:
            return KVCacheBlocks((blocks,)), count * self.block_size, 0, False
        hit = super()._get_local_prefix_cache_hit(request)
        if hit[1:] == (count * self.block_size, 0, False):
            member.beginning.found(list(hit[0].blocks[0]))
        return hit

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """What the clients are told of a step: of each burst at once."""
        found: dict[int, EngineCoreOutputs] = super().update_from_output(
            scheduler_output, model_runner_output
        )
        for outputs in found.values():
            outputs.outputs = self._gathered(outputs.outputs)
        return found

    def _gathered(self, outputs: list[EngineCoreOutput]) -> list[EngineCoreOutput]:
        kept: dict[str, EngineCoreOutput] = {}
        first: EngineCoreOutput | None = None
        for output in outputs:
            member = self._members.pop(output.request_id, None)
            if member is None:
                kept[output.request_id] = output
                continue
            # An evaluation has one output: its end.
            carrier, stats = member.carrier, output.prefill_stats
            ended = output.finish_reason == FinishReason.LENGTH and stats is not None
            told = Told(member.position, stats.num_cached_tokens if ended else None)
            name = carrier.request.request_id
            if self.log_stats and stats is not None:
                self._prefilled = _sum(self._prefilled, stats)
            if name not in kept:
                kept[name] = EngineCoreOutput(name, [])
            kept[name].new_token_ids.append(report(told))
            kept[name].kv_transfer_params = output.kv_transfer_params
            self._leave(carrier)
            if not carrier.left:
                kept[name].finish_reason = FinishReason.LENGTH
            if not carrier.was_told_of:
                carrier.was_told_of, first = True, kept[name]
        if self.log_stats and first is not None:
            # Of a request's outputs, vLLM's counters look at the first one alone.
            first.prefill_stats, self._prefilled = self._prefilled, PrefillStats()
        return list(kept.values())

    def _leave(self, carrier: _Carrier) -> None:
        carrier.left -= 1
        if not carrier.left and self.finished_req_ids_dict is not None:
            request = carrier.request
            self.finished_req_ids_dict[request.client_index].add(request.request_id)

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        """End requests; a carrier's name stands for what is left of its burst.

        Returns:
            those that were ended, of a burst its carrier if nothing is left of it.
        """
        if request_ids is not None:
            names = {request_ids} if isinstance(request_ids, str) else set(request_ids)
            names.update(
                name
                for name, member in self._members.items()
                if member.carrier.request.request_id in names
            )
            request_ids = names
        ended = super().finish_requests(request_ids, finished_status)
        if finished_status != RequestStatus.FINISHED_ABORTED:
            return ended  # update_from_output tells of them
        told = []
        for request in ended:
            member = self._members.pop(request.request_id, None)
            if member is None:
                told.append(request)
                continue
            self._leave(member.carrier)
            if not member.carrier.left:
                told.append(member.carrier.request)
        return told

    def has_requests(self) -> bool:
        """Whether there is something to compute now.

        Workers learn with the next step what has ended, not in a step of its own.
        """
        return self.has_unfinished_requests()


def _sum(one: PrefillStats, other: PrefillStats) -> PrefillStats:
    return PrefillStats(*map(add, astuple(one), astuple(other)))


class BurstAsyncScheduler(BurstScheduler, AsyncScheduler):
    """For runs with async scheduling (CUDA)."""
