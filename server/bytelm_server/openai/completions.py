"""``/v1/completions``: texts after prompts, and the prompts' own log-probabilities."""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from bytelm.beam import ByteBeamState
from bytelm.errors import ContextTooLong, VocabError
from bytelm.generating.generation import Piece
from bytelm.generating.score import score_all
from bytelm.models.logprobs import EOS, LazyByteProbs
from bytelm.prompts.context import Context
from bytelm_server.contexts import ContextIn
from bytelm_server.openai.answers import CompletionChoice, CompletionLogprobs
from bytelm_server.openai.bodies import CompletionCall
from bytelm_server.openai.calls import OpenAIWork, naming
from bytelm_server.openai.spelling import LEAST, Noted, Spelled, Token, noting
from bytelm_server.run import Run
from bytelm_server.service import ByteService, concurrently


class Completing(OpenAIWork):
    """One call of completions at work."""

    kind = kind_of_chunks = "text_completion"
    prefix = "cmpl"

    def __init__(self, service: ByteService, body: CompletionCall) -> None:
        prompts = body.prompts
        self._prompted = prompts
        self._echoes = bool(body.echo)
        self._scored: list[list[Noted]] = [[] for _ in prompts]
        lengths = [len(prompt.data) for prompt in prompts] if self._echoes else []
        super().__init__(
            *(service, body, body.steps, ("prompt", "max_tokens"), len(prompts), body.logprobs),
            echoed=sum(lengths),
        )
        if self.most is not None:
            service.limits.check_scoring(lengths, "prompt")

    async def work(self, run: Run) -> None:
        """Complete all prompts at the same time."""
        if self._echoes and self.most is not None:
            await self._score(run)
        else:
            await concurrently(self._complete(run, i) for i in range(len(self._prompted)))

    async def _complete(self, run: Run, index: int) -> None:
        given = ContextIn.model_construct(base64=self._prompted[index].data)
        with naming(self._place(index)):
            await self.grown(run, index, await run.begun(given, self._place(index)))

    async def _score(self, run: Run) -> None:
        """Walk through all prompts, sharing what they begin with, and go on from there."""
        texts = [prompt.data for prompt in self._prompted]
        state = await run.begun(ContextIn.model_construct(text=""), "prompt")
        for i, text in enumerate(texts):
            with naming(self._place(i)):
                self.service.limits.check_context(Context.of(text))
                with suppress(VocabError):  # what cannot be spelled has no probability, that is all
                    await state.check_room(text)
        run.lm.bytes_in += sum(map(len, texts))
        assert self.most is not None
        note = noting(self.most)

        def seen(i: int, q: LazyByteProbs) -> None:
            self._scored[i].append(note(q, texts[i][len(self._scored[i])]))

        async def onward(i: int, state: ByteBeamState) -> None:
            if self.steps and state.at_limit:
                # Who reads log-probabilities counts on an entry for what comes behind the prompt.
                raise ContextTooLong("the prompt fills the model: shorten it, or set max_tokens 0")
            await self.grown(run, i, state)

        most = self.service.settings.concurrency
        await score_all(state, texts, concurrency=most, seen=seen, onward=onward)
        for i, text in enumerate(texts):
            if self._scored[i] and self._scored[i][-1].logprob == LEAST:
                missing = text[len(self._scored[i]) :]
                self._scored[i] += [Noted(b, LEAST, ()) for b in missing]
                await self.alike(run, i, self._nothing())

    async def _nothing(self) -> AsyncIterator[Piece[None]]:
        """What follows a prompt of probability 0: nothing, for which there is an entry, too."""
        notes = (Noted(EOS, LEAST, ()),) if self.steps else ()
        yield Piece(b"", None, None, "eos" if self.steps else "steps", notes)

    def begun(self, index: int) -> tuple[Spelled, tuple[str, list[Token]]]:
        """The prompt, where it is wanted."""
        spelled = Spelled(self.names)
        prompt = self._prompted[index]
        if not self._echoes:
            return spelled, ("", [])
        text, tokens = spelled.take(prompt.data, self._scored[index])
        if prompt.begins and self.most is not None:
            tokens.insert(0, Token(self.names[EOS], 0, None, None))
        return spelled, (text, tokens)

    def choice(
        self, index: int, text: str, tokens: list[Token] | None, finish: str | None, first: bool
    ) -> dict[str, Any]:
        """A choice, or a part of one."""
        logprobs = None if tokens is None else self._logprobs(tokens)
        return dict(
            CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=finish)
        )

    def _logprobs(self, tokens: list[Token]) -> CompletionLogprobs:
        return CompletionLogprobs(
            tokens=[token.name for token in tokens],
            token_logprobs=[token.noted.logprob if token.noted else None for token in tokens],
            top_logprobs=[self._best(token.noted) if token.noted else None for token in tokens],
            text_offset=[token.offset for token in tokens],
        )

    def _best(self, noted: Noted) -> dict[str, float]:
        """The best, and, last where it is not among them, the byte itself."""
        names = self.names
        best = {names[b]: logprob for b, logprob in noted.top}
        best.setdefault(names[noted.symbol], noted.logprob)
        return best

    def _place(self, index: int) -> str:
        return "prompt" if len(self._prompted) == 1 else f"prompt[{index}]"
