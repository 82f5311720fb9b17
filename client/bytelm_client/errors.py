"""Every error that the client raises.

::

    BytelmClientError (Exception)
    ├── CannotConnect              no server answers at the address
    ├── TimedOut                   the server took longer than the client's timeout
    ├── BadAnswer                  what answered is not a bytelm server
    ├── ItemsFailed                some of several results failed; the others' results are in it
    └── APIError                   the server answered with an error
        ├── InvalidRequest         4xx: the call is at fault
        ├── NotReady               503: the server is starting, stopping, or its model is dead
        └── ServerFailed           other 5xx: the server is at fault
"""

from collections.abc import Mapping, Sequence
from typing import Any


class BytelmClientError(Exception):
    """The root of all errors raised by the client."""


class CannotConnect(BytelmClientError):
    """No server answers at the address, or the connection broke."""


class TimedOut(BytelmClientError):
    """The server took longer than the client's timeout."""


class BadAnswer(BytelmClientError):
    """What answered is not a bytelm server, or not one of this version."""


class APIError(BytelmClientError):
    """The server answered with an error.

    Attributes:
        status: the HTTP status; for one of several results the status that it alone would get.
        type: the kind of error.
        code: the exact error.
        param: the field at fault, or None.
        message: what was wrong, in words.
    """

    def __init__(
        self, message: str, *, status: int, type: str, code: str, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.code = code
        self.param = param


class InvalidRequest(APIError):
    """The call is at fault; ``param`` says which field."""


class NotReady(APIError):
    """The server is starting, stopping, or its model is dead; ``code`` says which."""


class ServerFailed(APIError):
    """The server is at fault; its log says how."""


class ItemsFailed(BytelmClientError):
    """Some of several contexts, samples or continuations failed.

    Attributes:
        errors: by the place of each result that failed.
        results: all results in order, None where one failed.
    """

    def __init__(self, errors: Mapping[int, APIError], results: Sequence[Any]) -> None:
        first = min(errors)
        super().__init__(f"{len(errors)} of {len(results)} failed; {errors[first]}")
        self.errors = dict(errors)
        self.results = list(results)


def api_error(status: int, detail: Mapping[str, Any]) -> APIError:
    """The error for a status and the ``error`` object of an answer."""
    kind: type[APIError] = ServerFailed
    if status < 500:
        kind = InvalidRequest
    elif status == 503:
        kind = NotReady
    return kind(
        str(detail["message"]),
        status=status,
        type=str(detail["type"]),
        code=str(detail["code"]),
        param=detail.get("param"),
    )
