"""What models take on GPUs, against sums made by hand and against what was measured."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from transformers import CONFIG_MAPPING

from bytelm.errors import InputError
from bytelm.settings import ServerSettings
from bytelm_client.sizing import (
    GPUS,
    PRESETS,
    Figure,
    Load,
    ModelShape,
    figures,
    gpu_named,
    of_dtype,
    shape_in,
    shape_of,
)
from bytelm_client.sizing import estimate as constants

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
H100 = GPUS["H100"]

LLAMA_8B = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 131072,
}


def by_name(shape: ModelShape, load: Load | None = None, gpu: str = "H100") -> dict[str, Figure]:
    return {one.name: one for one in figures(shape, GPUS[gpu], load or Load())}


def value(shape: ModelShape, name: str, load: Load | None = None, gpu: str = "H100") -> float:
    return by_name(shape, load, gpu)[name].value


@pytest.mark.parametrize(
    ("preset", "parameters", "kv"),
    [
        # As the models' own pages count them; layers · 2 · KV heads · width · 2 bytes.
        ("135m", 134_515_008, 30 * 2 * 3 * 64 * 2),
        ("1b", 1_235_814_400, 16 * 2 * 8 * 64 * 2),
        ("8b", 8_030_261_248, 32 * 2 * 8 * 128 * 2),
        ("70b", 70_553_706_496, 80 * 2 * 8 * 128 * 2),
    ],
)
def test_parameters_and_cache_are_those_of_the_published_models(
    preset: str, parameters: int, kv: int
) -> None:
    assert PRESETS[preset].parameters == parameters
    assert PRESETS[preset].kv_bytes_per_token == kv


def test_a_config_gives_the_same_as_the_preset() -> None:
    assert shape_of(LLAMA_8B, "Llama-3.1-8B") == PRESETS["8b"]


def test_experts_are_all_kept_and_few_are_used() -> None:
    mixtral: dict[str, Any] = {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 32000,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
    shape = shape_of(mixtral, "Mixtral-8x7B")
    assert shape.parameters == 46_702_792_704
    # 12.9 billion, as its makers say, without the first matrix.
    assert shape.active_parameters == 12_879_925_248 - 32000 * 4096


def test_a_text_model_inside_another_is_found() -> None:
    assert shape_of({"text_config": LLAMA_8B}, "x").parameters == PRESETS["8b"].parameters


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kv_lora_rank": 512}, "kv_lora_rank"),
        ({"num_hidden_layers": None}, "no num_hidden_layers"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"torch_dtype": "int3"}, "int3"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        shape_of({**LLAMA_8B, **change}, "x")


def test_weights_that_are_there_are_counted_by_their_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    assert shape_in(tmp_path).read_bytes is None
    save_file({"a": np.zeros(1000, np.float32)}, tmp_path / "model-1.safetensors")
    save_file({"b": np.zeros(10, np.float16)}, tmp_path / "model-2.safetensors")
    shape = shape_in(tmp_path)
    assert shape.weight_bytes == 4020
    assert by_name(shape)["weights"].kind == "measured"
    assert shape_in(tmp_path, "fp8").weight_bytes == 8_030_261_248


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder without weights."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    return tmp_path


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (lambda data: data[:-1], "cut"),
        (lambda data: data[:50], "cut"),
        (lambda data: data[:7], "cut"),
        (lambda data: bytes(len(data)), "cut"),
    ],
    ids=["pointer", "tensors", "header", "length", "zeros"],
)
def test_weights_that_are_not_whole_are_refused(
    folder: Path, damage: Callable[[bytes], bytes], said: str
) -> None:
    file = folder / "model.safetensors"
    save_file({"a": np.zeros(1000, np.float32)}, file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=rf"model\.safetensors: .*{said}"):
        shape_in(folder)
    assert shape_in(folder, "fp8").weight_bytes == 8_030_261_248


def test_weights_in_two_layouts_are_counted_once(folder: Path) -> None:
    whole = {"a": np.zeros(100, np.float32), "b": np.zeros(10, np.float32)}
    save_file(whole, folder / "consolidated.safetensors")
    save_file(whole, folder / "model.safetensors")
    assert shape_in(folder).weight_bytes == 440
    (folder / "model.safetensors").unlink()
    names = {name: f"model-{name}.safetensors" for name in whole}
    for name, array in whole.items():
        save_file({name: array}, folder / names[name])
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert shape_in(folder).weight_bytes == 440


def test_weights_must_be_all_there_or_none(folder: Path) -> None:
    names = {"a": "model-a.safetensors", "b": "model-b.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert shape_in(folder).read_bytes is None
    save_file({"a": np.zeros(100, np.float32)}, folder / names["a"])
    with pytest.raises(InputError, match=r"1 of 2 files .* model-b\.safetensors"):
        shape_in(folder)


TIED = ["cohere", "cohere2", "ernie4_5", "gemma", "gemma2", "gemma3_text", "smollm3"]


@pytest.mark.parametrize("kind", [*TIED, "llama", "mistral", "phi3", "qwen2", "qwen3"])
def test_the_last_matrix_is_the_first_where_a_silent_config_means_that(kind: str) -> None:
    silent = {**LLAMA_8B, "model_type": kind}
    del silent["tie_word_embeddings"]
    means = CONFIG_MAPPING[kind]().tie_word_embeddings
    assert means == (kind in TIED)
    assert shape_of(silent, "x").tied == means
    assert shape_of({"text_config": silent}, "x").tied == means
    assert not shape_of({**silent, "tie_word_embeddings": False}, "x").tied


def test_memory_of_8b_on_an_h100_by_hand() -> None:
    found = by_name(PRESETS["8b"])
    assert found["weights"].value == 2 * 8_030_261_248
    assert found["GPUs"].value == 1
    # 90 % of 80 GB, less 3 GB and the weights, over 128 KiB
    assert found["tokens in the KV cache"].value == int((72e9 - 3e9 - 16_060_522_496) / 131072)
    assert found["sessions of 2,048 tokens"].value == 197
    # The order, and slots of a number, 257 masses and a row, each in whole cache lines.
    order, slot = 64 * 16065, 64 * (1 + 33 + 8016)
    assert found["shared memory for rows"].value == order + 256 * slot


def test_speed_of_8b_on_an_h100_by_hand() -> None:
    found = by_name(PRESETS["8b"], Load(efficiency=0.5))
    read = 2 * (8_030_261_248 - 128256 * 4096) + 128 * 2048 * 131072
    assert found["step: reading memory"].value == pytest.approx(read / (0.5 * 3350e9))
    products = 128 * (2 * (8_030_261_248 - 128256 * 4096) + 4 * 32 * 32 * 128 * 2048)
    assert found["step: products"].value == pytest.approx(products / (0.5 * 989e12))
    assert found["step: rows to the host"].value == pytest.approx(128 * 128256 * 4 / (0.5 * 64e9))
    step = (read / 3350e9 + 128 * 128256 * 4 / 64e9) / 0.5 + 2e-3
    assert found["evaluations/s of the GPUs"].value == pytest.approx(128 / step)
    assert found["bytes/s of the GPUs"].value == pytest.approx(128 / step / 0.421)


def test_the_slower_of_gpus_and_host_decides() -> None:
    fast, slow = by_name(PRESETS["1b"]), by_name(PRESETS["8b"], gpu="L4", load=Load(gpus=1))
    for found, limit in ((fast, "host"), (slow, "GPUs")):
        reached = found[f"evaluations/s of the {limit}"].value / 0.421
        assert found["bytes/s of a server"].value == pytest.approx(reached)
        assert limit in found["bytes/s of a server"].how


def test_a_model_is_split_over_as_few_gpus_as_hold_it() -> None:
    assert value(PRESETS["70b"], "GPUs") == 4
    assert value(PRESETS["70b"], "GPUs", Load(concurrent=1)) == 4
    assert value(PRESETS["70b"], "GPUs", gpu="B200") == 2
    assert value(of_dtype(PRESETS["70b"], "fp8"), "GPUs", Load(concurrent=1)) == 2
    assert value(PRESETS["70b"], "GPUs", Load(gpus=8)) == 8


def test_heads_of_keys_that_are_fewer_than_gpus_are_copied() -> None:
    one = value(PRESETS["1b"], "tokens in the KV cache", Load(gpus=8))
    two = value(PRESETS["1b"], "tokens in the KV cache", Load(gpus=16))
    weights = 2 * 1_235_814_400
    assert one == int((8 * 69e9 - weights) / 32768)
    assert two == int((16 * 69e9 - weights) / 65536)


def test_heads_of_keys_are_shared_evenly_too() -> None:
    phi = ModelShape("Phi-3-medium", 40, 5120, 40, 10, 128, 17920, 32064, tied=False)
    with pytest.raises(InputError, match="10 of keys and values, which 4 GPUs"):
        figures(phi, H100, Load(gpus=4))
    assert value(phi, "GPUs", Load(gpus=5)) == 5
    # Two do not hold it, and four have more than enough memory.
    with pytest.raises(InputError, match="10 of keys and values, can be split"):
        figures(phi, GPUS["L4"], Load(context=1024))


def test_a_step_has_no_more_contexts_than_fit() -> None:
    found = by_name(PRESETS["8b"], Load(gpus=1), gpu="L4")
    assert found["sessions of 2,048 tokens"].value < 128
    assert found["step: products"].how == f"{found['sessions of 2,048 tokens'].value} contexts"


@pytest.mark.parametrize(
    ("load", "gpu", "said"),
    [
        (Load(gpus=1), "L4", "do not fit on 1 of NVIDIA L4"),
        (Load(gpus=3), "H100", "64 heads"),
        (Load(context=1 << 18), "H100", "at most 131072"),
        (Load(concurrent=1 << 20), "L4", "--concurrent"),
    ],
)
def test_what_does_not_fit_is_said(load: Load, gpu: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        figures(PRESETS["70b"], GPUS[gpu], load)


def test_gpus_are_found_however_they_are_written() -> None:
    assert gpu_named("rtx 4090") is GPUS["RTX4090"]
    with pytest.raises(InputError, match="H100, "):
        gpu_named("TPU")


def test_every_figure_says_where_it_is_from() -> None:
    given = Load(gpus=1, evaluations_per_byte=0.5)
    assert by_name(PRESETS["1b"], given)["evaluations per byte"].kind == "assumed"
    for found in (by_name(PRESETS["1b"]), by_name(PRESETS["1b"], given)):
        assert {one.kind for one in found.values()} == {
            "measured", "computed", "published", "assumed"
        }  # fmt: skip
        assert all(one.how for one in found.values())


def test_sessions_take_more_where_the_vocabulary_is_larger() -> None:
    small = replace(PRESETS["1b"], vocab=constants.MEASURED_VOCAB)
    assert value(small, "in memory after next") == constants.ASKED
    twice = replace(small, vocab=2 * constants.MEASURED_VOCAB)
    assert value(twice, "in memory after next") == 2 * constants.ASKED
    assert value(twice, "beam in the store") == value(small, "beam in the store")


def test_what_counts_as_measured_is_what_was_measured() -> None:
    host = json.loads((RESULTS / "bench_host.json").read_text())
    (many,) = [m for m in host["medians"] if (m["library"], m["states"]) == ("bytelm", 32)]
    assert many["us_per_evaluation"] * 1e-6 == pytest.approx(constants.ROW_SECONDS, rel=0.1)
    byte = many["us_per_byte_without_evaluations"] * 1e-6
    assert byte == pytest.approx(constants.BYTE_SECONDS, rel=0.1)
    memory = json.loads((RESULTS / "session_memory.json").read_text())
    assert memory["vocabulary"] == constants.MEASURED_VOCAB
    for name, used in [
        ("head", constants.STORED_HEAD), ("moved", constants.MOVED), ("asked", constants.ASKED)
    ]:  # fmt: skip
        assert memory["all"][name]["mean"] == pytest.approx(used, rel=0.1)
    default = json.loads((RESULTS / "greedy_cost.json").read_text())[0]
    fields = ServerSettings.model_fields
    for name in ("K", "prune_threshold", "tokenizations"):
        assert default[name] == fields[f"default_{name}"].default
    per_byte = default["evaluations"] / default["bytes"]
    assert per_byte == pytest.approx(constants.EVALUATIONS_PER_BYTE, rel=0.01)
    profile = (RESULTS / "engine_profile.md").read_text()
    parts = re.search(r"\| 128 \| ([\d.]+) \| ([\d.]+) \| [\d.]+ \| ([\d.]+) \|", profile)
    assert parts is not None
    sending = sum(map(float, parts.groups())) * 1e-3 / 128
    assert sending == pytest.approx(constants.SENDING_SECONDS, rel=0.1)
