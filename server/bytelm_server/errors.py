"""What a failed call is answered with: one shape for every error, whatever raised it.

::

    {"error": {"type": …, "message": …, "param": …, "code": …}}

``type`` is the kind of error, ``code`` names it exactly, ``param`` is the field at fault or null.

``ERRORS`` has them all. Must not know any call: it only translates exceptions.
"""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import TypedDict

from bytelm.errors import (
    BytelmError,
    ContextTooLong,
    EmptyBeam,
    EngineDead,
    EngineError,
    InputError,
    RowError,
)
from bytelm_server.wire import JsonResponse

_log = logging.getLogger(__name__)

ERRORS: dict[tuple[str, int], tuple[str, ...]] = {
    ("invalid_request", 400): (
        "invalid_json",
        "missing_field",
        "unknown_field",
        "not_supported",
        "invalid_value",
        "limit_exceeded",
        "context_too_long",
        "no_continuation",
        "invalid_http",
    ),
    ("invalid_request", 408): ("request_timeout",),
    ("invalid_request", 413): ("body_too_large",),
    ("invalid_request", 415): ("unsupported_media_type",),
    ("invalid_request", 431): ("headers_too_large",),
    ("not_found", 404): ("not_found", "session_not_found", "model_not_found"),
    ("method_not_allowed", 405): ("method_not_allowed",),
    ("unauthorized", 401): ("missing_key", "unknown_key"),
    ("forbidden", 403): ("host_not_allowed", "origin_not_allowed"),
    ("conflict", 409): ("version_conflict", "idempotency_conflict", "model_changed"),
    ("expired", 410): ("session_expired",),
    ("overloaded", 429): ("queue_full",),
    ("overloaded", 503): ("too_many_connections",),
    ("unavailable", 502): ("replica_lost",),  # on Ray Serve only
    ("unavailable", 503): ("starting", "draining", "dead", "store_unreachable"),
    ("timeout", 504): ("deadline_passed",),
    ("insufficient_storage", 507): ("store_full",),
    ("internal_error", 500): ("internal_error",),
}
"""The codes of each type and status."""
LONGEST_MESSAGE = 1000
"""Characters."""
LONGEST_PARAM = 200
"""Characters."""


class ErrorDetail(TypedDict):
    """What went wrong."""

    type: str
    message: str
    param: str | None
    code: str


class ErrorBody(TypedDict):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class CallError(BytelmError):
    """A call that is answered with a status, ``type`` and ``code`` of its own.

    A subclass for each kind names them.

    Attributes:
        status: the answer's status.
        type: the kind of error.
        code: its exact name.
        param: the field at fault, or None.
        retry_after: seconds after which the call may succeed, or None.
    """

    status: int
    type: str
    code: str

    def __init__(
        self, message: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.retry_after = retry_after

    @property
    def detail(self) -> ErrorDetail:
        """What the answer says."""
        return detail(self.type, str(self), self.param, self.code)


class DeadlinePassed(CallError):
    """The call took longer than a call may; its work was stopped."""

    status, type, code = 504, "timeout", "deadline_passed"


class FieldError(InputError):
    """A field's value does not fit the model.

    ``param`` names the field; None for the item that is at work.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class LimitExceeded(FieldError):
    """A well-formed call asks for more than this server gives."""


class NoContinuation(FieldError):
    """What a state should consume cannot follow it."""


class Unavailable(EngineError):
    """No call can be answered now; ``code`` is the server's status."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def detail(type: str, message: str, param: str | None, code: str) -> ErrorDetail:
    """What went wrong, in no more words than somebody reads: a caller's own may be long."""
    if len(message) > LONGEST_MESSAGE:
        message = f"{message[: LONGEST_MESSAGE // 2]} … {message[-LONGEST_MESSAGE // 2 :]}"
    if param is not None and len(param) > LONGEST_PARAM:
        param = f"{param[:LONGEST_PARAM]}…"
    return ErrorDetail(type=type, message=message, param=param, code=code)


def invalid_request(message: str, code: str, param: str | None = None) -> ErrorDetail:
    """The detail of an error that the caller can mend."""
    return detail("invalid_request", message, param, code)


def input_detail(error: InputError, param: str | None = None) -> ErrorDetail:
    """The detail of an error that the library raised about what it was given."""
    match error:
        case RowError():
            return detail("internal_error", str(error), None, "internal_error")
        case LimitExceeded():
            return invalid_request(str(error), "limit_exceeded", error.param or param)
        case ContextTooLong():
            return invalid_request(str(error), "context_too_long", param)
        case NoContinuation():
            return invalid_request(str(error), "no_continuation", error.param or param)
        case EmptyBeam():
            return invalid_request(str(error), "no_continuation", param)
        case FieldError():
            return invalid_request(str(error), "invalid_value", error.param or param)
        case _:
            return invalid_request(str(error), "invalid_value", param)


_CODES = {
    "extra_forbidden": "unknown_field",
    "json_invalid": "invalid_json",
    "missing": "missing_field",
    "not_supported": "not_supported",
}


def validation_detail(errors: Sequence[Any], root: Sequence[str] = ()) -> ErrorDetail:
    """The detail of the first of pydantic's ``errors``; ``root`` leads to where it looked."""
    first = errors[0]
    code = _CODES.get(first["type"], "invalid_value")
    if code == "invalid_json":
        return invalid_request(f"the body is not JSON: {first['ctx']['error']}", code)
    place = [*root, *first["loc"]]
    param = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".") or None
    message = "unknown field" if code == "unknown_field" else _message(first)
    if not place and code == "missing_field":
        message = "the call needs a JSON body"
    message = message[:1].lower() + message[1:]
    if len(errors) > 1:
        message += f" (and {len(errors) - 1} more)"
    return invalid_request(f"{param}: {message}" if param else message, code, param)


