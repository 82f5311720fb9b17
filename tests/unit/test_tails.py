"""Tails on vLLM's own scheduler and block pool, with a worker whose KV can be read.

The KV of a token is a hash of all tokens up to it (and of salt and adapter): before a step, the
worker checks that every token before those that it computes has the KV that it should have.
"""

import hashlib
import json
import os
import random
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from vllm import AsyncEngineArgs, SamplingParams
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.lora.request import LoRARequest
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
    SlidingWindowSpec,
)
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from bytelm.settings import EngineSettings
from bytelm.vllm import start
from bytelm.vllm.block_copies import copy_at_once, copy_in_turn, stacked
from bytelm.vllm.tail_index import TailCounts
from bytelm.vllm.tails import (
    TailConnector,
    cache_obstacle,
    obstacle,
    transfer_config,
)

BLOCK = 4


@pytest.fixture(scope="module")
def configure(tmp_path_factory):
    """Makes vLLM configurations of a tiny model that has no weights."""
    folder = tmp_path_factory.mktemp("model")
    before = dict(os.environ)

    def write(architecture: dict | None = None) -> str:
        (folder / "config.json").write_text(
            json.dumps(
                {
                    "architectures": ["LlamaForCausalLM"],
                    "model_type": "llama",
                    "hidden_size": 64,
                    "intermediate_size": 64,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 1,
                    "num_hidden_layers": 2,
                    "vocab_size": 32,
                    "max_position_embeddings": 128,
                }
                | (architecture or {})
            )
        )
        return str(folder)

    def make(architecture: dict | None = None, **arguments):
        arguments = {"max_model_len": 64, "block_size": 32, "enforce_eager": True} | arguments
        return AsyncEngineArgs(
            model=write(architecture),
            skip_tokenizer_init=True,
            kv_cache_memory_bytes=1 << 20,
            **arguments,
        ).create_engine_config()

    make.write = write
    yield make
    # vLLM prepares the environment of the processes that it would start.
    os.environ.clear()
    os.environ.update(before)


def cache_of(num_blocks: int, **spec) -> KVCacheConfig:
    full = FullAttentionSpec(
        block_size=BLOCK, num_kv_heads=1, head_size=4, dtype=torch.int64, **spec
    )
    return KVCacheConfig(
        num_blocks=num_blocks,
        kv_cache_tensors=[
            KVCacheTensor(size=1, layers=["one", "two"], layer_stride=0, block_stride=0)
        ],
        kv_cache_groups=[KVCacheGroupSpec(["one", "two"], full)],
        hash_block_size=BLOCK,
    )


def digest(seed: str, tokens) -> int:
    data = f"{seed}:{list(tokens)}".encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=7).digest(), "big")


