import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from bytelm.errors import EngineStartError
from bytelm.models.ordered_rows import RowOrder
from bytelm.settings import EngineSettings, Owner
from bytelm.vllm import start
from bytelm.vllm.engine import VllmEngine

OWNER = Owner(pid=1, started=2)


def test_a_processor_without_avx2_is_refused_in_one_line():
    with pytest.raises(EngineStartError, match="no AVX2") as error:
        start.check_cpu("processor : 0\nflags\t\t: fpu sse4_2 avx\n", "x86_64")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cpuinfo", "machine"),
    [("flags\t\t: fpu avx avx2\n", "x86_64"), ("Features : asimd\n", "aarch64")],
)
def test_other_processors_pass(cpuinfo, machine):
    assert start.check_cpu(cpuinfo, machine) is None


def test_a_cache_larger_than_free_memory_is_refused():
    with pytest.raises(EngineStartError, match=r"takes 4\.0 GiB and 3\.0 GiB .* are free"):
        start.check_memory(4 << 30, 3 << 30)


async def test_a_model_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(EngineStartError, match="there is no model at .*/nowhere"):
        await VllmEngine.start(tmp_path / "nowhere", EngineSettings())


def test_vllm_logs_no_more_than_it_should_from_its_first_import_on():
    program = (
        "import logging, threading\n"
        "from bytelm.settings import EngineSettings\n"
        "from bytelm.vllm.start import EngineStartError, start\n"
        "try:\n"
        "    start('/no/model', EngineSettings(log_level='ERROR'), threading.Event())\n"
        "except EngineStartError:\n"
        "    logging.getLogger('vllm.early').warning('noise')\n"
        "    logging.getLogger('vllm.early').error('failure')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines() == ["failure"]


def test_a_start_that_was_given_up_begins_no_further_step(tmp_path):
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(EngineStartError, match="given up"):
        start.start(str(tmp_path), EngineSettings(), given_up)


def test_a_full_dev_shm_says_what_to_do(monkeypatch):
    def full(count, order):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(start, "Slots", full)
    with pytest.raises(EngineStartError, match="no room for 3 rows of 5 values"):
        start._slots(3, RowOrder(np.arange(5), np.array([0, 5])))


# The environment of a start


def test_the_environment_names_the_owner_and_is_put_back(monkeypatch):
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.delenv("BYTELM_OWNER_PID", raising=False)
    with EngineSettings(log_level="INFO").exported(OWNER):
        assert (Owner().pid, Owner().started) == (1, 2)
        assert os.environ["VLLM_LOGGING_LEVEL"] == "INFO"
    assert Owner().pid is None
    assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"


def test_all_cores_that_may_be_used_are_bound():
    with EngineSettings().exported(OWNER):
        cores = os.environ["VLLM_CPU_OMP_THREADS_BIND"].split(",")
    assert set(map(int, cores)) == os.sched_getaffinity(0)


def test_what_a_process_leaves_behind_is_tidied_up_silently():
    program = (
        "import multiprocessing.shared_memory, os, sys\n"
        "memory = multiprocessing.shared_memory.SharedMemory(create=True, size=8)\n"
        "print(memory.name, flush=True)\n"
        "os._exit(0)"
    )
    with EngineSettings().exported(OWNER):
        # Its output ends when the process that tidies up does.
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert not (Path("/dev/shm") / done.stdout.strip()).exists()
    assert done.stderr == ""


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("BYTELM_ENGINE_MAX_NUM_SEQS", "7")
    monkeypatch.setenv("BYTELM_ENGINE_KV_CACHE_MEMORY_BYTES", "")
    settings = EngineSettings()
    assert settings.max_num_seqs == 7
    assert settings.kv_cache_memory_bytes is None


# The fingerprint


def fingerprint(folder, dtype="float32", vocab="v"):
    return start._fingerprint(
        str(folder),
        SimpleNamespace(model_config=SimpleNamespace(dtype=dtype, revision=None)),
        SimpleNamespace(fingerprint=lambda: vocab),
    )


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"layers": 2}))
    (tmp_path / "model.safetensors").write_bytes(bytes(1_000_000))
    return tmp_path


