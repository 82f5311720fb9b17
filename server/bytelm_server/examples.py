"""Worked examples for ``/docs``: calls to send and what the default model answers."""

from typing import Any

from fastapi.openapi.models import Example


def _call(summary: str, value: dict[str, Any], description: str = "") -> Example:
    return Example(summary=summary, description=description, value=value)


def _answer(description: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"example": value}}}


def _usage(bytes_in: int, bytes_out: int, evaluations: int) -> dict[str, int | None]:
    return {
        "bytes_in": bytes_in,
        "bytes_out": bytes_out,
        "evaluations": evaluations,
        "tokens_computed": None,
        "tokens_cached": None,
    }


NEXT_BYTES = {
    "top": _call(
        "The five most probable bytes",
        {"context": "The capital of Fran", "top": 5},
        "The context ends inside a word; the next byte completes it.",
    ),
    "all": _call("All 256 bytes", {"context": "The capital of Fran"}),
    "bytes": _call(
        "Bytes that are no text, and several contexts",
        {"contexts": [{"base64": "w6nDqcM="}, {"text": "plain"}, "also plain"], "top": 3},
        "The first context ends inside a UTF-8 character.",
    ),
}
NEXT_BYTES_ANSWER = _answer(
    "A distribution for each context.",
    {
        "results": [
            {
                "top": [
                    {"byte": 99, "logprob": -0.0079},
                    {"byte": 107, "logprob": -4.915},
                    {"byte": 195, "logprob": -7.8555},
                    {"byte": 122, "logprob": -8.7035},
                    {"byte": 0, "logprob": None},
                ],
                "eos": None,
            }
        ],
        "usage": _usage(19, 0, 10),
    },
)

GREEDY = {
    "one": _call("A continuation", {"context": "An apple a day keeps the ", "steps": 12}),
    "beam": _call(
        "A wider beam",
        {
            "context": "The capital of Fran",
            "steps": 12,
            "beam": {"K": 10, "prune_threshold": 0.01},
            "logprobs": True,
        },
        "More candidates cost more evaluations and come closer to the exact distribution.",
    ),
    "several": _call(
        "Several contexts", {"contexts": ["One, two, ", "Monday, Tuesday, "], "steps": 16}
    ),
}
GREEDY_ANSWER = _answer(
    "A continuation for each context.",
    {
        "results": [
            {
                "bytes": {"text": "doctor away.", "base64": "ZG9jdG9yIGF3YXku"},
                "logprob": None,
                "finish_reason": "steps",
            }
        ],
        "usage": _usage(25, 12, 12),
    },
)

SAMPLE = {
    "one": _call(
        "A sample that can be repeated",
        {"context": "Once upon a time", "steps": 40, "temperature": 0.8, "seed": 7},
    ),
    "several": _call(
        "Several samples of one context", {"contexts": ["My name is "] * 3, "steps": 20, "seed": 7}
    ),
}
SAMPLE_ANSWER = _answer(
    "A sample for each context.",
    {
        "results": [
            {
                "index": 0,
                "sample": 0,
                "bytes": {"text": ", there was", "base64": "LCB0aGVyZSB3YXM="},
                "logprob": None,
                "finish_reason": "steps",
            }
        ],
        "usage": _usage(16, 11, 20),
    },
)
