"""One call in OpenAI's shape at work: prompts in, choices out.

The work is that of ``/v1/greedy``, ``/v1/sample`` and ``/v1/score``; what differs is how it is
asked for and told. Must not know HTTP.
"""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

from bytelm import pace
from bytelm.beam import ByteBeamState
from bytelm.errors import InputError, RowError
from bytelm.generating.draws import Draw
from bytelm.generating.generation import Generated, Piece, generate
from bytelm.generating.token_sampling import sample
from bytelm.models.logprobs import LazyByteProbs
from bytelm_server.errors import CallError, ErrorDetail, input_detail
from bytelm_server.openai import bodies
from bytelm_server.openai.answers import CompletionUsage
from bytelm_server.openai.spelling import Noted, Spelled, Token, names_of, noting
from bytelm_server.run import Run
from bytelm_server.service import ByteService, concurrently
from bytelm_server.streams import Events, Made

DEFAULT = "default"
"""What any server's model may be called."""
_REASONS = {"steps": "length", "length": "length", "stop": "stop", "eos": "stop"}


class ModelNotFound(CallError):
    """The call names a model that this server does not have."""

    status, type, code = 404, "not_found", "model_not_found"


class Refused(CallError):
    """What is wrong with one field of the call; ``code`` is the error's own."""

    status, type, code = 400, "invalid_request", "invalid_value"

    def __init__(self, found: ErrorDetail) -> None:
        super().__init__(found["message"], found["param"])
        self.code = found["code"]


@contextmanager
def naming(field: str) -> Iterator[None]:
    """What is wrong is this field, where nothing more precise is known."""
    try:
        yield
    except RowError:
        raise  # what the server's model answers is not the caller's fault
    except InputError as error:
        raise Refused(input_detail(error, field)) from error


def checked_model(service: ByteService, name: str | None) -> str:
    """The model's name; ModelNotFound when the call means another."""
    served = service.model_name
    if name in (None, DEFAULT, served):
        return served
    raise ModelNotFound(f"there is no model {name!r} here: use {served!r}, or {DEFAULT!r}", "model")


class Telling:
    """One choice, whole or as it comes.

    Args:
        call: the call that it belongs to.
        index: its place among the choices.
        spelled: its text so far.
        begun: what it begins with, text and tokens.
    """

    def __init__(
        self, call: "OpenAIWork", index: int, spelled: Spelled, begun: tuple[str, list[Token]]
    ) -> None:
        self._call = call
        self._index = index
        self._spelled = spelled
        self._begun = begun
        self._is_first = True

    def event(self, piece: Made) -> Mapping[str, Any] | None:
        """The choice with the next piece, or all of it; None where nothing is complete yet."""
        last = piece.finish_reason is not None
        notes: Sequence[Noted] = getattr(piece, "notes", ())
        text, tokens = self._spelled.take(piece.data, notes, last=last)
        (begun, before), self._begun = self._begun, ("", [])
        text, tokens = begun + text, before + tokens
        if not (text or tokens or last):
            return None
        finish = _REASONS[piece.finish_reason] if piece.finish_reason is not None else None
        told = tokens if self._call.most is not None else None
        choice = self._call.choice(self._index, text, told, finish, self._is_first)
        self._is_first = False
        return choice


