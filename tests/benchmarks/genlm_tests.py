"""genlm-bytes' own tests, run on bytelm: only imports and the model's name are changed.

Runs in genlm-bytes' venv (``tests.benchmarks.peers`` starts it), on the tests as its source
distribution has them. What bytelm has no equal of is imported from nowhere, so that whatever passes
has passed on bytelm. Tests that may fail are named here; that one of them passes is an error, too.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
import tempfile
from pathlib import Path

import pytest

import bytelm

FILES = ("test_beam.py", "test_healing.py", "test_util.py")
"""All but those of genlm-bytes' private tries alone, ``test_trie.py`` and ``test_eos_logic.py``."""
MODELS = ("gpt2", "gpt2-medium")

TRIES = "is on genlm-bytes' private trie classes"
HELPERS = "is on a private helper of genlm-bytes"
PANDAS = "wants a pandas table, and bytelm does not need pandas"
STUCK = "wants GPT-2's tokens to get stuck; genlm-bytes does not fail on this model, either"
MAY_FAIL = {
    "test_beam.py::test_eos_termination": "takes BOS for EOS, as GPT-2 has it; genlm-bytes fails",
    "test_beam.py::test_trie_state_mass_not_materialized": TRIES,
    "test_beam.py::test_logp_next_with_duplicate_eot_edges": TRIES,
    "test_healing.py::test_heal_max_backoff_limited_fails": STUCK,
    "test_healing.py::test_heal_max_splits_zero": STUCK,
    "test_healing.py::test_healer_with_custom_trie_path_not_found": TRIES,
    "test_healing.py::test_healer_with_custom_trie_cant_extend": TRIES,
    "test_healing.py::test_healer_with_custom_trie_cant_consume_after_extend": TRIES,
    "test_healing.py::test_healer_with_duplicate_tokens": TRIES,
    "test_healing.py::test_healer_extend_all_with_duplicates": TRIES,
    "test_healing.py::test_healer_with_custom_trie_final_extend": TRIES,
    "test_healing.py::test_healer_weight_calculation": TRIES,
    "test_util.py::test_format_table": HELPERS,
    "test_util.py::test_logsumexp_empty": HELPERS,
    "test_util.py::TestEscape": HELPERS,
    "test_util.py::TestFormatByte": HELPERS,
    "test_util.py::TestLazyByteProbs::test_init_wrong_length": "wants an assert, not a ByteError",
    "test_util.py::TestChart::test_compare": PANDAS,
    "test_util.py::TestChart::test_compare_with_dict": PANDAS,
    "test_util.py::TestChart::test_compare_with_domain": PANDAS,
}
"""Tests, or classes of them, and why they cannot pass."""


class Ours(ast.NodeTransformer):
    """Imports from bytelm what was imported from genlm-bytes, and names another model."""

    def __init__(self, model: str) -> None:
        self.model = model

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt:
        """Names that bytelm does not have are left undefined."""
        if not (node.module or "").startswith("genlm.bytes"):
            return node
        names = [alias for alias in node.names if alias.name in bytelm.__all__]
        return ast.ImportFrom("bytelm", names, 0) if names else ast.Pass()

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        """GPT-2, of whatever size, is the model that was given."""
        return ast.Constant(self.model) if node.value in MODELS else node


class Outcomes:
    """What became of each test.

    Attributes:
        passed: by name, whether all of it passed.
    """

    def __init__(self) -> None:
        self.passed: dict[str, bool] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest for each test's beginning, itself and its end."""
        name = report.nodeid.partition("[")[0]
        self.passed[name] = self.passed.get(name, True) and report.passed


def ours(source: str, model: str) -> str:
    """The code of a file of tests, for bytelm."""
    return ast.unparse(ast.fix_missing_locations(Ours(model).visit(ast.parse(source))))


def wrong(passed: dict[str, bool]) -> list[str]:
    """What is not as ``MAY_FAIL`` has it, in words."""
    found = []
    named: set[str] = set()
    for test, did_pass in passed.items():
        reason = next((one for one in (test, test.rpartition("::")[0]) if one in MAY_FAIL), None)
        if reason is not None:
            named.add(reason)
        if did_pass and reason is not None:
            found.append(f"{test} passes: it need not be named any more")
        elif not did_pass and reason is None:
            found.append(f"{test} fails")
    return found + [f"there is no {test}" for test in MAY_FAIL if test not in named]


def main() -> int:
    """Runs all of it; fails where a test fails that is not named, or passes though it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="the model's folder")
    parser.add_argument("sources", type=Path, help="genlm-bytes' source distribution")
    given = parser.parse_args()
    outcomes = Outcomes()
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            code = ours((given.sources / "tests" / name).read_text(), given.model)
            (Path(folder) / name).write_text(code)
        os.chdir(folder)
        quiet = ["-q", "--tb=short", "-W", "ignore", "-p", "no:cacheprovider"]
        pytest.main([*quiet, *FILES], plugins=[outcomes])
    failed = [test for test, did_pass in outcomes.passed.items() if not did_pass]
    for test, reason in MAY_FAIL.items():
        print(f"{test} {reason}")
    print(f"{len(outcomes.passed) - len(failed)} of {len(outcomes.passed)} tests pass on bytelm")
    found = wrong(outcomes.passed)
    print("\n".join(found) if found else "all others pass, and none of these")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
