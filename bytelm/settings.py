"""Everything that comes from the environment, and the only module that reads it.

Variables begin with ``BYTELM_``. A part of the program takes the settings that it needs as an
argument; none looks them up by itself.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from bytelm import memory


def _user_cache_dir() -> Path:
    """``bytelm`` under the user's cache directory; a relative XDG_CACHE_HOME does not count."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "bytelm"


def _user_state_dir() -> Path:
    """``bytelm`` under the user's state directory; a relative XDG_STATE_HOME does not count."""
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".local" / "state") / "bytelm"


class Paths(BaseSettings):
    """Where bytelm keeps what it prepares once and uses again, and what it must not lose."""

    model_config = SettingsConfigDict(env_prefix="BYTELM_", env_ignore_empty=True, frozen=True)

    cache_dir: Path = Field(
        default_factory=_user_cache_dir,
        validation_alias="BYTELM_CACHE",
        description="The cache directory (`BYTELM_CACHE`).",
    )
    state_dir: Path = Field(
        default_factory=_user_state_dir,
        validation_alias="BYTELM_STATE",
        description="The directory of sessions (`BYTELM_STATE`).",
    )


class ServerSettings(BaseSettings):
    """Where the HTTP server listens, what a call may ask for, and what it gets by default."""

    model_config = SettingsConfigDict(
        env_prefix="BYTELM_", env_ignore_empty=True, env_parse_none_str="none", frozen=True
    )

    host: str = Field("127.0.0.1", description="The address to listen on.")
    port: int = Field(
        8000, ge=0, le=65535, description="The port to listen on; 0 takes a free one."
    )
    allow_remote: bool = Field(
        False,
        description="Listen on an address that other machines can reach, though there are no keys.",
    )
    keys_file: Path | None = Field(
        Path("~/.config/bytelm/keys.json"),
        description="The file of API keys, which `bytelm keys` writes; calls need a key once it "
        "has one; none: no keys.",
    )
    share_cache: bool = Field(
        False,
        description="Let callers with different keys share cached work: faster, but its speed and "
        "`tokens_cached` tell whether somebody else had the same prompt.",
    )
    public_metrics: bool = Field(False, description="Show /metrics to callers without a key.")
    allowed_hosts: str = Field(
        "",
        description="More names under which the server may be called, with commas between them; "
        "only where there are no keys.",
    )
    cors_origins: str = Field(
        "",
        description="Web pages that may call the server, like https://example.org, with commas "
        "between them.",
    )
    server_log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO",
        description="What is logged, as lines of JSON on stderr; INFO has one for each request.",
    )
    shutdown_grace: float = Field(
        3.0,
        ge=0,
        le=3600,
        description="Seconds that running calls have when the server stops; new ones get 503.",
    )
    max_engine_restarts: int = Field(
        5, ge=0, description="How often in a row an engine that died is started again."
    )
    engine_restart_seconds: float = Field(
        1.0,
        ge=0,
        description="The pause before an engine is started again; twice as long each time.",
    )
    served_model_name: str | None = Field(
        None,
        description="The model's name in /v1/models; none: what it was asked for by.",
    )

    default_K: int | None = Field(
        3, ge=1, description="Beam width of calls that name none; none: unlimited."
    )
    default_prune_threshold: float = Field(
        0.003, ge=0, lt=1, description="Prune threshold of calls that name none."
    )
    default_tokenizations: Literal["all", "canonical"] = Field(
        "all", description="What calls that do not say sum over."
    )
    default_keep_canonical: bool = Field(
        True, description="Whether calls that do not say keep the canonical tokenization."
    )

    max_K: int | None = Field(
        64, ge=1, description="The widest beam that a call may ask for; none: any."
    )
    max_steps: int = Field(4096, ge=1, description="The most bytes of one generated text.")
    max_contexts: int = Field(256, ge=1, description="The most contexts in one call.")
    max_results: int = Field(
        1024, ge=1, description="The most texts that one call may generate or score."
    )
    max_total_steps: int = Field(
        1 << 20, ge=1, description="The most bytes that one call may generate or score, together."
    )
    max_context_bytes: int = Field(
        1 << 20, ge=1, description="The longest context, in bytes; the model's limit applies too."
    )
    max_body_bytes: int = Field(16 << 20, ge=1, description="The largest request body, in bytes.")
    max_bodies_bytes: int = Field(
        64 << 20,
        ge=1,
        description="The bodies of all calls that run or wait, in bytes, half of it for one key; "
        "more are refused with 429.",
    )
    body_seconds: float = Field(
        60.0, gt=0, description="How long a request body may take to arrive; then 408."
    )
    max_header_bytes: int = Field(
        32 << 10, ge=1 << 10, description="A request's headers, in bytes; then 431."
    )
    header_seconds: float = Field(
        20.0, gt=0, description="How long a request's headers may take to arrive; then 408."
    )
    unread_seconds: float = Field(
        30.0,
        gt=0,
        description="How long a client may leave an answer, or a stream, unread that waits for "
        "it; then the connection ends.",
    )
    keep_alive_seconds: int = Field(
        75,
        ge=1,
        description="How long a connection is kept without a call: longer than clients and "
        "proxies keep theirs, so that none is sent into a connection that ends.",
    )
    max_connections: int = Field(
        4096,
        ge=1,
        description="Connections at a time; one more ends the one that has been without a call "
        "for the longest time, or is answered with 503.",
    )
    concurrency: int = Field(
        128, ge=1, description="Texts of one call that are worked on at a time; the others wait."
    )
    max_running_calls: int = Field(
        256,
        ge=1,
        description="Calls that are worked on at a time; others wait for their turn. A key (or, "
        "without keys, an address) that is alone gets three quarters.",
    )
    max_waiting_calls: int = Field(
        1024,
        ge=0,
        description="Calls that may wait for their turn; more are refused with 429, first those of "
        "whoever has most.",
    )
    shared_places: int = Field(
        128,
        ge=1,
        description="Evaluations and generations at a time, where several keys want them at once: "
        "each gets as many; not with `share_cache`.",
    )
    call_seconds: float = Field(
        600.0, gt=0, description="How long a call may take, waiting included; then 504."
    )
    ping_seconds: float = Field(
        15.0, gt=0, description="After so long without an event a stream has a comment, `: ping`."
    )
    max_walked_bytes: int = Field(
        8192,
        ge=1,
        description="The longest text that is followed byte by byte: with prefill exact, and by "
        "a session's advance.",
    )
    max_row_values: int = Field(
        1 << 18,
        ge=1,
        description="The most log-probabilities in one JSON answer, or tokens of candidates.",
    )

    session_store: str = Field(
        "sqlite",
        description="Where sessions are kept: memory (they end with the server), sqlite (a file "
        "for each port in the user's state directory), the path of such a file, or the URL of a "
        "Redis (redis://…), which several servers can share.",
    )
    session_fsync: bool = Field(
        False,
        description="Flush each change of a session to the disk, so that it survives a power cut; "
        "otherwise it survives the end of the process only.",
    )
    max_session_store_bytes: int | None = Field(
        None, ge=1 << 20, description="The largest file of sessions; then 507; none: any size."
    )
    session_ttl: float = Field(
        1800.0, gt=0, description="Seconds without use after which a session expires, by default."
    )
    max_session_ttl: float = Field(
        7 * 86400.0, gt=0, description="The most seconds that a session may ask for."
    )
    max_sessions: int = Field(
        100_000, ge=1, description="Sessions that are kept at a time; then 507."
    )
    session_cache_bytes: int = Field(
        1 << 30,
        ge=0,
        description="Memory for the states of sessions; what is left out is made again when it is "
        "needed.",
    )
    session_idle_seconds: float = Field(
        30.0, ge=0, description="Seconds after which an unused session leaves that memory."
    )


