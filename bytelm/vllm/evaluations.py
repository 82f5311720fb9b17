"""Evaluations under way: shared by equal contexts, sent in bursts, ended when nobody waits.

The engine (``engine.py``) owns one :class:`Evaluations`. A call joins the evaluation of an equal
context, or starts one, which waits for a slot and its burst (``bursts.py``). A burst is one
message to the engine core (``burst_message.py``), and so is what comes back for all of it that a
step has ended; each row is then handed out in its slot. This module must not know how vLLM is
started or ended.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from bytelm.errors import EngineError
from bytelm.models.ordered_rows import OrderedRow
from bytelm.models.token_lm import Usage
from bytelm.vllm import burst_message
from bytelm.vllm.burst_message import Asked
from bytelm.vllm.bursts import Burst, Bursts
from bytelm.vllm.slots import SlotPool, Slots

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import RequestOutputCollector

Key = tuple[bytes, str | None]

ID_BYTES = 4


class Engine(Protocol):
    """What evaluations ask of the engine that they belong to."""

    dead: asyncio.Future[str]
    total: Usage

    def errors(self) -> AbstractContextManager[None]:
        """Errors of vLLM as errors of bytelm."""
        ...

    def note(self, output: RequestOutput) -> None:
        """Take note of what an output says besides its tokens."""
        ...

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something until it ends or the engine is closed."""
        ...


@dataclass(eq=False)
class _Evaluation:
    """A context, and all the calls that wait for its row.

    Attributes:
        key: its tokens and salt.
        usage: of the call that came first.
        waiting: a future for each call.
        has_ended: all calls were answered, or have left.
        slot: where its row comes; -1 until it has one.
        sent: what it went out with; None until then.
    """

    key: Key
    usage: Usage
    waiting: list[asyncio.Future[OrderedRow]] = field(default_factory=list)
    has_ended: bool = False
    slot: int = -1
    sent: _Sent | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether some call has not left."""
        return any(not row.done() for row in self.waiting)


class _Sent(NamedTuple):
    """An evaluation's message, its place there, and the number that comes with its row."""

    message: _Message
    position: int
    nonce: int


@dataclass(eq=False)
class _Message:
    """Evaluations that were sent together.

    Attributes:
        request_id: the carrier's.
        left: by position, those of which nothing has been told.
        arrived: done when the engine core has it, or will never have.
    """

    request_id: str
    left: dict[int, _Evaluation]
    arrived: asyncio.Future[None]


