"""Twenty kills of the real server under load."""

from pathlib import Path

import pytest

from tests.server.crashes import Crashes
from tests.server.processes import RealProcess

KILLS = 20


@pytest.mark.timeout(7200)
async def test_no_byte_is_lost_or_taken_twice(tmp_path: Path) -> None:
    real = RealProcess(tmp_path)
    try:
        crashes = Crashes(real.url, real.start, real.end)
        await crashes.run(KILLS, seconds=2.0)
        assert sum(client.retries for client in crashes.clients) > 0
    finally:
        real.clean_up()
