"""Every module of the library can be the first one that is imported."""

import subprocess
import sys
from pathlib import Path

import bytelm

ROOT = Path(bytelm.__file__).parent

EACH = """
import os, sys
from importlib import import_module
import numpy, numba, pydantic, pydantic_settings  # which take longest, and know nothing of bytelm

for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        import_module(name)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name)
"""


def test_no_module_needs_another_to_be_imported_before_it():
    names = [
        ".".join(["bytelm", *file.relative_to(ROOT).with_suffix("").parts])
        for file in sorted(ROOT.rglob("*.py"))
        if file.stem != "__init__" and not {"vllm", "compat"} & {*file.relative_to(ROOT).parts}
    ]
    assert len(names) > 50
    done = subprocess.run(
        [sys.executable, "-c", EACH, *names], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("", 0), done.stderr[-2000:]
