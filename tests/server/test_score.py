"""Scores and the vocabulary over HTTP are the library's."""

import base64
import math
from typing import Any

import httpx
import numpy as np
import pytest

from bytelm.generating.score import score
from bytelm.generating.spans import words

TEXTS = ["", "a", "the", "they", "llo the", "é"]


@pytest.mark.parametrize("eos", [False, True])
async def test_scores_are_the_librarys(results: Any, begun: Any, eos: bool) -> None:
    found = results("/v1/score", context="he", continuations=TEXTS, eos=eos, per_byte=True)
    state = await begun(b"he")
    for text, result in zip(TEXTS, found, strict=True):
        want = await score(state, text.encode(), eos=eos)
        assert result["logprob"] == want.logprob
        assert result["bits_per_byte"] == want.bits_per_byte
        assert result["logprobs"] == list(want.logprobs)
        assert result.get("eos") == want.eos


def test_nothing_scores_zero(results: Any) -> None:
    (result,) = results("/v1/score", context="he", continuations=[""])
    assert result == {"logprob": 0, "bits_per_byte": 0}


def test_a_score_is_the_chain_of_next_bytes(results: Any) -> None:
    text = b"the ant"
    (scored,) = results("/v1/score", context="", continuations=["the ant"], per_byte=True)
    # Walked from the start, so that the states on the way are those that the calls begin with.
    for i, b in enumerate(text):
        before = base64.b64encode(text[:i]).decode()
        (result,) = results("/v1/next_bytes", context={"base64": before}, prefill="exact")
        assert math.isclose(scored["logprobs"][i], result["logprobs"][b], rel_tol=1e-9)


def test_the_impossible_is_null(results: Any) -> None:
    beam = {"K": 1, "prune_threshold": 0.9, "deferred": False}
    body = {"context": "hheth", "continuations": ["i", "ing"], "beam": beam, "prefill": "exact"}
    found = results("/v1/score", **body, per_byte=True)
    assert [r["logprobs"] for r in found] == [[None], [None] * 3]
    assert [(r["logprob"], r["bits_per_byte"]) for r in found] == [(None, None)] * 2


def test_an_impossible_score_has_its_reason(results: Any) -> None:
    beam = {"K": 1, "prune_threshold": 0.9, "deferred": False}
    body = {"context": "hheth", "continuations": ["i", "ing"], "beam": beam, "prefill": "exact"}
    for result in results("/v1/score", **body):
        assert result["reason"].startswith("byte 0 (0x69) has no probability after what comes")
    assert all("reason" not in result for result in results("/v1/score", **body | {"beam": {}}))


def test_a_byte_that_cannot_be_spelled_is_the_reason(start_stub: Any) -> None:
    with httpx.Client(base_url=start_stub("--letters"), timeout=60) as http:
        body = {"context": "hello", "continuations": ["he", "h\0e"], "eos": True}
        good, bad = http.post("/v1/score", json=body).json()["results"]
    assert "reason" not in good
    assert bad["logprob"] is None
    assert (
        bad["reason"] == "byte 1 (0x00) is in no token of the vocabulary: the model cannot spell it"
    )


def test_what_is_dropped_is_not_impossible(results: Any) -> None:
    beam = {"K": 1, "prune_threshold": 0.9}
    body = {"context": "hheth", "continuations": ["i", "ing"], "beam": beam, "prefill": "exact"}
    found = results("/v1/score", **body, per_byte=True)
    assert all(x < 0 for one in found for x in one["logprobs"])


async def test_a_score_has_a_context_of_any_kind(results: Any, begun: Any) -> None:
    special = {"segments": [{"token": "<|im_start|>"}, "he"]}
    body = {"continuations": ["llo"], "beam": {"K": 2}}
    plain = results("/v1/score", context="he", **body)
    assert results("/v1/score", context=special, **body) == plain
    want = await score(await begun(b"he", K=2), b"llo")
    assert plain[0]["logprob"] == want.logprob


# Spans.


def spelled(data: bytes) -> dict[str, Any]:
    text = None if data.decode(errors="ignore").encode() != data else data.decode()
    return {"text": text, "base64": base64.b64encode(data).decode()}


