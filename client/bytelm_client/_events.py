"""Server-sent events, read into the bytes that they carry.

Must not know which call a stream answers, nor how it is read.
"""

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

from bytelm_client.errors import BadAnswer, BytelmClientError, Closed, api_error_of
from bytelm_client.results import Continuation, Usage

Event = Mapping[str, Any]
"""One event of a stream, as the API has it."""


class BaseStream:
    """What is known of a stream so far.

    Args:
        told: called with every event.
    """

    def __init__(self, told: Callable[[Event], None] | None = None) -> None:
        self._told = told
        self._data = bytearray()
        self._last: Event | None = None
        self._begun = False
        self._done = False
        self._left = False
        self._error: BytelmClientError | None = None
        self._request_id: str | None = None

    @property
    def received(self) -> bytes:
        """The bytes that came so far."""
        return bytes(self._data)

    @property
    def result(self) -> Continuation:
        """All of it, when the stream has ended.

        Raises:
            ValueError: before, and where it was left or broke off.
        """
        if self._error is not None:
            raise ValueError(f"the stream has not ended: {self._error}") from self._error
        if self._last is None:
            raise ValueError("the stream has not ended: read it first")
        return Continuation(
            bytes=self.received,
            logprob=self._last.get("logprob"),
            finish_reason=self._last["finish_reason"],
            usage=Usage(**self._last["usage"]),
        )

    def _ended_by(self, error: BaseException | None) -> None:
        """Note that no more is read, unless the end was read before."""
        if self._done or self._error is not None:
            return
        if not isinstance(error, BytelmClientError):
            self._left = self._begun
            error = Closed(f"the stream was left after {len(self._data)} bytes: make another call")
        self._error = error.of_request(self._request_id)

    def _take(self, line: str) -> bytes:
        """The bytes that a line of the answer has; lines that are no events are the server's pings.

        Raises:
            APIError: when it tells of one.
            BadAnswer: when it is no event.
        """
        if self._done or not line.startswith("data:"):
            return b""
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            self._done = True
            return b""
        try:
            event = json.loads(data)
            if "error" in event:
                raise api_error_of(event["error"])
            piece = base64.b64decode(event["bytes"]["base64"])
            if self._told is not None:
                self._told(event)
            if "finish_reason" in event:
                self._last = event
        except (ValueError, LookupError, TypeError) as error:
            raise BadAnswer(f"an event of the stream is not understood: {line[:80]!r}") from error
        self._data += piece
        return piece
