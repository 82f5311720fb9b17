"""Makes vLLM's prefix cache token-granular: a KV connector that keeps the tails of contexts.

vLLM caches full blocks only, so a context of L tokens would recompute the last L mod block_size of
them at each evaluation. Here a request that has ended leaves its last, partly filled block behind
as a *tail*. One that goes on with all of a tail's tokens takes the block over, and writes behind
them; others that begin with the same tokens get a copy, made on the device right before the step
that computes the rest. Full blocks are filed as well, for contexts that part from a recent one in
the middle of a block.

There is no memory besides vLLM's own pool of blocks. Whose a block is:

    a request writes it        vLLM's; nothing here knows of it
    the request ends     ──→   a tail: marked with a hash, which makes vLLM queue it for reuse as it
                               does cached blocks, last; it counts as free, and a copy may be taken
    a request goes on    ──→   unmarked, and the next block that vLLM hands out, which is to this
    with all its tokens        request: its *holder*. What others copy is not what it writes. When
                               it ends, the block is a longer tail, or the same one again
    a longer tail comes  ──→   unmarked, and the next block that vLLM will hand out
    vLLM hands it out    ──→   vLLM has removed the mark, by which the loss is noticed; or it resets
    to somebody else           the prefix cache, and all marks are gone

Nothing is pinned between matching and copying: if a step hands a source out after it was matched,
the worker still copies before that step computes anything, and makes its copies in the order in
which they were matched, so that a block is read before it is written to.

The scheduler's side decides and the worker's side copies, each in an object and most often a
process of its own. This module must not know about bytes or about slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.logger import init_logger
from vllm.v1.core.kv_cache_utils import (
    BlockHash,
    generate_block_hash_extra_keys,
    make_block_hash_with_group_id,
)
from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec, UniformTypeKVCacheSpecs
from vllm.v1.request import RequestStatus

from bytelm.vllm.block_copies import copy_at_once, copy_in_turn, stacked
from bytelm.vllm.tail_index import Tail, TailCounts, TailIndex

if TYPE_CHECKING:
    from collections.abc import Hashable

    import torch
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

MARK = b"bytelm tail "

_logger = init_logger(__name__)


def transfer_config() -> KVTransferConfig:
    """What turns the connector on in vLLM's configuration."""
    return KVTransferConfig(
        kv_connector=TailConnector.__name__,
        kv_connector_module_path=__name__,
        # As a consumer, vLLM would hold freed blocks back until the steps in flight have ended,
        # for loads that run outside the order of steps. Ours run inside it.
        kv_role="kv_producer",
    )


def obstacle(config: VllmConfig) -> str | None:
    """Why a configuration gets no connector, as far as is known before the start; None if it does.

    vLLM runs models with several kinds of KV cache differently, or not at all, with a connector.
    """
    model, parallel = config.model_config, config.parallel_config
    kinds = getattr(model.hf_text_config, "layer_types", None)
    if kinds is None:
        windowed = bool(model.get_sliding_window())
    else:
        windowed = any(kind not in ("attention", "full_attention") for kind in kinds)
    if not config.cache_config.enable_prefix_caching:
        return "prefix caching is off"
    if config.speculative_config is not None:
        return "speculative decoding writes tokens that are taken back"
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        return "a block is spread over several ranks"
    if model.is_hybrid or model.is_attention_free or model.has_inner_state:
        return "the model carries a state besides its KV cache"
    if model.is_encoder_decoder:
        return "the model has an encoder"
    if windowed or model.attention_chunk_size is not None:
        return "some layers of the model see a part of the context only"
    return None


def cache_obstacle(cache: KVCacheConfig) -> str | None:
    """Why the blocks of a KV cache cannot be copied as tails; None if they can."""
    if len(cache.kv_cache_groups) != 1:
        return "the KV cache has several groups"
    if cache.needs_kv_cache_zeroing:
        # Before copies are made, and perhaps of their sources.
        return "vLLM zeroes blocks before it uses them"
    spec = cache.kv_cache_groups[0].kv_cache_spec
    if cache.hash_block_size not in (None, spec.block_size):
        return "blocks are hashed in other sizes"
    layers = spec.kv_cache_specs.values() if isinstance(spec, UniformTypeKVCacheSpecs) else [spec]
    for layer in layers:
        if type(layer) not in (FullAttentionSpec, MLAAttentionSpec) or layer.tokens_per_state != 1:
            return f"a layer keeps {type(layer).__name__}, not one state for each token"
    return None


