"""The two clients: the same calls, sent in one's own time or awaited."""

from types import TracebackType
from typing import Any, Self, TypeVar, overload

import httpx

from bytelm_client._base import BaseClient, Beam, Call, Context, Contexts
from bytelm_client.results import Continuation, Model, NextBytes

T = TypeVar("T")


class Client(BaseClient):
    """A bytelm server, called and waited for.

    >>> with Client() as client:  # doctest: +SKIP
    ...     client.greedy("An apple a day keeps the ", 12).text
    'doctor away.'

    One context gives one result; a list of contexts runs concurrently and gives a list. When some
    of a list fail, ``ItemsFailed`` has the others' results.

    Args:
        base_url: the server's address; by default ``BYTELM_URL``, else port 8000 on this machine.
        timeout: seconds to wait for an answer; None waits for ever.
    """

    def __init__(self, base_url: str | None = None, *, timeout: float | None = 600.0) -> None:
        super().__init__(base_url, timeout=timeout)
        self._http = httpx.Client(timeout=self.timeout)

    def close(self) -> None:
        """Close the connections."""
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
        try:
            response = self._http.send(self._request(self._http, call))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._failed(error) from error
        return self._read(call, response)

    def health(self) -> str:
        """``"ready"``, or ``"starting"``, ``"draining"`` or ``"dead"``."""
        return self._send(self._health())

    def models(self) -> list[Model]:
        """The models that the server answers for."""
        return self._send(self._models())

    @overload
    def next_bytes(self, context: Context, *, beam: Beam | None = None) -> NextBytes: ...
    @overload
    def next_bytes(self, context: Contexts, *, beam: Beam | None = None) -> list[NextBytes]: ...
    def next_bytes(
        self, context: Context | Contexts, *, beam: Beam | None = None
    ) -> NextBytes | list[NextBytes]:
        """The distribution over the byte after each context."""
        return self._send(self._next_bytes(context, beam))

    @overload
    def greedy(
        self, context: Context, steps: int, *, logprobs: bool = False, beam: Beam | None = None
    ) -> Continuation: ...
    @overload
    def greedy(
        self,
        context: Contexts,
        steps: int,
        *,
        logprobs: bool = False,
        beam: Beam | None = None,
    ) -> list[Continuation]: ...
    def greedy(
        self,
        context: Context | Contexts,
        steps: int,
        *,
        logprobs: bool = False,
        beam: Beam | None = None,
    ) -> Continuation | list[Continuation]:
        """The most probable bytes after each context, at most ``steps``."""
        fields: dict[str, Any] = {"steps": steps, "logprobs": logprobs}
        return self._send(self._greedy(context, beam, fields))

    @overload
    def sample(
        self,
        context: Context,
        steps: int,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        logprobs: bool = False,
        beam: Beam | None = None,
    ) -> Continuation: ...
    @overload
    def sample(
        self,
        context: Contexts,
        steps: int,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        logprobs: bool = False,
        beam: Beam | None = None,
    ) -> list[Continuation]: ...
    def sample(
        self,
        context: Context | Contexts,
        steps: int,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        logprobs: bool = False,
        beam: Beam | None = None,
    ) -> Continuation | list[Continuation]:
        """Bytes drawn after each context, at most ``steps``; the same seed draws the same bytes."""
        fields = {"steps": steps, "temperature": temperature, "seed": seed, "logprobs": logprobs}
        return self._send(self._sample(context, beam, fields))


class AsyncClient(BaseClient):
    """A bytelm server, called and awaited.

    >>> async with AsyncClient() as client:  # doctest: +SKIP
    ...     (await client.greedy("An apple a day keeps the ", 12)).text
    'doctor away.'

    One context gives one result; a list of contexts runs concurrently and gives a list. When some
    of a list fail, ``ItemsFailed`` has the others' results.

    Args:
        base_url: the server's address; by default ``BYTELM_URL``, else port 8000 on this machine.
        timeout: seconds to wait for an answer; None waits for ever.
    """

    def __init__(self, base_url: str | None = None, *, timeout: float | None = 600.0) -> None:
        super().__init__(base_url, timeout=timeout)
        self._http = httpx.AsyncClient(timeout=self.timeout)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _send(self, call: Call[T]) -> T:
        try:
            response = await self._http.send(self._request(self._http, call))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._failed(error) from error
        return self._read(call, response)

    async def health(self) -> str:
        """``"ready"``, or ``"starting"``, ``"draining"`` or ``"dead"``."""
        return await self._send(self._health())

    async def models(self) -> list[Model]:
        """The models that the server answers for."""
        return await self._send(self._models())

    @overload
    async def next_bytes(self, context: Context, *, beam: Beam | None = None) -> NextBytes: ...
    @overload
    async def next_bytes(
        self, context: Contexts, *, beam: Beam | None = None
    ) -> list[NextBytes]: ...
    async def next_bytes(
        self, context: Context | Contexts, *, beam: Beam | None = None
    ) -> NextBytes | list[NextBytes]:
        """The distribution over the byte after each context."""
        return await self._send(self._next_bytes(context, beam))

    @overload
    async def greedy(
        self, context: Context, steps: int, *, logprobs: bool = False, beam: Beam | None = None
    ) -> Continuation: ...
    @overload
    async def greedy(
        self,
        context: Contexts,
        steps: int,
        *,
        logprobs: bool = False,
        beam: Beam | None = None,
    ) -> list[Continuation]: ...
    async def greedy(
        self,
        context: Context | Contexts,
        steps: int,
        *,
        logprobs: bool = False,
        beam: Beam | None = None,
    ) -> Continuation | list[Continuation]:
        """The most probable bytes after each context, at most ``steps``."""
        fields: dict[str, Any] = {"steps": steps, "logprobs": logprobs}
        return await self._send(self._greedy(context, beam, fields))

    @overload
    async def sample(
        self,
        context: Context,
        steps: int,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        logprobs: bool = False,
        beam: Beam | None = None,
    ) -> Continuation: ...
    @overload
    async def sample(
        self,
        context: Contexts,
        steps: int,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        logprobs: bool = False,
        beam: Beam | None = None,
    ) -> list[Continuation]: ...
    async def sample(
        self,
        context: Context | Contexts,
        steps: int,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        logprobs: bool = False,
        beam: Beam | None = None,
    ) -> Continuation | list[Continuation]:
        """Bytes drawn after each context, at most ``steps``; the same seed draws the same bytes."""
        fields = {"steps": steps, "temperature": temperature, "seed": seed, "logprobs": logprobs}
        return await self._send(self._sample(context, beam, fields))
