"""``/v1/chat/completions``: the next message of a chat, by the model's own template."""

from dataclasses import dataclass
from typing import Any

from bytelm.errors import InputError
from bytelm.models.logprobs import EOS
from bytelm.prompts.context import ChatTemplate, Context, messages_to_context
from bytelm.threads import in_thread
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server.errors import FieldError
from bytelm_server.openai.answers import ChatLogprobs, ChatToken, TopToken
from bytelm_server.openai.bodies import ChatCall
from bytelm_server.openai.calls import OpenAIWork
from bytelm_server.openai.spelling import Token
from bytelm_server.run import Run
from bytelm_server.service import ByteService


@dataclass(frozen=True)
class _Chat:
    """A chat as a context."""

    body: ChatCall

    async def context(self, vocab: ByteVocab, template: ChatTemplate, place: str) -> Context:
        """The template's writing of it."""
        messages = [{"role": m.role, "content": m.text} for m in self.body.messages]

        def written() -> Context:
            return messages_to_context(
                messages,
                template,
                vocab,
                self.body.prompts_answer,
                continue_last=bool(self.body.continue_final_message),
            )

        try:
            return await in_thread(written)
        except InputError as error:
            raise FieldError(str(error), place) from error


class Chatting(OpenAIWork):
    """One call of a chat at work."""

    kind = "chat.completion"
    kind_of_chunks = "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(self, service: ByteService, body: ChatCall) -> None:
        field, steps = body.limit
        if steps is None:
            values = 0 if body.most is None else body.most + 1
            steps = service.limits.most_steps(body.count, values)
        super().__init__(service, body, steps, ("messages", field), most=body.most)
        self._chat = _Chat(body)
        self._streams = bool(body.stream)

    async def work(self, run: Run) -> None:
        """Answer."""
        await self.grown(run, 0, await run.begun(self._chat, "messages"))

    def choice(
        self, index: int, text: str, tokens: list[Token] | None, finish: str | None, first: bool
    ) -> dict[str, Any]:
        """A message, or a part of one."""
        whole = first or not self._streams
        message: dict[str, Any] = {"role": "assistant"} if whole else {}
        message["content"] = text
        if not self._streams:
            message["refusal"] = None
        return {
            "index": index,
            "delta" if self._streams else "message": message,
            "logprobs": None if tokens is None else self._logprobs(tokens),
            "finish_reason": finish,
        }

    def _logprobs(self, tokens: list[Token]) -> ChatLogprobs:
        told = []
        for token in tokens:
            assert token.noted is not None
            best = [self._token(symbol, logprob) for symbol, logprob in token.noted.top]
            own = self._token(token.noted.symbol, token.noted.logprob)
            told.append(ChatToken(**own, top_logprobs=best))
        return ChatLogprobs(content=told, refusal=None)

    def _token(self, symbol: int, logprob: float) -> TopToken:
        data = None if symbol == EOS else [symbol]
        return TopToken(token=self.names[symbol], logprob=logprob, bytes=data)
