"""What is left of an engine when its processes, or its owner, are killed or told to end."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from bytelm.errors import EngineStartError
from bytelm.settings import EngineSettings
from bytelm.vllm.engine import VllmEngine
from bytelm.vllm.slots import SHM
from tests.shm import left, mapped_by

OWNER = Path(__file__).with_name("owner.py")


class OwnerProcess:
    """``owner.py`` in a process of its own."""

    def __init__(self, model_path: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(OWNER), model_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def event(self, name: str) -> dict:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                event = json.loads(line)
                assert event["event"] == name
                return event
        raise AssertionError(f"the owner ended before {name!r}")

    @property
    def itself(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def descendants(self) -> list[psutil.Process]:
        return self.itself.children(recursive=True)

    def shared_memory(self) -> list[Path]:
        return list(SHM.glob(f"bytelm-{self.process.pid}-*"))

    def kill(self) -> list[psutil.Process]:
        """Kill -9 the owner alone; gives the processes that it had."""
        descendants = self.descendants()
        self.process.kill()
        self.process.wait()
        return descendants


@pytest.fixture
def owner(model_path) -> Iterator[OwnerProcess]:
    owner = OwnerProcess(model_path)
    yield owner
    if owner.process.poll() is None:
        for process in [*owner.descendants(), owner.process]:
            process.kill()
    owner.process.wait()


def own_shared_memory() -> set[Path]:
    """Without vLLM's own, which Python's resource tracker removes when this process ends."""
    return set(SHM.glob(f"bytelm-{os.getpid()}-*"))


def all_gone(processes: list[psutil.Process], seconds: float) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]


def wait_for(condition, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_engine_core_turns_every_call_into_engine_dead(owner):
    owner.event("ready")
    descendants = owner.descendants()
    shared = mapped_by([owner.itself, *descendants])
    assert shared
    core = next(p for p in descendants if p.name().startswith("VLLM::EngineCor"))
    owner.event("waiting")
    core.kill()
    outcomes = owner.event("outcomes")["outcomes"]
    assert len(outcomes) == 13
    assert all(o.startswith("EngineDead: a process of the engine ended") for o in outcomes)
    later = owner.event("later")
    assert all(o.startswith("EngineDead") for o in later["outcomes"])
    assert later["is_alive"] is False
    assert owner.event("closed")["seconds"] < 8
    owner.process.communicate("\n", timeout=120)
    assert owner.process.returncode == 0
    assert all_gone(descendants, seconds=60)
    assert left(shared) == []


def test_nothing_outlives_a_killed_owner_and_the_next_start_sweeps(owner, model_path):
    """First killed while its engine starts, then, in a second one, while it works."""
    wait_for(lambda: owner.shared_memory() and len(owner.descendants()) >= 2)
    (slots,) = owner.shared_memory()
    # A process that has just begun reads its modules before it can notice anything.
    assert all_gone(owner.kill(), seconds=60)
    assert slots.exists()

    second = OwnerProcess(model_path)
    try:
        second.event("ready")
        assert not slots.exists()
        assert second.shared_memory() == []
        second.event("waiting")
        shared = mapped_by([second.itself, *second.descendants()])
        assert shared
        descendants = second.kill()
        assert len(descendants) >= 2
        assert all_gone(descendants, seconds=60)
        wait_for(lambda: left(shared) == [])
    finally:
        second.process.kill()
        second.process.wait()


async def test_a_cancelled_start_leaves_nothing_and_spares_other_engines(engine, model_path):
    before = own_shared_memory()
    known = set(psutil.Process().children(recursive=True))
    starting = asyncio.create_task(
        VllmEngine.start(model_path, EngineSettings(max_model_len=256, slots=4))
    )

    def started() -> list[psutil.Process]:
        children = set(psutil.Process().children(recursive=True)) - known
        return [p for p in children if "EngineCor" in p.name()]

    while not started():  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    processes = started()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(starting, timeout=120)
    assert all_gone(processes, seconds=60)
    assert own_shared_memory() <= before
    row = await engine.next_token_logprobs([1])
    assert abs(np.exp(row.astype(np.float64)).sum() - 1) < 1e-4


async def test_a_start_that_vllm_refuses_says_why_in_one_line(model_path):
    before = own_shared_memory()
    with pytest.raises(EngineStartError, match="max_model_len") as error:
        await VllmEngine.start(model_path, EngineSettings(max_model_len=1 << 20))
    assert "\n" not in str(error.value)
    assert own_shared_memory() <= before