class ClientSettings(BaseSettings):
    """Where the client finds a server, and with which key it calls."""

    model_config = SettingsConfigDict(env_prefix="BYTELM_", env_ignore_empty=True, frozen=True)

    url: str = Field("http://127.0.0.1:8000", description="The server's address (`BYTELM_URL`).")
    api_key: SecretStr | None = Field(
        None, description="The key that calls are made with (`BYTELM_API_KEY`)."
    )


class EngineSettings(BaseSettings):
    """How the engine runs. Where a default is None, it depends on the device or the model."""

    model_config = SettingsConfigDict(
        env_prefix="BYTELM_ENGINE_", env_ignore_empty=True, frozen=True
    )

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="What the model must run on; auto takes a GPU where there is one."
    )
    dtype: str | None = Field(
        None, description="Of weights and KV cache; None: float32 on CPU, the model's own on GPU."
    )
    max_model_len: int | None = Field(
        None, ge=2, description="Longest context plus one; None: the model's, on CPU at most 4096."
    )
    max_num_seqs: int = Field(128, ge=1, description="Requests that are computed together.")
    slots: int | None = Field(
        None, ge=1, description="Evaluations at a time, others wait; None: twice max_num_seqs."
    )
    bursts: int | None = Field(
        None,
        ge=1,
        description="Evaluations are sent in bursts, each computed as one step: how many bursts "
        "are under way at a time; None: 1 on CPU, 2 on GPU.",
    )
    block_size: int | None = Field(
        None, ge=1, description="Tokens in a block of the KV cache; None: 32 on CPU, vLLM's on GPU."
    )
    kv_cache_memory_bytes: int | None = Field(
        None, ge=1, description="Size of the KV cache; None: 2 GiB on CPU, what is left on GPU."
    )
    tails: bool = Field(
        True,
        description="Cache the last, partly filled block of a context too: what goes on from a "
        "recent context computes its new tokens only.",
    )
    read_ahead: bool = Field(
        True,
        description="Let a walk that has the model to itself evaluate a few contexts before it "
        "needs them: fewer steps, a few more evaluations.",
    )
    tensor_parallel_size: int = Field(
        1, ge=1, description="GPUs that each layer is split over; they should share NVLink."
    )
    pipeline_parallel_size: int = Field(
        1, ge=1, description="Groups of GPUs that the layers are dealt out to, one after another."
    )
    data_parallel_size: int = Field(
        1, ge=1, description="Copies of the model, each on GPUs of its own, in one server."
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="Share of the GPU's memory for weights and KV cache."
    )
    enforce_eager: bool | None = Field(
        None, description="Start without compiling; None: yes on CPU (minutes faster), no on GPU."
    )
    omp_threads_bind: str | None = Field(
        None, description="Cores for the model on CPU, like 0-3,8; None: all that may be used."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "ERROR", description="How much vLLM logs."
    )
    trust_remote_code: bool = Field(
        False,
        description="Run code that comes with a model; only where you trust whoever made it.",
    )
    vllm_metrics: bool = Field(
        False,
        description="Let vLLM count for Prometheus, too: its metrics are in /metrics then. "
        "Evaluations that are sent together are one request there.",
    )

    @contextlib.contextmanager
    def exported(self, owner: "Owner") -> Iterator[None]:
        """The environment in which an engine is started: vLLM's processes inherit it.

        Inside, this process's environment is changed; afterwards it is as before, except for what
        vLLM set itself.
        """
        cores = self.omp_threads_bind or ",".join(map(str, sorted(os.sched_getaffinity(0))))
        wanted = {
            "VLLM_LOGGING_LEVEL": self.log_level,
            "VLLM_NO_USAGE_STATS": "1",
            # What torch and vLLM's imports warn of is nothing that a user could change; nor that
            # what a process of vLLM left behind, which was ended in time, is tidied up.
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "PYTHONWARNINGS": "ignore::FutureWarning,"
            "ignore::UserWarning:multiprocessing.resource_tracker",
            "VLLM_CPU_OMP_THREADS_BIND": cores,
            # Without these, glibc returns a step's memory to the system and takes it anew, page by
            # page, in the next one.
            "MALLOC_MMAP_THRESHOLD_": str(memory.MMAP_THRESHOLD),
            "MALLOC_TRIM_THRESHOLD_": str(memory.TRIM_THRESHOLD),
            # This process has threads, which fork would not copy.
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            "BYTELM_OWNER_PID": str(owner.pid),
            "BYTELM_OWNER_STARTED": str(owner.started),
        }
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


class Owner(BaseSettings):
    """The process that an engine's processes belong to, as they find it in their environment."""

    model_config = SettingsConfigDict(env_prefix="BYTELM_OWNER_", env_ignore_empty=True)

    pid: int | None = Field(None, description="Its process id.")
    started: int | None = Field(None, description="Its start, in clock ticks since boot.")


class InheritedLogging(BaseSettings):
    """How much vLLM logs, as its processes find it in their environment."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", validation_alias="VLLM_LOGGING_LEVEL", description="From which level on."
    )
