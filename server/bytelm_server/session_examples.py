"""Worked examples of sessions for ``/docs``.

Answers are those of the tests' toy model, whose texts mean nothing and which does not count tokens.
"""

from typing import Any

from bytelm_server.answers import Usage
from bytelm_server.examples import answer as answer_of
from bytelm_server.examples import call

_ID = "01a20e79f59dcb48f2ff8c584e4e7fc7a08a"


def answer(description: str, value: dict[str, Any]) -> dict[str, Any]:
    """An example of an answer, as OpenAPI has it."""
    return answer_of(f"{description} (The example is a toy model's.)", value)


def _usage(bytes_in: int, bytes_out: int, evaluations: int) -> Usage:
    return Usage(
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        evaluations=evaluations,
        tokens_computed=None,
        tokens_cached=None,
    )


def _session(version: int, length: int, n_calls: int) -> dict[str, Any]:
    return {
        "id": _ID,
        "kind": "byte",
        "version": version,
        "length": length,
        "at_limit": False,
        "n_calls": n_calls,
        "expires_at": 1795541003.485486,
    }


CREATE = {
    "byte": call("Byte by byte", {"context": "The capital of Fran"}),
    "empty": call("At the beginning of a text, for an hour", {"ttl": 3600}),
    "token": call("Token by token", {"kind": "token", "context": "The capital of"}),
    "ids": call("Token ids", {"kind": "token", "context": {"tokens": [1, 42, 43]}}),
}
CREATE_ANSWER = answer("The session.", {**_session(1, 19, 9), "usage": _usage(19, 0, 9)})
SESSION_ANSWER = answer("The session.", _session(2, 21, 12))
PAGE_ANSWER = answer("A page.", {"data": [_session(2, 21, 12)], "next": _ID})
ENDED_ANSWER = answer("The session is no more.", {"id": _ID, "deleted": True})
NEXT_ANSWER = answer(
    "The distribution, with `top=2`.",
    {
        "results": [
            {
                "top": [{"byte": 109, "logprob": -1.3340}, {"byte": 202, "logprob": -1.7908}],
                "eos": -10.5565,
            }
        ],
        "usage": _usage(0, 0, 1),
        "session": _session(2, 21, 12),
    },
)
MOVED_ANSWER = answer("The session.", {**_session(2, 21, 11), "usage": _usage(2, 0, 2)})

ADVANCE = {
    "bytes": call("Two bytes", {"bytes": "ce"}),
    "once": call("Only from this version", {"bytes": "ce", "if_version": 1}),
    "segments": call(
        "A special token", {"segments": [{"text": "."}, {"token": "<|im_end|>"}, {"text": "\n"}]}
    ),
}
PREFILL = {"text": call("A long text", {"bytes": "ce is Paris. Its river is the Seine. " * 2})}
FORK = {
    "same": call("At the same state", {}),
    "moved": call("Moved on at once", {"advance": {"bytes": "ce"}}),
}
GREEDY = {
    "steps": call("Twelve bytes", {"steps": 12}),
    "look": call("Without moving the session", {"steps": 12, "advance": False, "logprobs": True}),
}
SAMPLE = {
    "one": call("One text", {"steps": 20, "seed": 7}),
    "three": call("Three texts, to look at", {"steps": 20, "n": 3, "advance": False}),
}
GREEDY_ANSWER = answer(
    "What was generated, and what the session is then.",
    {
        "results": [
            {
                "bytes": {"text": None, "base64": "XBfD8eLNC/rqOUbn"},
                "logprob": None,
                "finish_reason": "steps",
            }
        ],
        "usage": _usage(0, 12, 14),
        "session": _session(2, 31, 23),
    },
)
SAMPLE_ANSWER = answer(
    "What was drawn, and what the session is then.",
    {
        "results": [
            {
                "index": 0,
                "sample": 0,
                "bytes": {"text": None, "base64": "y8lsaW5ngpTGdFXpfv16TGQSbd4="},
                "logprob": None,
                "finish_reason": "steps",
            }
        ],
        "usage": _usage(0, 20, 20),
        "session": _session(2, 39, 29),
    },
)
BATCH = {
    "two": call(
        "Two calls",
        {
            "calls": [
                {"id": _ID, "call": "advance", "body": {"bytes": "ce"}, "idempotency_key": "a-1"},
                {"id": _ID, "call": "next", "body": {"top": 3}},
            ]
        },
    )
}
BATCH_ANSWER = answer(
    "What each call answers by itself, or its error.",
    {
        "results": [
            {**_session(2, 21, 13), "usage": _usage(2, 0, 4)},
            {
                "index": 1,
                "error": {
                    "type": "not_found",
                    "message": "there is no session 'x'",
                    "param": "calls[1].id",
                    "code": "session_not_found",
                },
            },
        ]
    },
)
TOKEN_LOGPROBS = {
    "top": call("The three most probable tokens", {"contexts": [[1, 42, 43]], "top": 3})
}
TOKEN_LOGPROBS_ANSWER = answer(
    "A distribution for each context.",
    {
        "results": [
            {
                "top": [
                    {"token": 209, "logprob": -2.1350},
                    {"token": 217, "logprob": -2.4466},
                    {"token": 223, "logprob": -3.0524},
                ]
            }
        ],
        "usage": _usage(0, 0, 1),
    },
)