class Engine:
    """A scheduler and two tensor-parallel workers; a step may be in flight while one is planned."""

    def __init__(self, configure, num_blocks=64, *, depth=1, layers=2, **arguments):
        arguments = {"max_num_batched_tokens": 64, "max_num_seqs": 8} | arguments
        self.config = configure(kv_transfer_config=transfer_config(), **arguments)
        self.config.cache_config.num_gpu_blocks = num_blocks
        self.config.cache_config.block_size = BLOCK
        self.config.scheduler_config.async_scheduling = depth > 1
        cache = cache_of(num_blocks)
        init_none_hash(sha256)
        self.hasher = get_request_block_hasher(BLOCK, sha256)
        self.scheduler = (AsyncScheduler if depth > 1 else Scheduler)(
            self.config, cache, StructuredOutputManager(self.config), BLOCK, BLOCK
        )
        self.connector = self.scheduler.connector
        self.workers = []
        for rank in range(2):
            # Blocks are split in two for the kernel.
            buffer = torch.zeros(layers, num_blocks * 2, 1, BLOCK // 2, 1, dtype=torch.int64)
            worker = TailConnector(self.config, KVConnectorRole.WORKER, cache)
            worker.register_kv_caches({f"layer{n}": buffer[n] for n in range(layers)})
            self.workers.append((rank, buffer, worker))
        self.depth = depth
        self.in_flight = []
        self.tokens: dict[str, list[int]] = {}
        self.computed: dict[str, int] = {}
        self.outputs: dict[str, list[int]] = {}
        self.counts = TailCounts()
        self.count = 0

    @property
    def pool(self):
        return self.scheduler.kv_cache_manager.block_pool

    def add(self, tokens, *, max_tokens=1, salt=None, lora=None, stop=()) -> str:
        self.count += 1
        name = f"{self.count}"
        request = Request(
            name,
            list(tokens),
            SamplingParams(
                max_tokens=max_tokens, ignore_eos=True, temperature=0, stop_token_ids=list(stop)
            ),
            None,
            cache_salt=salt,
            lora_request=lora and LoRARequest(lora, 1, f"/{lora}"),
            block_hasher=self.hasher,
        )
        request.seed = f"{salt} {lora}"
        self.tokens[name], self.computed[name] = list(tokens), 0
        self.scheduler.add_request(request)
        return name

    def abort(self, name: str) -> None:
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def step(self) -> None:
        """Plan a step and compute it; learn of it once ``depth`` steps are in flight."""
        plan = self.scheduler.schedule()
        self.in_flight.append((plan, self._compute(plan)))
        if len(self.in_flight) == self.depth or not plan.num_scheduled_tokens:
            self._learn()

    def _compute(self, plan) -> ModelRunnerOutput:
        manager = self.scheduler.kv_cache_manager
        for _, _, worker in self.workers:
            if plan.has_sync_kv_loads:
                worker.bind_connector_metadata(plan.kv_connector_metadata)
                worker.start_load_kv(None)
            else:
                assert not plan.kv_connector_metadata.pairs
        steps = []
        for name, count in plan.num_scheduled_tokens.items():
            request = self.scheduler.requests[name]
            # Planning has counted this step's tokens already, and the one that it may sample.
            end = request.num_computed_tokens
            unknown = max(request.num_output_placeholders - (not request.is_prefill_chunk), 0)
            # A reset takes back what was sampled by steps in flight.
            del self.tokens[name][request.num_tokens + unknown :]
            steps.append((name, request.seed, manager.get_block_ids(name)[0], end - count, end))
            self.computed[name] += count
        for name, seed, blocks, begin, end in steps:
            for rank, buffer, _ in self.workers:
                flat = buffer.view(buffer.shape[0], -1)
                for at in range(begin, end):
                    kv = digest(seed, self.tokens[name][: at + 1])
                    for layer in range(len(flat)):
                        flat[layer, blocks[at // BLOCK] * BLOCK + at % BLOCK] = kv + rank + layer
        for name, seed, blocks, begin, _ in steps:
            for rank, buffer, _ in self.workers:
                flat = buffer.view(buffer.shape[0], -1)
                for at in range(begin):
                    kv = digest(seed, self.tokens[name][: at + 1])
                    for layer in range(len(flat)):
                        found = flat[layer, blocks[at // BLOCK] * BLOCK + at % BLOCK]
                        assert found == kv + rank + layer, f"request {name}, token {at}"
        sampled = []
        for name, seed, _, _, end in steps:
            tokens = self.tokens[name]
            new = [digest(seed, tokens) % 3] if end == len(tokens) else []
            tokens.extend(new)
            sampled.append(new)
        names = [name for name, *_ in steps]
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: n for n, name in enumerate(names)},
            sampled_token_ids=sampled,
        )

    def _learn(self) -> None:
        plan, output = self.in_flight.pop(0)
        if not plan.num_scheduled_tokens:
            return
        for outputs in self.scheduler.update_from_output(plan, output).values():
            for out in outputs.outputs:
                self.outputs.setdefault(out.request_id, []).extend(out.new_token_ids)
                if out.finish_reason is not None:
                    core, self.counts = TailCounts.reported(out.kv_transfer_params)
                    assert core == 0

    def settle(self) -> None:
        for _ in range(1000):
            if not self.scheduler.requests and not self.in_flight:
                return
            if self.scheduler.requests:
                self.step()
            while self.in_flight and (
                not self.scheduler.requests or len(self.in_flight) >= self.depth
            ):
                self._learn()
        raise AssertionError("requests starve")

    def run(self, tokens, **options) -> int:
        """Compute a request to its end; how many tokens that took."""
        name = self.add(tokens, **options)
        self.settle()
        return self.computed[name]


@pytest.fixture
def engine(configure):
    return Engine(configure)


# What is saved


def test_a_context_that_goes_on_computes_its_new_tokens_only(engine):
    assert engine.run([1, 2, 0, 1, 2, 1]) == 6
    for length in range(7, 20):
        assert engine.run(([1, 2, 0, 1, 2, 1] + [0] * 20)[:length]) == 1


def test_forks_compute_their_new_tokens_only(engine):
    engine.run([1, 2, 0, 1, 2, 1])
    for token in (7, 8, 9):
        assert engine.run([1, 2, 0, 1, 2, 1, token]) == 1
    assert engine.run([1, 2, 0, 1, 2, 1, 8, 5, 6]) == 2


def test_a_context_that_goes_on_takes_its_tails_block_over(engine):
    engine.run([1, 2, 0])
    (tail,) = engine.connector._index._of_block.values()
    name = engine.add([1, 2, 0, 5], max_tokens=2)
    engine.step()
    manager = engine.scheduler.kv_cache_manager
    assert manager.get_block_ids(name)[0] == [tail.block.block_id]
    engine.settle()
    assert engine.run([1, 2, 0, 5]) == 1


def test_others_go_on_from_a_tail_whose_block_is_in_use(engine):
    engine.run([1, 2, 0, 1, 2])
    engine.add([1, 2, 0, 1, 2, 5], max_tokens=9)
    engine.step()
    assert engine.run([1, 2, 0, 1, 2, 6]) == 1


def test_a_tail_outlives_a_request_that_took_it_over_and_was_aborted(engine):
    engine.run([1, 2, 0, 1, 2])
    name = engine.add([1, 2, 0, 1, 2, 5, 6, 7, 8, 9], max_tokens=9)
    engine.step()
    engine.abort(name)
    assert engine.counts.evictions == 0
    assert engine.run([1, 2, 0, 1, 2, 6]) == 1


def test_a_tail_outlives_a_request_that_was_matched_but_not_admitted(configure):
    engine = Engine(configure, num_blocks=8)
    engine.run([1, 2])
    holder = engine.add([9] * 16, max_tokens=2)
    engine.step()
    # It needs seven blocks, of which four are in use.
    waiting = engine.add([1, 2, *range(10, 32)])
    engine.step()
    assert engine.computed[waiting] == 0
    assert engine.run([1, 2, 5]) == 1
    engine.abort(holder)
    engine.settle()


def test_a_tail_is_lost_with_a_preempted_request_that_took_it_over(configure):
    engine = Engine(configure, num_blocks=7)
    engine.run([1, 2])
    engine.add([5] * 11, max_tokens=9)
    name = engine.add([1, 2, 5], max_tokens=9)
    while not engine.scheduler.requests[name].num_preemptions:
        engine.step()
    held = engine.connector._index
    assert not any(tail.is_intact for tail in held._of_block.values() if tail.tokens == (1, 2))
    engine.settle()


def test_forks_of_one_step_share_a_source(engine):
    engine.run([1, 2, 0, 1, 2, 1])
    names = [engine.add([1, 2, 0, 1, 2, 1, token]) for token in (7, 8, 9)]
    engine.settle()
    assert [engine.computed[name] for name in names] == [1, 1, 1]


@pytest.mark.parametrize("at", range(1, 15))
def test_a_fork_anywhere_in_a_context_computes_from_there_on(engine, at):
    tokens = list(range(1, 16))
    engine.run(tokens)
    assert engine.run([*tokens[:at], 30]) == 1


@pytest.mark.parametrize("length", range(1, 12))
def test_the_same_context_again_computes_its_last_token(engine, length):
    tokens = list(range(1, length + 1))
    engine.run(tokens)
    assert engine.run(tokens) == 1


@pytest.mark.parametrize("depth", [1, 2])
def test_generated_tokens_are_kept(configure, depth):
    engine = Engine(configure, depth=depth)
    name = engine.add([1, 2, 0], max_tokens=7)
    engine.settle()
    text = [1, 2, 0, *engine.outputs[name]]
    assert len(text) == 10
    # The last token was sampled but never read.
    assert engine.run(text) == 1
    assert engine.run([*text, 5]) == 1


def test_a_prompt_that_was_computed_in_chunks_is_kept(configure):
    engine = Engine(configure, max_num_batched_tokens=8, max_num_seqs=4)
    tokens = list(range(22))
    assert engine.run(tokens) == 22
    assert engine.run([*tokens, 3]) == 1


def test_an_aborted_request_leaves_no_tail(engine):
    name = engine.add([1, 2, 0, 1, 2, 1], max_tokens=20)
    engine.step()
    engine.abort(name)
    # Two tokens more than a block: vLLM's own cache has the block.
    assert engine.run([1, 2, 0, 1, 2, 1, 0]) == 3
    assert not engine.connector._admissions


# What must be equal besides the tokens


@pytest.mark.parametrize("tokens", [[1, 2], [1, 2, 0, 1, 2, 1]], ids=["short", "long"])
@pytest.mark.parametrize("other", [{"salt": "b"}, {}, {"lora": "b"}, {"salt": "a", "lora": "b"}])
def test_salts_and_adapters_share_nothing(engine, tokens, other):
    engine.run(tokens, salt="a")
    assert engine.run([*tokens, 0], **other) == len(tokens) + 1
    assert engine.run([*tokens, 0], salt="a") == 1


def test_equal_last_blocks_after_different_ones_share_nothing(engine):
    engine.run([1, 1, 1, 1, 5, 6])
    assert engine.run([1, 1, 1, 2, 5, 6, 7]) == 4  # three tokens of the first block are shared


# Blocks


def test_tails_count_as_free(engine):
    free = engine.pool.get_num_free_blocks()
    engine.run([1, 2, 0, 1, 2, 1])
    assert engine.pool.get_num_free_blocks() == free


def test_a_chain_holds_one_block_for_its_tail(engine):
    for length in range(1, 4):
        engine.run([1, 2, 0][:length])
    assert len(engine.connector._index) == 1
    marked = [block for block in engine.pool.blocks if block.block_hash is not None]
    assert len(marked) == 1


def test_unmarked_blocks_are_used_before_tails(configure):
    engine = Engine(configure, num_blocks=8)
    for token in range(5):
        engine.run([token, 1, 2])
    assert engine.counts.evictions == 0
    for token in range(5):
        assert engine.run([token, 1, 2, 3]) == 1


def test_the_least_recently_used_tail_goes_first(configure):
    engine = Engine(configure, num_blocks=5)
    for token in (1, 2, 3):
        engine.run([token, 5, 6])
    engine.run([1, 5, 7])  # uses the first tail and is one itself
    engine.run([4, 4])
    assert engine.run([1, 5, 6, 8]) == 1
    assert engine.run([2, 5, 6, 8]) == 4


def test_lost_tails_are_counted(configure):
    engine = Engine(configure, num_blocks=3)
    for token in range(6):
        engine.run([token, 1])
    assert engine.counts.evictions >= 3


def test_a_source_that_is_handed_out_in_its_own_step_is_read_first(configure):
    engine = Engine(configure, num_blocks=4)
    engine.run([1, 2, 0])
    # All three blocks are needed: among them the tail, behind the others in the queue.
    assert engine.run([1, 2, 0, *range(3, 12)]) == 9


def test_a_block_that_is_filled_anew_with_the_same_tokens_is_no_source_yet(configure):
    engine = Engine(configure, num_blocks=5)
    engine.run([0, 0, 0, 0, 1, 2, 3, 4])
    name = engine.add([5] * 13, max_tokens=2)
    engine.step()
    engine.abort(name)
    # The first gets the blocks that had its tokens before; the second parts from it in the last.
    names = [engine.add([0, 0, 0, 0, 1, 2, 3, 4]), engine.add([0, 0, 0, 0, 1, 2, 9])]
    engine.settle()
    assert [engine.computed[name] for name in names] == [8, 3]


@pytest.mark.parametrize("reset_connector", [True, False])
def test_a_reset_of_the_prefix_cache_resets_tails(engine, reset_connector):
    engine.run([1, 2, 0, 1, 2, 1])
    assert engine.scheduler.reset_prefix_cache(reset_connector=reset_connector)
    assert engine.run([1, 2, 0, 1, 2, 1, 0]) == 7


def test_a_reset_may_follow_the_last_request_at_once(engine):
    name = engine.add([1, 2, 0])
    engine.step()
    assert name in engine.outputs
    assert engine.scheduler.reset_prefix_cache(reset_connector=True)


# Counts


def test_counts_go_out_with_the_last_output(engine):
    engine.run([1, 2, 0, 1, 2, 1])
    engine.run([1, 2, 0, 1, 2, 1, 0])
    engine.run([5, 2, 0])
    assert engine.counts == TailCounts(hits=1, misses=2, tokens=2, evictions=0)


# Copies


def memory_of(kind: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Memory, and the caches in it: three layers of five blocks, each in two parts."""
    memory = torch.arange(4 * 10 * 6)
    if kind == "layer by layer":
        return memory, list(memory.view(4, 10, 2, 3)[:3])
    if kind == "block by block":
        return memory, list(memory.view(10, 4, 2, 3).unbind(1)[:3])
    layers = memory.view(4, 10, 2, 3)
    return memory, [layers[3], layers[0], layers[1], layers[0]]  # two share their KV


@pytest.mark.parametrize(
    ("kind", "views"), [("layer by layer", 1), ("block by block", 1), ("uneven", 3)]
)
@pytest.mark.parametrize("copy", [copy_in_turn, copy_at_once, partial(copy_at_once, batch=1)])
def test_blocks_are_copied_in_all_layers(kind, views, copy):
    memory, caches = memory_of(kind)
    found = stacked(caches, 5)
    assert len(found) == views
    for view in found:
        copy(view, [(1, 2), (4, 1)])
    expected, caches = memory_of(kind)
    for layer in caches[:3]:
        layer[4:6] = layer[2:4].clone()
        layer[2:4] = layer[8:10].clone()
    assert torch.equal(memory, expected)


# Everything at once


@pytest.mark.parametrize(
    ("depth", "num_blocks", "batch"),
    [(1, 64, 64), (1, 14, 8), (2, 64, 64), (2, 14, 8), (3, 18, 64)],
)
def test_all_kv_is_right_whatever_happens(configure, depth, num_blocks, batch):
    engine = Engine(
        configure, num_blocks, depth=depth, max_num_batched_tokens=batch, max_num_seqs=8, layers=1
    )
    draw = random.Random(f"{depth} {num_blocks} {batch}")
    seeds = [{}, {"salt": "a"}, {"lora": "b"}]
    texts: list[tuple[list[int], dict]] = [([0], {})]
    running: list[str] = []
    preempted = 0
    for _ in range(600):
        for _ in range(draw.choice([0, 0, 1, 1, 2, 5])):
            tokens, options = draw.choice(texts[-20:])
            tokens = tokens[: draw.randint(1, len(tokens))] if draw.random() < 0.3 else tokens
            tokens = (tokens + [draw.randrange(3) for _ in range(draw.choice([1, 1, 2, 9]))])[:32]
            if draw.random() < 0.1:
                tokens, options = [draw.randrange(3) for _ in range(5)], draw.choice(seeds)
            length, stop = draw.choice([(1, [])] * 3 + [(6, []), (9, [1])])
            running.append(engine.add(tokens, max_tokens=length, stop=stop, **options))
            texts.append((tokens, options))
        if draw.random() < 0.1 and running:
            engine.abort(draw.choice(running[-8:]))
        if draw.random() < 0.01:
            engine.scheduler.reset_prefix_cache(
                reset_running_requests=draw.random() < 0.5, reset_connector=True
            )
        engine.step()
        preempted += sum(r.num_preemptions > 0 for r in engine.scheduler.requests.values())
        assert len(engine.connector._index) < num_blocks
    engine.settle()
    assert engine.counts.hits > 100
    assert engine.pool.get_num_free_blocks() == num_blocks - 1
    assert not engine.connector._admissions
    if num_blocks < 20:
        assert preempted
        assert engine.counts.evictions > 20


# Models and caches without tails


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ({}, None),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "a part of the context"),
        ({"sliding_window": 16}, "a part of the context"),
    ],
)
def test_the_models_that_have_no_tails(configure, architecture, reason):
    found = obstacle(configure(architecture))
    assert found is None if reason is None else reason in found


def test_an_engine_starts_with_tails_unless_they_are_turned_off(configure):
    folder = configure.write()
    settings = EngineSettings(kv_cache_memory_bytes=1 << 20)
    config = start._config(folder, settings, "cpu")
    assert config.kv_transfer_config.kv_connector == TailConnector.__name__
    config = start._config(folder, settings.model_copy(update={"tails": False}), "cpu")
    assert config.kv_transfer_config is None


def test_an_engine_of_a_model_without_tails_says_so_once(configure, caplog):
    folder = configure.write({"sliding_window": 16})
    config = start._config(folder, EngineSettings(kv_cache_memory_bytes=1 << 20), "cpu")
    assert config.kv_transfer_config is None
    assert sum("tails are off" in record.message for record in caplog.records) == 1


def test_no_tails_without_the_prefix_cache(configure):
    assert "prefix caching" in obstacle(configure(enable_prefix_caching=False))


def test_counts_of_several_engine_cores_add_up():
    assert TailCounts.sum([]) == TailCounts()
    assert TailCounts.sum([TailCounts(1, 2, 3, 4), TailCounts(10, 20, 30, 40)]) == TailCounts(
        11, 22, 33, 44
    )


def test_a_cache_of_several_groups_has_no_tails():
    cache = cache_of(8)
    assert cache_obstacle(cache) is None
    window = SlidingWindowSpec(
        block_size=BLOCK, num_kv_heads=1, head_size=4, dtype=torch.int64, sliding_window=8
    )
    assert "SlidingWindowSpec" in cache_obstacle(
        SimpleNamespace(
            kv_cache_groups=[KVCacheGroupSpec(["one"], window)],
            needs_kv_cache_zeroing=False,
            hash_block_size=BLOCK,
        )
    )
    cache.kv_cache_groups.append(KVCacheGroupSpec(["three"], window))
    assert "groups" in cache_obstacle(cache)