_MESSAGES = {
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dict_type": "must be an object",
    "list_type": "must be a list",
}


def _message(error: Any) -> str:
    """What one of pydantic's errors says, in the words of JSON."""
    given = error.get("input")
    if error["type"] == "int_type" and isinstance(given, float) and abs(given) >= 2**63:
        # Readers of JSON make floats of these.
        return "must be an integer of at most 64 bits"
    message: str = _MESSAGES.get(error["type"], error["msg"])
    return message


def item_detail(error: InputError | ValidationError, param: str) -> ErrorDetail:
    """The detail of an error in one item of a batch; ``param`` names the item."""
    if isinstance(error, ValidationError):
        return validation_detail(error.errors(include_url=False), [param])
    return input_detail(error, param)


def detail_of(error: Exception, param: str | None = "context") -> ErrorDetail:
    """The detail of any error that work on a call raises; those nobody foresaw tell nothing."""
    match error:
        case CallError():
            return error.detail
        case InputError():
            return input_detail(error, param)
        case EngineError():
            code = error.code if isinstance(error, Unavailable) else "dead"
            message = str(error)
            if isinstance(error, EngineDead):
                message = "the model's engine ended during this call; try again in a while"
            return detail("unavailable", message, None, code)
        case _:
            message = "the server failed at this call; its log says how"
            return detail("internal_error", message, None, "internal_error")


def answer(
    status: int, detail: ErrorDetail, headers: Mapping[str, str] | None = None
) -> JsonResponse:
    """The response that carries ``detail``."""
    return JsonResponse(ErrorBody(error=detail), status, dict(headers) if headers else None)


async def _on_http(request: Request, error: Exception) -> JsonResponse:
    assert isinstance(error, HTTPException)
    path = request.url.path
    match error.status_code:
        case 404:
            kind, code = "not_found", "not_found"
            message = f"there is nothing at {path}; /docs lists the calls"
        case 405:
            kind, code = "method_not_allowed", "method_not_allowed"
            message = f"{path} does not take {request.method}"
        case status:
            kind, message = "invalid_request", str(error.detail)
            code = "body_too_large" if status == 413 else HTTPStatus(status).name.lower()
    return answer(error.status_code, detail(kind, message, None, code), error.headers)


async def _on_validation(request: Request, error: Exception) -> JsonResponse:
    assert isinstance(error, RequestValidationError)
    errors = [{**e, "loc": e["loc"][1:]} for e in error.errors()]
    return answer(400, validation_detail(errors))


async def _on_input(request: Request, error: Exception) -> JsonResponse:
    assert isinstance(error, InputError)
    # What the server's model answers is not the caller's fault.
    return answer(500 if isinstance(error, RowError) else 400, input_detail(error, "context"))


async def _on_engine(request: Request, error: Exception) -> JsonResponse:
    return answer(503, detail_of(error), {"Retry-After": "5"})


async def _on_call(request: Request, error: Exception) -> JsonResponse:
    assert isinstance(error, CallError)
    after = error.retry_after
    return answer(
        error.status, error.detail, None if after is None else {"Retry-After": str(after)}
    )


class AnswerBugs:
    """ASGI middleware that logs what nobody foresaw and answers 500, so the connection lives on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on; what it raises before it answers is answered here."""
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            _log.exception("%s %s failed", scope["method"], scope["path"])
            await answer(500, detail_of(error))(scope, receive, send)


def install(app: FastAPI) -> None:
    """Let ``app`` answer every exception in the one shape."""
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(InputError, _on_input)
    app.add_exception_handler(EngineError, _on_engine)
    app.add_exception_handler(CallError, _on_call)
    app.add_middleware(AnswerBugs)
