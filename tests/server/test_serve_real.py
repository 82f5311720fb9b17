"""``bytelm serve`` as users run it: a real process, the real engine, the default model."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from bytelm_client import (
    AsyncClient,
    Beam,
    Client,
    InvalidRequest,
    NextBytes,
    messages,
    segments,
    special,
)
from tests.shm import left, mapped_by

ALL_GONE_SECONDS = 60.0
README = Path(__file__).parents[2] / "README.md"


@dataclass
class Served:
    """A running ``bytelm serve`` in a process group of its own, as in a terminal."""

    process: subprocess.Popen[str]
    errors: Path
    url: str = ""
    said: str = ""
    seen: set[psutil.Process] = field(default_factory=set)

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if "Ctrl-C" in line:
                break
        found = re.search(r"http://[0-9.:]+", self.said)
        assert found is not None, self.errors.read_text()
        self.url = found.group()

    def members(self) -> list[psutil.Process]:
        """Its processes that live: those below it, seen at this call or before, and its group."""
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                above = {parent.pid for parent in [process, *process.parents()]}
                if self.process.pid in {*above, os.getpgid(process.pid)}:
                    self.seen.add(process)
        return [p for p in self.seen if p.is_running() and _lives(p)]

    def wait_until_gone(self) -> None:
        """All processes of the group end in time."""
        deadline = time.monotonic() + ALL_GONE_SECONDS
        while self.process.poll() is None or self.members():
            assert time.monotonic() < deadline, self.members()
            time.sleep(0.1)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start(folder: Path, *arguments: str) -> Served:
    """``bytelm serve`` with what it writes in ``folder``."""
    arguments = arguments or ("--port", "0")
    store = str(folder / "sessions.sqlite")
    errors = folder / "stderr"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "bytelm_client", "serve", "--session-store", store, *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
    return Served(process, errors)


def kill(served: Served) -> None:
    for process in served.members():
        process.kill()
    served.process.wait(10)


def ended_in_order(served: Served) -> bool:
    """Whether nothing went wrong at the end, and it did not have to be cut short."""
    said = served.errors.read_text()
    return "Traceback" not in said and "ended at once" not in said


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = start(tmp_path_factory.mktemp("served"), "--port", "0", "--vllm-metrics")
    try:
        served.wait_until_ready()
        yield served
    finally:
        kill(served)


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.url) as client:
        yield client


@pytest.fixture
async def async_client(served: Served) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(served.url) as client:
        yield client


def test_what_it_says_to_type_next_works_as_pasted(served: Served) -> None:
    (line,) = re.findall(r"^ *(curl .*)$", served.said, re.M)
    done = subprocess.run([*shlex.split(line), "-s"], capture_output=True, text=True, timeout=120)
    assert '"text":"doctor away."' in done.stdout


def test_the_readmes_first_examples_answer_as_it_says(served: Served) -> None:
    first, _, _ = README.read_text().partition("\n## Why byte level")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", first, re.M | re.S)
    (curl,) = [text for _, text in blocks if text.startswith("$ curl")]
    command, answer = re.fullmatch(r"\$ (.*?'\n)(.*)", curl, re.S).groups()  # type: ignore[union-attr]
    command = command.replace("\\\n", " ").replace("http://127.0.0.1:8000", served.url)
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=120)
    have, want = json.loads(done.stdout), json.loads(answer)
    assert have["results"] == want["results"]
    assert have["usage"].keys() == want["usage"].keys()

    python = [("Client()" in text, after) for (_, text), (_, after) in itertools.pairwise(blocks)]
    (said,) = [after for is_client, after in python if is_client]
    (program,) = [text for _, text in blocks if "Client()" in text]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"BYTELM_URL": served.url},
        capture_output=True,
        text=True,
        timeout=120,
    )
    for have_word, want_word in zip(done.stdout.split(), said.split(), strict=True):
        if re.fullmatch(r"-\d+\.\d+", want_word):
            assert float(have_word) == pytest.approx(float(want_word), abs=0.01)
        else:
            assert have_word == want_word


def agrees(have: Any, want: Any) -> bool:
    """But for ids, times, and what it took, which depends on what went before.

    OpenAPI leaves out what is null.
    """
    if isinstance(want, dict):
        left_out = {"id", "expires_at", "n_calls", "usage"}
        return {key for key in have if have[key] is not None} == set(want) and all(
            agrees(have[key], want[key]) for key in set(want) - left_out
        )
    if isinstance(want, list):
        return len(have) == len(want) and all(map(agrees, have, want))
    return bool(have == (pytest.approx(want, abs=0.01) if isinstance(want, float) else want))


def test_sessions_answer_as_the_docs_show_it(served: Served) -> None:
    with httpx.Client(base_url=served.url, timeout=120) as http:
        paths = http.get("/openapi.json").json()["paths"]

        def check(path: str, method: str, more: str = "", **how: Any) -> Any:
            answer = http.request(method, (path + more).format(made["id"]), **how).json()
            path = (path + more).replace("{}", "{session_id}")
            shown = paths[path][method.lower()]["responses"]["200"]["content"]
            assert agrees(answer, shown["application/json"]["example"]), (path, answer)
            return answer

        made = {"id": ""}
        made = check("/v1/sessions", "POST", json={"context": "The capital of Fran"})
        session = "/v1/sessions/{}"
        check(session, "POST", "/advance", json={"bytes": "ce"})
        check(session, "GET", "/next", params={"top": 2})
        check(session, "GET")
        check(session, "POST", "/greedy", json={"steps": 12})
        check("/v1/token_logprobs", "POST", json={"contexts": [[1, 504, 3575, 282]], "top": 3})


def test_token_sessions_generate_natively_what_rows_say(client: Client) -> None:
    with client.session("Once upon a time", kind="token") as native, native.fork() as rows:
        before = native.candidates()[0].tokens
        made, want = native.greedy(24).tokens, rows.greedy(24, logprobs=True).tokens
        assert made
        assert want
        for place, (one, other) in enumerate(zip(made, want, strict=True)):
            if one != other:
                row = client.token_logprobs([*before, *want[:place]])
                assert abs(row.logprobs[one] - row.logprobs[other]) < 1e-4
                break


def test_the_default_model_knows_its_proverb(served: Served) -> None:
    body = {"context": "An apple a day keeps the ", "steps": 12}
    answer = httpx.post(f"{served.url}/v1/greedy", json=body, timeout=120).json()
    assert answer["results"][0]["bytes"]["text"] == "doctor away."
    assert answer["results"][0]["finish_reason"] == "steps"


def test_a_context_may_end_inside_a_word(client: Client) -> None:
    assert client.greedy("The capital of Fran", 12).text.startswith("ce")
    assert client.next_bytes("The capital of Fran").top(1)[0][0] == b"c"


def test_the_model_has_its_own_name(client: Client) -> None:
    (model,) = client.models()
    assert model.name == "smollm2-135m-instruct"
    assert model.initial_context == (1,)


def test_a_seed_repeats_a_sample(client: Client) -> None:
    first, again = (client.sample("Once upon a time", 20, seed=7) for _ in range(2))
    assert first.bytes == again.bytes


def test_a_context_over_the_models_limit_is_refused_at_once(client: Client) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.greedy("one two three " * 3000, 5)
    assert caught.value.code == "context_too_long"
    assert client.greedy("The capital of Fran", 2).text == "ce"


async def test_32_greedy_calls_at_once_answer_as_each_alone(async_client: AsyncClient) -> None:
    words = ["apple", "river", "doctor", "street", "winter", "teacher", "garden", "window"]
    forms = ["The {} is ", "Once there was a {}", "I saw the {} and", "def {}("]
    contexts = [form.format(word) for word in words for form in forms]
    together = await asyncio.gather(*[async_client.greedy(c, 12) for c in contexts])
    for context, result in zip(contexts, together, strict=True):
        alone = await async_client.greedy(context, 12)
        if alone.bytes == result.bytes:
            continue
        # Batching changes the last digits, which may decide between two equals, but only there.
        pairs = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(alone.bytes, result.bytes, strict=False)
        )
        same = bytes(a for a, _ in pairs)
        logprobs = (await async_client.next_bytes(context.encode() + same)).logprobs
        second, first = sorted(logprobs)[-2:]
        assert first - second < 1e-4, (context, alone, result)


def test_a_chat_gets_a_sensible_answer(client: Client) -> None:
    chat = messages([{"role": "user", "content": "What is 2+2?"}])
    answer = client.greedy(chat, 60, stop="\n")
    assert "4" in answer.text
    ended = client.greedy(messages([{"role": "user", "content": "Say hello."}]), 200)
    assert ended.finish_reason == "eos"


def test_a_chat_is_its_template_as_segments(client: Client) -> None:
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    start, end = special("<|im_start|>"), special("<|im_end|>")
    written = segments(
        *(start, f"system\n{system}", end, "\n"),
        *(start, "user\nHello", end, "\n"),
        *(start, "assistant\n"),
    )
    chat = messages([{"role": "user", "content": "Hello"}])
    assert same(client.next_bytes(written), client.next_bytes(chat))
    spelled = segments(start, "user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert not same(client.next_bytes(spelled), client.next_bytes(chat))


def same(one: NextBytes, other: NextBytes) -> bool:
    return bool(np.allclose(np.exp(one.logprobs), np.exp(other.logprobs), atol=1e-4))


def test_a_stop_string_ends_the_proverb(client: Client) -> None:
    result = client.greedy("An apple a day keeps the ", 40, stop=["never", " away"])
    assert (result.text, result.finish_reason) == ("doctor", "stop")


def test_a_score_is_the_chain_of_next_bytes(client: Client) -> None:
    context, text = "The capital of France is", b" Paris."
    beam: Beam = {"K": 5, "prune_threshold": 0.0}
    scored = client.score(context, text, per_byte=True, beam=beam, prefill="exact")
    before = [context.encode() + text[:i] for i in range(len(text))]
    chain = client.next_bytes(before, beam=beam, prefill="exact")
    wanted = [q.logprobs[b] for q, b in zip(chain, text, strict=True)]
    assert scored.logprobs is not None
    assert np.allclose(scored.logprobs, wanted, atol=1e-4)
    london, paris = client.score(context, [" London", " Paris"])
    assert paris.logprob > london.logprob


def test_words_sum_to_the_score_which_a_session_gives_in_parts(client: Client) -> None:
    context, text = "The capital of Fran", "ce is Paris. Berlin is in Germany."
    beam: Beam = {"K": 3, "prune_threshold": 0.0}
    scored = client.score(context, text, per_byte=True, spans="words", top=2, beam=beam)
    assert scored.logprobs is not None
    assert scored.spans is not None
    assert scored.top is not None
    assert [span.text for span in scored.spans[:3]] == ["ce", " is", " Paris."]
    assert sum(span.logprob for span in scored.spans) == pytest.approx(scored.logprob)
    assert scored.top[0] is not None
    assert scored.top[0][0] == (b"c", scored.logprobs[0])
    with client.session(context, beam=beam) as session:
        parts = [session.score(part, per_byte=True) for part in (text[:7], text[7:])]
        assert session.length == len(context + text)
    found = np.concatenate([part.logprobs for part in parts if part.logprobs is not None])
    assert np.allclose(found, scored.logprobs, atol=1e-4)


def test_valid_utf8_decodes(client: Client) -> None:
    context = "Le café: é, 日本語, ".encode() + b"\xf0\x9f"
    results = client.sample(context, 24, n=4, seed=3, temperature=1.5, valid_utf8=True)
    assert isinstance(results, list)
    for result in results:
        assert (context + result.bytes).decode()


def test_seeds_repeat_several_samples_at_once(client: Client) -> None:
    first, again = (client.sample("Once upon a time", 20, n=4, seed=7) for _ in range(2))
    assert isinstance(first, list)
    assert isinstance(again, list)
    assert [r.bytes for r in first] == [r.bytes for r in again]
    assert len({r.bytes for r in first}) > 1


def test_usage_counts_the_tokens_of_the_call_alone(client: Client) -> None:
    context = "This is a text that nobody has asked for here before. " * 8
    first, again = (client.greedy(context, 10).usage for _ in range(2))
    for usage in (first, again):
        assert usage.tokens_computed is not None
        assert usage.tokens_cached is not None
        assert usage.evaluations <= usage.tokens_computed
        assert usage.tokens_cached > 0
    assert first.evaluations == again.evaluations
    assert (again.tokens_computed or 0) <= (first.tokens_computed or 0)


def test_vllms_own_metrics_are_shown_beside_bytelms(served: Served, client: Client) -> None:
    client.greedy("A metric is ", 4)
    text = httpx.get(f"{served.url}/metrics").text
    for name in ("bytelm_evaluations_total", "bytelm_tail_hits_total", "vllm:prompt_tokens_total"):
        (value,) = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
        assert float(value) > 0, name


def test_the_vocabulary_has_the_special_tokens(client: Client) -> None:
    vocab = client.vocab()
    assert len(vocab) == 49152
    assert vocab.token_text[vocab.eos[0]] == "<|im_end|>"
    assert b" doctor" in vocab.token_bytes


def test_it_writes_nothing_on_stderr_but_its_steps_and_its_log(served: Served) -> None:
    lines = [line for line in served.errors.read_text().splitlines() if line]
    others = [line for line in lines if not line.startswith("{")]
    assert others == ["starting the engine (about 40 seconds on CPU) …"]
    assert all(json.loads(line)["level"] for line in lines if line.startswith("{"))


def test_ctrl_c_ends_all_processes_and_leaves_nothing(served: Served) -> None:
    assert len(served.members()) > 1, "the engine has processes of its own"
    shared = mapped_by(served.members())
    assert shared
    os.killpg(served.process.pid, signal.SIGINT)
    served.wait_until_gone()
    assert served.process.returncode == 130
    assert left(shared) == []
    assert ended_in_order(served)


def test_sigterm_to_the_server_alone_ends_all_processes_in_order(tmp_path: Path) -> None:
    served = start(tmp_path)
    try:
        served.wait_until_ready()
        assert len(served.members()) > 1
        shared = mapped_by(served.members())
        assert shared
        served.process.terminate()
        served.wait_until_gone()
        assert served.process.returncode == 0
        assert left(shared) == []
        assert ended_in_order(served)
    finally:
        kill(served)


def test_sigterm_while_the_engine_starts_ends_all_processes(tmp_path: Path) -> None:
    served = start(tmp_path)
    try:
        while not any("EngineCore" in p.name() for p in served.members()):
            assert served.process.poll() is None
            time.sleep(0.1)
        shared = mapped_by(served.members())
        served.process.terminate()
        served.wait_until_gone()
        assert served.process.returncode == 0
        assert left(shared) == []
        assert ended_in_order(served)
    finally:
        kill(served)


def test_a_killed_server_takes_its_engine_with_it(tmp_path: Path) -> None:
    served = start(tmp_path)
    try:
        served.wait_until_ready()
        assert len(served.members()) > 1
        served.process.kill()
        served.wait_until_gone()
    finally:
        kill(served)
