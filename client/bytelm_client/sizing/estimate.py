"""How much fits, and how fast it goes.

Every figure says where it is from: it was *measured* (on what), *computed* (from what), *published*
by a vendor, or *assumed*. Must not know how figures are shown.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

from bytelm.errors import InputError
from bytelm.settings import EngineSettings
from bytelm.vllm.slots import SlotsAddress
from bytelm_client.sizing.gpus import Gpu
from bytelm_client.sizing.shapes import ModelShape

Kind = Literal["measured", "computed", "published", "assumed"]

EVALUATIONS_PER_BYTE = 0.421
"""Greedy by the default beam, prefill included: tests/benchmarks/results/greedy_cost.json."""
SENDING_SECONDS = 25.1e-3 / 128
"""The server's work for an evaluation, its row's reading apart: engine_profile.md, 128 at once."""
ROW_SECONDS = 65e-6
"""Reading a row of ``MEASURED_VOCAB``: tests/benchmarks/results/bench_host.json."""
CORE_SECONDS = 0.2e-3
"""The engine core's work for an evaluation, in a process of its own: engine_profile.md."""
BYTE_SECONDS = 40e-6
"""The beam's work for a byte: bench_host.json."""
STORED_HEAD, MOVED, ASKED = 404, 15_852, 353_795
"""Bytes of a session, on average: tests/benchmarks/results/session_memory.json."""
MEASURED_VOCAB = 49_152
"""The vocabulary of the model that all of these were measured with."""
TOKEN_BYTES = 4
"""Of a token in the store."""

OVERHEAD = 3e9
"""Memory of each GPU that is neither weights nor cache: activations, graphs, the runtime."""
STEP_SECONDS = 2e-3
"""Of a step, whatever is in it: scheduling, launching kernels."""
MOST_GPUS = 64


@dataclass(frozen=True)
class Load:
    """What is asked of the GPUs.

    Attributes:
        context: tokens of each context.
        concurrent: evaluations at a time.
        gpus: that the model is split over; None for as many as it needs.
        utilization: share of the memory that is used.
        efficiency: share of the published rates that is reached.
        evaluations_per_byte: that a byte takes.
    """

    context: int = 2048
    concurrent: int = EngineSettings.model_fields["max_num_seqs"].default
    gpus: int | None = None
    utilization: float = EngineSettings.model_fields["gpu_memory_utilization"].default
    efficiency: float = 0.6
    evaluations_per_byte: float = EVALUATIONS_PER_BYTE


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        about: the part of the answer that it belongs to.
        name: what it is.
        value: in ``unit``.
        unit: ``bytes``, ``seconds``, ``1/s``, or nothing.
        kind: where it is from.
        how: from what.
    """

    about: str
    name: str
    value: float
    unit: str
    kind: Kind
    how: str


def figures(shape: ModelShape, gpu: Gpu, load: Load) -> list[Figure]:
    """Everything about a model on a kind of GPU.

    Args:
        shape: the model.
        gpu: the GPU.
        load: what is asked of it.

    Raises:
        InputError: when it does not fit, or the model takes no such context.
    """
    if shape.longest is not None and load.context > shape.longest:
        raise InputError(f"--context: {shape.name} takes at most {shape.longest} tokens")
    gpus = _checked(shape, gpu, load) if load.gpus else _fewest(shape, gpu, load)
    return [
        *_memory(shape, gpu, load, gpus),
        *_sessions(shape, load),
        *_speed(shape, gpu, load, gpus),
    ]


def _cached_tokens(shape: ModelShape, gpu: Gpu, load: Load, gpus: int) -> int:
    """How many tokens' keys and values there is room for; negative where not even for weights."""
    room = gpus * (gpu.memory * load.utilization - OVERHEAD) - shape.weight_bytes
    return math.floor(room / (shape.kv_bytes_per_token * _copies(shape, gpus)))


def _copies(shape: ModelShape, gpus: int) -> float:
    """How often keys and values are kept: heads that are fewer than GPUs are copied."""
    return max(1.0, gpus / shape.kv_heads)


def _can_split(shape: ModelShape, gpus: int) -> bool:
    """Whether each GPU gets as many heads as any other; vLLM asserts that."""
    few, many = sorted((shape.kv_heads, gpus))
    return shape.heads % gpus == 0 and many % few == 0


def _fewest(shape: ModelShape, gpu: Gpu, load: Load) -> int:
    """The fewest GPUs that hold the weights and the contexts of a step."""
    gpus = 1
    while gpus <= MOST_GPUS:
        tokens = _cached_tokens(shape, gpu, load, gpus)
        if _can_split(shape, gpus) and tokens >= load.context * load.concurrent:
            return gpus
        gpus *= 2
    raise InputError(
        f"{shape.name} and {load.concurrent} contexts of {load.context} tokens do not fit on any "
        f"number of {gpu.full_name} that its {shape.heads} heads, {shape.kv_heads} of keys and "
        "values, can be split over: ask for fewer (--concurrent), shorter ones (--context), other "
        "GPUs (--gpu), or name a number (--gpus)"
    )


def _checked(shape: ModelShape, gpu: Gpu, load: Load) -> int:
    """The number of GPUs that is asked for."""
    gpus = load.gpus or 1
    if not _can_split(shape, gpus):
        raise InputError(
            f"--gpus: {shape.name} has {shape.heads} heads, {shape.kv_heads} of keys and values, "
            f"which {gpus} GPUs cannot share evenly"
        )
    if _cached_tokens(shape, gpu, load, gpus) < load.context:
        raise InputError(
            f"--gpus: {shape.name} and a context of {load.context} tokens do not fit on {gpus} of "
            f"{gpu.full_name}"
        )
    return gpus


