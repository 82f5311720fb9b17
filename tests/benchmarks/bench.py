"""bytelm's speed against genlm-bytes, and against the limit: vLLM's own decoding.

One run measures all of it on the same weights and prompts, one engine at a time: each side in a
process of its own, one after the other. ``python -m tests.benchmarks.bench`` is ``make bench``;
``--only rounds`` measures the cases that have this in their name, for a quick look.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import bytelm
from bytelm import download as models
from bytelm.settings import Paths, ServerSettings
from tests.benchmarks import bench_report, peers
from tests.benchmarks.bench_cases import (
    Case,
    Figures,
    all_cases,
    main_cases,
    peer_cases,
    score_cases,
)

MODULES = {
    "bytelm": "tests.benchmarks.bench_bytelm",
    "native": "tests.benchmarks.bench_native",
    "http": "tests.benchmarks.bench_http",
    "genlm": "tests.benchmarks.bench_genlm",
}


class Journal:
    """The figures of cases by what they depend on, a line each, so that a run can be resumed.

    Args:
        path: its file.
        model: the model's folder.
        afresh: forget what is there.
    """

    def __init__(self, path: Path, model: Path, afresh: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._model = model.name
        self._done: dict[str, list[Figures]] = {}
        self._file = path.open("w+b" if afresh else "a+b")
        self._file.seek(0)
        whole = 0
        for line in self._file:
            if line.endswith(b"\n"):
                whole += len(line)
                key, figures = json.loads(line)
                self._done[key] = figures
        self._file.truncate(whole)

    def get(self, case: Case) -> list[Figures] | None:
        """The figures of a case, if it was measured with the code as it is."""
        return self._done.get(self._key(case))

    def add(self, case: Case, figures: list[Figures]) -> None:
        """Keep the figures of a case."""
        key = self._key(case)
        self._done[key] = figures
        self._file.write(json.dumps([key, figures]).encode() + b"\n")
        self._file.flush()

    def _key(self, case: Case) -> str:
        about = {"model": self._model, "code": _code(case.side)}
        return json.dumps(about | asdict(case), sort_keys=True)

    def close(self) -> None:
        """Close its file."""
        self._file.close()


def _code(side: str) -> str:
    """A digest of what a side's figures depend on: bytelm's code, or for others the benchmark's."""
    package = Path(bytelm.__file__).parent
    here = Path(__file__).parent
    files = [here / "bench_cases.py", here / f"bench_{side}.py", here / "texts.py"]
    if side in ("bytelm", "http"):
        files += sorted(package.rglob("*.py"))
    if side == "http":
        files += sorted((package.parent / "server").rglob("*.py"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file()))
    return digest.hexdigest()[:16]


def measure(model: Path, cases: list[Case], journal: Journal, torch_index: str | None) -> None:
    """Measures the cases that are not in the journal, side after side."""
    for side, module in MODULES.items():
        missing = [case for case in cases if case.side == side and journal.get(case) is None]
        if not missing:
            continue
        _say(f"{side}: {len(missing)} of the cases")
        python, variables = Path(sys.executable), dict(os.environ)
        if side == "genlm":
            python = peers.python(torch_index)
            variables = peers.environment()
        else:
            path = [str(peers.ROOT), str(peers.ROOT / "server"), str(peers.ROOT / "client")]
            variables["PYTHONPATH"] = os.pathsep.join(path)
        process = subprocess.Popen(
            [str(python), "-m", module, str(model)],
            cwd=peers.ROOT,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps([asdict(case) for case in missing]).encode())
            process.stdin.close()
            for line in process.stdout:
                made = json.loads(line)
                journal.add(Case(**made["case"]), made["figures"])
        finally:
            if process.poll() is None and sys.exc_info()[0] is not None:
                process.terminate()
            code = process.wait()
        if code != 0:
            raise SystemExit(f"error: measuring {side} failed (exit status {code})")


def wanted(given: argparse.Namespace) -> list[Case]:
    """The cases that the command line asks for."""
    fields = ServerSettings.model_fields
    default = fields["default_K"].default, fields["default_prune_threshold"].default
    cases = {
        "main": main_cases(*default),
        "peers": peer_cases(),
        "all": all_cases(),
        "scores": score_cases(),
    }[given.which]
    if given.only:
        cases = [case for case in cases if any(part in case.key for part in given.only)]
    if not cases:
        raise SystemExit("error: no case has that in its name; --list shows them")
    return cases


def main() -> None:
    """Measures, prints the table, and writes it unless only some cases were wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "which", nargs="?", choices=["main", "peers", "all", "scores"], default="main"
    )
    parser.add_argument("--only", nargs="+", metavar="PART", help="cases with this in their name")
    parser.add_argument("--list", action="store_true", help="show the names of the cases")
    parser.add_argument("--resume", action="store_true", help="keep what the same code measured")
    parser.add_argument("--model", help="a model's folder or name; the default model otherwise")
    parser.add_argument("--results", type=Path, help="where tables and plots go")
    parser.add_argument("--torch-index", help="an index that has PyTorch's CPU builds")
    given = parser.parse_args()
    cases = wanted(given)
    if given.list:
        print("\n".join(case.key for case in cases))
        return
    model = models.resolve(given.model, progress=_say)
    name = f"bench-{given.which}" + ("" if not given.only else "-some")
    path = Paths().cache_dir.absolute() / "benchmarks" / f"{name}.jsonl"
    journal = Journal(path, model, afresh=not given.resume)
    try:
        measure(model, cases, journal, given.torch_index or None)
        figures = {case: journal.get(case) or [] for case in cases}
    finally:
        journal.close()
    report = bench_report.Report(given.which, model.name, figures)
    print(report.table())
    if not given.only or given.results:
        report.write(given.results or peers.RESULTS)


def _say(line: str) -> None:
    print(f"==> {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        _say("stopped; --resume goes on from here")
        raise SystemExit(130) from None
