"""What is done to genlm-bytes' own tests, and how their outcomes are read."""

import pytest

from tests.benchmarks import genlm_tests

THEIRS = """
from genlm.bytes import ByteBeamState, BeamParams
from genlm.bytes.trie import AsyncTokenByteTrie, EOS
from genlm.backend import load_model_by_name

def test_it():
    from genlm.bytes.byte_lm.heal import TokenHealer
    load_model_by_name('gpt2-medium', backend='hf')
"""


def test_imports_and_models_are_replaced_and_nothing_else() -> None:
    assert genlm_tests.ours(THEIRS, "/model").splitlines() == [
        "from bytelm import ByteBeamState, BeamParams",
        "from bytelm import EOS",
        "from genlm.backend import load_model_by_name",
        "",
        "def test_it():",
        "    pass",
        "    load_model_by_name('/model', backend='hf')",
    ]


def test_the_list_of_tests_that_may_fail_is_held_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genlm_tests, "MAY_FAIL", {"a::one": "why", "a::Class": "why"})
    fine = {"a::one": False, "a::Class::x": False, "a::Class::y": False, "a::two": True}
    assert genlm_tests.wrong(fine) == []
    assert genlm_tests.wrong(fine | {"a::two": False}) == ["a::two fails"]
    (passes,) = genlm_tests.wrong(fine | {"a::Class::y": True})
    assert passes.startswith("a::Class::y passes")
    del fine["a::one"]
    assert genlm_tests.wrong(fine) == ["there is no a::one"]
