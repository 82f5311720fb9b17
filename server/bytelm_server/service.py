"""The calls of the API over one token LM: contexts in, results out, limits kept.

Must not know HTTP; a route hands in a checked body and gets the answer's body back.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from bytelm.beam import ByteBeamState, kernels
from bytelm.beam.prefill import JOINED, TrunkFinder
from bytelm.beam.rows import RowSource
from bytelm.errors import BeamError, InputError, MethodError, VocabError
from bytelm.generating.draws import Draw
from bytelm.generating.generation import Generated, collect, generate
from bytelm.generating.token_sampling import by_tokens, sample
from bytelm.models.logprobs import EOS, LazyByteProbs
from bytelm.models.token_lm import AsyncTokenLM
from bytelm.prompts.context import ChatTemplate
from bytelm.settings import ServerSettings
from bytelm.threads import in_thread
from bytelm.vocabulary.canonical_paths import CanonicalPaths
from bytelm.vocabulary.trie import TokenTrie
from bytelm_server import answers, requests
from bytelm_server.contexts import ContextIn
from bytelm_server.counting import CountingLM
from bytelm_server.errors import FieldError
from bytelm_server.limits import Limits
from bytelm_server.run import Run
from bytelm_server.scoring import Scoring, Wanted, most_probable
from bytelm_server.shares import Shares
from bytelm_server.streams import Events
from bytelm_server.vocabulary import VocabBody

T = TypeVar("T")


Work = Callable[[Run, ByteBeamState, int], Coroutine[Any, Any, list[Any]]]
"""From one context's state and its place in the call to its results."""


