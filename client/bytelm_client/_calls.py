"""A call: a request to send, and how its answer reads. Must not send anything."""

import base64
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Generic, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from bytelm_client.errors import APIError, CannotSend, ItemsFailed, api_error_of
from bytelm_client.results import Continuation, NextBytes, Score, Span, Usage

T = TypeVar("T", covariant=True)


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request to send, and how its answer reads.

    Attributes:
        method: of HTTP.
        path: of the address.
        read: from the answer to the result; the answer is JSON, or ``Numbers`` where ``octets``.
        body: what to send as JSON.
        expected: statuses of an answer; /health answers with its status in place of an error.
        params: what to send in the address.
        key: by which the server knows a change that it is sent again.
        octets: ask for raw numbers instead of JSON.
        batched: the session and the name of the call, by which a batch has it.
        once: whether it changes something though it has no key.
        timeout: how long to wait; None: as the client does.
    """

    method: str
    path: str
    read: Callable[[Any], T]
    body: Mapping[str, Any] | None = None
    expected: tuple[int, ...] = (200,)
    params: Mapping[str, Any] | None = None
    key: str | None = None
    octets: bool = False
    batched: tuple[str, str] | None = None
    once: bool = False
    timeout: httpx.Timeout | None = None

    def expects(self, response: httpx.Response) -> bool:
        """Whether the response is an answer, not an error."""
        return response.status_code in self.expected


def patience(seconds: float | None) -> httpx.Timeout:
    """How long to wait for an answer.

    Raises:
        ValueError: when that is no time.
    """
    if seconds is not None and not (isinstance(seconds, Real) and seconds > 0):
        raise ValueError(f"a timeout is a number of seconds above 0, or None, not {seconds!r:.60}")
    # Connecting is quick or hopeless, however long an answer may take; a connection of one's own
    # comes free when another call ends.
    connect = 10.0 if seconds is None else min(10.0, seconds)
    return httpx.Timeout(seconds, connect=connect, pool=None)


def timeout_of(options: Mapping[str, Any]) -> httpx.Timeout | None:
    """How long to wait, as the options of a call say; None where they do not."""
    return patience(options["timeout"]) if "timeout" in options else None


def timeout_alone(options: Mapping[str, Any]) -> httpx.Timeout | None:
    """The same, of a call that has no other options.

    Raises:
        TypeError: when there is another.
    """
    for name in options:
        if name != "timeout":
            raise TypeError(f"there is no option {name!r} here")
    return timeout_of(options)


def json_of(body: Mapping[str, Any]) -> bytes:
    """A body as it is sent; numbers of numpy are numbers.

    Raises:
        CannotSend: when it has something that JSON does not have; names the field.
    """
    try:
        return json.dumps(
            body, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        if len(body) == 1:
            (name,) = body
            raise CannotSend(f"{name} cannot be sent: {error}") from error
        for name, value in body.items():
            json_of({name: value})
        raise CannotSend(f"the call cannot be sent: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.integer | np.floating | np.bool_):
        return value.item()
    raise TypeError(f"it is no text, number or list, but a {type(value).__name__}")


def nothing(answer: Any) -> None:
    """There is nothing to know."""


def read_results(
    read: Callable[[Mapping[str, Any], Usage, int], T], one: bool
) -> Callable[[Any], T | list[T]]:
    """How the results of a call read: the only one, or a list."""

    def read_all(answer: Any) -> T | list[T]:
        usage = Usage(**answer["usage"])
        results: list[Any] = []
        errors: dict[int, APIError] = {}
        for place, result in enumerate(answer["results"]):
            if "error" in result:
                errors[place] = api_error_of(result["error"])
                results.append(None)
            else:
                results.append(read(result, usage, place))
        if errors and one:
            raise errors[0]
        if errors:
            raise ItemsFailed(errors, results)
        return results[0] if one else results

    return read_all


def read_continuation(result: Mapping[str, Any], usage: Usage, place: int) -> Continuation:
    """A result of greedy and sample."""
    return Continuation(
        bytes=base64.b64decode(result["bytes"]["base64"]),
        logprob=result["logprob"],
        finish_reason=result["finish_reason"],
        usage=usage,
        index=result.get("index", place),
        sample=result.get("sample", 0),
        tokens=tuple(result["tokens"]) if "tokens" in result else None,
    )


def read_next_bytes(result: Mapping[str, Any], usage: Usage, place: int) -> NextBytes:
    """A result of next_bytes."""
    kept = result.get("drawable")
    return NextBytes(_distribution(result), usage, None if kept is None else _distribution(kept))


def _distribution(told: Mapping[str, Any]) -> NDArray[np.float64]:
    return np.array([_logprob(x) for x in (*told["logprobs"], told["eos"])])


def read_score(result: Mapping[str, Any], usage: Usage, place: int) -> Score:
    """A result of score."""
    per_byte = result.get("logprobs")
    bits = result["bits_per_byte"]
    return Score(
        logprob=_logprob(result["logprob"]),
        bits_per_byte=math.inf if bits is None else bits,
        logprobs=None if per_byte is None else np.array([_logprob(x) for x in per_byte]),
        eos=_logprob(result["eos"]) if "eos" in result else None,
        usage=usage,
        spans=tuple(map(_span, result["spans"])) if "spans" in result else None,
        top=tuple(map(_best, result["top"])) if "top" in result else None,
    )


def _span(told: Mapping[str, Any]) -> Span:
    bits = told["bits"]
    return Span(
        start=told["start"],
        end=told["end"],
        bytes=base64.b64decode(told["bytes"]["base64"]),
        logprob=_logprob(told["logprob"]),
        bits=math.inf if bits is None else bits,
    )


def _best(told: list[Any] | None) -> tuple[tuple[bytes, float], ...] | None:
    if told is None:
        return None
    return tuple((bytes([one["byte"]]), _logprob(one["logprob"])) for one in told)


def _logprob(x: float | None) -> float:
    return -math.inf if x is None else x
