"""What all suites share."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# A deadline per example would fail on the first one, which compiles the kernels.
settings.register_profile(
    "bytelm", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("bytelm")

# A script's background jobs ignore SIGINT, and so would all processes that are started from them.
# They do not inherit a handler.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """Keep a developer's own settings out of the tests; the cache of models may be shared."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("BYTELM_") and name != "BYTELM_CACHE":
                patch.delenv(name)
        patch.setenv("BYTELM_KEYS_FILE", "none")
        yield