async def concurrently(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; the first error cancels the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


class ByteService:
    """Distributions, greedy continuations, samples and scores, many of each in one call.

    An error in the only ``context`` of a call is raised. One of several items that is at fault
    fails alone: its error stands in its place, and the others get their results.

    Args:
        lm: the token LM; its ``chat_template``, if it has one, renders messages.
        settings: limits and defaults.
        callers: who has calls now, by cache salt, and how many.
    """

    def __init__(
        self,
        lm: AsyncTokenLM,
        settings: ServerSettings,
        callers: Mapping[str, int] | None = None,
    ) -> None:
        self.lm = lm
        self.settings = settings
        self.limits = Limits(settings)
        self.shares = Shares(settings.shared_places, callers)
        self.chat_template: ChatTemplate = getattr(lm, "chat_template", None) or ChatTemplate(None)
        self._vocab: asyncio.Task[VocabBody] | None = None
        self._created = int(time.time())

    async def warm_up(self) -> None:
        """Do what only the first call would have to wait for, and others with it."""
        await in_thread(RowSource(self.lm).warm_up)
        await in_thread(kernels.warm_up)
        with suppress(VocabError):  # its canonical tokenizations are not known
            await in_thread(lambda: CanonicalPaths.of(self.lm.vocab).warm_up())
        state = await ByteBeamState.initial(self.lm, self.limits.beam_params(requests.Beam()))
        await collect(generate(state, 2, LazyByteProbs.argmax))

    @property
    def fingerprint(self) -> str:
        """Names the model: another one gives other distributions."""
        return getattr(self.lm, "fingerprint", None) or self.lm.vocab.fingerprint()

    @property
    def model_name(self) -> str:
        """What the model is called here."""
        lm = self.lm
        named = getattr(lm, "model_name", type(lm).__name__)
        return self.settings.served_model_name or str(named)

    def model(self) -> answers.Model:
        """The model and the limits, as ``/v1/models`` gives them."""
        lm, s = self.lm, self.settings
        return answers.Model(
            id=self.model_name,
            object="model",
            created=self._created,
            owned_by="bytelm",
            name=self.model_name,
            revision=getattr(lm, "revision", None),
            fingerprint=self.fingerprint,
            vocab_size=lm.vocab.size,
            initial_context=list(lm.vocab.initial_context),
            limits=answers.Limits(
                context_tokens=lm.max_context_tokens,
                context_bytes=s.max_context_bytes,
                contexts=s.max_contexts,
                results=s.max_results,
                steps=s.max_steps,
                total_steps=s.max_total_steps,
                walked_bytes=s.max_walked_bytes,
                row_values=s.max_row_values,
                body_bytes=s.max_body_bytes,
                K=s.max_K,
            ),
        )

    async def vocab(self) -> VocabBody:
        """The vocabulary, as ``/v1/vocab`` gives it; made at the first call."""
        if self._vocab is None:
            self._vocab = asyncio.create_task(asyncio.to_thread(VocabBody.of, self.lm.vocab))
        return await asyncio.shield(self._vocab)

    # ``cache_salt`` in the calls: cached work is shared with calls of the same salt only.

    async def next_bytes(
        self, call: requests.NextBytesCall, cache_salt: str | None = None
    ) -> answers.Answer[Any]:
        """The distribution over the next byte, whole or its ``top`` bytes."""
        self.limits.check_contexts(call.count)
        self.limits.check_rows(call.count, call.top or 256)

        async def work(run: Run, state: ByteBeamState, index: int) -> list[Any]:
            async with run.turn:
                return [next_bytes((await state.logp_next()).ps, call.top)]

        return await self._for_each_context(await self.run(call, cache_salt), call, work)

    async def greedy(
        self, call: requests.GreedyCall, cache_salt: str | None = None
    ) -> answers.Answer[Any]:
        """The most probable bytes after each context."""
        work = self._greedy(call)
        return await self._for_each_context(await self.run(call, cache_salt), call, work)

    async def greedy_events(
        self, call: requests.GreedyCall, cache_salt: str | None = None
    ) -> Events:
        """The same as they come: ``answers.Event`` and ``answers.ErrorEvent``."""
        work = self._greedy(call)
        run = await self.run(call, cache_salt)
        async with aclosing(
            run.events(self._for_each_context(run, call, work), call.count)
        ) as events:
            async for event in events:
                yield event

    async def sample(
        self, call: requests.SampleCall, cache_salt: str | None = None
    ) -> answers.Answer[Any]:
        """``n`` texts drawn after each context; the draws depend on the seed and the places."""
        work = self._sample(call)
        return await self._for_each_context(await self.run(call, cache_salt), call, work, call.n)

    async def sample_events(
        self, call: requests.SampleCall, cache_salt: str | None = None
    ) -> Events:
        """The same as they come: ``answers.Event`` and ``answers.ErrorEvent``."""
        work, n = self._sample(call), call.n
        run = await self.run(call, cache_salt)
        whole = self._for_each_context(run, call, work, n)
        async with aclosing(run.events(whole, call.count * n)) as events:
            async for event in events:
                yield event

    def _greedy(self, call: requests.GreedyCall) -> Work:
        self.limits.check_generation(call.count, 1, call.steps)

        async def work(run: Run, state: ByteBeamState, index: int) -> list[Any]:
            pieces = generate(
                state,
                call.steps,
                LazyByteProbs.argmax,
                stop=call.automaton,
                logprobs=call.logprobs,
                onward=False,
            )
            return [_continuation(await run.generated(pieces, index))]

        return work

    def _sample(self, call: requests.SampleCall) -> Work:
        self.limits.check_generation(call.count, call.n, call.steps)
        draw = Draw(call.temperature, call.top_k, call.top_p, call.min_p, call.seed)
        how: dict[str, Any] = {"valid_utf8": call.valid_utf8, "logprobs": call.logprobs}
        try:
            by_tokens(call.method, self.lm, draw, **how)
        except MethodError as error:
            raise FieldError(str(error), error.option) from error
        is_only_one = call.context is not None and call.n == 1

        async def work(run: Run, state: ByteBeamState, index: int) -> list[Any]:
            async def one(place: int) -> answers.Sample | answers.ItemError:
                own = draw.spawn(index, place)
                try:
                    pieces = sample(
                        *(state, call.steps, own),
                        method=call.method,
                        stop=call.automaton,
                        onward=False,
                        **how,
                    )
                    made = await run.generated(pieces, index, place)
                except InputError as error:
                    if is_only_one:
                        raise
                    return await run.failed(index, error, call.place(index), place)
                return answers.Sample(index=index, sample=place, **_continuation(made))

            return await concurrently(one(place) for place in range(call.n))

        return work

    async def begun(
        self,
        call: requests.BeamCall,
        context: ContextIn,
        max_context_length: int | None,
        cache_salt: str | None = None,
    ) -> tuple[ByteBeamState, CountingLM, int]:
        """The state after a context, the model as it was used for that, and the context's bytes."""
        run = await self.run(call, cache_salt)
        run.keep_at_most(max_context_length)
        return await run.begun(context, "context"), run.lm, run.lm.bytes_in

    async def score(
        self, call: requests.ScoreCall, cache_salt: str | None = None
    ) -> answers.Answer[Any]:
        """How likely each continuation is after the context."""
        wanted = await Wanted.of(call, self.limits)
        scoring = Scoring(wanted)
        run = await self.run(call, cache_salt)
        finder, most = TrunkFinder.of(self.lm.vocab), self.lm.max_context_tokens
        # Before anything is evaluated: what does not even fit by itself.
        await scoring.refuse(lambda text: finder.check_fits(-JOINED, text, most))
        if scoring.is_open:
            state = await run.begun(call.context, "context")
            run.lm.bytes_in += wanted.length
            await scoring.refuse(state.check_room)
            await scoring.after(state)
        return run.answer(await scoring.results(self.lm.vocab))

    async def _for_each_context(
        self, run: Run, call: requests.ContextCall, work: Work, n: int | None = None
    ) -> answers.Answer[Any]:
        """The results of ``work`` on every context of a call, each context's ``n`` side by side."""
        self.limits.check_contexts(call.count)

        async def one(context: ContextIn, index: int) -> list[Any]:
            return await work(run, await run.begun(context, call.place(index)), index)

        async def one_of_several(item: ContextIn | ValidationError, index: int) -> list[Any]:
            try:
                if isinstance(item, ValidationError):
                    raise item
                return await one(item, index)
            except (InputError, ValidationError) as error:
                samples = [None] if n is None else range(n)
                place = call.place(index)
                return [await run.failed(index, error, place, sample) for sample in samples]

        if call.context is not None:
            results = [await one(call.context, 0)]
        else:
            items = enumerate(call.contexts or [])
            results = await concurrently(one_of_several(item, index) for index, item in items)
        return run.answer([result for each in results for result in each])

    async def run(self, call: requests.BeamCall, cache_salt: str | None) -> Run:
        """Raises what is wrong with the beam before anything else is looked at."""
        params = self.limits.beam_params(call.beam)
        if params.special_tokens == "literal":
            await asyncio.to_thread(lambda: TokenTrie.of(self.lm.vocab.literal()))
        try:
            RowSource(self.lm, params.eos_byte_strings, params.special_tokens == "literal")
        except BeamError as error:
            raise FieldError(str(error), "beam.eos_tokens") from error
        return Run(self, params, call.prefill, cache_salt)


def next_bytes(ps: NDArray[np.float64], top: int | None) -> Any:
    """A distribution over the next byte as a result: whole, or its ``top`` bytes.

    Args:
        ps: float64 ``[258]``, natural logarithms.
        top: how many; None for all.
    """
    eos = float(ps[EOS])
    if top is None:
        return {"logprobs": ps[:256], "eos": eos}
    best = most_probable(ps, top)
    return answers.TopBytes(
        top=[answers.TopByte(byte=int(b), logprob=float(ps[b])) for b in best], eos=eos
    )


def _continuation(made: Generated[Any]) -> answers.Continuation:
    return answers.Continuation(
        bytes=answers.bytes_out(made.data),
        logprob=made.logprob,
        finish_reason=made.finish_reason,
    )
