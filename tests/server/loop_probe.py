"""Asks a server again and again whether it is well, in a process of its own, until it is ended.

Each line of its output: seconds that ``/health`` took, and how much longer than its CPU time a
piece of computing took here at that moment, which is 1 on a quiet machine. Run with the port.
"""

import http.client
import sys
import time

PAUSE = 0.03
WORK = 0.01
"""Seconds of CPU time."""


def slowness() -> float:
    """How much longer than its CPU time something takes."""
    began, cpu = time.perf_counter(), time.thread_time()
    while time.thread_time() - cpu < WORK:
        pass
    return (time.perf_counter() - began) / (time.thread_time() - cpu)


if __name__ == "__main__":
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
    while True:
        began = time.perf_counter()
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        took = time.perf_counter() - began
        assert answer.status == 200, answer.status
        print(f"{took:.4f} {slowness():.2f}", flush=True)
        time.sleep(PAUSE)
