"""Many calls on many sessions in one request: each has its answer, whatever becomes of the others.

Must not know HTTP, nor what the calls do.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from pydantic import ValidationError

from bytelm import pace
from bytelm_server.errors import ErrorDetail, FieldError, detail_of, item_detail
from bytelm_server.limits import Limits
from bytelm_server.service import concurrently
from bytelm_server.sessions import answers, bodies
from bytelm_server.sessions.calls import SessionCalls
from bytelm_server.sessions.replies import Answer, Key

_log = logging.getLogger(__name__)

_LOOKS = {"get", "next"}
"""Calls that leave a session as it is."""


class SessionBatch:
    """One batch.

    Args:
        calls: make each call.
        batch: all of them.
        key: names the batch; its calls are named by it and their places.

    Attributes:
        results: what was answered so far.
    """

    def __init__(self, calls: SessionCalls, batch: bodies.BatchCall, key: str | None) -> None:
        self.results: list[Answer | None] = [None] * len(batch.calls)
        self._calls = calls
        self._batch = batch
        self._key = key
        self._keys = _keys(batch, key)

    @property
    def session_ids(self) -> list[str]:
        """The sessions that it is about."""
        return [item.id for item in self._batch.calls if isinstance(item, bodies.BatchItem)]

    async def run(self) -> answers.Batch:
        """An answer for each call; one that fails has its error there, the others go on.

        Raises:
            LimitExceeded: there are too many.
        """
        settings = self._calls.settings
        Limits(settings).check_calls(len(self.results))
        turn = asyncio.Semaphore(settings.concurrency)
        await concurrently(self._one(index, turn) for index in range(len(self.results)))
        return answers.Batch(results=list(filter(None, self.results)))

    def so_far(self, error: Exception) -> answers.Batch:
        """What was answered when ``error`` ended the batch; it is the others' answer."""
        results = [
            self._failed(index, error) if result is None else result
            for index, result in enumerate(self.results)
        ]
        return answers.Batch(results=results)

    async def _one(self, index: int, turn: asyncio.Semaphore) -> None:
        item, place = self._batch.calls[index], f"calls[{index}]"
        try:
            if isinstance(item, ValidationError):
                raise item
            place += ".body"
            await pace.turn()
            body = bodies.CALLS[item.call].model_validate_json(orjson.dumps(item.body))
            if getattr(body, "stream", False):
                raise FieldError("calls of a batch have no streams", "stream")
            async with turn:
                self.results[index] = await self._made(item, body, self._keys[index])
        except ValidationError as error:
            self.results[index] = {"index": index, "error": item_detail(error, place)}
        except Exception as error:
            self.results[index] = self._failed(index, error)

    async def _made(self, item: bodies.BatchItem, body: Any, key: Key | None) -> Answer:
        calls = self._calls
        made: dict[str, Callable[..., Coroutine[Any, Any, Answer]]] = {
            "get": calls.get,
            "fork": calls.fork,
            "advance": calls.advance,
            "prefill": calls.prefill,
            "next": calls.next,
            "greedy": calls.generate,
            "sample": calls.generate,
            "score": calls.score,
            "delete": calls.delete,
        }
        return await made[item.call](item.id, body, key)

    def _failed(self, index: int, error: Exception) -> Answer:
        detail = detail_of(error, None)
        if detail["code"] == "internal_error":
            _log.error("a call of a batch failed", exc_info=error)
        return {"index": index, "error": _in_batch(detail, index)}


def _keys(batch: bodies.BatchCall, key: str | None) -> list[Key | None]:
    """What the answer to each call is kept by.

    A look is made again by a retry, and finds what it found before, unless a call behind it has
    changed the session.
    """
    keys: list[Key | None] = []
    changed = set[str]()
    for index, item in reversed([*enumerate(batch.calls)]):
        own: Key | None = None
        if isinstance(item, bodies.BatchItem):
            own = item.idempotency_key
            if own is None and key is not None and (item.call not in _LOOKS or item.id in changed):
                own = (key, index)
            if item.call not in _LOOKS:
                changed.add(item.id)
        keys.append(own)
    return keys[::-1]


def _in_batch(detail: ErrorDetail, index: int) -> ErrorDetail:
    """The detail of one call's error, naming the field in the batch."""
    match detail["param"]:
        case None:
            place = ""
        case "id":
            place = ".id"
        case "Idempotency-Key":
            place = ".idempotency_key"
        case field:
            place = f".body.{field}"
    return ErrorDetail(**{**detail, "param": f"calls[{index}]{place}"})
