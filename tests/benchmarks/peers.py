"""The environment that genlm-bytes runs in: a venv of its own under the cache directory.

Nothing of it touches the project's venv. Making it takes a few minutes, once; what a killed run
left is gone on with. ``python -m tests.benchmarks.peers`` compares the two libraries in it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bytelm import download as models
from bytelm.settings import Paths
from tests.own_venv import own_python, pip, say

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"

GENLM_BYTES = "genlm-bytes==0.2.0"
TORCH = "torch==2.13.0+cpu"
REQUIREMENTS = [
    GENLM_BYTES,
    "genlm-backend==0.3.1",
    "transformers==5.19.0",
    # What its own tests need.
    "pytest==9.2.0",
    "pytest-asyncio==1.5.0",
    # What bytelm's pure part and its client need, which run beside it from the source tree.
    "httpx>=0.28",
    "numba>=0.61",
    "numpy>=2.0",
    "pydantic>=2.12",
    "pydantic-settings>=2.6",
]


def folder() -> Path:
    """Where the venv and the sources of genlm-bytes are."""
    return Paths().cache_dir.absolute() / "peers" / GENLM_BYTES.replace("==", "-")


def python(torch_index: str | None = None) -> Path:
    """The venv's Python, with everything installed.

    Args:
        torch_index: an index that has PyTorch's CPU builds, if the usual one does not.

    Raises:
        SystemExit: when an installation fails; names the log.
    """
    index = ["--extra-index-url", torch_index] if torch_index else []
    return own_python(
        folder(),
        GENLM_BYTES,
        [[TORCH, *index], [TORCH, *REQUIREMENTS, *index]],
        [TORCH, *REQUIREMENTS],
    )


def sources() -> Path:
    """genlm-bytes' source distribution, unpacked: its README and notebook are not in the wheel."""
    made = folder()
    name = GENLM_BYTES.replace("genlm-bytes==", "genlm_bytes-")
    if not (made / name / "README.md").is_file():
        say(f"fetching the sources of {GENLM_BYTES}")
        download = ["download", "--no-deps", "--no-binary", ":all:", "--dest", str(made)]
        pip(folder(), [*download, GENLM_BYTES])
        with tarfile.open(made / f"{name}.tar.gz") as archive:
            archive.extractall(made, filter="data")
    return made / name


def environment() -> dict[str, str]:
    """What a process of the benchmarks runs with: the source tree, and no warnings."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "client")]),
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def run(module: str, *arguments: str) -> int:
    """Runs a module of this folder in the venv; its exit status."""
    command = [str(python()), "-m", module, *arguments]
    # Another version of numba than the project's would undo what that has compiled.
    variables = environment() | {"NUMBA_CACHE_DIR": str(folder() / "numba")}
    return subprocess.run(command, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL).returncode


@contextmanager
def served(model: str, *flags: str) -> Iterator[str]:
    """A bytelm server in the project's own venv, by its address."""
    command = [sys.executable, "-m", "bytelm_client", "serve", "--model", model, "--port", "0"]
    command += flags
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline().decode()
            found = re.search(r"http://[0-9.:]+", line)
            if found is None:
                raise SystemExit("error: the server did not start")
            yield found.group()
        finally:
            process.terminate()


def main() -> int:
    """Compares bytelm with genlm-bytes: its documentation's code, its tests, then the numbers."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", help="a model's folder or name; the default model otherwise")
    parser.add_argument("--torch-index", help="an index that has PyTorch's CPU builds")
    given = parser.parse_args()
    model = str(models.resolve(given.model, progress=say))
    python(given.torch_index or None)
    say("running the code of genlm-bytes' README and notebook in both (1 minute)")
    usage = run("tests.benchmarks.genlm_usage", model, str(sources()))
    say("running genlm-bytes' own tests on bytelm (5 to 10 minutes)")
    tests = run("tests.benchmarks.genlm_tests", model, str(sources()))
    say("running genlm-bytes on a bytelm server (2 minutes)")
    with served(model) as url:
        remote = run("tests.benchmarks.genlm_remote", model, url)
    say("comparing distributions and greedy bytes (5 to 15 minutes; goes on where it stopped)")
    places = ["--progress", str(folder().parent), "--results", str(RESULTS)]
    return max(usage, tests, remote, run("tests.benchmarks.genlm_exactness", model, *places))


if __name__ == "__main__":
    sys.exit(main())
