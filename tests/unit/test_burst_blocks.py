"""Bursts on vLLM's own scheduler, with tails, beside a model of what workers write into blocks."""

import json
import random

import numpy as np
import pytest
import torch
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from bytelm.settings import EngineSettings
from bytelm.vllm import burst_scheduler, requests, start
from bytelm.vllm.burst_message import Asked, request_id

BLOCK, SEQS, LONGEST = 32, 16, 200
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Of a model of which there is nothing else."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    settings = EngineSettings(max_num_seqs=SEQS, kv_cache_memory_bytes=1 << 20)
    config = start._config(str(folder), settings, "cpu")
    config.model_config.skip_tokenizer_init = True
    config.scheduler_config.scheduler_cls = burst_scheduler.scheduler(config)
    return config


class Blocks:
    """A scheduler, and what stands in each place of the blocks: all tokens up to there, hashed."""

    def __init__(self, config, count: int) -> None:
        hashing = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
        init_none_hash(hashing)
        config.cache_config.num_gpu_blocks = count
        spec = FullAttentionSpec(
            block_size=BLOCK, num_kv_heads=1, head_size=32, dtype=torch.float32
        )
        groups = [KVCacheGroupSpec(["layer"], spec)]
        self.scheduler = config.scheduler_config.get_scheduler_cls()(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(count, kv_cache_tensors=[], kv_cache_groups=groups),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
            hash_block_size=BLOCK,
            include_finished_set=False,
            log_stats=False,
        )
        self.scheduler.connector.bind_gpu_block_pool(self.scheduler.kv_cache_manager.block_pool)
        self.contexts: dict[str, tuple[list[int], str | None]] = {}
        self.written = np.zeros((count, BLOCK), np.int64)
        self.tables: dict[str, list[int]] = {}
        self.sent = 0

    def send(self, contexts: list[tuple[list[int], str | None]]) -> None:
        """A burst."""
        asked = []
        for ids, salt in contexts:
            self.sent += 1
            asked.append(Asked(self.sent, 0, np.array(ids, np.int32).tobytes(), salt))
            self.contexts[request_id(self.sent)] = (ids, salt)
        params = requests.burst_params(asked)
        self.scheduler.add_request(Request(f"burst-{self.sent}", [0], params, None))

    def step(self) -> dict[str, bool]:
        """Compute a step: which requests were in it, and whether all that they read was right."""
        output = self.scheduler.schedule()
        for source, target in output.kv_connector_metadata.pairs:
            self.written[target] = self.written[source]
        begins = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        self.tables |= {new.req_id: list(new.block_ids[0]) for new in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        for i, name in enumerate(cached.req_ids):
            begins[name] = cached.num_computed_tokens[i]
            blocks = list((cached.new_block_ids[i] or ([],))[0])
            resumed = name in cached.resumed_req_ids
            self.tables[name] = blocks if resumed else self.tables[name] + blocks
        ends = {name: begins[name] + n for name, n in output.num_scheduled_tokens.items()}
        for name, end in ends.items():
            table, wanted = self.tables[name], self._prefixes(name)
            for at in range(begins[name], end):
                self.written[table[at // BLOCK], at % BLOCK] = wanted[at]
        right = {name: self._reads(name, end) for name, end in ends.items()}
        done = {name: end == len(self.contexts[name][0]) for name, end in ends.items()}
        made = ModelRunnerOutput(
            req_ids=list(ends),
            req_id_to_index={name: i for i, name in enumerate(ends)},
            sampled_token_ids=[[7] if done[name] else [] for name in ends],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        self.scheduler.update_from_output(output, made)
        return right

    def _prefixes(self, name: str) -> list[int]:
        ids, salt = self.contexts[name]
        found = [hash(("salt", salt))]
        for token in ids:
            found.append(hash((found[-1], token)))
        return found[1:]

    def _reads(self, name: str, end: int) -> bool:
        table, wanted = self.tables[name], self._prefixes(name)
        read = [self.written[table[at // BLOCK], at % BLOCK] for at in range(end)]
        return read == wanted[:end]


@pytest.mark.parametrize("count", [2000, 40])
def test_what_a_request_finds_in_its_blocks_is_its_own_beginning(config, count):
    blocks, draw = Blocks(config, count), random.Random(count)
    grown = [[1]]
    for _ in range(120):
        burst = []
        for _ in range(draw.randrange(1, 2 * SEQS)):
            beginning = draw.choice(grown)
            if draw.random() < 0.3:
                beginning = beginning[: draw.randrange(1, len(beginning) + 1)]
            more = draw.randrange(60) if draw.random() < 0.1 else draw.randrange(1, 4)
            ids = (beginning + draw.choices(range(5), k=more))[:LONGEST]
            grown.append(ids)
            burst.append((ids, draw.choice([None, None, "a"])))
        del grown[: max(0, len(grown) - 60)]
        blocks.send(burst)
        while blocks.scheduler.has_requests():
            if draw.random() < 0.1:
                given_up = request_id(draw.randrange(blocks.sent) + 1)
                blocks.scheduler.finish_requests([given_up], RequestStatus.FINISHED_ABORTED)
            right = blocks.step()
            assert all(right.values()), [name for name in right if not right[name]]
    assert blocks.scheduler.connector._hits > 10 * blocks.scheduler.connector._misses
    assert not blocks.scheduler._members
    assert not blocks.scheduler.requests


def test_blocks_are_looked_for_only_where_they_may_have_moved(config, monkeypatch):
    searched = []
    search = Scheduler._get_local_prefix_cache_hit

    def counting(self, request):
        searched.append(request.num_tokens)
        return search(self, request)

    monkeypatch.setattr(Scheduler, "_get_local_prefix_cache_hit", counting)
    blocks = Blocks(config, 100)

    def evaluate(length: int) -> int:
        blocks.send([(list(range(length)), None)])
        assert all(blocks.step().values())
        return length

    begin = 3 * BLOCK
    for length in range(begin, begin + 2 * BLOCK):
        evaluate(length)
    # The first one found none; of the others, who is the first behind a block's end.
    assert searched == [begin, begin + 1, begin + BLOCK + 1]
    assert blocks.scheduler.reset_prefix_cache(reset_connector=True)
    searched.clear()
    assert evaluate(begin + BLOCK) == searched[0]
    assert blocks.scheduler.requests == {}