@dataclass
class Copies(KVConnectorMetadata):
    """What the workers copy before a step: pairs of block ids, from and to."""

    pairs: list[tuple[int, int]] = field(default_factory=list)


class _Holder(NamedTuple):
    """A request that goes on in a tail's block, until it is preempted and loses its blocks."""

    request: Request
    preemptions: int

    @property
    def holds(self) -> bool:
        return self.request.num_preemptions == self.preemptions


@dataclass
class _Admission:
    """A request from its last match on.

    Attributes:
        first: the block that it continues in, the first that vLLM's own cache did not have.
        tail: what was found for that block.
        held: the tail whose block it took over.
        missed: nothing was found, although it could have been.
    """

    first: int
    tail: Tail | None = None
    held: Tail | None = None
    missed: bool = False


class TailConnector(KVConnectorBase_V1, SupportsHMA):
    """vLLM makes one in the scheduler and one in each worker.

    On a KV cache that has no tails (:func:`cache_obstacle`) it does nothing. It says that it
    supports vLLM's hybrid memory allocator, since without that vLLM would turn it off.
    """

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        found = cache_obstacle(kv_cache_config)
        self._works = found is None
        if found is not None and role is KVConnectorRole.SCHEDULER:
            _logger.warning("tails are off: %s", found)
        self._block_size = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        self._num_blocks = kv_cache_config.num_blocks
        # The scheduler's
        self._pool: BlockPool | None = None
        self._index = TailIndex()
        self._admissions: dict[str, _Admission] = {}
        self._copies = Copies()
        self._offered: list[Tail] = []
        self._hits = self._misses = self._tokens = 0
        self._marks = 0
        # A worker's
        self._caches: list[torch.Tensor] = []

    @property
    def requires_kv_delivery(self) -> bool:
        """False: a tail that is not kept costs time only."""
        return False

    # The scheduler's side

    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        """Take note of the pool whose blocks become tails."""
        self._pool = gpu_block_pool

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """How many tokens a tail has behind those that vLLM's own cache has.

        The last token is always computed. Asked again when a request could not be admitted.
        """
        start, last = num_computed_tokens, request.num_tokens - 1
        admission = _Admission(start // self._block_size)
        self._admissions[request.request_id] = admission
        if not self._works or not _is_text(request) or start % self._block_size or start >= last:
            return 0, False
        tokens = tuple(request.all_token_ids[start : min(start + self._block_size, last)])
        found = self._index.longest(_parent(request, admission.first, self._block_size), tokens)
        if found is None:
            admission.missed = True
            return 0, False
        admission.tail, shared = found
        self._offer(admission.tail, shared)
        return shared, False

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        """Have the tail copied into the request's block, unless that is the tail's own."""
        admission = self._admissions[request.request_id]
        tail = admission.tail
        if num_external_tokens > 0 and tail is not None:
            source = tail.block
            target = blocks.get_block_ids()[0][admission.first]
            if source.block_id == target:
                # Perhaps not as offered: if its last tokens are written over, the tail is lost.
                if num_external_tokens == len(tail.tokens):
                    tail.holder = _Holder(request, request.num_preemptions)
                    admission.held = tail
            else:
                self._copies.pairs.append((source.block_id, target))
                if tail.is_intact:
                    self._requeue(source)
            self._hits += 1
            self._tokens += num_external_tokens
        elif admission.missed:
            self._misses += 1
        admission.tail = None

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """Hand the copies of this step to the workers."""
        offered, self._offered = self._offered, []
        for tail in offered:
            self._take_back(tail)
        copies, self._copies = self._copies, Copies()
        return copies

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Keep what a request leaves behind; the counts go out with its last output."""
        admission = self._admissions.pop(request.request_id, None)
        ended = self._works and request.status in (
            RequestStatus.FINISHED_STOPPED,
            RequestStatus.FINISHED_LENGTH_CAPPED,
        )
        if ended and admission is not None and _is_text(request):
            self._keep(request, admission.first, block_ids[0])
        if admission is not None and admission.held is not None:
            self._let_go(admission.held)
        if not ended:
            return False, None
        counts = TailCounts(self._hits, self._misses, self._tokens, self._index.lost)
        return False, counts.report(self._vllm_config.parallel_config.data_parallel_index)

    def request_finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """As :meth:`request_finished_all_groups`, for one group."""
        return self.request_finished_all_groups(request, (block_ids,))

    def reset_cache(self) -> bool:
        """Forget all tails. vLLM has removed their marks with its own cache."""
        self._index.clear()
        return True

    def _keep(self, request: Request, first: int, block_ids: list[int]) -> None:
        assert self._pool is not None
        size = self._block_size
        # Of tokens that are still being computed, nothing is promised.
        valid = request.num_computed_tokens - request.num_output_placeholders
        for at in range(first, len(block_ids)):
            tokens = tuple(request.all_token_ids[at * size : min((at + 1) * size, valid)])
            if not tokens:
                break
            parent, block = _parent(request, at, size), self._pool.blocks[block_ids[at]]
            found = self._index.longest(parent, tokens)
            if found is not None and found[1] == len(tokens):
                continue
            if block.block_hash is None:
                self._mark(block, at * size + len(tokens))
            elif len(tokens) < size:
                break  # vLLM's own cache has all of it
            superseded = self._index.add(Tail(parent, tokens, block, block.block_hash))
            if superseded is not None and superseded.holder is None and _is_mark(superseded.mark):
                superseded.block.reset_hash()
                self._requeue(superseded.block)

    def _mark(self, block: KVCacheBlock, num_tokens: int) -> None:
        # Only a mark: the prefix cache does not have it, so that it matches nothing.
        self._marks += 1
        mark = BlockHash(MARK + str(self._marks).encode())
        block.set_block_hash(make_block_hash_with_group_id(mark, 0), num_tokens)

    def _offer(self, tail: Tail, shared: int) -> None:
        """Let the request that is being admitted have a tail's block, if it goes on behind it.

        The first block that vLLM takes from its queue will be the one that this request gets for
        what was matched here.
        """
        whole = shared == len(tail.tokens) and _is_mark(tail.mark)
        if whole and tail.holder is None and tail.block.ref_cnt == 0:
            tail.block.reset_hash()
            self._requeue(tail.block)
            self._offered.append(tail)

    def _take_back(self, tail: Tail) -> None:
        """Mark a block again that was offered to a request which was not admitted then."""
        block = tail.block
        if tail.holder is None and block.ref_cnt == 0 and block.block_hash is None:
            block.set_block_hash(tail.mark, len(tail.tokens))
            self._requeue(block)

    def _let_go(self, tail: Tail) -> None:
        """A holder has ended: its tail stays where nothing longer came of it."""
        is_intact, tail.holder = tail.is_intact, None
        if tail not in self._index:
            return
        if not is_intact:
            self._index.remove(tail)
        elif tail.block.block_hash is None:
            tail.block.set_block_hash(tail.mark, len(tail.tokens))
        else:
            tail.mark = tail.block.block_hash  # vLLM's own, which has cached the full block

    def _requeue(self, block: KVCacheBlock) -> None:
        """Put a free block in its place for reuse: last with a mark, first without."""
        assert self._pool is not None
        if block.ref_cnt == 0:
            self._pool.touch([block])
            self._pool.free_blocks([block])

    # The worker's side

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Take note of the layers' caches; a tensor-parallel rank has its shard of each."""
        self._caches = stacked(list(kv_caches.values()), self._num_blocks)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Copy this step's tails, on the device's current stream."""
        copies = self._get_connector_metadata()
        assert isinstance(copies, Copies)
        if copies.pairs:
            for cache in self._caches:
                (copy_in_turn if cache.is_cpu else copy_at_once)(cache, copies.pairs)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: copies precede the forward pass on its own stream."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **_: Any) -> None:
        """Nothing to save: tails stay where they are."""

    def wait_for_save(self) -> None:
        """Nothing to save."""


def _is_mark(block_hash: object) -> bool:
    """Whether a block's hash is none of vLLM's, whose prefix cache knows its own."""
    return isinstance(block_hash, bytes) and block_hash.startswith(MARK)


def _is_text(request: Request) -> bool:
    """Whether the tokens' ids say what the model reads."""
    return not request.mm_features and request.prompt_embeds is None


def _parent(request: Request, at: int, block_size: int) -> Hashable:
    """Stands for all that a request's block depends on besides its tokens.

    That is what vLLM hashes: the blocks before it, in a chain of hashes, the adapter, and in the
    first block the cache salt.
    """
    extra, _ = generate_block_hash_extra_keys(request, at * block_size, (at + 1) * block_size, 0)
    return (request.block_hashes[at - 1] if at else None, extra)
