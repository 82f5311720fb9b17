"""The examples run as they are, on a real server process; what they show holds on any model."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bytelm_client import Client

EXAMPLES = Path(__file__).parents[2] / "client" / "examples"


def run(name: str, url: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        env={**os.environ, "BYTELM_URL": url},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_every_example_is_listed_and_run() -> None:
    there = {path.name for path in EXAMPLES.glob("*.py")}
    assert len(there) == 5
    assert set(re.findall(r"`(\w+\.py)`", (EXAMPLES / "README.md").read_text())) == there
    tested = set(re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text()))
    assert tested == there


def test_the_choice_is_one_of_the_answers(url: str) -> None:
    first, *scores = run("constrained_choice.py", url).splitlines()
    assert first.startswith("The capital of Italy is the city of ")
    answers = [line.split()[1] for line in scores]
    assert first.split()[-1] in answers
    assert sum(float(line.split()[0]) for line in scores) == pytest.approx(1, abs=1e-3)


def test_the_middle_stands_between_beginning_and_end(url: str) -> None:
    text = run("infill_code.py", url)
    assert re.search(r"total \+= num\x1b\[1m.{0,64}\x1b\[0m\n    return", text)


def test_the_weights_of_the_ensemble_sum_to_one(url: str) -> None:
    before = {info.id for info in Client(url).sessions()}
    lines = run("ensemble.py", url).splitlines()
    for line in lines[:7]:
        assert sum(map(float, line.split()[-2:])) == pytest.approx(1, abs=2e-3)
    assert lines[0].split()[-2:] == ["0.500", "0.500"]
    assert [line.split()[0] for line in lines[7:]] == ["pool", "product"]
    # Those of other tests may end meanwhile.
    assert {info.id for info in Client(url).sessions()} <= before


def test_the_model_needs_what_its_score_says(url: str) -> None:
    as_it_is, *_, model = run("compression.py", url).splitlines()
    size = int(as_it_is.split()[3])
    bits = float(model.split()[3])
    assert int(model.split()[1]) == pytest.approx(size * bits / 8, abs=4)


def test_the_beam_here_and_the_beam_there_agree(url: str) -> None:
    lines = run("from_genlm.py", url).splitlines()
    half = len(lines) // 2
    here, there = lines[:half], lines[half:]
    assert [line.split(":")[0] for line in here[:-1]] == [line.split(":")[0] for line in there[:-1]]
    assert here[-1] == there[-1]
    assert len(here) == 8
