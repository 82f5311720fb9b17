"""What both clients share: requests are built here, and answers read. Must not send anything."""

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import httpx
import numpy as np

from bytelm.settings import ClientSettings
from bytelm_client._calls import (
    Call,
    json_of,
    nothing,
    patience,
    read_continuation,
    read_next_bytes,
    read_results,
    read_score,
    timeout_alone,
    timeout_of,
)
from bytelm_client._rows import Dtype, Numbers, Rows, read_numbers, read_rows
from bytelm_client.contexts import (
    Context,
    Contexts,
    Ids,
    Text,
    Texts,
    bytes_json,
    context_json,
    ids_json,
    is_one,
)
from bytelm_client.errors import (
    APIError,
    BadAnswer,
    BytelmClientError,
    CannotConnect,
    CannotSend,
    Closed,
    ConnectionLost,
    ItemsFailed,
    NoAddress,
    TimedOut,
    api_error,
    api_error_of,
)
from bytelm_client.options import CallOptions, options_json, score_json
from bytelm_client.results import (
    Continuation,
    Model,
    NextBytes,
    NextTokens,
    Score,
    SessionInfo,
    Vocab,
)

T = TypeVar("T")

CONNECTIONS = httpx.Limits(max_connections=512, max_keepalive_connections=512)
"""How many calls a client makes at the same time; others wait for a connection."""


REQUEST_ID = "X-Request-ID"

_log = logging.getLogger("bytelm_client")


