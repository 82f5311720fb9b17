"""The calls of the API over one token LM: contexts in, results out, limits kept.

Must not know HTTP; a route hands in a checked body and gets the answer's body back.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.draws import Choose, Draw
from bytelm.errors import ContextTooLong, InputError
from bytelm.generation import Generated, collect, generate
from bytelm.logprobs import EOS, LazyByteProbs
from bytelm.settings import ServerSettings
from bytelm.token_lm import AsyncTokenLM
from bytelm.vocab import ByteVocab
from bytelm_server import schemas
from bytelm_server.errors import LimitExceeded, item_detail

T = TypeVar("T")
Work = Callable[[ByteBeamState, int], Coroutine[Any, Any, T]]
"""What is done with one context: the state after it, and its place in the call."""


class CountingLM:
    """A token LM that counts the evaluations which one call asks of another."""

    def __init__(self, lm: AsyncTokenLM) -> None:
        self.lm = lm
        self.vocab: ByteVocab = lm.vocab
        self.max_context_tokens: int | None = lm.max_context_tokens
        self.evaluations = 0

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The other's answer; one evaluation more."""
        self.evaluations += 1
        return await self.lm.next_token_logprobs(token_ids)


@dataclass(frozen=True)
class _Outcome:
    """One item's part of an answer, and how many bytes it made."""

    result: Any
    bytes_out: int = 0


