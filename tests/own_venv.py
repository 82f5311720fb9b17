"""Virtual environments beside the project's own, for packages that must not get into it.

Each is a folder under the cache directory, made once; what a killed run left is gone on with.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path


def own_python(
    made: Path, what: str, installs: Sequence[Sequence[str]], wanted: Sequence[str]
) -> Path:
    """The Python of a venv that has everything installed.

    Args:
        made: the folder; the venv and pip's log are in it.
        what: what it is for, in a word.
        installs: what pip installs, one call after another.
        wanted: what all of them give; where it changes, they are made again.

    Raises:
        SystemExit: when an installation fails; names the log.
    """
    executable = _python(made)
    stamp = made / "installed"
    content = "\n".join([*wanted, ""])
    if stamp.is_file() and stamp.read_text() == content and executable.exists():
        return executable
    stamp.unlink(missing_ok=True)
    if not executable.exists():
        say(f"making a venv for {what} in {made}")
        venv.create(made / "venv", with_pip=True)
    for packages in installs:
        say(f"installing {packages[0]}{' and more' * (len(packages) > 1)} (1 to 3 minutes, once)")
        pip(made, ["install", *packages])
    stamp.write_text(content)
    return executable


def pip(made: Path, arguments: Sequence[str]) -> None:
    """Runs the venv's pip with everything it says in a log.

    Raises:
        SystemExit: when it fails; names the log.
    """
    log = made / "pip.log"
    command = [str(_python(made)), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    with log.open("ab") as file:
        done = subprocess.run(
            [*command, *arguments], stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    if done.returncode != 0:
        raise SystemExit(f"error: pip {arguments[0]} failed; see {log}")


def say(line: str) -> None:
    """One line of progress."""
    print(f"==> {line}", file=sys.stderr, flush=True)


def _python(made: Path) -> Path:
    return made / "venv" / "bin" / "python"
