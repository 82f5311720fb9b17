"""How ``/openapi.json`` describes what goes wrong, and streams. Must not know any call."""

from typing import Any

from pydantic import TypeAdapter

from bytelm_server.answers import ErrorEvent
from bytelm_server.errors import ErrorBody, ErrorDetail

Responses = dict[int | str, dict[str, Any]]

_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds after which the call may succeed.",
        "schema": {"type": "integer", "minimum": 1},
    }
}


def _error(
    about: str, type: str, code: str, message: str, param: str | None = None, retry: bool = False
) -> dict[str, Any]:
    example = ErrorBody(error=ErrorDetail(type=type, message=message, param=param, code=code))
    return {
        "model": ErrorBody,
        "description": about,
        "content": {"application/json": {"example": example}},
        **({"headers": _RETRY_AFTER} if retry else {}),
    }


_REST: Responses = {
    "4XX": _error(
        "Anything else that the caller can mend.",
        "method_not_allowed",
        "method_not_allowed",
        "/v1/greedy does not take GET",
    )
}
NOT_READY: Responses = {
    503: _error(
        "The model is starting, stopping or dead; or the store of sessions fails.",
        "unavailable",
        "starting",
        "the model is still starting; try again in a few seconds",
        retry=True,
    )
}
"""Of calls that need the model."""
DOORS: Responses = {
    401: _error(
        "The API key is missing or not known; only where the server has keys.",
        "unauthorized",
        "missing_key",
        "the call needs an API key: send the header Authorization: Bearer KEY",
    ),
    403: _error(
        "A web page of somebody else calls, or the server under a name that is not its own; only "
        "where it has no keys.",
        "forbidden",
        "origin_not_allowed",
        "web pages of http://example.org may not call this server",
    ),
}
"""Of calls that need a key."""
FAILURES: Responses = {
    400: _error(
        "A field is wrong, or asks for more than this server or the model gives.",
        "invalid_request",
        "limit_exceeded",
        "steps can be at most 4096 here, not 100000",
        "steps",
    ),
    **DOORS,
    408: _error(
        "The body comes too slowly.",
        "invalid_request",
        "request_timeout",
        "the body did not come within 60 seconds",
    ),
    413: _error(
        "The body is too large.",
        "invalid_request",
        "body_too_large",
        "the body has more than 16777216 bytes",
    ),
    415: _error(
        "The body is not said to be JSON.",
        "invalid_request",
        "unsupported_media_type",
        "send the body with the header content-type: application/json",
    ),
    429: _error(
        "Too many calls wait already.",
        "overloaded",
        "queue_full",
        "1024 calls wait already: try again later",
        retry=True,
    ),
    **_REST,
    500: _error(
        "The server is at fault; its log says how.",
        "internal_error",
        "internal_error",
        "the server failed at this call; its log says how",
    ),
    **NOT_READY,
    504: _error(
        "The call took too long and was stopped.",
        "timeout",
        "deadline_passed",
        "the call took longer than a call may here: ask for less at a time",
    ),
}
"""Of calls that take the model."""
NO_SUCH_MODEL: Responses = {
    404: _error(
        "The call names a model that this server does not have.",
        "not_found",
        "model_not_found",
        "there is no model 'gpt-4' here: use 'SmolLM2-135M-Instruct', or 'default'",
        "model",
    )
}
"""Of calls that name a model."""


def _of_components(kind: Any) -> dict[str, Any]:
    """The schema of ``kind``; what it is made of is what answers are made of, and named there."""
    schema = TypeAdapter(kind).json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return schema


def with_stream(answer: dict[str, Any], event: Any) -> dict[str, Any]:
    """The description of an answer that also comes as events, which are ``event`` or an error."""
    example = (
        'data: {"index":0,"sample":0,"bytes":{"text":"doctor","base64":"ZG9jdG9y"}}\n\n'
        'data: {"index":0,"sample":0,"bytes":{"text":" away.","base64":"IGF3YXku"},'
        '"logprob":null,"finish_reason":"steps","usage":{"bytes_in":25,"bytes_out":12,'
        '"evaluations":5,"tokens_computed":38,"tokens_cached":0}}\n\n'
        "data: [DONE]\n\n"
    )
    about = (
        "With `stream`: server-sent events. Each has the bytes that follow those of the last one "
        "with its index and sample; `text` holds incomplete characters back. A text's last event "
        "has its `finish_reason`, the stream's last one `usage`; an error on the way is an event "
        "with `error`; `[DONE]` comes at the end. Where nothing happens for a while, there are "
        "comments (`: ping`)."
    )
    return _with_events(answer, event, example, about)


def with_chunks(answer: dict[str, Any], chunk: Any, example: str) -> dict[str, Any]:
    """The description of an answer in OpenAI's shape that also comes in chunks."""
    about = (
        "With `stream`: server-sent events. Each has the text that follows that of the last one "
        "with its choice's index, a character when all its bytes are there. A choice's last chunk "
        "has its `finish_reason`; an error on the way is an event with `error`; `[DONE]` comes at "
        "the end. Where nothing happens for a while, there are comments (`: ping`)."
    )
    return _with_events(answer, chunk, example, about)


def _with_events(answer: dict[str, Any], event: Any, example: str, about: str) -> dict[str, Any]:
    data = {
        "type": "string",
        "anyOf": [
            {
                "contentMediaType": "application/json",
                "contentSchema": {"anyOf": [_of_components(event), _of_components(ErrorEvent)]},
            },
            {"const": "[DONE]"},
        ],
    }
    stream = {
        # OpenAPI 3.2's keyword for streams, which FastAPI uses in 3.1 as well.
        "itemSchema": {
            "type": "object",
            "properties": {"data": data},
            "required": ["data"],
            "description": about,
        },
        "example": example,
    }
    return {**answer, "content": {**answer["content"], "text/event-stream": stream}}
