"""Everything that comes from the environment, and the only module that reads it.

Variables begin with ``BYTELM_``. A part of the program takes the settings that it needs as an
argument; none looks them up by itself.
"""

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


def _user_cache_dir() -> Path:
    """``bytelm`` under the user's cache directory, by the XDG rule (relative paths do not count)."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "bytelm"


class Paths(BaseSettings):
    """Where bytelm keeps what it prepares once and uses again."""

    model_config = SettingsConfigDict(env_prefix="BYTELM_", env_ignore_empty=True, frozen=True)

    cache_dir: Path = Field(
        default_factory=_user_cache_dir,
        validation_alias="BYTELM_CACHE",
        description="The cache directory (`BYTELM_CACHE`).",
    )
