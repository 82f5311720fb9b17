"""A server on the real engine, as its own process, for the tests of a module."""

from collections.abc import Iterator

import pytest

from tests.server.test_serve_real import Served, kill, start


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One that is ready, and is killed afterwards."""
    served = start(tmp_path_factory.mktemp("served"))
    try:
        served.wait_until_ready()
        yield served
    finally:
        kill(served)
