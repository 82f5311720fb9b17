"""The client, the command line and the examples on a real engine, as users have it."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from bytelm.models.ensemble import Ensemble
from bytelm.models.testing import assert_immutable, assert_normalised, assert_prune_keeps_one
from bytelm_client import AsyncClient, Beam, Client, RemoteByteLM, RemoteTokenLM
from tests.server.commands import bytelm, command, output
from tests.server.test_examples import EXAMPLES
from tests.server.test_serve_real import kill, start

CLOSE = 1e-4
"""How far log-probabilities may be apart on one engine."""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    served = start(tmp_path_factory.mktemp("client"))
    try:
        served.wait_until_ready()
        yield served.url
    finally:
        kill(served)


@pytest.fixture
async def client(real: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(real) as client:
        yield client


# The laws of byte LMs that hold up to rounding: 1, 3 and 7.


async def test_distributions_sum_to_one(client: AsyncClient) -> None:
    state = await RemoteByteLM.initial(client, "The capital of Fran")
    for b in b"ce is":
        await assert_normalised(state)
        state = await (state.prune() << b)
    await state.cleanup()


async def test_states_do_not_change(client: AsyncClient) -> None:
    state = await RemoteByteLM.initial(client, "An apple a day keeps the d")
    await assert_immutable(state, b"oae", CLOSE)
    await state.cleanup()


async def test_pruning_leaves_something(client: AsyncClient) -> None:
    beam: Beam = {"K": 1, "prune_threshold": 0.9}
    state = await RemoteByteLM.initial(client, "The capital of Fran", beam=beam)
    pruned = state.prune()
    likely = {id(s): int(np.isfinite((await s.logp_next()).ps).sum()) for s in (state, pruned)}
    state.prune = lambda: pruned  # type: ignore[method-assign]
    assert_prune_keeps_one(state, lambda s: likely[id(s)])
    await state.cleanup()


async def test_a_remote_state_generates_the_proverb(client: AsyncClient) -> None:
    state = await RemoteByteLM.initial(client)
    made = await state.greedy(b"An apple a day keeps the ", 12)
    assert made == b"An apple a day keeps the doctor away."
    await state.cleanup()


async def test_an_ensemble_of_two_prompts(client: AsyncClient) -> None:
    prompts = ["The colour of the sky is ", "The colour of the grass is "]
    states = [await RemoteByteLM.initial(client, prompt) for prompt in prompts]
    alone = [(await state.logp_next()).ps for state in states]
    want = {
        "mixture": np.logaddexp(*alone) - math.log(2),
        "pool": np.logaddexp(*alone) - math.log(2),
    }
    product = (alone[0] + alone[1]) / 2
    want["product"] = product - np.logaddexp.reduce(product)
    for mode, logps in want.items():
        both = Ensemble(states, mode=mode)  # type: ignore[arg-type]
        have = (await both.logp_next()).ps
        finite = np.isfinite(logps)
        assert np.abs(have[finite] - logps[finite]).max() < CLOSE
    mixture = await Ensemble(states).prefill(b"green")
    assert mixture.log_weights[1] > mixture.log_weights[0]
    await mixture.cleanup()
    for state in states:
        await state.cleanup()


async def test_rows_are_what_a_walk_reads(client: AsyncClient, real: str, tmp_path: Path) -> None:
    text = b"The capital of France is Paris."
    rows = await client.rows("", text)
    walked = []
    async with await RemoteByteLM.initial(client) as state:
        read = [q.ps async for q in state.rows(text)]
        for b in [*text, None]:
            walked.append((await state.logp_next()).ps)
            if b is not None:
                state = await (state.prune() << b)
    assert np.abs(np.exp(walked) - np.exp(read)).max() < CLOSE
    assert np.abs(np.exp(rows[:, :256]) - np.exp(read)[:, :256]).max() < CLOSE
    scored = await client.score("", text, per_byte=True)
    assert scored.logprobs is not None
    assert np.allclose(rows[np.arange(len(text)), list(text)], scored.logprobs, atol=1e-3)
    (tmp_path / "text").write_bytes(text)
    flags = ["--output", str(tmp_path / "rows.npy"), "--dtype", "float16", "--url", real]
    output("rows", str(tmp_path / "text"), *flags)
    assert np.abs(np.exp(np.load(tmp_path / "rows.npy")) - np.exp(rows)).max() < 1e-3


async def test_a_remote_token_lm_is_the_engines(client: AsyncClient, real: str) -> None:
    lm = RemoteTokenLM(real)
    row = await lm.next_token_logprobs([1, 42, 43])
    assert row.shape == (49152,)
    assert abs(np.exp(row.astype(np.float64)).sum() - 1) < CLOSE
    async with client.session([1, 42, 43], kind="token") as session:
        told = (await session.next_tokens()).logprobs
    assert np.abs(told - row).max() < 1e-3
    await lm.aclose()


# Commands.


def test_compare_shows_the_prompt_boundary_problem(real: str) -> None:
    told = json.loads(output("compare", "The capital of Fran", "--steps", "11", "--url", real))
    assert told["byte_level"]["text"] == "ce is Paris"
    assert not told["token_level"]["text"].startswith("ce")
    assert told["prompt"]["tokens"][-1] == "␣Fran"
    assert not told["same"]


def test_next_knows_what_follows(real: str) -> None:
    told = json.loads(output("next", "The capital of Fran", "--top", "1", "--url", real))
    assert told["top"][0]["byte"] == ord("c")
    assert told["candidates"][0]["partial"]["text"] == " Fran"


def test_score_needs_less_than_two_bits_for_prose(real: str, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("The sun rises in the east and sets in the west. " * 4)
    *_, total = map(json.loads, output("score", str(file), "--url", real).splitlines())
    assert 0 < total["bits_per_byte"] < 2
    assert total["impossible"] == 0


def test_bench_measures(real: str) -> None:
    flags = ["--clients", "4", "--calls", "1", "--steps", "16", "--kind", "sessions"]
    told = json.loads(output("bench", *flags, "--url", real))
    assert told["calls"] == 4
    assert told["bytes_per_second"] > 0


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_examples_run(real: str, name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        env={**os.environ, "BYTELM_URL": real},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    if name == "constrained_choice.py":
        assert done.stdout.splitlines()[0].endswith("city of Rome.")
    if name == "infill_code.py":
        assert "num\x1b[1mber\x1b[0m\n" in done.stdout
    if name == "compression.py":
        sizes = dict(re.findall(r"^(\w+) +(\d+) bytes", done.stdout, re.M))
        assert int(sizes["model"]) < int(sizes["zlib"])
    if name == "from_genlm.py":
        assert done.stdout.count("doctor away.") == 2


def test_nothing_is_left_on_the_server(real: str) -> None:
    with Client(real) as client:
        left = list(client.sessions())
    assert left == []


def test_a_command_starts_its_own_model_and_ends_it() -> None:
    done = bytelm("greedy", "An apple a day keeps the ", "--steps", "12")
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"doctor away."
    assert b"starting the engine" in done.stderr
    assert b"Traceback" not in done.stderr


def test_ctrl_c_while_a_command_starts_its_model_is_clean() -> None:
    with subprocess.Popen(
        command("greedy", "hello"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        while b"starting the engine" not in said:
            assert process.poll() is None
            said = process.stderr.readline()
        time.sleep(5)
        process.send_signal(signal.SIGINT)
        written, errors = process.communicate(timeout=100)
    assert process.returncode == 130
    assert written == b""
    assert b"Traceback" not in errors
