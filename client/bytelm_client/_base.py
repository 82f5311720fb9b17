"""What both clients share: a call as a request to send and a way to read its answer.

Must not send anything.
"""

import base64
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import httpx
import numpy as np
from typing_extensions import TypedDict

from bytelm.settings import ClientSettings
from bytelm_client.errors import (
    APIError,
    BadAnswer,
    CannotConnect,
    ItemsFailed,
    TimedOut,
    api_error,
)
from bytelm_client.results import Continuation, Model, NextBytes, Usage

T = TypeVar("T")

Context: TypeAlias = str | bytes
"""What comes before: bytes, or text, which is sent as UTF-8."""

Contexts: TypeAlias = list[str] | list[bytes] | list[Context] | tuple[Context, ...]
"""Several contexts; not any sequence, since a text is a sequence of texts, too."""


class Beam(TypedDict, total=False):
    """The beam's parameters; what is absent is the server's default.

    ``K`` is the most candidates (None: unlimited, where the server allows it);
    ``prune_threshold`` the share of the whole below which a candidate is dropped.
    """

    K: int | None
    prune_threshold: float


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request to send, and how its answer reads."""

    method: str
    path: str
    read: Callable[[Any], T]
    body: Mapping[str, Any] | None = None
    # /health answers with its status in place of an error.
    expected: tuple[int, ...] = (200,)


class BaseClient:
    """Builds requests and reads answers; a subclass sends them.

    Args:
        base_url: the server's address; by default ``BYTELM_URL``, else port 8000 on this machine.
        timeout: seconds to wait for an answer; None waits for ever.
    """

    def __init__(self, base_url: str | None = None, *, timeout: float | None = 600.0) -> None:
        self.base_url = (base_url or ClientSettings().url).rstrip("/")
        # Connecting is quick or hopeless, however long an answer may take.
        self.timeout = httpx.Timeout(timeout, connect=10.0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    def _health(self) -> Call[str]:
        return Call("GET", "/health", lambda answer: str(answer["status"]), expected=(200, 503))

    def _models(self) -> Call[list[Model]]:
        return Call("GET", "/v1/models", lambda a: [Model.from_json(m) for m in a["data"]])

    def _next_bytes(self, context: Context | Contexts, beam: Beam | None) -> Call[Any]:
        return Call(
            "POST", "/v1/next_bytes", _results(context, _read_next_bytes), _body(context, beam)
        )

    def _greedy(
        self, context: Context | Contexts, beam: Beam | None, fields: Mapping[str, Any]
    ) -> Call[Any]:
        body = {**_body(context, beam), **fields}
        return Call("POST", "/v1/greedy", _results(context, _read_continuation), body)

    def _sample(
        self, context: Context | Contexts, beam: Beam | None, fields: Mapping[str, Any]
    ) -> Call[Any]:
        body = {**_body(context, beam), **fields}
        return Call("POST", "/v1/sample", _results(context, _read_continuation), body)

    def _request(self, http: httpx.Client | httpx.AsyncClient, call: Call[Any]) -> httpx.Request:
        return http.build_request(call.method, self.base_url + call.path, json=call.body)

    def _read(self, call: Call[T], response: httpx.Response) -> T:
        try:
            answer = response.json()
            if response.status_code not in call.expected:
                raise api_error(response.status_code, answer["error"])
            return call.read(answer)
        except (ValueError, LookupError, TypeError) as error:
            raise BadAnswer(
                f"{self.base_url}{call.path} did not answer as a bytelm server does"
                f" (status {response.status_code}); is the address right?"
            ) from error

    def _failed(self, error: httpx.HTTPError | httpx.InvalidURL) -> Exception:
        if isinstance(error, httpx.TimeoutException) and not isinstance(
            error, httpx.ConnectTimeout
        ):
            return TimedOut(f"{self.base_url} did not answer in time")
        return CannotConnect(f"no answer from {self.base_url}: {error}; is the server running?")


def _bytes_in(context: Context) -> str | dict[str, str]:
    if isinstance(context, str):
        return context
    return {"base64": base64.b64encode(context).decode("ascii")}


def _body(context: Context | Contexts, beam: Beam | None) -> dict[str, Any]:
    body: dict[str, Any] = {} if beam is None else {"beam": beam}
    if isinstance(context, str | bytes):
        return {"context": _bytes_in(context), **body}
    return {"contexts": [_bytes_in(c) for c in context], **body}


def _results(
    context: Context | Contexts, read: Callable[[Mapping[str, Any], Usage], T]
) -> Callable[[Any], T | list[T]]:
    def read_results(answer: Any) -> T | list[T]:
        usage = Usage(**answer["usage"])
        results: list[Any] = []
        errors: dict[int, APIError] = {}
        for index, result in enumerate(answer["results"]):
            if "error" in result:
                errors[index] = api_error(400, result["error"])
                results.append(None)
            else:
                results.append(read(result, usage))
        if errors:
            raise ItemsFailed(errors, results)
        return results[0] if isinstance(context, str | bytes) else results

    return read_results


def _read_continuation(result: Mapping[str, Any], usage: Usage) -> Continuation:
    return Continuation(
        bytes=base64.b64decode(result["bytes"]["base64"]),
        logprob=result["logprob"],
        finish_reason=result["finish_reason"],
        usage=usage,
    )


def _read_next_bytes(result: Mapping[str, Any], usage: Usage) -> NextBytes:
    logprobs = [*result["logprobs"], result["eos"]]
    return NextBytes(np.array([-math.inf if x is None else x for x in logprobs]), usage)
