"""The pure parts of the benchmark of the engine, on figures and processes made up here."""

import json
import sys
from pathlib import Path

import pytest

from bytelm.vocabulary.vocab import ByteVocab
from tests.benchmarks import bench_engine, bench_host
from tests.benchmarks.bench_engine import (
    OURS,
    PLAIN,
    SHARP,
    VLLM,
    WIDE,
    Case,
    Held,
    Side,
    cases,
    measure,
    report,
    rows,
    sides,
    table,
)
from tests.benchmarks.bench_host import arguments
from tests.benchmarks.engine_walks import SIDES, contexts_of
from tests.benchmarks.tiny_models import Tiny, longer, widen

ROUNDS, GREEDY = Case(PLAIN, "rounds", 128, 60, 8), Case(PLAIN, "greedy", 128, 60, 64)
OTHER = Side("bytelm at abc", "bytelm")


def figures(seconds, evaluations=100, size=0):
    cpu = {"API process": 0.01, "engine core": 0.02, "worker": 0.003}
    return {"seconds": seconds, "evaluations": evaluations, "bytes": size, "cpu": cpu}


def test_all_that_is_wanted_is_measured():
    for model in (PLAIN, WIDE):
        rounds = {(c.count, c.size) for c in cases(model) if c.call == "rounds"}
        assert rounds == {(n, size) for n in (1, 32, 128) for size in (60, 500, 2000)}
    for model in (PLAIN, SHARP, WIDE):
        walks = {(c.call, c.count) for c in cases(model) if c.is_walk}
        assert walks == {("greedy", 128), ("sample", 128), ("score", 128)}
    calls = [case.call for case in cases(PLAIN)]
    assert calls.index("greedy") < calls.index("score"), "it scores the greedy texts"


def test_sides_take_what_they_can():
    assert sides(None, None) == [OURS, VLLM]
    ours, other, vllm = sides("236c398", Path("/tree"))
    assert other == Side("bytelm at 236c398", "bytelm", Path("/tree"))
    assert [side.takes(GREEDY) for side in (ours, other, vllm)] == [True, True, False]
    assert all(side.takes(ROUNDS) for side in (ours, other, vllm))


@pytest.mark.parametrize("side", [OURS, VLLM])
def test_every_job_is_one_that_its_side_knows(side):
    for case in (case for model in (PLAIN, SHARP, WIDE) for case in cases(model)):
        if side.takes(case):
            job = json.loads(json.dumps(case.job(side, 3)))
            assert hasattr(SIDES[side.kind], job["call"])
            assert len(job.get("prompts", [0] * case.count)) == case.count


def test_each_turn_has_tokens_of_its_own_behind_the_same_contexts():
    assert ROUNDS.job(OURS, 1)["seed"] != ROUNDS.job(OURS, 2)["seed"]
    contexts = contexts_of(3, 60)
    assert contexts == contexts_of(3, 60)
    assert [len(context) for context in contexts] == [60] * 3
    assert contexts_of(1, 60) != contexts[:1]


def test_a_ratio_is_the_median_of_those_of_the_turns():
    # The machine slowed down in the last turn, and more so while the other ran.
    runs = {
        OURS.name: [figures(1.0), figures(1.0), figures(5.0)],
        OTHER.name: [figures(2.0), figures(3.0), figures(50.0)],
    }
    mine, other = rows({ROUNDS: runs})
    assert (mine["per_second"], mine["ratio"], mine["evaluations_per_byte"]) == (100, None, None)
    assert other["ratio"] == pytest.approx(3.0)
    assert mine["us_per_evaluation"] == pytest.approx(
        {"API process": 100, "engine core": 200, "worker": 30}
    )


def test_walks_are_rated_by_their_bytes():
    (row,) = rows({GREEDY: {OURS.name: [figures(2.0, evaluations=30, size=100)]}})
    assert (row["per_second"], row["unit"], row["evaluations_per_byte"]) == (50, "bytes/s", 0.3)


def test_the_page_says_what_was_run_beside_what_and_how():
    measured = {
        ROUNDS: {OURS.name: [figures(1.0)], OTHER.name: [figures(4.0)], VLLM.name: [figures(0.5)]},
        GREEDY: {OURS.name: [figures(1.0, 30, 100)], OTHER.name: [figures(2.0, 30, 100)]},
    }
    taking_part = [OURS, OTHER, VLLM]
    made = report(taking_part, measured, 1, "make bench-host AGAINST=abc", "a processor")
    page = table(json.loads(json.dumps(made)))
    for part in ("`make bench-host AGAINST=abc`", "a processor", "bytelm; bytelm at abc; vLLM"):
        assert part in page
    assert "| bytelm at abc | 25 evaluations/s |  | 100 | 200 | 30 | 4.00 |" in page
    assert "| vLLM's own decoding | 200 tokens/s |  | 100 | 200 | 30 | 0.50 |" in page
    assert "| bytelm | 100 bytes/s | 0.300 |" in page


