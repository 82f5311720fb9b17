"""What importing bytelm costs, and what it offers."""

import subprocess
import sys

import pytest

import bytelm

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
