"""What importing bytelm costs, and what it offers."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import bytelm

CACHES = shutil.ignore_patterns("__pycache__")
LIGHT = """
import sys
import bytelm
heavy = {"numpy", "numba", "torch", "transformers", "vllm", "pydantic", "fastapi", "httpx"}
print(*sorted(heavy & set(sys.modules)))
"""


def test_importing_bytelm_loads_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", bytelm.__all__)
def test_every_public_name_is_there(name: str) -> None:
    home = bytelm._HOME_OF[name]
    assert getattr(bytelm, name) is getattr(sys.modules[home], name)


def test_the_public_names_are_all_listed() -> None:
    assert dir(bytelm) == sorted(bytelm._HOME_OF)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'ByteBeam'"):
        bytelm.ByteBeam  # noqa: B018


SUM = """
import numpy as np
from bytelm.vocabulary.trie import sum_range
print(sum_range(np.ones(100, np.float32), 0, 100))
"""
PLACES = """
import numba.core.caching as caching
only = [caching.UserProvidedCacheLocator]
for kind in (caching.CacheImpl, caching.CompileResultCacheImpl):
    kind._locator_classes = only
"""


@pytest.mark.parametrize("writable", [True, False])
def test_where_numba_may_write_nowhere_bytelms_cache_is_used_or_none(
    tmp_path: Path, writable: bool
) -> None:
    cache = tmp_path if writable else tmp_path / "file" / "folder"
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-c", PLACES + SUM],
        env={name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
        | {"BYTELM_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.stdout, done.stderr) == ("100.0\n", "")
    assert any((tmp_path / "numba").rglob("*.nbi")) == writable


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's part")
def test_a_user_without_a_home_can_use_a_package_that_is_read_only() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        shutil.copytree(Path(bytelm.__file__).parent, Path(folder) / "bytelm", ignore=CACHES)
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        environment = {"PATH": os.defpath, "HOME": "/nonexistent", "PYTHONPATH": folder}
        try:
            done = subprocess.run(
                [*nobody, sys.executable, "-c", SUM],
                env=environment,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=600,
            )
        except FileNotFoundError:
            pytest.skip("there is no setpriv")
        if "Permission denied" in done.stderr or "No module named 'numba'" in done.stderr:
            pytest.skip("another user cannot read this Python")
        assert (done.stdout, done.stderr) == ("100.0\n", "")
