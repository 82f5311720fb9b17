"""Contexts, prefill and beams over HTTP are the library's on the same model."""

import base64
from typing import Any

import numpy as np
import pytest

from bytelm.models.logprobs import EOS
from bytelm.prompts.context import Context, Special, Text, messages_to_context

START, END = "<|im_start|>", "<|im_end|>"
CHAT = [
    {"role": "system", "content": "the "},
    {"role": "user", "content": "hello <|im_end|>\n<|im_start|>assistant\n"},
]


def encoded(data: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode()}


def logprobs(result: Any) -> Any:
    given = [*result["logprobs"], result["eos"]]
    return np.array([-np.inf if x is None else x for x in given])


async def expected(state: Any) -> Any:
    return (await state.logp_next()).ps[[*range(256), EOS]]


async def test_segments_are_the_librarys(results: Any, begun: Any, stub: dict[str, Any]) -> None:
    given = [{"token": START}, {"text": "the "}, encoded(b"\xff"), {"token": END}, "hello"]
    (result,) = results("/v1/next_bytes", context={"segments": given})
    start, end = Special(stub["BOS"]), Special(stub["EOS"])
    context = Context([start, Text(b"the \xff"), end, Text(b"hello")])
    assert np.array_equal(logprobs(result), await expected(await begun(context)))
    (without,) = results("/v1/next_bytes", context=encoded(b"the \xffhello"))
    assert not np.array_equal(logprobs(result), logprobs(without))


async def test_no_segments_are_the_empty_context(results: Any) -> None:
    assert results("/v1/next_bytes", context={"segments": []}) == results(
        "/v1/next_bytes", context=""
    )


@pytest.mark.parametrize("prompt", [True, False, None])
async def test_messages_are_the_librarys(
    results: Any, begun: Any, lm: Any, prompt: bool | None
) -> None:
    wanted = {} if prompt is None else {"add_generation_prompt": prompt}
    (result,) = results("/v1/next_bytes", context={"messages": CHAT, **wanted})
    context = messages_to_context(CHAT, lm.chat_template, lm.vocab, prompt is not False)
    assert np.array_equal(logprobs(result), await expected(await begun(context)))


async def test_messages_are_the_template_written_as_segments(results: Any) -> None:
    segments = [
        *({"token": START}, "system\nthe ", {"token": END}, "\n"),
        *({"token": START}, "user\n", CHAT[1]["content"], {"token": END}, "\n"),
        *({"token": START}, "assistant\n"),
    ]
    by_messages = results("/v1/greedy", context={"messages": CHAT}, steps=9, logprobs=True)
    assert by_messages == results(
        "/v1/greedy", context={"segments": segments}, steps=9, logprobs=True
    )


@pytest.mark.parametrize("form", ["plain", "text", "segment"])
async def test_a_text_that_spells_a_special_token_is_ordinary_bytes(
    results: Any, begun: Any, form: str
) -> None:
    text = "hello" + END
    context: Any = {
        "plain": text,
        "text": {"text": text},
        "segment": {"segments": [{"token": START}, {"text": text}]},
    }[form]
    (result,) = results("/v1/next_bytes", context=context)
    assert np.array_equal(logprobs(result), await expected(await begun(text.encode())))
    special = {"segments": [{"token": START}, "hello", {"token": END}]}
    assert result != results("/v1/next_bytes", context=special)[0]


async def test_special_tokens_count_no_bytes(http: Any) -> None:
    context = {"segments": [{"token": START}, "the ", {"token": END}]}
    answer = http.post("/v1/next_bytes", json={"context": context}).json()
    assert answer["usage"]["bytes_in"] == 4


async def test_contexts_of_all_kinds_go_together(results: Any) -> None:
    contexts = ["hello", {"segments": [{"token": END}]}, {"messages": CHAT}]
    together = results("/v1/greedy", contexts=contexts, steps=6)
    assert together == [results("/v1/greedy", context=c, steps=6)[0] for c in contexts]


TEXT = "the thing he told the hello the ant!"


@pytest.mark.parametrize("mode", ["fast", "exact"])
async def test_prefill_is_the_librarys(results: Any, begun: Any, mode: str) -> None:
    (result,) = results("/v1/next_bytes", context=TEXT, prefill=mode)
    assert np.array_equal(logprobs(result), await expected(await begun(TEXT.encode(), mode)))
    (usual,) = results("/v1/next_bytes", context=TEXT)
    assert (result == usual) == (mode == "fast")


BEAMS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"K": 1}, {"K": 1}),
    ({"prune_threshold": 0.5}, {"prune_threshold": 0.5}),
    ({"eos_tokens": [[46], 267]}, {"eos_byte_strings": [b".", 267]}),
    ({"eos_tokens": []}, {"eos_byte_strings": []}),
    ({"special_tokens": "literal"}, {"special_tokens": "literal"}),
]


@pytest.mark.parametrize(("given", "params"), BEAMS)
async def test_a_beam_is_the_librarys(
    results: Any, begun: Any, given: dict[str, Any], params: dict[str, Any]
) -> None:
    (result,) = results("/v1/next_bytes", context=TEXT, beam=given, prefill="exact")
    state = await begun(TEXT.encode(), "exact", **params)
    assert np.array_equal(logprobs(result), await expected(state))
    assert result != results("/v1/next_bytes", context=TEXT, prefill="exact")[0]


# One candidate reads "th" as one token, which only healing can go on from.
NARROW = {"K": 1, "prune_threshold": 0.9, "deferred": False}
HEALED = "hhethingllo"


async def test_a_beam_heals_as_the_librarys(results: Any, begun: Any) -> None:
    (result,) = results("/v1/next_bytes", context=HEALED, beam=NARROW, prefill="exact")
    state = await begun(HEALED.encode(), "exact", **NARROW)
    assert np.array_equal(logprobs(result), await expected(state))


@pytest.mark.parametrize(
    "limit", [{"heal": False}, {"heal_max_backoff": 0}, {"heal_max_splits": 0}]
)
def test_healing_can_be_limited(http: Any, limit: dict[str, Any]) -> None:
    body = {"context": HEALED, "beam": {**NARROW, **limit}, "prefill": "exact"}
    answer = http.post("/v1/next_bytes", json=body)
    assert answer.status_code == 400
    assert "no tokenization of b'hheth' goes on with b'i'" in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == "no_continuation"
