"""Worked examples for ``/docs``: calls to send and what the default model answers."""

from typing import Any

from fastapi.openapi.models import Example


def call(summary: str, value: dict[str, Any], description: str = "") -> Example:
    """An example of a call."""
    return Example(summary=summary, description=description, value=value)


def answer(description: str, value: dict[str, Any]) -> dict[str, Any]:
    """An example of an answer, as OpenAPI has it."""
    return {"description": description, "content": {"application/json": {"example": value}}}


def usage(
    bytes_in: int, bytes_out: int, evaluations: int, computed: int, cached: int
) -> dict[str, int]:
    """What a call took."""
    return {
        "bytes_in": bytes_in,
        "bytes_out": bytes_out,
        "evaluations": evaluations,
        "tokens_computed": computed,
        "tokens_cached": cached,
    }


NEXT_BYTES = {
    "top": call(
        "The five most probable bytes",
        {"context": "The capital of Fran", "top": 5},
        "The context ends inside a word; the next byte completes it.",
    ),
    "all": call("All 256 bytes", {"context": "The capital of Fran"}),
    "bytes": call(
        "Bytes that are no text, and several contexts",
        {"contexts": [{"base64": "w6nDqcM="}, {"text": "plain"}, "also plain"], "top": 3},
        "The first context ends inside a UTF-8 character.",
    ),
}
NEXT_BYTES_ANSWER = answer(
    "A distribution for each context.",
    {
        "results": [
            {
                "top": [
                    {"byte": 99, "logprob": -0.0086},
                    {"byte": 107, "logprob": -4.9083},
                    {"byte": 195, "logprob": -7.8563},
                    {"byte": 122, "logprob": -8.6912},
                    {"byte": 116, "logprob": -9.0751},
                ],
                "eos": -14.8305,
            }
        ],
        "usage": usage(19, 0, 5, 22, 0),
    },
)

CHAT = [{"role": "user", "content": "What is 2+2?"}]

GREEDY = {
    "one": call("A continuation", {"context": "An apple a day keeps the ", "steps": 12}),
    "beam": call(
        "A wider beam",
        {
            "context": "The capital of Fran",
            "steps": 12,
            "beam": {"K": 10, "prune_threshold": 0.01},
            "logprobs": True,
        },
        "More candidates cost more evaluations and come closer to the exact distribution.",
    ),
    "stop": call(
        "Up to a stop string",
        {"context": "An apple a day keeps the ", "steps": 40, "stop": [" away", "\n"]},
        "The stop string is not returned.",
    ),
    "chat": call(
        "A chat",
        {"context": {"messages": CHAT}, "steps": 60, "stop": "\n"},
        "The model's chat template writes the messages; EOS ends the answer.",
    ),
    "segments": call(
        "Special tokens, and an answer that has begun",
        {
            "context": {
                "segments": [
                    {"token": "<|im_start|>"},
                    {"text": "user\nWhat is the capital of Fra"},
                    {"base64": "bmNlPw=="},
                    {"token": "<|im_end|>"},
                    {"text": "\n"},
                    {"token": "<|im_start|>"},
                    {"text": "assistant\nThe capital of France is Par"},
                ]
            },
            "steps": 20,
        },
        "Only `token` is a special token; a text that spells one is ordinary bytes.",
    ),
    "ends": call(
        "Other ends of a text",
        {
            "context": "One, two, three",
            "steps": 40,
            "beam": {"eos_tokens": [[46], [10], 2]},
            "prefill": "exact",
        },
        "The tokens of a full stop and of a line's end, and the one with id 2, end the text.",
    ),
    "several": call(
        "Several contexts", {"contexts": ["One, two, ", "Monday, Tuesday, "], "steps": 16}
    ),
}
GREEDY_ANSWER = answer(
    "A continuation for each context.",
    {
        "results": [
            {
                "bytes": {"text": "doctor away.", "base64": "ZG9jdG9yIGF3YXku"},
                "logprob": None,
                "finish_reason": "steps",
            }
        ],
        "usage": usage(25, 12, 5, 38, 0),
    },
)

SAMPLE = {
    "one": call(
        "A sample that can be repeated",
        {"context": "Once upon a time", "steps": 40, "temperature": 0.8, "seed": 7},
    ),
    "several": call(
        "Several samples of one context", {"context": "My name is ", "steps": 20, "n": 3, "seed": 7}
    ),
    "filtered": call(
        "Likely bytes only, and whole characters",
        {
            "context": "Le café est ",
            "steps": 30,
            "temperature": 0.7,
            "top_k": 40,
            "top_p": 0.95,
            "min_p": 0.02,
            "valid_utf8": True,
            "stop": ".",
            "seed": 7,
        },
        "`valid_utf8` never leaves half a character.",
    ),
}
SAMPLE_ANSWER = answer(
    "The samples of each context, context by context.",
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
        "usage": usage(16, 11, 8, 60, 0),
    },
)