class Evaluations:
    """All evaluations of an engine.

    Args:
        engine: whose they are.
        llm: where they are sent.
        slots: where rows come.
        depth: how many bursts may be under way.
        together: whether a burst is one message; else each evaluation is, so that vLLM can spread
            them over several engine cores.

    Attributes:
        pool: the slots that are free.
        unfinished: how many have not ended, those included that are being aborted.
        shared: calls that were answered by an evaluation already under way.
    """

    def __init__(
        self, engine: Engine, llm: AsyncLLM, slots: Slots, depth: int, *, together: bool
    ) -> None:
        # Not at the top: this loads vLLM.
        from bytelm.vllm import requests

        self._requests = requests
        self._engine = engine
        self._llm = llm
        self._slots = slots
        self._together = together
        self.pool = SlotPool(slots.address.count)
        self._doubtful: list[int] = []
        self._settling: asyncio.Task[None] | None = None
        self._in_flight: dict[Key, _Evaluation] = {}  # those that a new call may join
        self.unfinished = 0
        self.shared = 0
        self._bursts: Bursts[_Evaluation] = Bursts(self._send, depth)
        self._nonces = itertools.count(1)
        engine.spawn(self._bursts.run())

    @property
    def last_burst(self) -> int:
        """How many were in the burst that was sent last."""
        return self._bursts.last

    @property
    def is_settled(self) -> bool:
        """Whether all that was given up has ended."""
        return not self.unfinished and self._settling is None

    async def row(self, key: Key, usage: Usage) -> OrderedRow:
        """The row of a context; what it takes is added to ``usage`` before it comes."""
        evaluation = self._in_flight.get(key)
        if evaluation is None:
            evaluation = self._in_flight[key] = _Evaluation(key, usage)
            self.unfinished += 1
            self._bursts.put(evaluation)
        else:
            self.shared += 1
        row: asyncio.Future[OrderedRow] = asyncio.get_running_loop().create_future()
        evaluation.waiting.append(row)
        try:
            return await row
        except asyncio.CancelledError:
            if not row.cancelled():
                row.exception()  # it came at that moment, and nobody asks any more
            if not evaluation.has_ended and not evaluation.is_wanted:
                self._abandon(evaluation)
            raise

    def fail(self, error: Exception) -> None:
        """Answer all calls with an error: the engine is dead."""
        for evaluation in list(self._in_flight.values()):
            self._end(evaluation, error)

    def _end(self, evaluation: _Evaluation, outcome: OrderedRow | Exception | None) -> None:
        """Answer whoever waits; no later call joins."""
        if evaluation.has_ended:
            return
        evaluation.has_ended = True
        if self._in_flight.get(evaluation.key) is evaluation:
            del self._in_flight[evaluation.key]
        for row in evaluation.waiting:
            if row.done():
                continue
            if isinstance(outcome, Exception):
                row.set_exception(outcome)
            elif outcome is not None:
                row.set_result(outcome)
        if evaluation.sent is None:
            self.unfinished -= 1

    # Sending

    async def _send(self, wanted: list[_Evaluation], burst: Burst) -> bool:
        """Send a burst; False if nothing was to be sent any more."""
        await self._take_slots(wanted)
        live = [evaluation for evaluation in wanted if evaluation.slot >= 0]
        parts = [live] if self._together and live else [[one] for one in live]
        # From here on an evaluation is given up by an abort.
        for message in [self._message(part) for part in parts]:
            await self._post(message, burst)
        return bool(live)

    async def _take_slots(self, wanted: list[_Evaluation]) -> None:
        """Give a slot to each; those for which there is none are asked for again."""
        for number, evaluation in enumerate(wanted):
            if number and not len(self.pool):
                self._bursts.put_back(wanted[number:])
                return
            slot = await self.pool.acquire()
            if evaluation.has_ended:
                self.pool.release(slot)
            else:
                evaluation.slot = slot

    def _message(self, evaluations: list[_Evaluation]) -> _Message:
        left = dict(enumerate(evaluations))
        arrived = asyncio.get_running_loop().create_future()
        message = _Message(f"burst-{next(self._nonces)}", left, arrived)
        for position, evaluation in left.items():
            evaluation.sent = _Sent(message, position, next(self._nonces))
        return message

    async def _post(self, message: _Message, burst: Burst) -> None:
        asked = [
            Asked(one.sent.nonce, one.slot, *one.key)
            for one in message.left.values()
            if one.sent is not None
        ]
        try:
            with self._engine.errors():
                answers = await self._llm.add_request(
                    message.request_id,
                    self._requests.prompt(self._requests.CARRIED, None),
                    self._requests.burst_params(asked),
                )
        except Exception as error:
            self._lose(message, error)
            burst.answered()
        else:
            for evaluation in message.left.values():
                for tally in (evaluation.usage, self._engine.total):
                    tally.evaluations += 1
            self._engine.spawn(self._follow(message, answers, burst))
        finally:
            message.arrived.set_result(None)

    # Ends

    async def _follow(
        self, message: _Message, answers: RequestOutputCollector, burst: Burst
    ) -> None:
        """Hand out rows as their ends are told, until nothing is left of a message."""
        try:
            is_over = False
            with self._engine.errors():
                while message.left:
                    output = await answers.get()
                    burst.answered()
                    self._engine.note(output)
                    self._tell(message, output.outputs[0].token_ids)
                    is_over = output.finished
                    if is_over and message.left:
                        reason = output.outputs[0].finish_reason
                        raise EngineError(f"the engine ended an evaluation with {reason!r}")
                if not is_over:
                    # The last one was given up: the engine core has no more to tell.
                    await self._llm.abort(message.request_id)
        except Exception as error:
            self._lose(message, error)
        finally:
            burst.answered()

    def _tell(self, message: _Message, numbers: Sequence[int]) -> None:
        for told in burst_message.reported(numbers):
            evaluation = message.left.pop(told.position, None)
            if evaluation is not None:  # else it was given up
                self.unfinished -= 1
                self._told(evaluation, told.cached)

    def _told(self, evaluation: _Evaluation, cached: int | None) -> None:
        """An evaluation has ended in the engine core: if all went well, its row is there."""
        if cached is None:
            self._doubt(evaluation.slot)
            self._end(evaluation, EngineError("the engine failed on an evaluation"))
            return
        for tally in (evaluation.usage, self._engine.total):
            tally.tokens_computed += len(evaluation.key[0]) // ID_BYTES - cached
            tally.tokens_cached += cached
        assert evaluation.sent is not None
        if evaluation.has_ended:
            self.pool.release(evaluation.slot)
            return
        try:
            row = self._slots.read(evaluation.slot, evaluation.sent.nonce)
        except EngineError as error:
            self._doubt(evaluation.slot)
            self._end(evaluation, error)
        else:
            self.pool.hold(evaluation.slot, row)
            self._end(evaluation, row)

    def _lose(self, message: _Message, error: Exception) -> None:
        """Answer all that is left of a message with an error."""
        left, message.left = message.left, {}
        self.unfinished -= len(left)
        for evaluation in left.values():
            self._doubt(evaluation.slot)
            self._end(evaluation, error)

    def _abandon(self, evaluation: _Evaluation) -> None:
        """End an evaluation for which nobody waits."""
        self._end(evaluation, None)
        if evaluation.sent is not None:
            self._engine.spawn(self._abort(evaluation, evaluation.sent))

    async def _abort(self, evaluation: _Evaluation, sent: _Sent) -> None:
        message = sent.message
        await message.arrived
        if message.left.pop(sent.position, None) is None:
            return  # told meanwhile
        try:
            if message.left:
                name = burst_message.request_id(sent.nonce)
                await self._llm.engine_core.abort_requests_async([name])
            else:
                await self._llm.abort(message.request_id)
        finally:
            self.unfinished -= 1
            self._doubt(evaluation.slot)

    def _doubt(self, slot: int) -> None:
        """Release a slot as soon as no step can write into it that belongs to its last request."""
        self._doubtful.append(slot)
        if self._settling is None:
            self._settling = self._engine.spawn(self._settle())

    async def _settle(self) -> None:
        """Ask the engine something after the aborts, and release the slots when it answers.

        The engine takes messages in order and between steps. When it answers, every step that
        could hold the aborted requests has been handed to the workers, who write in order too:
        what such a step writes comes before the row of a request that is added from now on.
        """
        dead = self._engine.dead
        while self._doubtful:
            slots, self._doubtful = self._doubtful, []
            if not dead.done():
                answer = asyncio.ensure_future(self._llm.is_paused())
                await asyncio.wait({answer, dead}, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    answer.cancel()
                elif answer.exception() is not None:
                    await asyncio.wait({dead})  # only a dead engine does not answer
            for slot in slots:
                self.pool.release(slot)
        self._settling = None
