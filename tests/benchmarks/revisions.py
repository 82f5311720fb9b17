"""Another revision of this repository, checked out in a temporary folder for a while."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def checked_out(repository: Path, revision: str) -> Iterator[Path]:
    """A git worktree of a revision, which is removed whatever happens.

    Args:
        repository: a folder in it.
        revision: anything that git knows a commit by.

    Raises:
        SystemExit: when it does not know it, or is not there.
    """
    commit = _git(repository, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if commit is None:
        raise SystemExit(f"error: git knows no revision {revision!r} in {repository}")
    with tempfile.TemporaryDirectory(prefix="bytelm-revision-") as folder:
        tree = Path(folder) / "tree"
        try:
            if _git(repository, "worktree", "add", "--detach", str(tree), commit) is None:
                raise SystemExit(f"error: git could not check out {revision}")
            yield tree
        finally:
            _git(repository, "worktree", "remove", "--force", "--force", str(tree))


def _git(repository: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails."""
    command = ["git", "-C", str(repository), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit("error: another revision needs git: sudo apt-get install git") from None
    return done.stdout.strip() if done.returncode == 0 else None
