"""Memory that is freed stays in the process."""

import subprocess
import sys

FAULTS = """
import resource
import sys
import numpy as np
from bytelm.memory import keep_freed

if sys.argv[1] == "keep":
    assert keep_freed()
row = np.zeros(50_000, np.float32)
for _ in range(3):
    row.copy()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    kept = [row.copy() for _ in range(4)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(argument: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, argument], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_arrays_of_a_rows_size_are_made_of_memory_that_is_there():
    assert page_faults("keep") < page_faults("free") / 10


RESIDENT = """
import numpy as np
import psutil
from bytelm.memory import give_back, keep_freed

keep_freed()
process = psutil.Process()
before = process.memory_info().rss
rows = [np.ones(50_000, np.float32) for _ in range(400)]
between = rows[::20]  # so that what is free is not at the heap's end
del rows
kept = process.memory_info().rss - before
give_back()
print(kept, process.memory_info().rss - before)
"""


def test_memory_that_is_not_needed_again_can_be_given_back():
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True
    )
    kept, left = map(int, done.stdout.split())
    assert kept > 380 * 200_000
    assert left < 60 * 200_000


REGULARLY = """
import time
import numpy as np
import psutil
from bytelm.memory import give_back_regularly, keep_freed

keep_freed()
process = psutil.Process()
before = process.memory_info().rss
rows = [np.ones(50_000, np.float32) for _ in range(400)]
between = rows[::20]
del rows
give_back_regularly(0.05)
while process.memory_info().rss - before > 60 * 200_000:
    time.sleep(0.05)
"""


def test_a_process_gives_memory_back_by_itself():
    subprocess.run([sys.executable, "-c", REGULARLY], check=True, timeout=120)