async def concurrently(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; the first error cancels the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


class ByteService:
    """Distributions, greedy continuations and samples, for as many contexts as a call has.

    An error in the only ``context`` of a call is raised. One of several ``contexts`` that is at
    fault fails alone: its error stands in its place, and the others get their results.
    """

    def __init__(self, lm: AsyncTokenLM, settings: ServerSettings) -> None:
        self.lm = lm
        self.settings = settings

    async def warm_up(self) -> None:
        """Do what only the first call would have to wait for."""
        state = await ByteBeamState.initial(self.lm, self._beam_params(schemas.Beam()))
        await collect(generate(state, 2, LazyByteProbs.argmax))

    def model(self) -> schemas.Model:
        """The model and the limits, as ``/v1/models`` gives them."""
        lm, s = self.lm, self.settings
        return schemas.Model(
            name=s.served_model_name or str(getattr(lm, "model_name", type(lm).__name__)),
            revision=getattr(lm, "revision", None),
            fingerprint=getattr(lm, "fingerprint", None) or lm.vocab.fingerprint(),
            vocab_size=lm.vocab.size,
            initial_context=list(lm.vocab.initial_context),
            limits=schemas.Limits(
                context_tokens=lm.max_context_tokens,
                context_bytes=s.max_context_bytes,
                contexts=s.max_contexts,
                steps=s.max_steps,
                body_bytes=s.max_body_bytes,
                K=s.max_K,
            ),
        )

    async def next_bytes(self, call: schemas.NextBytesCall) -> schemas.Answer[Any]:
        """The distribution over the next byte, whole or its ``top`` bytes."""

        async def work(state: ByteBeamState, index: int) -> _Outcome:
            ps = (await state.logp_next()).ps
            eos = float(ps[EOS])
            if call.top is None:
                return _Outcome({"logprobs": ps[:256], "eos": eos})
            best = np.argsort(-ps[:256], kind="stable")[: call.top]
            top = [schemas.TopByte(byte=int(b), logprob=float(ps[b])) for b in best]
            return _Outcome(schemas.TopBytes(top=top, eos=eos))

        return await self._answer(call, work)

    async def greedy(self, call: schemas.GreedyCall) -> schemas.Answer[Any]:
        """The most probable bytes after each context."""
        self._check_steps(call)

        async def work(state: ByteBeamState, index: int) -> _Outcome:
            made = await _generate(state, call, LazyByteProbs.argmax)
            return _Outcome(_continuation(made), len(made.data))

        return await self._answer(call, work)

    async def sample(self, call: schemas.SampleCall) -> schemas.Answer[Any]:
        """Bytes drawn after each context; a context's draws depend on its place and the seed."""
        self._check_steps(call)
        draw = Draw(temperature=call.temperature, seed=call.seed)

        async def work(state: ByteBeamState, index: int) -> _Outcome:
            made = await _generate(state, call, draw.spawn(index, 0))
            result = schemas.Sample(index=index, sample=0, **_continuation(made))
            return _Outcome(result, len(made.data))

        return await self._answer(call, work)

    async def _answer(self, call: schemas.ContextCall, work: Work[_Outcome]) -> schemas.Answer[Any]:
        lm = CountingLM(self.lm)
        start = await ByteBeamState.initial(lm, self._beam_params(call.beam))

        async def one(context: schemas.BytesIn, index: int) -> _Outcome:
            await self._check_context(context.data)
            return await work(await start.prefill(context.data), index)

        async def one_of_several(item: schemas.BytesIn | ValidationError, index: int) -> _Outcome:
            try:
                if isinstance(item, ValidationError):
                    raise item
                return await one(item, index)
            except (InputError, ValidationError) as error:
                detail = item_detail(error, f"contexts[{index}]")
                return _Outcome(schemas.ItemError(index=index, error=detail))

        if call.context is not None:
            items: Sequence[schemas.BytesIn | ValidationError] = [call.context]
            outcomes = [await one(call.context, 0)]
        else:
            items = call.contexts or []
            self._check_count(len(items))
            outcomes = await concurrently(one_of_several(c, i) for i, c in enumerate(items))
        usage = schemas.Usage(
            bytes_in=sum(len(c.data) for c in items if isinstance(c, schemas.BytesIn)),
            bytes_out=sum(o.bytes_out for o in outcomes),
            evaluations=lm.evaluations,
            tokens_computed=None,
            tokens_cached=None,
        )
        return schemas.Answer(results=[o.result for o in outcomes], usage=usage)

    def _beam_params(self, beam: schemas.Beam) -> BeamParams:
        width = beam.K if "K" in beam.model_fields_set else self.settings.default_K
        cap = self.settings.max_K
        if cap is not None and (width is None or width > cap):
            wanted = "unlimited" if width is None else width
            raise LimitExceeded(f"beam.K can be at most {cap} here, not {wanted}", "beam.K")
        threshold = beam.prune_threshold
        if threshold is None:
            threshold = self.settings.default_prune_threshold
        return BeamParams(K=width, prune_threshold=threshold)

    def _check_steps(self, call: schemas.GreedyCall) -> None:
        most = self.settings.max_steps
        if call.steps > most:
            raise LimitExceeded(f"steps can be at most {most} here, not {call.steps}", "steps")

    def _check_count(self, count: int) -> None:
        most = self.settings.max_contexts
        if count > most:
            raise LimitExceeded(f"one call takes at most {most} contexts, not {count}", "contexts")

    async def _check_context(self, data: bytes) -> None:
        most = self.settings.max_context_bytes
        if len(data) > most:
            message = f"a context can have at most {most} bytes here, this one has {len(data)}"
            raise LimitExceeded(message)
        vocab, fits = self.lm.vocab, self.lm.max_context_tokens
        if fits is None or len(vocab.initial_context) + len(data) <= fits:
            return
        tokens = len(vocab.initial_context) + len(await asyncio.to_thread(vocab.encode, data))
        if tokens > fits:
            message = f"the context has {tokens} tokens, the model takes at most {fits}"
            raise ContextTooLong(message)


async def _generate(
    state: ByteBeamState, call: schemas.GreedyCall, choose: Choose
) -> Generated[ByteBeamState]:
    pieces = generate(state, call.steps, choose, logprobs=call.logprobs)
    return await collect(_in_turns(pieces))


async def _in_turns(items: AsyncIterable[T]) -> AsyncIterator[T]:
    """The same items; a model that answers without waiting must not keep others from their turn."""
    async for item in items:
        await asyncio.sleep(0)
        yield item


def _continuation(made: Generated[ByteBeamState]) -> schemas.Continuation:
    return schemas.Continuation(
        bytes=schemas.bytes_out(made.data),
        logprob=made.logprob,
        finish_reason=made.finish_reason,
    )