def _memory(shape: ModelShape, gpu: Gpu, load: Load, gpus: int) -> list[Figure]:
    figure = partial(Figure, "memory")
    tokens = _cached_tokens(shape, gpu, load, gpus)
    slots = SlotsAddress("", 2 * load.concurrent, shape.vocab)
    many = f"the fewest for weights and {load.concurrent} contexts"
    return [
        figure("parameters", shape.parameters, "", "computed", "the config"),
        figure("GPUs", gpus, "", *(("assumed", "as given") if load.gpus else ("computed", many))),
        figure("memory of a GPU", gpu.memory, "bytes", "published", "data sheet"),
        figure("weights", shape.weight_bytes, "bytes", *_source_of_weights(shape)),
        figure("other memory of a GPU", OVERHEAD, "bytes", "assumed", "activations, graphs, CUDA"),
        figure("KV of a token", shape.kv_bytes_per_token, "bytes", "computed", "the config"),
        figure("tokens in the KV cache", tokens, "", "computed", f"{load.utilization:.0%} used"),
        figure(
            f"sessions of {load.context:,} tokens",
            tokens // load.context,
            "",
            "computed",
            "none has tokens of another",
        ),
        figure("shared memory for rows", slots.nbytes, "bytes", "computed", f"{slots.count} slots"),
    ]


def _source_of_weights(shape: ModelShape) -> tuple[Kind, str]:
    if shape.read_bytes is None:
        return "computed", f"parameters, in {shape.dtype}"
    return "measured", "the files"


def _sessions(shape: ModelShape, load: Load) -> list[Figure]:
    figure = partial(Figure, "a session")
    wider = shape.vocab / MEASURED_VOCAB
    by_vocab = "measured at 49,152 tokens"
    stored = STORED_HEAD + TOKEN_BYTES * load.context
    return [
        figure("beam in the store", stored, "bytes", "computed", "404 B measured, 4 B a token"),
        figure("in memory after advance", MOVED * wider, "bytes", "computed", by_vocab),
        figure("in memory after next", ASKED * wider, "bytes", "computed", by_vocab),
    ]


def _speed(shape: ModelShape, gpu: Gpu, load: Load, gpus: int) -> list[Figure]:
    figure = partial(Figure, "speed")
    per_byte = load.evaluations_per_byte
    as_measured = per_byte == EVALUATIONS_PER_BYTE
    room = _cached_tokens(shape, gpu, load, gpus) // load.context
    concurrent = min(load.concurrent, room)
    memory, products, rows = _step(shape, gpu, load, gpus, concurrent)
    by_gpu = concurrent / (max(memory, products) + rows + STEP_SECONDS)
    reading = ROW_SECONDS * shape.vocab / MEASURED_VOCAB
    by_host = 1 / max(SENDING_SECONDS + reading + BYTE_SECONDS / per_byte, CORE_SECONDS)
    served = min(by_gpu, by_host) / per_byte
    memory_alone, products_alone, row_alone = _step(shape, gpu, load, gpus, 1)
    by_step = max(memory_alone, products_alone) + row_alone + STEP_SECONDS
    waiting = by_step + SENDING_SECONDS + CORE_SECONDS + reading
    alone = 1 / (per_byte * waiting + BYTE_SECONDS)
    slower = "the GPUs' limit" if by_gpu < by_host else "the host's limit"
    return [
        figure(
            "evaluations per byte",
            per_byte,
            "",
            *(("measured", "greedy, SmolLM2-135M") if as_measured else ("assumed", "as given")),
        ),
        figure(
            "share of published rates", load.efficiency, "", "assumed", "GPU memory, math, link"
        ),
        figure("step: reading memory", memory, "seconds", "computed", f"{concurrent} contexts"),
        figure("step: products", products, "seconds", "computed", f"{concurrent} contexts"),
        figure("step: rows to the host", rows, "seconds", "computed", "after either"),
        figure("step: all else", STEP_SECONDS, "seconds", "assumed", "scheduling, launches"),
        figure("evaluations/s of the GPUs", by_gpu, "1/s", "computed", "contexts / step"),
        figure("host: sending one", SENDING_SECONDS, "seconds", "measured", "128 at once, EPYC"),
        figure("host: in the engine core", CORE_SECONDS, "seconds", "measured", "another process"),
        figure("host: reading its row", reading, "seconds", "computed", "measured at 49,152"),
        figure("host: a byte's beam", BYTE_SECONDS, "seconds", "measured", "a core of an EPYC"),
        figure("evaluations/s of the host", by_host, "1/s", "computed", "one server's process"),
        figure("bytes/s of a server", served, "1/s", "computed", slower),
        figure("bytes/s of a server per GPU", served / gpus, "1/s", "computed", slower),
        figure("bytes/s of the GPUs", by_gpu / per_byte, "1/s", "computed", "if hosts kept up"),
        figure("bytes/s of a session alone", alone, "1/s", "computed", "one after another"),
    ]


def _step(
    shape: ModelShape, gpu: Gpu, load: Load, gpus: int, concurrent: int
) -> tuple[float, float, float]:
    """Seconds of a step: for reading memory, for products, and for handing rows to the host."""
    cached = concurrent * load.context * shape.kv_bytes_per_token * _copies(shape, gpus)
    width = shape.layers * shape.heads * shape.head_dim
    work = 2 * shape.active_parameters + 4 * width * load.context
    rate = load.efficiency * gpus
    return (
        (shape.bytes_read_per_step + cached) / (rate * gpu.bandwidth),
        concurrent * work / (rate * gpu.flops),
        # One of them writes all rows, float32.
        concurrent * shape.vocab * 4 / (load.efficiency * gpu.link),
    )
