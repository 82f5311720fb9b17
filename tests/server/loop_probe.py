"""Asks a server again and again whether it is well, in a process of its own, until it is ended.

Each line of its output: seconds that ``/health`` took, less those for which the server or this
process would have run, but others had the cores; and how much longer than its CPU time a piece of
computing took here at that moment, which is 1 on a quiet machine. Run with the server's port and
process id.
"""

import http.client
import sys
import time
from contextlib import suppress
from pathlib import Path

PAUSE = 0.03
WORK = 0.01
"""Seconds of CPU time."""


def slowness() -> float:
    """How much longer than its CPU time something takes."""
    began, cpu = time.perf_counter(), time.thread_time()
    while time.thread_time() - cpu < WORK:
        pass
    return (time.perf_counter() - began) / (time.thread_time() - cpu)


def waits(pid: str) -> dict[str, float]:
    """For how many seconds each thread of a process was ready to run and did not, so far."""
    found = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it has ended, or this kernel does not tell
            found[thread.name] = int((thread / "schedstat").read_text().split()[1]) / 1e9
    return found


def longest_wait(before: dict[str, float], after: dict[str, float]) -> float:
    """Of any one thread between two looks."""
    return max((after[name] - wait for name, wait in before.items() if name in after), default=0.0)


if __name__ == "__main__":
    port, server = sys.argv[1:]
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    while True:
        looks = [(waits(server), waits("self"))]
        began = time.perf_counter()
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        took = time.perf_counter() - began
        looks.append((waits(server), waits("self")))
        took -= sum(longest_wait(*pair) for pair in zip(*looks, strict=True))
        assert answer.status == 200, answer.status
        print(f"{took:.4f} {slowness():.2f}", flush=True)
        time.sleep(PAUSE)
