"""Worked examples of sessions for ``/docs``: one after the other, as the default model answered."""

from typing import Any

from bytelm_server.examples import answer, call, usage

_ID = "01a20ef6e21040cf144cb4a44c91312ef288"


def _session(version: int, length: int, n_calls: int) -> dict[str, Any]:
    return {
        "id": _ID,
        "kind": "byte",
        "version": version,
        "length": length,
        "at_limit": False,
        "n_calls": n_calls,
        "expires_at": 1795549190.5324838,
    }


def _span(start: int, text: str, base64: str, logprob: float, bits: float) -> dict[str, Any]:
    return {
        "start": start,
        "end": start + len(text),
        "bytes": {"text": text, "base64": base64},
        "logprob": logprob,
        "bits": bits,
    }


CREATE = {
    "byte": call("Byte by byte", {"context": "The capital of Fran"}),
    "empty": call("At the beginning of a text, for an hour", {"ttl": 3600}),
    "token": call("Token by token", {"kind": "token", "context": "The capital of"}),
    "ids": call("Token ids", {"kind": "token", "context": {"tokens": [1, 504, 3575, 282]}}),
}
CREATE_ANSWER = answer("The session.", {**_session(1, 19, 5), "usage": usage(19, 0, 5, 11, 11)})
SESSION_ANSWER = answer("The session.", _session(2, 21, 6))
PAGE_ANSWER = answer("A page.", {"data": [_session(2, 21, 6)], "next": _ID})
ENDED_ANSWER = answer("The session is no more.", {"id": _ID, "deleted": True})
NEXT_ANSWER = answer(
    "The distribution, with `top=2`.",
    {
        "results": [
            {
                "top": [{"byte": 32, "logprob": -0.7405}, {"byte": 10, "logprob": -2.0082}],
                "eos": -12.1461,
            }
        ],
        "usage": usage(0, 0, 1, 1, 4),
        "session": _session(2, 21, 6),
    },
)
MOVED_ANSWER = answer("The session.", {**_session(2, 21, 5), "usage": usage(2, 0, 0, 0, 0)})

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
                "bytes": {"text": " is Paris. I", "base64": "IGlzIFBhcmlzLiBJ"},
                "logprob": None,
                "finish_reason": "steps",
            }
        ],
        "usage": usage(0, 12, 5, 5, 31),
        "session": _session(3, 33, 11),
    },
)
SAMPLE_ANSWER = answer(
    "What was drawn, and what the session is then.",
    {
        "results": [
            {
                "index": 0,
                "sample": 0,
                "bytes": {
                    "text": "nstead of Paris, man",
                    "base64": "bnN0ZWFkIG9mIFBhcmlzLCBtYW4=",
                },
                "logprob": None,
                "finish_reason": "steps",
            }
        ],
        "usage": usage(0, 20, 9, 13, 92),
        "session": _session(4, 53, 20),
    },
)
SCORE = {
    "moved": call(
        "A text, behind which the session stands then",
        {"continuations": ["ce is Paris."], "spans": "words"},
    ),
    "look": call(
        "Which text is likelier, without moving the session",
        {"continuations": ["ce", "klin"], "advance": False},
    ),
}
SCORE_ANSWER = answer(
    "A score for each continuation, and what the session is then.",
    {
        "results": [
            {
                "logprob": -2.4559,
                "bits_per_byte": 0.2953,
                "spans": [
                    _span(0, "ce", "Y2U=", -0.0172, 0.0248),
                    _span(2, " is", "IGlz", -1.6714, 2.4114),
                    _span(5, " Paris.", "IFBhcmlzLg==", -0.7672, 1.1069),
                ],
            }
        ],
        "usage": usage(12, 0, 6, 6, 30),
        "session": _session(2, 31, 21),
    },
)
ROWS = {
    "moved": call(
        "A text, behind which the session stands then", {"text": "ce is Paris.", "usage": True}
    ),
    "look": call(
        "A look ahead, in few bytes",
        {"text": "ce is", "advance": False, "dtype": "float16"},
    ),
}
BATCH = {
    "two": call(
        "Two calls",
        {
            "calls": [
                {"id": _ID, "call": "advance", "body": {"bytes": "ce"}, "idempotency_key": "a-1"},
                {"id": "x", "call": "next", "body": {"top": 3}},
            ]
        },
    )
}
BATCH_ANSWER = answer(
    "What each call answers by itself, or its error.",
    {
        "results": [
            {**_session(2, 21, 5), "usage": usage(2, 0, 0, 0, 0)},
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
    "top": call("The three most probable tokens", {"contexts": [[1, 504, 3575, 282]], "top": 3})
}
TOKEN_LOGPROBS_ANSWER = answer(
    "A distribution for each context.",
    {
        "results": [
            {
                "top": [
                    {"token": 260, "logprob": -2.2950},
                    {"token": 933, "logprob": -2.9012},
                    {"token": 1315, "logprob": -3.5974},
                ]
            }
        ],
        "usage": usage(0, 0, 1, 1, 3),
    },
)