SCORE = {
    "choices": call(
        "Which continuation is likelier",
        {"context": "The capital of France is ", "continuations": ["Paris", "London", "Par"]},
    ),
    "whole": call(
        "Byte by byte, with the end of the text",
        {
            "context": {"messages": CHAT},
            "continuations": ["The answer is 4.", "4", ""],
            "eos": True,
            "per_byte": True,
        },
        "With `eos` the log-probability includes that the text ends there.",
    ),
    "words": call(
        "The surprisal of each word",
        {"context": "The capital of France", "continuations": [" is Paris."], "spans": "words"},
        "Their sum is the whole's.",
    ),
    "spans": call(
        "Parts of one's own, and the best bytes in each place",
        {
            "context": "The capital of France is ",
            "continuations": ["Paris.", "Rome."],
            "spans": [[[0, 5], [5, 6]], [[0, 4]]],
            "top": 3,
        },
        "Offsets count bytes; parts may overlap.",
    ),
}
SCORE_ANSWER = answer(
    "A score for each continuation.",
    {
        "results": [
            {"logprob": -0.2628, "bits_per_byte": 0.0758},
            {"logprob": -5.4884, "bits_per_byte": 1.3197},
            {"logprob": -0.2628, "bits_per_byte": 0.1264},
        ],
        "usage": usage(39, 0, 7, 46, 0),
    },
)

ROWS = {
    "one": call("A text after a context", {"context": "The capital of ", "text": "France"}),
    "whole": call(
        "Bytes from the beginning, in few",
        {"context": "", "text": {"base64": "w6nDqcM="}, "dtype": "float16", "usage": True},
        "Half as many bytes, and what the call took behind the rows.",
    ),
}
_OCTETS = {
    "application/octet-stream": {
        "schema": {"type": "string", "format": "binary"},
        "example": "(7 × 257 × 4 bytes)",
    }
}
ROWS_ANSWER = {
    "description": "Natural log-probabilities, little-endian, row by row.",
    "content": _OCTETS,
    "headers": {
        "X-Shape": {
            "description": "How many rows there are, one more than bytes, and 257.",
            "schema": {"type": "string", "pattern": "^[0-9]+,257$"},
        },
        "X-Dtype": {
            "description": "Of each number, as numpy names it.",
            "schema": {"type": "string", "enum": ["<f4", "<f2"]},
        },
    },
}

VOCAB_ANSWER = answer(
    "The vocabulary; the place of a token is its id.",
    {
        "fingerprint": "5f0c…",
        "bos": 1,
        "eos": [2],
        "prefix": {"text": "", "base64": ""},
        "strips_left": [],
        "strips_right": [],
        "tokens": [
            {"bytes": "", "text": "<|endoftext|>", "special": True, "added": True},
            {"bytes": "", "text": "<|im_start|>", "special": True, "added": True},
            {"bytes": "", "text": "<|im_end|>", "special": True, "added": True},
        ],
    },
)

HEALTH_ANSWER = answer("The server can answer.", {"status": "ready"})

METRICS_ANSWER = {
    "description": "Prometheus's text format.",
    "content": {
        "text/plain": {
            "schema": {"type": "string"},
            "example": "# HELP bytelm_requests_total Requests answered.\n"
            "# TYPE bytelm_requests_total counter\n"
            'bytelm_requests_total{call="POST /v1/greedy",status="200"} 7.0\n',
        }
    },
}

_MODEL = {
    "id": "SmolLM2-135M-Instruct",
    "object": "model",
    "created": 1700000000,
    "owned_by": "bytelm",
    "name": "SmolLM2-135M-Instruct",
    "revision": None,
    "fingerprint": "0f8ab3d5c1e29b47",
    "vocab_size": 49152,
    "initial_context": [1],
    "limits": {
        "context_tokens": 4095,
        "context_bytes": 1048576,
        "contexts": 256,
        "results": 1024,
        "steps": 4096,
        "total_steps": 1048576,
        "walked_bytes": 8192,
        "row_values": 1048576,
        "body_bytes": 16777216,
        "K": 64,
    },
}
MODEL_ANSWER = answer("The model.", _MODEL)
MODELS_ANSWER = answer("The model; there is one.", {"object": "list", "data": [_MODEL]})
