import os
import pickle
import subprocess
import sys
import threading

import pytest

from bytelm.vllm.slots import SlotsAddress
from bytelm.vllm.watchdog import THREAD, install, is_alive, start_time

WATCHED = """
import sys, time
from bytelm.vllm.watchdog import install
install()
print("ready", flush=True)
time.sleep(60)
"""


def spawn(code: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def owner():
    process = spawn("import time; print('ready', flush=True); time.sleep(60)")
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def watched_by(pid, started):
    process = spawn(WATCHED, BYTELM_OWNER_PID=str(pid), BYTELM_OWNER_STARTED=str(started))
    assert process.stdout.readline() == "ready\n"
    return process


def test_start_time_tells_processes_apart(owner):
    assert start_time(os.getpid()) < start_time(owner.pid)


def test_a_dead_process_has_no_start_time(owner):
    owner.kill()
    owner.wait()
    assert start_time(owner.pid) is None


def test_a_zombie_is_dead(owner):
    started = start_time(owner.pid)
    owner.kill()
    os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(owner.pid, started)


def test_a_reused_pid_is_not_its_former_owner(owner):
    assert not is_alive(owner.pid, start_time(owner.pid) - 1)


def test_a_watched_process_ends_when_its_owner_is_killed(owner):
    watched = watched_by(owner.pid, start_time(owner.pid))
    owner.kill()
    owner.wait()
    assert watched.wait(timeout=60) == -9


def test_a_watched_process_ends_when_its_owner_was_gone_before(owner):
    watched = spawn(WATCHED, BYTELM_OWNER_PID=str(owner.pid), BYTELM_OWNER_STARTED="1")
    assert watched.wait(timeout=60) == -9


def test_a_process_that_receives_an_address_is_watched(owner):
    """Before vLLM loads its plugins."""
    address = SlotsAddress("/dev/shm/x", 2, 3)
    code = f"""
import pickle, time
assert pickle.loads({pickle.dumps(address)!r}).count == 2
print("ready", flush=True)
time.sleep(60)
"""
    started = start_time(owner.pid)
    watched = spawn(code, BYTELM_OWNER_PID=str(owner.pid), BYTELM_OWNER_STARTED=str(started))
    assert watched.stdout.readline() == "ready\n"
    owner.kill()
    owner.wait()
    assert watched.wait(timeout=60) == -9


def test_an_address_arrives_as_it_was():
    address = SlotsAddress("/dev/shm/x", 2, 3)
    assert pickle.loads(pickle.dumps(address)) == address


def test_a_watched_process_lives_while_its_owner_does(owner):
    watched = watched_by(owner.pid, start_time(owner.pid))
    with pytest.raises(subprocess.TimeoutExpired):
        watched.wait(timeout=2.5)
    watched.kill()
    watched.wait()


def watchdogs() -> int:
    return sum(thread.name == THREAD for thread in threading.enumerate())


def test_a_process_without_an_owner_is_not_watched(monkeypatch):
    monkeypatch.delenv("BYTELM_OWNER_PID", raising=False)
    monkeypatch.delenv("BYTELM_OWNER_STARTED", raising=False)
    install()
    assert watchdogs() == 0


def test_the_owner_does_not_watch_itself(monkeypatch):
    monkeypatch.setenv("BYTELM_OWNER_PID", str(os.getpid()))
    monkeypatch.setenv("BYTELM_OWNER_STARTED", str(start_time(os.getpid())))
    install()
    assert watchdogs() == 0


def test_one_watchdog_is_enough(owner):
    code = """
import threading, time
from bytelm.vllm.watchdog import THREAD, install
install()
install()
print(sum(thread.name == THREAD for thread in threading.enumerate()), flush=True)
time.sleep(60)
"""
    started = start_time(owner.pid)
    watched = spawn(code, BYTELM_OWNER_PID=str(owner.pid), BYTELM_OWNER_STARTED=str(started))
    assert watched.stdout.readline() == "1\n"
    watched.kill()
    watched.wait()
