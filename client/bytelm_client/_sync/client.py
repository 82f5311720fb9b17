"""Made from ``_async/client.py`` by ``client/unasync.py``: change that one."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import httpx

from bytelm_client._base import CONNECTIONS, BaseClient
from bytelm_client._calls import Call
from bytelm_client._rows import Dtype, Float16Rows, Float32Rows, Numbers, RowReader, Rows
from bytelm_client._session_calls import create_call, resume_call
from bytelm_client._sync.session import Session
from bytelm_client._sync.stream import Stream
from bytelm_client.contexts import Context, Contexts, Ids, Text, Texts
from bytelm_client.options import (
    BeamOptions,
    CallOptions,
    GreedyOptions,
    SampleOptions,
    ScoreOptions,
    SessionOptions,
)
from bytelm_client.results import (
    Continuation,
    Model,
    NextBytes,
    NextTokens,
    Score,
    SessionInfo,
    Vocab,
)
from bytelm_client.retries import Attempts

T = TypeVar("T")


class Client(BaseClient):
    """A bytelm server, called and waited for.

    >>> with Client() as client:  # doctest: +SKIP
    ...     client.greedy("An apple a day keeps the ", 12).text
    'doctor away.'

    One context gives one result; a list of contexts runs concurrently and gives a list. When some
    of a list fail, ``ItemsFailed`` has the others' results. A context is text, bytes, ``segments``
    or ``messages`` (``bytelm_client.contexts``); options are keywords (``bytelm_client.options``).

    Args:
        base_url: the server's address; by default ``BYTELM_URL``, else port 8000 on this machine.
        api_key: the key to call with; by default ``BYTELM_API_KEY``, else none.
        timeout: seconds to wait for an answer; None waits for ever.
        retries: how often a call is sent again when the connection breaks, or when the server
            cannot answer now; with growing waits, or those that the server asks for.
        http: what calls go through, where they need a proxy, certificates of one's own
            (``verify``) or another transport; its owner closes it, its timeouts do not count.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | None = 600.0,
        retries: int = 3,
        http: httpx.Client | None = None,
    ) -> None:
        super().__init__(base_url, api_key=api_key, timeout=timeout, retries=retries)
        if not isinstance(http, httpx.Client | None):
            raise TypeError(f"http is an httpx.Client, not {http!r:.60}")
        self._closes = http is None
        self._http = http or httpx.Client(limits=CONNECTIONS, verify=self._verify)

    def close(self) -> None:
        """Close the connections."""
        if self._closes:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _send(self, call: Call[T]) -> T:
        return self._read(call, self._respond(call))

    def _respond(self, call: Call[Any], stream: bool = False) -> httpx.Response:
        """The response to take, after as many attempts as it takes; an error's is read."""
        attempts = Attempts(self.retries, call.once)
        request = self._request(self._http, call)
        while True:
            try:
                response = self._http.send(request, stream=stream)
                if call.expects(response):
                    return response
                response.read()
                wait, why = attempts.after_answer(response), f"status {response.status_code}"
                if wait is None:
                    return response
            except httpx.HTTPError as error:
                wait, why = attempts.after_error(error), str(error) or type(error).__name__
                if wait is None:
                    raise self._failed(error, request) from error
            except RuntimeError as error:
                raise self._failed(error, request) from error
            self._tell_of_another(request, why, wait)
            time.sleep(wait)

    def _opening(self, call: Call[SessionInfo]) -> Session:
        return Session(self, self._send(call))

    def call(self, path: str, body: Mapping[str, Any], **options: Unpack[CallOptions]) -> Any:
        """The answer to any call that changes nothing, as the API has both."""
        return self._send(self._any(path, body, options))

    def health(self, **options: Unpack[CallOptions]) -> str:
        """``"ready"``, or ``"starting"``, ``"draining"`` or ``"dead"``."""
        return self._send(self._health(options))

    def models(self, **options: Unpack[CallOptions]) -> list[Model]:
        """The models that the server answers for."""
        return self._send(self._models(options))

    def vocab(self, **options: Unpack[CallOptions]) -> Vocab:
        """The model's vocabulary; some megabytes for a large one."""
        return self._send(self._vocab(options))

    @overload
    def next_bytes(self, context: Context, **options: Unpack[BeamOptions]) -> NextBytes: ...
    @overload
    def next_bytes(self, context: Contexts, **options: Unpack[BeamOptions]) -> list[NextBytes]: ...
    def next_bytes(
        self, context: Context | Contexts, **options: Unpack[BeamOptions]
    ) -> NextBytes | list[NextBytes]:
        """The distribution over the byte after each context."""
        return self._send(self._next_bytes(context, options))

    @overload
    def greedy(
        self, context: Context, steps: int, **options: Unpack[GreedyOptions]
    ) -> Continuation: ...
    @overload
    def greedy(
        self, context: Contexts, steps: int, **options: Unpack[GreedyOptions]
    ) -> list[Continuation]: ...
    def greedy(
        self, context: Context | Contexts, steps: int, **options: Unpack[GreedyOptions]
    ) -> Continuation | list[Continuation]:
        """The most probable bytes after each context, at most ``steps``."""
        return self._send(self._greedy(context, steps, options))

    @overload
    def sample(
        self,
        context: Context,
        steps: int,
        *,
        n: Literal[1] = 1,
        **options: Unpack[SampleOptions],
    ) -> Continuation: ...
    @overload
    def sample(
        self, context: Contexts, steps: int, *, n: int = 1, **options: Unpack[SampleOptions]
    ) -> list[Continuation]: ...
    @overload
    def sample(
        self, context: Context, steps: int, *, n: int, **options: Unpack[SampleOptions]
    ) -> Continuation | list[Continuation]: ...
    def sample(
        self,
        context: Context | Contexts,
        steps: int,
        *,
        n: int = 1,
        **options: Unpack[SampleOptions],
    ) -> Continuation | list[Continuation]:
        """Bytes drawn after each context, at most ``steps``; the same seed draws the same bytes.

        Args:
            context: what comes before.
            steps: the most bytes to draw.
            n: how many samples of each context; more than one gives a list, in which those of a
                context are side by side.
            options: see ``SampleOptions``.
        """
        return self._send(self._sample(context, steps, n, options))

    def stream_greedy(
        self, context: Context, steps: int, **options: Unpack[GreedyOptions]
    ) -> Stream:
        """The most probable bytes after one context, as they come; its ``result`` at the end."""
        return Stream(self, self._stream("/v1/greedy", context, steps, options))

    def stream_sample(
        self, context: Context, steps: int, **options: Unpack[SampleOptions]
    ) -> Stream:
        """Bytes drawn after one context, as they come; its ``result`` at the end."""
        return Stream(self, self._stream("/v1/sample", context, steps, options))

    @overload
    def score(
        self, context: Context, continuations: Text, **options: Unpack[ScoreOptions]
    ) -> Score: ...
    @overload
    def score(
        self,
        context: Context,
        continuations: Texts,
        **options: Unpack[ScoreOptions],
    ) -> list[Score]: ...
    def score(
        self,
        context: Context,
        continuations: Text | Texts,
        **options: Unpack[ScoreOptions],
    ) -> Score | list[Score]:
        """How likely one or several continuations are, each right after the context."""
        return self._send(self._score(context, continuations, options))

    @overload
    def rows(
        self,
        context: Context,
        text: Text,
        *,
        dtype: Literal["float32"] = "float32",
        **options: Unpack[BeamOptions],
    ) -> Float32Rows: ...
    @overload
    def rows(
        self,
        context: Context,
        text: Text,
        *,
        dtype: Literal["float16"],
        **options: Unpack[BeamOptions],
    ) -> Float16Rows: ...
    def rows(
        self,
        context: Context,
        text: Text,
        *,
        dtype: Dtype = "float32",
        **options: Unpack[BeamOptions],
    ) -> Rows:
        """The distributions before each byte of a text after a context, and behind the last.

        Args:
            context: what comes before.
            text: the bytes to read.
            dtype: of the numbers; ``"float16"`` is half as much, rounded by 1/2048 at most.
            options: see ``BeamOptions``.

        Returns:
            ``[bytes + 1, 257]``, natural logarithms: of 256 bytes, then of EOS (``EOS_INDEX``).

        Raises:
            InvalidRequest: when nothing continues with one of the bytes (``"no_continuation"``),
                or they do not fit; ``stream_rows`` gives the rows before it.
        """
        return self._send(self._rows(context, text, dtype, options))

    def stream_rows(
        self,
        context: Context,
        text: Text,
        *,
        dtype: Dtype = "float32",
        **options: Unpack[BeamOptions],
    ) -> Generator[Rows, None, None]:
        """The same as they come, some rows at a time; what fails in the middle is raised then.

        Leave it early by ``close``: the server then ends its work.
        """
        return self._read_rows(self._rows(context, text, dtype, options))

    def _read_rows(self, call: Call[Any]) -> Generator[Rows, None, None]:
        response = self._respond(call, stream=True)
        try:
            if not call.expects(response):
                self._read(call, response)
            with self._understood(call, response):
                reader = RowReader(response.headers)
                for data in response.iter_bytes():
                    if len(rows := reader.take(data)):
                        yield rows
                call.read(Numbers(reader.take(b""), reader.end()))
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise self._broken(error, reader.count, "rows") from error
        finally:
            response.close()

    def session(
        self,
        context: Context | Ids | None = None,
        *,
        kind: Literal["byte", "token"] = "byte",
        **options: Unpack[SessionOptions],
    ) -> Session:
        """A new session after a context: a handle to a state on the server.

        Args:
            context: what it begins with; None for the model's initial context. A token session
                also takes token ids.
            kind: whether it goes byte by byte or token by token.
            options: see ``SessionOptions``.
        """
        return self._opening(create_call(kind, context, options))

    def resume(self, session_id: str, **options: Unpack[CallOptions]) -> Session:
        """A session that there is already, by its id."""
        return Session(self, self._send(resume_call(session_id, options)))

    def sessions(self, **options: Unpack[CallOptions]) -> Iterator[SessionInfo]:
        """All sessions of this key, oldest first."""
        after: str | None = ""
        while after is not None:
            page, after = self._send(self._page(after, options))
            for info in page:
                yield info

    def batch(self, calls: Sequence[Call[Any]], **options: Unpack[CallOptions]) -> list[Any]:
        """Many calls of sessions in one, run together.

        >>> client.batch([one.plan.advance(b"a"), other.plan.next()])  # doctest: +SKIP

        Args:
            calls: of any sessions' ``plan``; those of one session happen in their order.
            options: see ``CallOptions``.

        Returns:
            What each call gives.

        Raises:
            ItemsFailed: when some fail; it has the others' results.
        """
        return self._send(self._batch(calls, options))

    @overload
    def token_logprobs(self, contexts: Ids, **options: Unpack[CallOptions]) -> NextTokens: ...
    @overload
    def token_logprobs(
        self, contexts: Sequence[Ids], **options: Unpack[CallOptions]
    ) -> list[NextTokens]: ...
    def token_logprobs(
        self, contexts: Ids | Sequence[Ids], **options: Unpack[CallOptions]
    ) -> NextTokens | list[NextTokens]:
        """The distribution over the token after one context of token ids, or after each."""
        return self._send(self._token_logprobs(contexts, options))
