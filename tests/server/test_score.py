"""Scores and the vocabulary over HTTP are the library's."""

import base64
import math
from typing import Any

import httpx
import numpy as np
import pytest

from bytelm.score import score

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