class BaseClient:
    """Builds requests and reads answers; a subclass sends them.

    Args:
        base_url: the server's address; by default ``BYTELM_URL``, else port 8000 on this machine.
        api_key: the key to call with; by default ``BYTELM_API_KEY``, else none.
        timeout: seconds to wait for an answer; None waits for ever.
        retries: how often a call is sent again when the connection breaks, or when the server
            cannot answer now; with growing waits, or those that the server asks for.

    Raises:
        NoAddress: when the address is none.
        CannotSend: when the key is not printable ASCII.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | None = 600.0,
        retries: int = 3,
    ) -> None:
        if base_url is not None and not isinstance(base_url, str):
            raise TypeError(f"the server's address is a text, not {base_url!r:.60}")
        settings = ClientSettings()
        self.base_url = _checked_address((base_url or settings.url).rstrip("/"))
        if api_key is None and settings.api_key is not None:
            api_key = settings.api_key.get_secret_value()
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise CannotSend("the API key has characters that no key has: is it the right one?")
        self.retries = retries
        self.timeout = patience(timeout)
        # Without TLS nothing is verified, and reading the certificates takes a tenth of a second.
        self._verify = not self.base_url.startswith("http://")
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    def _any(self, path: str, body: Mapping[str, Any], options: CallOptions) -> Call[Any]:
        return Call("POST", path, lambda answer: answer, body, timeout=timeout_alone(options))

    def _health(self, options: CallOptions) -> Call[str]:
        return Call(
            "GET",
            "/health",
            lambda answer: str(answer["status"]),
            expected=(200, 503),
            timeout=timeout_alone(options),
        )

    def _models(self, options: CallOptions) -> Call[list[Model]]:
        def read(answer: Any) -> list[Model]:
            return [Model.from_json(model) for model in answer["data"]]

        return Call("GET", "/v1/models", read, timeout=timeout_alone(options))

    def _vocab(self, options: CallOptions) -> Call[Vocab]:
        return Call("GET", "/v1/vocab", Vocab.from_json, timeout=timeout_alone(options))

    def _next_bytes(
        self, context: Context | Contexts, options: Mapping[str, Any]
    ) -> Call[NextBytes | list[NextBytes]]:
        body = {**_contexts(context), **options_json(options)}
        read = read_results(read_next_bytes, is_one(context))
        return Call("POST", "/v1/next_bytes", read, body, timeout=timeout_of(options))

    def _greedy(
        self, context: Context | Contexts, steps: int, options: Mapping[str, Any]
    ) -> Call[Continuation | list[Continuation]]:
        body = {**_contexts(context), "steps": steps, **options_json(options)}
        read = read_results(read_continuation, is_one(context))
        return Call("POST", "/v1/greedy", read, body, timeout=timeout_of(options))

    def _sample(
        self, context: Context | Contexts, steps: int, n: int, options: Mapping[str, Any]
    ) -> Call[Continuation | list[Continuation]]:
        body = {**_contexts(context), "steps": steps, "n": n, **options_json(options)}
        read = read_results(read_continuation, is_one(context) and n == 1)
        return Call("POST", "/v1/sample", read, body, timeout=timeout_of(options))

    def _score(
        self,
        context: Context,
        continuations: Text | Texts,
        options: Mapping[str, Any],
    ) -> Call[Score | list[Score]]:
        parts, one = score_json(continuations, options)
        body = {"context": context_json(context), **parts}
        read = read_results(read_score, one)
        return Call("POST", "/v1/score", read, body, timeout=timeout_of(options))

    def _rows(
        self, context: Context, text: Text, dtype: Dtype, options: Mapping[str, Any]
    ) -> Call[Rows]:
        body = {
            "context": context_json(context),
            "text": bytes_json(text),
            "dtype": dtype,
            **options_json(options),
        }
        timeout = timeout_of(options)
        return Call("POST", "/v1/rows", read_rows, body, octets=True, timeout=timeout)

    def _token_logprobs(
        self, contexts: Ids | Sequence[Ids], options: CallOptions
    ) -> Call[NextTokens | list[NextTokens]]:
        one = len(contexts) > 0 and not isinstance(contexts[0], Sequence | np.ndarray)
        given = cast(Sequence[Ids], [contexts] if one else contexts)
        body = {"contexts": [ids_json(ids) for ids in given]}

        def read(numbers: Numbers) -> NextTokens | list[NextTokens]:
            results = [NextTokens(row) for row in numbers.rows]
            return results[0] if one else results

        timeout = timeout_alone(options)
        return Call("POST", "/v1/token_logprobs", read, body, octets=True, timeout=timeout)

    def _page(self, after: str, options: CallOptions) -> Call[tuple[list[SessionInfo], str | None]]:
        def read(answer: Any) -> tuple[list[SessionInfo], str | None]:
            return [SessionInfo.from_json(one) for one in answer["data"]], answer["next"]

        params = {"after": after}
        return Call("GET", "/v1/sessions", read, params=params, timeout=timeout_alone(options))

    def _batch(self, calls: Sequence[Call[Any]], options: CallOptions) -> Call[list[Any]]:
        items = []
        for call in calls:
            if call.octets:
                raise TypeError("rows do not go into a batch: call next_tokens or rows by itself")
            if call.batched is None:
                raise TypeError(f"{call.path} is no call of a session")
            if call.timeout is not None:
                raise TypeError("a batch is one call: give it the timeout")
            session_id, name = call.batched
            # What stands in the address of a call by itself is in the body of one of many.
            body = {**(call.params or {}), **(call.body or {})}
            item = {"id": session_id, "call": name, "body": body}
            if call.key is not None:
                item["idempotency_key"] = call.key
            items.append(item)

        def read(answer: Any) -> list[Any]:
            results: list[Any] = []
            errors: dict[int, APIError] = {}
            for place, (call, result) in enumerate(zip(calls, answer["results"], strict=True)):
                if "error" in result:
                    errors[place] = api_error_of(result["error"])
                    results.append(None)
                else:
                    results.append(call.read(result))
            if errors:
                raise ItemsFailed(errors, results)
            return results

        # Looks have no key of their own; sent again, they see what they saw.
        key, timeout = uuid.uuid4().hex, timeout_alone(options)
        body = {"calls": items}
        return Call("POST", "/v1/sessions:batch", read, body, key=key, timeout=timeout)

    def _stream(
        self, path: str, context: Context, steps: int, options: Mapping[str, Any]
    ) -> Call[None]:
        if not is_one(context):
            raise TypeError("a stream has one context")
        body = {**_contexts(context), "steps": steps, **options_json(options), "stream": True}
        return Call("POST", path, nothing, body, timeout=timeout_of(options))

    def _request(self, http: httpx.Client | httpx.AsyncClient, call: Call[Any]) -> httpx.Request:
        headers = {**self._headers, REQUEST_ID: uuid.uuid4().hex}
        if call.body is not None:
            headers["Content-Type"] = "application/json"
        if call.key is not None:
            headers["Idempotency-Key"] = call.key
        if call.octets:
            headers["Accept"] = "application/octet-stream"
        content = None if call.body is None else json_of(call.body)
        url = self.base_url + call.path
        try:
            return http.build_request(
                call.method,
                url,
                content=content,
                params=call.params,
                headers=headers,
                timeout=call.timeout or self.timeout,
            )
        except httpx.InvalidURL as error:
            raise self._failed(error, None) from error
        except ValueError as error:
            raise CannotSend(f"the call cannot be sent: {error}") from error

    def _read(self, call: Call[T], response: httpx.Response) -> T:
        with self._understood(call, response):
            if not call.expects(response):
                raise api_error(response.status_code, response.json()["error"])
            if call.octets:
                return call.read(read_numbers(response.headers, response.content))
            return call.read(response.json())

    @contextmanager
    def _understood(self, call: Call[Any], response: httpx.Response) -> Iterator[None]:
        """Errors of reading an answer say which one, and where it came from."""
        try:
            yield
        except BytelmClientError as error:
            error.of_request(request_id_of(response))
            raise
        except (ValueError, LookupError, TypeError) as error:
            raise BadAnswer(
                f"{self.base_url}{call.path} did not answer as a bytelm server does"
                f" (status {response.status_code}); is the address right?"
            ).of_request(request_id_of(response)) from error

    def _broken(
        self, error: Exception | None, count: int, unit: str = "bytes"
    ) -> BytelmClientError:
        """The error for a stream that ended too early, after so many bytes or rows."""
        if isinstance(error, httpx.TimeoutException):
            return TimedOut(f"{self.base_url} fell silent after {count} {unit}")
        return ConnectionLost(f"the connection to {self.base_url} broke after {count} {unit}")

    def _tell_of_another(self, request: httpx.Request, why: str, wait: float) -> None:
        """Log that a request is sent again."""
        _log.info(
            "%s %s is sent again in %.1f s: %s (request %s)",
            *(request.method, request.url, wait, why, request.headers[REQUEST_ID]),
        )

    def _failed(self, error: Exception, request: httpx.Request | None) -> BytelmClientError:
        """The error for a request that was not answered."""
        sent = None if request is None else request.headers[REQUEST_ID]
        return self._unanswered(error).of_request(sent)

    def _unanswered(self, error: Exception) -> BytelmClientError:
        if isinstance(error, RuntimeError):
            # Of httpx, where it was closed, or asyncio, where the loop was.
            why = str(error).rstrip(".")
            return Closed(f"{self!r} is of no use any more: {why}; make another one")
        if isinstance(error, httpx.TimeoutException) and not isinstance(
            error, httpx.ConnectTimeout
        ):
            return TimedOut(f"{self.base_url} did not answer in time")
        if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError) and not isinstance(
            error, httpx.ConnectError
        ):
            return ConnectionLost(f"the connection to {self.base_url} broke before an answer came")
        return CannotConnect(f"no answer from {self.base_url}: {error}; is the server running?")


def request_id_of(response: httpx.Response) -> str | None:
    """By which the server's log has the call that a response answers."""
    found: str | None = response.headers.get(REQUEST_ID, response.request.headers.get(REQUEST_ID))
    return found


def _checked_address(url: str) -> str:
    """The address itself.

    Raises:
        NoAddress: when no server can be there.
    """
    try:
        parsed = httpx.URL(url)
        if parsed.scheme in ("http", "https") and parsed.host:
            return url
    except httpx.InvalidURL:
        pass
    guess = "" if "://" in url else f", such as http://{url}"
    raise NoAddress(f"{url!r} is no address of a server: it begins with http:// or https://{guess}")


def _contexts(context: Context | Contexts) -> dict[str, Any]:
    if isinstance(context, list | tuple):
        return {"contexts": [context_json(c) for c in context]}
    return {"context": context_json(context)}