SCRIPT = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if job["call"] == "read":
        sys.exit("broken")
    print(json.dumps({"seconds": 1.0, "evaluations": job["count"], "bytes": 64, "cpu": {}}),
          flush=True)
"""


@pytest.fixture
def script(monkeypatch, tmp_path):
    """What is run instead of engines, and a model that is none."""
    (tmp_path / "engine_walks.py").write_text(SCRIPT)
    monkeypatch.setattr(bench_engine, "__file__", str(tmp_path / "bench_engine.py"))
    monkeypatch.setattr(Tiny, "make", lambda self, source, target: target)
    return tmp_path


def test_all_take_turns_and_the_first_turn_does_not_count(script, monkeypatch):
    monkeypatch.setattr(bench_engine, "cases", lambda tiny: [Case(tiny, "rounds", 2, 60, 1)])
    said = []
    known = [list(found) for found in measure([OURS, VLLM], script, 3, said.append)]
    assert [len(found) for found in known] == [1, 2, 3]
    *_, measured = measure([OURS, VLLM], script, 3, lambda _: None)
    assert [case.model for case in measured] == [PLAIN, SHARP, WIDE]
    for runs in measured.values():
        assert {name: len(made) for name, made in runs.items()} == {OURS.name: 3, VLLM.name: 3}
    assert said[1] == "the default vocabulary: turn 0 of 3"
    assert len(said) == 15


def test_a_side_that_ends_is_named(script):
    one = Held(OURS, script)
    assert one.answer() == {"ready": True}
    with pytest.raises(SystemExit, match="bytelm ended"):
        one.measure(Case(PLAIN, "read", 1, 60, 1).job(OURS, 0))
    one.close()


def test_a_side_ends_with_its_input(script):
    one = Held(OURS, script)
    one.answer()
    one.close()
    assert one._process.returncode == 0


def test_one_part_alone_can_be_measured(monkeypatch, tmp_path):
    assert arguments([]).only is None
    monkeypatch.setattr(bench_host, "run", lambda *_: pytest.fail("the other part"))
    made = report([OURS], {ROUNDS: {OURS.name: [figures(1.0)]}}, 1, "make", "a processor")
    monkeypatch.setattr(bench_host, "run_engine", lambda *_: [made])
    monkeypatch.setattr(sys, "argv", ["bench_host", "--only", "engine", "--results", str(tmp_path)])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    bench_host.main()
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "bench_engine.json",
        "bench_engine.md",
    ]


@pytest.mark.parametrize("as_lists", [True, False])
def test_a_vocabulary_is_widened_by_merges_of_its_tokens(as_lists):
    pairs = [["a", "b"], ["ab", "c"]]
    model = {
        "vocab": {token: i for i, token in enumerate(["a", "b", "c", "ab", "abc"])},
        "merges": pairs if as_lists else [" ".join(pair) for pair in pairs],
    }
    widen(model, 20)
    assert sorted(model["vocab"].values()) == list(range(20))
    merges = [merge if as_lists else merge.split(" ") for merge in model["merges"]]
    assert len(merges) == 17
    for left, right in merges[2:]:
        token = model["vocab"][left + right]
        assert token > max(model["vocab"][left], model["vocab"][right])
    assert longer({"a": 0, "abc": 1, "abcd": 2}, 3) == [2]


def test_a_tiny_model_is_made_and_read(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("ab", "ab"), ("abab", "c")]
    vocab = {token: i for i, token in enumerate([*alphabet, *("".join(m) for m in merges)])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    source = tmp_path / "source"
    source.mkdir()
    tokenizer.save(str(source / "tokenizer.json"))
    config = {"vocab_size": len(vocab), "bos_token_id": 0, "eos_token_id": 1}
    (source / "config.json").write_text(json.dumps(config))

    from safetensors.numpy import load_file

    folder = Tiny("wide", ids=300).make(source, tmp_path / "wide")
    read = ByteVocab.from_file(folder / "tokenizer.json", bos_token_id=0)
    assert (read.size, read.token_bytes[258]) == (300, b"ababc")
    assert all(read.token_bytes[259:])
    assert load_file(folder / "model.safetensors")["lm_head.weight"].shape[0] == 300

    folder = Tiny("sharp", spread=8.0, speaks=4).make(source, tmp_path / "sharp")
    weight = load_file(folder / "model.safetensors")["lm_head.weight"]
    assert not weight[258].any()
    assert weight[:258].std() == pytest.approx(1.0, rel=0.1)