class OpenAIWork(ABC):
    """What completions of prompts and of chats have in common.

    Args:
        service: the model's.
        body: the call.
        steps: the most bytes of a text.
        names: the fields that have prompts, and the most bytes.
        prompts: how many prompts there are.
        most: how many of the best to tell for each byte; None for no log-probabilities.
        echoed: bytes of all prompts that the texts begin with.

    Raises:
        ModelNotFound: the call names another model.
        LimitExceeded: it asks for more than this server gives.
    """

    kind: str
    """The answers' ``object``."""
    kind_of_chunks: str
    prefix: str
    """What their ids begin with."""

    def __init__(
        self,
        service: ByteService,
        body: bodies.OpenAICall,
        steps: int,
        names: tuple[str, str],
        prompts: int = 1,
        most: int | None = None,
        echoed: int = 0,
    ) -> None:
        model = checked_model(service, body.model)
        service.limits.check_contexts(prompts, names[0])
        service.limits.check_generation(prompts, body.count, steps, names)
        service.limits.check_echo(echoed, body.count)
        if most is not None:
            told = (prompts * steps + echoed) * body.count
            service.limits.check_values(told * (most + 1), "logprobs")
        self.service = service
        self.most = most
        self.steps = steps
        self.names = names_of(service.lm.vocab)
        self._body = body
        self._names = names
        self._prompts = prompts
        self._note = None if most is None else noting(most)
        self._draw: Draw | None = None
        if body.temperature != 0:
            temperature = 1.0 if body.temperature is None else body.temperature
            top_k = body.top_k if body.top_k is not None and body.top_k > 0 else None
            self._draw = Draw(temperature, top_k, body.top_p, body.min_p, body.seed)
        self._made: dict[tuple[int, int], Generated[Any]] = {}
        self._frame = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "object": self.kind_of_chunks if body.stream else self.kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": service.fingerprint,
        }

    @abstractmethod
    async def work(self, run: Run) -> None:
        """Do all of it, by ``grown``."""

    @abstractmethod
    def choice(
        self, index: int, text: str, tokens: list[Token] | None, finish: str | None, first: bool
    ) -> dict[str, Any]:
        """A choice, or a part of one."""

    def begun(self, index: int) -> tuple[Spelled, tuple[str, list[Token]]]:
        """What the texts after a prompt begin with."""
        return Spelled(self.names), ("", [])

    async def answer(self, cache_salt: str | None = None) -> dict[str, Any]:
        """The whole answer."""
        with naming(self._names[0]):
            run = await self.service.run(self._body, cache_salt)
            await self.work(run)
        choices = []
        for place in sorted(self._made):
            await pace.turn()
            choices.append(self._telling(*place).event(self._made[place]))
        return {**self._frame, "choices": choices, "usage": _usage(run)}

    async def events(self, cache_salt: str | None = None) -> Events:
        """The same as it comes, in chunks."""
        more = {"usage": None} if self._body.include_usage else {}
        with naming(self._names[0]):
            run = await self.service.run(self._body, cache_salt)
            results = self._prompts * self._body.count
            async with aclosing(run.events(self.work(run), results, self._telling)) as told:
                async for choice in told:
                    parts = {name: part for name, part in choice.items() if name != "usage"}
                    yield {**self._frame, "choices": [parts], **more}
        if self._body.include_usage:
            yield {**self._frame, "choices": [], "usage": _usage(run)}

    async def grown(self, run: Run, index: int, state: ByteBeamState) -> None:
        """The texts after one prompt."""
        how: dict[str, Any] = {"stop": self._body.automaton, "note": self._note, "onward": False}
        draw = self._draw
        if draw is None:
            await self.alike(run, index, generate(state, self.steps, LazyByteProbs.argmax, **how))
            return

        async def one(place: int) -> None:
            pieces = sample(state, self.steps, draw.spawn(index, place), **how)
            self._made[index, place] = await run.generated(pieces, index, place)

        await concurrently(one(place) for place in range(self._body.count))

    async def alike(self, run: Run, index: int, pieces: AsyncIterator[Piece[Any]]) -> None:
        """The texts after one prompt where chance plays no part: made once, they are all one."""
        made = self._made[index, 0] = await run.generated(pieces, index)
        for place in range(1, self._body.count):
            self._made[index, place] = await run.generated(_again(made), index, place)

    def _telling(self, index: int, place: int) -> Telling:
        return Telling(self, index * self._body.count + place, *self.begun(index))


async def _again(made: Generated[Any]) -> AsyncIterator[Piece[Any]]:
    yield Piece(made.data, made.logprob, None, made.finish_reason, made.notes)


def _usage(run: Run) -> CompletionUsage:
    given, made = run.lm.bytes_in, run.lm.bytes_out
    return CompletionUsage(prompt_tokens=given, completion_tokens=made, total_tokens=given + made)
