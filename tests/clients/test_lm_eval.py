"""lm-evaluation-harness's LocalCompletionsAPI, as it is."""

import json
import math

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.tasks import TaskManager

PAIRS = [
    ("The capital of Fran", "ce is"),
    ("The capital of France is ", "Paris"),
    ("An apple a day", " keeps the doctor away"),
    ("北京是中国的", "首都"),
    ("caf", "é"),
    ("", "The capital"),
    ("", "é"),
]
LIMIT = 128


def model(url, key, **more):
    options = {"model": "default", "auth_token": key, "max_length": LIMIT, **more}
    return LocalCompletionsAPI(base_url=f"{url}/v1/completions", **options)


def asked(kind, *arguments):
    return [Instance(kind, {}, one, i) for i, one in enumerate(arguments)]


@pytest.fixture
def summed(post):
    """The log-probability of a text after another, as the server's own call has it."""

    def total(context, text):
        body = {"context": context, "continuations": [text], "prefill": "exact"}
        return post("/v1/score", **body)[0]["logprob"]

    return total


def test_it_takes_the_servers_tokenizer(url, key):
    lm = model(url, key)
    assert lm.tokenizer_backend == "remote"
    assert (lm.prefix_token_id, lm.eot_token_id) == (256, 256)
    assert lm.tok_encode("hé") == list("hé".encode())
    assert lm.decode_batch([list("hé".encode())]) == ["hé"]


@pytest.mark.parametrize("more", [{}, {"batch_size": 4}, {"num_concurrent": 3}])
def test_loglikelihoods_are_direct_sums(url, key, summed, close, show, more):
    found = model(url, key, **more).loglikelihood(asked("loglikelihood", *PAIRS))
    for (context, text), (logprob, _) in zip(PAIRS, found, strict=True):
        # It moves white space from the end of a context to what it scores.
        head = context.rstrip()
        want = summed(head, context[len(head) :] + text)
        assert logprob == pytest.approx(want, abs=close), (context, text)
    show("lm_eval", [(round(logprob, 3), greedy) for logprob, greedy in found])


def test_what_is_greedy_is_known(url, key, greedy):
    lm, context = model(url, key), "The capital of Fran"
    text = greedy(context, 2, prefill="exact")
    if "\ufffd" in text:
        pytest.skip("its most probable bytes are no text")
    pairs = [(context, text), (context, text + "\0")]
    found = lm.loglikelihood(asked("loglikelihood", *pairs))
    assert [is_greedy for _, is_greedy in found] == [True, False]


@pytest.mark.parametrize("limit", [LIMIT, 12])
def test_rolling_loglikelihoods_are_direct_sums(url, key, summed, close, show, limit):
    text = "The café is near the station. 北京"
    lm = model(url, key, max_length=limit)
    (found,) = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)))
    # Each window has one byte of context, the first one the beginning.
    data, size = text.encode(), limit - 2
    if len(data) <= size:
        want = summed("", text)
    else:
        want = sum(windows(data, size, lambda context, part: raw(summed, context, part)))
    assert found == pytest.approx(want, abs=close)
    show("lm_eval", round(found, 3))


def windows(data, size, score):
    """The scores of all windows, the last of which begins early so that it is full."""
    yield score(b"", data[:size])
    for start in range(size, len(data), size):
        end = min(start + size, len(data))
        begin = max(end - size - 1, 0)
        yield score(data[begin:start], data[start:end])


def raw(summed, context, text):
    import base64

    return summed(*({"base64": base64.b64encode(data).decode()} for data in (context, text)))


def test_generation(url, key, greedy, show):
    context = "An apple a day keeps the "
    want = greedy(context, 20, stop=["."])
    arguments = (context, {"until": ["."], "max_gen_toks": 20, "do_sample": False})
    (found,) = model(url, key).generate_until(asked("generate_until", arguments))
    assert found == want
    show("lm_eval", found)


def test_a_task(url, key, show, tmp_path):
    rows = [
        {"q": "The capital of France is", "choices": [" Paris", " London"], "a": 0},
        {"q": "An apple a day keeps the doctor", "choices": [" here", " away"], "a": 1},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "choices",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "a",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "choices.yaml").write_text(json.dumps(task))  # which is YAML, too
    lm = model(url, key, batch_size=4)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate(model=lm, tasks=["choices"], task_manager=manager)
    assert found["results"]["choices"]["acc,none"] in (0, 0.5, 1)
    show("lm_eval", found["results"]["choices"]["acc,none"])


def test_chats(url, key, greedy, show):
    lm = LocalChatCompletion(
        base_url=f"{url}/v1/chat/completions", model="default", auth_token=key, max_length=LIMIT
    )
    messages = [{"role": "user", "content": "What is 2+2?"}]
    prompt = lm.apply_chat_template(messages)
    arguments = (prompt, {"until": ["\n"], "max_gen_toks": 20})
    (found,) = lm.generate_until(asked("generate_until", arguments))
    assert found == greedy({"messages": messages}, 20, stop=["\n"])
    show("lm_eval", found)


def test_all_is_finite(url, key):
    """Also of what the model does not expect."""
    pairs = [("the ", "\0\x01\U0001f600"), ("", "\u200b")]
    found = model(url, key).loglikelihood(asked("loglikelihood", *pairs))
    assert all(math.isfinite(logprob) for logprob, _ in found)