def test_words_are_spans_that_sum_to_the_whole(results: Any) -> None:
    texts = [b"the ant", b" hello  there\n", b"", b"h\xff e \xc3", "é北京。".encode()]
    given = [spelled(text) for text in texts]
    body = {"continuations": [{"base64": one["base64"]} for one in given]}
    found = results("/v1/score", context="he", **body, spans="words", per_byte=True, eos=True)
    for text, result in zip(texts, found, strict=True):
        spans = result["spans"]
        assert [(span["start"], span["end"]) for span in spans] == words(text)
        for span in spans:
            start, end = span["start"], span["end"]
            assert span["bytes"] == spelled(text[start:end])
            assert span["logprob"] == math.fsum(result["logprobs"][start:end])
            assert math.isclose(span["bits"], -span["logprob"] / math.log(2), rel_tol=1e-12)
        total = math.fsum(span["logprob"] for span in spans)
        assert math.isclose(total + result["eos"], result["logprob"], rel_tol=1e-12)
    assert [span["bytes"]["text"] for span in found[1]["spans"]] == [" hello", "  there", "\n"]


async def test_spans_are_the_walks(results: Any, begun: Any) -> None:
    """Any bytes, in any order, more than once; none score zero."""
    given = [[3, 7], [0, 7], [2, 2], [0, 3], [0, 3]]
    body = {"context": "he", "continuations": ["the ant", "a"], "spans": [given, []]}
    one, other = results("/v1/score", **body)
    state, logprobs = await begun(b"he"), []
    for b in b"the ant":
        logprobs.append(float((await state.logp_next()).ps[b]))
        state = await state.prune().advanced(b)
    want = [math.fsum(logprobs[start:end]) for start, end in given]
    assert [span["logprob"] for span in one["spans"]] == want
    assert [[span["start"], span["end"]] for span in one["spans"]] == given
    assert other["spans"] == []
    assert one["spans"][2]["bits"] == 0


def test_a_span_with_an_impossible_byte_is_null(results: Any) -> None:
    beam = {"K": 1, "prune_threshold": 0.9, "deferred": False}
    body = {"context": "hhet", "continuations": ["h i"], "beam": beam, "prefill": "exact"}
    (result,) = results("/v1/score", **body, spans="words")
    assert [(span["logprob"], span["bits"]) for span in result["spans"]][-1] == (None, None)


