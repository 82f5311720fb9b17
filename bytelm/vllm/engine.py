"""The engine: a token LM that runs in vLLM's processes.

:class:`VllmEngine` owns one ``AsyncLLM``. An evaluation is a request for one token whose full
log-probabilities a worker writes into shared memory (``evaluations.py``); native generation is an
ordinary request. This module must not know bytes or beams.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from array import array
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bytelm import memory
from bytelm.errors import ContextTooLong, EngineDead, EngineError, EngineStartError, InputError
from bytelm.models.ordered_rows import OrderedRow
from bytelm.models.token_lm import Chunk, Usage
from bytelm.settings import EngineSettings
from bytelm.vllm.evaluations import Evaluations
from bytelm.vllm.start import Started, engine_cores, shut_down, start
from bytelm.vllm.tail_index import TailCounts

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

DEATH_POLL_SECONDS = 0.2
HIGHEST_TEMPERATURE = 2  # that vLLM takes
FEW = 4  # evaluations of a caller or two that read ahead
DIED = "a process of the engine ended unexpectedly; start the server again"


@dataclass(frozen=True)
class EngineStats:
    """What the engine did so far, and how it stands.

    Attributes:
        evaluations: evaluations that were sent to the model.
        shared: calls that were answered by an evaluation already in flight.
        tokens_computed: tokens that went through the model, generated ones included.
        tokens_cached: prompt tokens that the prefix cache supplied instead.
        tails: what the cache of partly filled blocks did; all zero without it.
        in_flight: evaluations that have not ended, aborted ones included.
        slots: how many rows can be on their way at a time.
        slots_free: how many of them are not; some may hold rows that are still read.
    """

    evaluations: int
    shared: int
    tokens_computed: int
    tokens_cached: int
    tails: TailCounts
    in_flight: int
    slots: int
    slots_free: int


class VllmEngine:
    """A token LM (:class:`bytelm.models.token_lm.AsyncTokenLM`) on vLLM. Made by :meth:`start`.

    It belongs to the event loop in which it was started.

    Attributes:
        vocab: the bytes of the model's tokens, as wide as its logits.
        max_context_tokens: the longest context that can be evaluated.
        max_model_len: the same plus one: what vLLM calls the model's length.
        model_name: what :meth:`start` was given.
        fingerprint: names weights, configuration, vocabulary and number format.
        device: "cpu" or "cuda".
        chat_template: the model's, where its files were read.
    """

    def __init__(self, started: Started, model: str) -> None:
        # Not at the top: this loads vLLM.
        from bytelm.vllm import requests

        memory.keep_freed()
        self._requests = requests
        llm = started.llm
        self.vocab = started.vocab
        self.model_name = model
        self.fingerprint = started.fingerprint
        self.chat_template = started.chat_template
        self.device: str = llm.vllm_config.device_config.device_type
        self.max_model_len: int = llm.model_config.max_model_len
        self.max_context_tokens: int | None = self.max_model_len - 1
        self._llm = llm
        self._processes = started.processes
        self._slots = started.slots
        self._read_ahead = started.read_ahead
        self._tasks: set[asyncio.Task[Any]] = set()
        self._generations = itertools.count(1)
        self._tails: dict[int, TailCounts] = {}  # of each of vLLM's engine cores
        self.total = Usage()
        self.dead: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._closing: asyncio.Task[None] | None = None
        self._evaluations = Evaluations(
            self, llm, started.slots, started.bursts, together=started.together
        )
        self.spawn(self._watch())

    # Life

    @classmethod
    async def start(cls, model: str | Path, settings: EngineSettings | None = None) -> VllmEngine:
        """Load a model and start its processes, while the event loop goes on.

        Args:
            model: a model's folder (:func:`bytelm.download.resolve` finds it) or a name that vLLM
                knows.
            settings: from the environment, if None.

        Raises:
            EngineStartError: with the reason in one line.
        """
        settings = settings or EngineSettings()
        others = set(engine_cores())
        given_up = threading.Event()
        starting = asyncio.ensure_future(asyncio.to_thread(start, str(model), settings, given_up))
        try:
            started = await asyncio.shield(starting)
        except asyncio.CancelledError:
            given_up.set()
            # vLLM's constructor cannot be interrupted, but it gives up when its process is gone.
            # While that starts, it only takes note of gentler signals.
            while not starting.done():
                for core in set(engine_cores()) - others:
                    core.kill()
                await asyncio.wait({starting}, timeout=0.1)
            if not starting.cancelled() and starting.exception() is None:
                await cls(starting.result(), str(model)).close()
            raise
        engine = cls(started, str(model))
        try:
            # The first request shows that rows arrive, before anybody counts on it.
            row = await engine.next_token_logprobs(engine.vocab.initial_context)
            total = float(np.exp(row.astype(np.float64)).sum())
            if not abs(total - 1) < 1e-3:
                raise EngineStartError(f"the model's probabilities sum to {total:.4g} instead of 1")
        except BaseException as error:
            await engine.close()
            if isinstance(error, EngineError) and not isinstance(error, EngineStartError):
                raise EngineStartError(f"the engine failed at its first call: {error}") from error
            raise
        # All workers are attached: from here on nothing is left behind, however this ends.
        started.slots.unlink()
        return engine

    @property
    def is_alive(self) -> bool:
        """Whether calls can be answered."""
        return not self.dead.done() and not self._llm.errored

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, nor was of late for more than a caller or two.

        Never, where reading ahead is off by setting.
        """
        busy = self._evaluations.unfinished or self._llm.output_processor.has_unfinished_requests()
        return self._read_ahead and not busy and self._evaluations.last_burst <= FEW

    @property
    def stats(self) -> EngineStats:
        """Counters since the start."""
        return EngineStats(
            evaluations=self.total.evaluations,
            shared=self._evaluations.shared,
            tokens_computed=self.total.tokens_computed,
            tokens_cached=self.total.tokens_cached,
            tails=TailCounts.sum(self._tails.values()),
            in_flight=self._evaluations.unfinished,
            slots=self._slots.address.count,
            slots_free=len(self._evaluations.pool),
        )

    async def close(self) -> None:
        """Abort everything, end all processes of the engine, and free the shared memory.

        Calls that wait raise EngineDead. May be called any number of times.
        """
        if self._closing is None:
            self._die("the engine was closed")
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def clear_cache(self) -> None:
        """Forget everything that was computed, tails included.

        Raises:
            EngineError: some blocks of the cache are still in use, as they are during calls.
            EngineDead: the engine cannot answer any more.
        """
        self._check_alive()
        if not await self._llm.reset_prefix_cache(reset_connector=True):
            raise EngineError("the cache is in use: clear it when no calls are running")

    async def _close(self) -> None:
        if self._llm.output_handler is not None:
            # It would log the end of its sockets as a failure.
            self._llm.output_handler.cancel()
        try:
            await asyncio.to_thread(shut_down, self._llm, self._processes)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._evaluations.pool.clear()  # whoever still has a row would keep all of this memory
            self._slots.close()
        # Its destructor must not be left to the interpreter's end, when its modules are gone.
        del self._llm

    async def _watch(self) -> None:
        while not self._llm.errored:  # noqa: ASYNC110 (vLLM has no event for it)
            await asyncio.sleep(DEATH_POLL_SECONDS)
        self._die(DIED)

    def _die(self, reason: str) -> None:
        """Answer every waiting and every later call with EngineDead."""
        if self.dead.done():
            return
        self.dead.set_result(reason)
        self._evaluations.fail(EngineDead(reason))
        # vLLM does so itself when a process dies, but not when it is shut down.
        from vllm.v1.engine.exceptions import EngineDeadError

        self._llm.output_processor.propagate_error(EngineDeadError())

    def _check_alive(self) -> None:
        if self.dead.done():
            raise EngineDead(self.dead.result())

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something until it ends or the engine is closed."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Evaluations

    async def next_token_logprobs(
        self, token_ids: Sequence[int], *, cache_salt: str | None = None
    ) -> NDArray[np.float32]:
        """The distribution over the token after ``token_ids``, from the model's raw logits.

        Equal contexts in flight share one evaluation, which ends early only when nobody waits for
        it any more.

        Args:
            token_ids: the context, BOS included.
            cache_salt: contexts share cached work only with those of the same salt.

        Returns:
            float32 [vocab.size], natural logarithms, normalised; read-only.

        Raises:
            ContextTooLong: more than ``max_context_tokens`` ids.
            InputError: no ids, or ids that the model does not have.
            EngineDead: the engine cannot answer any more.
        """
        return (await self.evaluate(token_ids, Usage(), cache_salt=cache_salt)).by_id()

    async def next_row(self, token_ids: Sequence[int]) -> OrderedRow:
        """As :meth:`next_token_logprobs`, in the order in which it was made."""
        return await self.evaluate(token_ids, Usage())

    async def evaluate(
        self, token_ids: Sequence[int], usage: Usage, *, cache_salt: str | None = None
    ) -> OrderedRow:
        """As :meth:`next_row`; what it takes is added to ``usage`` before it answers.

        An evaluation that is shared counts for the call that came first.
        """
        self._check_alive()
        ids = self._checked(token_ids)
        return await self._evaluations.row((ids.tobytes(), cache_salt), usage)

    def _checked(self, token_ids: Sequence[int]) -> array[int]:
        """The ids as int32."""
        size = self.vocab.size
        try:
            ids = array("i", tuple(token_ids))
        except OverflowError:
            wrong = next(i for i in token_ids if not 0 <= i < size)
            raise InputError(f"token id {wrong} is outside 0..{size - 1}") from None
        if not ids:
            raise InputError("the context has no tokens: give at least one, such as BOS")
        if len(ids) >= self.max_model_len:
            raise ContextTooLong(
                f"the context has {len(ids)} tokens, the model takes {self.max_model_len - 1} "
                "at most"
            )
        # What is negative is a large number without a sign.
        if np.frombuffer(ids, np.uint32).max() >= size:
            wrong = next(i for i in ids if not 0 <= i < size)
            raise InputError(f"token id {wrong} is outside 0..{size - 1}")
        return ids

    # Native generation

    async def generate(
        self,
        token_ids: Sequence[int],
        max_tokens: int,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        stop_token_ids: Sequence[int] = (),
        banned_token_ids: Sequence[int] | NDArray[np.integer] = (),
        usage: Usage | None = None,
        cache_salt: str | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """Sample tokens natively and yield them as they come; closing the iterator ends it.

        Args:
            token_ids: the context, BOS included.
            max_tokens: how many tokens to sample at most.
            temperature: 0 takes the most probable token each time; 2 at most.
            seed: the same seed on the same engine draws the same tokens, up to rounding.
            stop_token_ids: end after one of these. EOS is a token like any other unless it is here.
            banned_token_ids: these are never sampled; the others share their probability.
            usage: what it takes is added here.
            cache_salt: contexts share cached work only with those of the same salt.

        Raises:
            ContextTooLong: more than ``max_context_tokens`` ids.
            InputError: no ids or tokens to sample, or ids that the model does not have.
            EngineDead: the engine cannot answer any more.
        """
        self._check_alive()
        ids = self._checked(token_ids)
        if max_tokens < 1:
            raise InputError(f"max_tokens is {max_tokens}: at least one token must be asked for")
        if not 0 <= temperature <= HIGHEST_TEMPERATURE:
            raise InputError(f"temperature is {temperature}: give one in 0..{HIGHEST_TEMPERATURE}")
        if seed is not None and not 0 <= seed < 1 << 63:
            raise InputError(f"seed is {seed}: give a number in 0..2**63-1")
        banned = np.asarray(banned_token_ids, np.int64)
        if len(banned) and not 0 <= banned.min() <= banned.max() < self.vocab.size:
            raise InputError(f"a banned token id is outside 0..{self.vocab.size - 1}")
        params = self._requests.generation_params(
            min(max_tokens, self.max_model_len), temperature, seed, stop_token_ids, banned
        )
        prompt = self._requests.prompt(ids, cache_salt)
        async with contextlib.aclosing(
            self._requested(prompt, params, f"generate-{next(self._generations)}", usage or Usage())
        ) as outputs:
            async for output in outputs:
                part = output.outputs[0]
                if part.finish_reason not in (None, "stop", "length"):
                    raise EngineError(f"the engine ended a generation with {part.finish_reason!r}")
                yield Chunk(tuple(part.token_ids), part.finish_reason)

    async def _requested(
        self, prompt: Any, params: Any, request_id: str, usage: Usage
    ) -> AsyncGenerator[RequestOutput, None]:
        """The outputs of a request to vLLM, counted, with bytelm's errors."""
        length = len(prompt["prompt_token_ids"])
        with self.errors():
            async with contextlib.aclosing(
                self._llm.generate(prompt, params, request_id)
            ) as outputs:
                async for output in outputs:
                    self._count(output, length, usage)
                    self.note(output)
                    # Only the first one says what was cached; it counts the prompt.
                    length = 0
                    yield output

    def _count(self, output: RequestOutput, prompt_length: int, usage: Usage) -> None:
        """Add what an output took to ``usage``; ``prompt_length`` is 0 after the first one."""
        computed, cached = len(output.outputs[0].token_ids), 0
        if prompt_length and output.num_cached_tokens is not None:
            cached = output.num_cached_tokens
            computed += prompt_length - cached - 1
        for tally in (usage, self.total):
            tally.tokens_computed += computed
            tally.tokens_cached += cached

    def note(self, output: RequestOutput) -> None:
        """Take note of what the tails did, if an output says so."""
        if output.kv_transfer_params is not None:
            core, counts = TailCounts.reported(output.kv_transfer_params)
            self._tails[core] = counts

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Errors of vLLM as errors of bytelm."""
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            yield
        except EngineDeadError as error:
            self._die(DIED)
            raise EngineDead(self.dead.result()) from error
        except EngineGenerateError as error:
            raise EngineError(f"the engine failed on a request: {error.__cause__}") from error
