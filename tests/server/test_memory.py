"""What sessions take of the memory of a real server process."""

from pathlib import Path

import pytest

from bytelm import download as models
from tests.benchmarks.idle_sessions import MOST_PER_SESSION, measure

SESSIONS = 300


@pytest.mark.parametrize("store", ["sqlite", "memory"])
async def test_an_idle_session_takes_little_resident_memory(tmp_path: Path, store: str) -> None:
    kept = "memory" if store == "memory" else str(tmp_path / "sessions.sqlite")
    found = await measure(str(models.resolve()), SESSIONS, kept, idle_seconds=3)
    assert found["idle_per_session"] < MOST_PER_SESSION, found
