"""Every error that the client raises.

::

    BytelmClientError (Exception)
    ├── CannotSend (ValueError)    the call or the key has something that HTTP or JSON has not
    ├── CannotConnect              no server answers at the address
    │   └── NoAddress              what was given is no address
    ├── ConnectionLost             the connection broke before the answer was there
    ├── TimedOut                   the server took longer than the client's timeout
    ├── BadAnswer                  what answered is not a bytelm server
    ├── Closed (RuntimeError)      what the call goes through was closed
    ├── ItemsFailed                some of several results failed; the others' results are in it
    └── APIError                   the server answered with an error
        ├── InvalidRequest         4xx: the call is at fault
        │   ├── NotAllowed         401, 403: the key is missing, wrong, or not for this
        │   ├── NotFound           404: there is no such session, or nothing at the address
        │   ├── Conflict           409: not in the state that the call expects
        │   ├── Gone               410: the session has ended
        │   └── TooManyRequests    429: more than the server takes now, or from this key
        ├── NotReady               503: the server is starting, stopping, or its model is dead
        ├── TookTooLong            504: the call did not end within the server's deadline
        └── ServerFailed           other 5xx: the server is at fault
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self


class BytelmClientError(Exception):
    """The root of all errors raised by the client.

    Attributes:
        request_id: by which the server's log has the call; None where none was sent.
    """

    request_id: str | None = None

    def of_request(self, request_id: str | None) -> Self:
        """The error, with the id of the call that it is of, unless it has one."""
        self.request_id = self.request_id or request_id
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is made again of its message alone, unless it is told otherwise.
        return _made_again, (type(self), self.args, self.__dict__)


class CannotSend(BytelmClientError, ValueError):
    """A number that is not finite, text that is not Unicode, a value that JSON does not have, or a
    key that no header can have.
    """


class CannotConnect(BytelmClientError):
    """No server answers at the address."""


class NoAddress(CannotConnect):
    """What was given as a server's address is none."""


class ConnectionLost(BytelmClientError):
    """The connection broke before the answer was there; a server may have ended."""


class TimedOut(BytelmClientError):
    """The server took longer than the client's timeout."""


class BadAnswer(BytelmClientError):
    """What answered is not a bytelm server, or not one of this version."""


class Closed(BytelmClientError, RuntimeError):
    """The client was closed, or the stream was left before its end."""


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


class NotAllowed(InvalidRequest):
    """The API key is missing or wrong, or does not allow the call."""


class NotFound(InvalidRequest):
    """There is no such session, or not with this key; or nothing is at the address."""


class Conflict(InvalidRequest):
    """The session is not in the state that the call expects; ``code`` says how it differs."""


class Gone(InvalidRequest):
    """The session has ended."""


class TooManyRequests(InvalidRequest):
    """The server takes no more calls now, or no more from this key."""


class NotReady(APIError):
    """The server is starting, stopping, or its model is dead; ``code`` says which."""


class TookTooLong(APIError):
    """The call did not end within the server's deadline; ask for less at a time."""


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

    def of_request(self, request_id: str | None) -> Self:
        """The error, and those that it has, with the id of the call."""
        for error in self.errors.values():
            error.of_request(request_id)
        return super().of_request(request_id)


def _made_again(
    kind: type[BytelmClientError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> BytelmClientError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


_KINDS: dict[int, type[APIError]] = {
    401: NotAllowed,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    410: Gone,
    429: TooManyRequests,
    503: NotReady,
    504: TookTooLong,
}


def api_error(status: int, detail: Mapping[str, Any]) -> APIError:
    """The error for a status and the ``error`` object of an answer."""
    kind = _KINDS.get(status, InvalidRequest if status < 500 else ServerFailed)
    return kind(
        str(detail["message"]),
        status=status,
        type=str(detail["type"]),
        code=str(detail["code"]),
        param=detail.get("param"),
    )


_STATUSES = {
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "expired": 410,
    "overloaded": 429,
    "unavailable": 503,
    "timeout": 504,
    "insufficient_storage": 507,
    "internal_error": 500,
}


def api_error_of(detail: Mapping[str, Any]) -> APIError:
    """The error for an ``error`` object that came without a status of its own."""
    return api_error(_STATUSES.get(str(detail["type"]), 400), detail)