def test_the_fingerprint_is_that_of_the_model_wherever_it_lies(model, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    for file in model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert fingerprint(model) == fingerprint(copy)


def test_other_weights_change_the_fingerprint(model):
    before = fingerprint(model)
    weights = bytearray(1_000_000)
    weights[500_000:600_000] = bytes([1]) * 100_000
    (model / "model.safetensors").write_bytes(weights)
    assert fingerprint(model) != before


def test_another_configuration_changes_the_fingerprint(model):
    before = fingerprint(model)
    (model / "config.json").write_text(json.dumps({"layers": 3}))
    assert fingerprint(model) != before


def test_vocabulary_and_number_format_change_the_fingerprint(model):
    prints = {fingerprint(model), fingerprint(model, vocab="w"), fingerprint(model, dtype="b")}
    assert len(prints) == 3


def test_spawned_processes_do_not_import_the_main_module(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import multiprocessing\n"
        "from bytelm.vllm.start import _main_module_hidden\n"
        "print('main', flush=True)\n"
        "with _main_module_hidden():\n"
        "    spawn = multiprocessing.get_context('spawn')\n"
        "    child = spawn.Process(target=print, args=('child',))\n"
        "    child.start()\n"
        "    child.join()\n"
        "print(__spec__, __file__ is not None)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["main", "child", "None True"]


def test_vllms_processes_end_with_their_owner_from_the_first(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import multiprocessing, os, time\n"
        "from bytelm.vllm.start import _main_module_hidden\n"
        "from bytelm.vllm.watchdog import start_time\n"
        "os.environ['BYTELM_OWNER_PID'] = str(os.getpid())\n"
        "os.environ['BYTELM_OWNER_STARTED'] = str(start_time(os.getpid()))\n"
        "with _main_module_hidden():\n"
        "    spawn = multiprocessing.get_context('spawn')\n"
        "    child = spawn.Process(target=time.sleep, args=(300,))\n"
        "    child.start()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(300)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        child = psutil.Process(int(owner.stdout.readline()))
        owner.kill()
    child.wait(30)


def test_vllms_processes_know_from_the_first_how_much_vllm_logs(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import logging, multiprocessing\n"
        "from bytelm.vllm.start import _main_module_hidden\n"
        "with _main_module_hidden():\n"
        "    spawn = multiprocessing.get_context('spawn')\n"
        "    warn = logging.getLogger('vllm.some.module').warning\n"
        "    child = spawn.Process(target=warn, args=('nobody could act on this',))\n"
        "    child.start()\n"
        "    child.join()\n"
        "    assert child.exitcode == 0\n"
    )
    for level, count in (("ERROR", 0), ("WARNING", 1)):
        done = subprocess.run(
            [sys.executable, script],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "VLLM_LOGGING_LEVEL": level},
        )
        assert done.stderr.count("nobody could act on this") == count, done.stderr


@pytest.mark.parametrize("wanted", [False, True])
def test_vllm_counts_and_runs_a_models_code_only_if_that_is_wanted(monkeypatch, wanted):
    import vllm

    given = []

    class Arguments:
        def __init__(self, **arguments):
            given.append((arguments["disable_log_stats"], arguments["trust_remote_code"]))

        def create_engine_config(self):
            return SimpleNamespace(model_config=SimpleNamespace(max_model_len=10))

    monkeypatch.setattr(vllm, "AsyncEngineArgs", Arguments)
    settings = EngineSettings(
        vllm_metrics=wanted, trust_remote_code=wanted, tails=False, kv_cache_memory_bytes=1
    )
    start._config("model", settings, "cpu")
    assert given == [(not wanted, wanted)]


def test_vllm_is_told_over_how_many_gpus_the_model_goes(monkeypatch):
    import vllm

    given = []

    class Arguments:
        def __init__(self, **arguments):
            kinds = ("tensor", "pipeline", "data")
            given.append([arguments[f"{kind}_parallel_size"] for kind in kinds])

        def create_engine_config(self):
            return SimpleNamespace(model_config=SimpleNamespace(max_model_len=10))

    monkeypatch.setattr(vllm, "AsyncEngineArgs", Arguments)
    monkeypatch.setenv("BYTELM_ENGINE_PIPELINE_PARALLEL_SIZE", "3")
    settings = EngineSettings(tensor_parallel_size=2, data_parallel_size=4, tails=False)
    start._config("model", settings, "cuda")
    assert given == [[2, 3, 4]]
