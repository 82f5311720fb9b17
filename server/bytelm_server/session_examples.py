"""Worked examples of sessions for ``/docs``; answers are those of the default model."""

from typing import Any

from bytelm_server.examples import answer, call, usage

_ID = "019c4f2a7d1e5b0c7a3f9d2e48b61c07aa10"


def _session(version: int, length: int, n_calls: int) -> dict[str, Any]:
    return {
        "id": _ID,
        "kind": "byte",
        "version": version,
        "length": length,
        "n_calls": n_calls,
        "expires_at": 1793000000.0,
    }


CREATE = {
    "byte": call("Byte by byte", {"context": "The capital of Fran"}),
    "empty": call("At the beginning of a text, for an hour", {"ttl": 3600}),
    "token": call("Token by token", {"kind": "token", "context": "The capital of"}),
    "ids": call("Token ids", {"kind": "token", "context": {"tokens": [1, 42, 43]}}),
}
CREATE_ANSWER = answer("The session.", {**_session(1, 19, 4), "usage": usage(19, 0, 4, 12, 0)})
SESSION_ANSWER = answer("The session.", _session(2, 21, 6))
PAGE_ANSWER = answer("A page.", {"data": [_session(2, 21, 6)], "next": None})
ENDED_ANSWER = answer("The session is no more.", {"id": _ID, "deleted": True})
NEXT_ANSWER = answer(
    "The distribution, with `top=2`.",
    {
        "results": [
            {
                "top": [{"byte": 99, "logprob": -0.0079}, {"byte": 107, "logprob": -4.915}],
                "eos": None,
            }
        ],
        "usage": usage(0, 0, 2, 2, 8),
        "session": _session(1, 19, 6),
    },
)
MOVED_ANSWER = answer("The session.", {**_session(2, 21, 6), "usage": usage(2, 0, 2, 2, 8)})

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
                "bytes": {"text": "ce is Paris.", "base64": "Y2UgaXMgUGFyaXMu"},
                "logprob": None,
                "finish_reason": "steps",
            }
        ],
        "usage": usage(0, 12, 6, 6, 60),
        "session": _session(2, 31, 10),
    },
)
SAMPLE_ANSWER = answer(
    "What was drawn, and what the session is then.",
    {
        "results": [
            {
                "index": 0,
                "sample": 0,
                "bytes": {"text": "ce is Paris.", "base64": "Y2UgaXMgUGFyaXMu"},
                "logprob": None,
                "finish_reason": "eos",
            }
        ],
        "usage": usage(0, 12, 8, 8, 70),
        "session": _session(2, 31, 12),
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
            {**_session(2, 21, 6), "usage": usage(2, 0, 2, 2, 8)},
            {
                "index": 1,
                "error": {
                    "type": "not_found",
                    "message": "there is no session 'x'",
                    "param": "id",
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
        "results": [{"top": [{"token": 198, "logprob": -1.53}, {"token": 28, "logprob": -2.25}]}],
        "usage": usage(0, 0, 1, 3, 0),
    },
)