@pytest.mark.parametrize(
    ("spans", "param", "message"),
    [
        ("letters", "spans", 'give "words", or for each continuation a list of [start, end]'),
        (5, "spans", 'give "words"'),
        ([[[0, 1]]], "spans", "a list of spans for each continuation, 2, not 1"),
        ([[[0, 1]], []], "spans[0][0]", "ends at byte 1, the continuation has 0"),
        ([[], [[0, 1], [2, 8]]], "spans[1][1]", "ends at byte 8, the continuation has 7"),
        ([[], [[3, 2]]], "spans[1][0]", "does not end before it begins, as [3, 2] does"),
        ([[], [[-1, 2]]], "spans[1][0][0]", "greater than or equal to 0"),
        ([[], [[0, 1, 2]]], "spans[1][0]", "at most 2 items"),
        ([[], [[0]]], "spans[1][0]", "at least 2 items"),
        ([[], [[0, 1.5]]], "spans[1][0][1]", "valid integer"),
        ([[], [[False, True]]], "spans[1][0][0]", "valid integer"),
        ([[], [5]], "spans[1][0]", "must be a list"),
        ([[], "words"], "spans[1]", "must be a list"),
    ],
)
def test_spans_that_are_none(http: httpx.Client, spans: Any, param: str, message: str) -> None:
    body = {"context": "he", "continuations": ["", "the ant"], "spans": spans}
    answer = http.post("/v1/score", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", param)
    assert message in error["message"]


def test_spans_of_what_fails_are_not_looked_at(results: Any) -> None:
    body = {"context": "he", "continuations": [5, "a", "x" * 300]}
    found = results("/v1/score", **body, spans=[[[0, 9]], [[0, 1]], [[0, 300]]])
    assert [result.get("error", {}).get("param") for result in found] == [
        "continuations[0]",
        None,
        "continuations[2]",
    ]
    assert len(found[1]["spans"]) == 1


# The most probable bytes.


@pytest.mark.parametrize("eos", [False, True])
async def test_the_best_bytes_are_the_walks(results: Any, begun: Any, eos: bool) -> None:
    found = results("/v1/score", context="he", continuations=TEXTS, top=3, eos=eos)
    for text, result in zip(TEXTS, found, strict=True):
        state, want = await begun(b"he"), []
        for b in [*text.encode(), *([None] if eos else [])]:
            ps = (await state.logp_next()).ps[:256]
            best = sorted(range(256), key=lambda b: (-ps[b], b))[:3]
            want.append([{"byte": b, "logprob": ps[b]} for b in best])
            if b is not None:
                state = await state.prune().advanced(b)
        assert result["top"] == want


def test_the_best_bytes_are_those_of_next_bytes(results: Any) -> None:
    (scored,) = results("/v1/score", context="", continuations=["the"], top=256, per_byte=True)
    (told,) = results("/v1/next_bytes", context="th", prefill="exact", top=256)
    assert scored["top"][2] == told["top"]
    own = {one["byte"]: one["logprob"] for one in scored["top"][2]}
    assert own[ord("e")] == scored["logprobs"][2]


def test_nothing_is_told_behind_an_impossible_byte(results: Any) -> None:
    beam = {"K": 1, "prune_threshold": 0.9, "deferred": False}
    body = {"context": "hheth", "continuations": ["ing"], "beam": beam, "prefill": "exact"}
    (result,) = results("/v1/score", **body, top=2, eos=True)
    assert len(result["top"][0]) == 2
    assert result["top"][1:] == [None] * 3


def test_spans_and_the_best_bytes_evaluate_nothing(own: httpx.Client) -> None:
    def usage(context: str, **more: Any) -> Any:
        body = {"context": context, "continuations": ["ab the ant", "ab", "x" * 300]}
        answer = own.post("/v1/score", json={**body, "eos": True, **more})
        assert answer.status_code == 200
        return answer.json()["usage"]

    assert usage("he", top=9, spans="words") == usage("he")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"top": 99, "per_byte": True}, "top"),
        ({"spans": "words", "top": 62}, "spans"),
        ({"spans": [[[0, 140]] * 100]}, "spans"),
    ],
)
def test_an_answer_tells_so_much_of_spans_and_places(
    start_stub: Any, more: dict[str, Any], param: str
) -> None:
    limits = ("--set", "max_row_values=10000", "--set", "max_total_steps=10000")
    with httpx.Client(base_url=start_stub(*limits), timeout=60) as http:
        body = {"context": "he", "continuations": ["a " * 70 + "xyz" * 7], **more}
        error = http.post("/v1/score", json=body).json()["error"]
        assert (error["code"], error["param"]) == ("limit_exceeded", param)
        body["continuations"] = ["a" * 140]
        assert http.post("/v1/score", json={**body, "spans": None, "top": 9}).status_code == 200


@pytest.mark.parametrize("top", [0, 257, True, "3"])
def test_so_many_best_bytes_there_are_not(http: httpx.Client, top: Any) -> None:
    body = {"context": "he", "continuations": ["a"], "top": top}
    error = http.post("/v1/score", json=body).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "top")


def test_usage_counts_context_and_continuations(http: httpx.Client) -> None:
    body = {"context": "hé", "continuations": ["llo", "the"]}
    usage = http.post("/v1/score", json=body).json()["usage"]
    assert (usage["bytes_in"], usage["bytes_out"]) == (9, 0)
    assert usage["evaluations"] > 0


def test_the_vocabulary_is_the_librarys(http: httpx.Client, lm: Any) -> None:
    found = http.get("/v1/vocab").json()
    vocab = lm.vocab
    assert found["fingerprint"] == vocab.fingerprint()
    assert (found["bos"], found["eos"]) == (vocab.bos_token_id, list(vocab.eos_token_ids))
    assert found["prefix"] == {"text": "", "base64": ""}
    tokens = found["tokens"]
    assert [base64.b64decode(t["bytes"]) for t in tokens] == list(vocab.token_bytes)
    assert [t["text"] for t in tokens] == list(vocab.token_text)
    assert {i for i, t in enumerate(tokens) if t["special"]} == vocab.special_ids
    assert not any(t["added"] for t in tokens)


def test_a_vocabulary_that_is_known_is_not_sent_again(http: httpx.Client) -> None:
    first = http.get("/v1/vocab")
    again = http.get("/v1/vocab", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = http.get("/v1/vocab", headers={"If-None-Match": '"other"'})
    assert np.array_equal(other.content, first.content)
