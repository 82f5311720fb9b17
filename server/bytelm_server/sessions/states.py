"""What a session stands at: a byte LM's state or a token LM's, and both as bytes.

A state is an immutable value. ``Packed`` is what is stored of it; ``unpack`` makes the same state
of that again, on any server with the same model. Must not know versions, owners or stores.
"""

from __future__ import annotations

import base64
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from bytelm.beam import POINTER, BeamParams, ByteBeamState
from bytelm.beam.snapshot import Snapshot
from bytelm.errors import ContextTooLong, MethodError, SnapshotError, VocabError
from bytelm.generating.draws import Draw
from bytelm.generating.generation import FinishReason, generate
from bytelm.generating.token_sampling import by_tokens, sample
from bytelm.models.logprobs import LazyByteProbs
from bytelm.models.token_lm import AsyncTokenLM, GeneratingTokenLM, StatefulTokenizedLM
from bytelm.prompts.context import Context, Special, Text
from bytelm.threads import by_length, go_on
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server.answers import bytes_out
from bytelm_server.errors import FieldError
from bytelm_server.requests import Drawing, Generation
from bytelm_server.service import next_bytes
from bytelm_server.sessions.answers import Candidate
from bytelm_server.sessions.bodies import Input, NextCall, Step
from bytelm_server.token_rows import check_fits, check_ids, top_tokens


class Packed(NamedTuple):
    """What is stored of a state: see ``stores.Record``."""

    meta: dict[str, Any]
    head: bytes
    trunk: bytes


class Grown(NamedTuple):
    """Some more of a continuation that is final.

    Attributes:
        data: the bytes.
        tokens: the tokens, of a token session.
        logprob: natural logarithm of their probability; None unless asked for.
        state: the state after them.
        finish_reason: None in all but the last.
    """

    data: bytes
    tokens: tuple[int, ...]
    logprob: float | None
    state: SessionState
    finish_reason: FinishReason | None


class SessionState(ABC):
    """A state of either kind."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def length(self) -> int:
        """How many bytes or tokens were consumed."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """About how much memory it takes."""

    @property
    def context_bytes(self) -> int:
        """How many bytes a context limit counts."""
        return self.length

    @property
    @abstractmethod
    def at_limit(self) -> bool:
        """Whether what was consumed fills the model, so that nothing can be generated."""

    @abstractmethod
    def on(self, lm: AsyncTokenLM) -> Self:
        """The same state, evaluated by ``lm`` from here on."""

    @abstractmethod
    async def settled(self) -> Self:
        """The same state with nothing left to do before it can go on."""

    @abstractmethod
    async def advanced(self, by: Step) -> Self:
        """The state after what ``by`` has, one step after another."""

    @abstractmethod
    async def prefilled(self, by: Input, mode: str | None) -> Self:
        """The same by what is fastest for a long text."""

    @abstractmethod
    async def next(self, call: NextCall) -> Any:
        """What comes next, as a result of the API."""

    @abstractmethod
    def grown(self, call: Generation, draw: Draw | None) -> AsyncIterator[Grown]:
        """A continuation: the most probable one, or drawn."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """How many tokens all its candidates have."""

    @abstractmethod
    def candidates(self) -> list[Candidate]:
        """What the state is made of."""

    @property
    def deferred(self) -> float:
        """What was not evaluated, as a multiple of the candidates' probability; else nothing."""
        return 0.0

    @abstractmethod
    def packed(self, before: bytes) -> Packed:
        """What to store; the trunk begins with ``before`` if it can."""


@dataclass(frozen=True)
class ByteState(SessionState):
    """A byte LM's state.

    Attributes:
        beam: the beam.
        mode: how long texts are read.
        consumed: how many bytes of text the beam has read.
        pending: bytes behind the beam that are still to be read.
        trunk: the beam's last trunk, and the same as bytes.
    """

    kind = "byte"

    beam: ByteBeamState
    mode: str
    consumed: int
    pending: bytes = b""
    trunk: tuple[tuple[int, ...], bytes] = ((), b"")

    @property
    def length(self) -> int:
        """How many bytes were consumed."""
        return self.consumed + len(self.pending)

    @property
    def nbytes(self) -> int:
        """About how much memory it takes."""
        return self.beam.nbytes + len(self.trunk[1]) + POINTER * len(self.trunk[0])

    @property
    def at_limit(self) -> bool:
        """See ``SessionState``; unknown, and so not, while bytes are pending."""
        return not self.pending and self.beam.at_limit

    def on(self, lm: AsyncTokenLM) -> Self:
        """See ``SessionState``."""
        return replace(self, beam=self.beam.on(lm))

    async def settled(self) -> Self:
        """See ``SessionState``; reads what is pending."""
        if not self.pending:
            return self
        try:
            beam = await self.beam.prefill(self.pending, self.mode)
        except ContextTooLong:
            # Drawn tokens may be fewer than the canonical ones of the same bytes.
            beam = self.beam
            for b in self.pending:
                beam = await beam.prune().advanced(b)
        return replace(self, beam=beam, consumed=self.length, pending=b"")

    async def advanced(self, by: Step) -> Self:
        """See ``SessionState``."""
        beam, text = await by_length(text_length(by), self._inserted, by)
        await beam.check_room(text)
        for b in text:
            beam = await (beam.prune() if by.prune else beam).advanced(b)
        return self._after(beam, by)

    async def prefilled(self, by: Input, mode: str | None) -> Self:
        """See ``SessionState``."""
        beam, text = await by_length(text_length(by), self._inserted, by)
        return self._after(await beam.prefill(text, mode or self.mode), by)

    def _inserted(self, by: Input) -> tuple[ByteBeamState, bytes]:
        """The beam after all up to the last special token, and the text behind it."""
        if by.tokens is not None:
            raise FieldError("tokens go with token sessions only: give bytes", "tokens")
        beam, text = self.beam, b""
        for segment in _context(by, self.beam.source.lm.vocab).segments:
            go_on()
            if isinstance(segment, Special):
                beam, text = beam.insert([segment.token_id], text), b""
            else:
                text = segment.data
        return beam, text

    def _after(self, beam: ByteBeamState, by: Input) -> Self:
        return replace(self, beam=beam, consumed=self.consumed + text_length(by))

    async def next(self, call: NextCall) -> Any:
        """See ``SessionState``."""
        if call.top is not None and call.top > 256:
            raise FieldError("top can be at most 256 for bytes", "top")
        beam = self.beam.prune() if call.prune else self.beam
        q = await beam.logp_next()
        result: Any = next_bytes(q.ps, call.top)
        if call.drawable:
            result["drawable"] = next_bytes(q.drawable.ps, call.top)
        return result

    async def grown(self, call: Generation, draw: Draw | None) -> AsyncIterator[Grown]:
        """See ``SessionState``."""
        pieces: AsyncIterator[Any]
        if draw is None:
            pieces = generate(
                self.beam,
                call.steps,
                LazyByteProbs.argmax,
                stop=call.automaton,
                logprobs=call.logprobs,
            )
        else:
            assert isinstance(call, Drawing)
            how: dict[str, Any] = {"valid_utf8": call.valid_utf8, "logprobs": call.logprobs}
            try:
                pieces = sample(
                    self.beam, call.steps, draw, method=call.method, stop=call.automaton, **how
                )
            except MethodError as error:
                raise FieldError(str(error), error.option) from error
        data = b""
        async for piece in pieces:
            data += piece.data
            if piece.state is None:
                # Drawn by tokens: the state is that of the bytes, which is made once, at the end.
                state = replace(self, pending=data)
                if piece.finish_reason is not None:
                    state = await state.settled()
            else:
                state = replace(self, beam=piece.state, consumed=self.consumed + len(data))
            yield Grown(piece.data, (), piece.logprob, state, piece.finish_reason)

    @property
    def tokens(self) -> int:
        """See ``SessionState``."""
        return sum(len(candidate.tokens) for candidate in self.beam)

    @property
    def deferred(self) -> float:
        """See ``SessionState``."""
        return self.beam.deferred_share

    def candidates(self) -> list[Candidate]:
        """The beam's candidates, best first."""
        return [
            Candidate(weight=c.weight, tokens=list(c.tokens), partial=bytes_out(c.partial))
            for c in self.beam
        ]

    def packed(self, before: bytes) -> Packed:
        """See ``SessionState``."""
        known, data = self.trunk if self.trunk[1] == before else (_ids(before), before)
        snapshot = Snapshot.of(self.beam, known)
        if snapshot.trunk[: len(known)] == known:
            data += _bytes(snapshot.trunk[len(known) :])
        else:
            data = _bytes(snapshot.trunk)
        object.__setattr__(self, "trunk", (snapshot.trunk, data))
        meta = {
            "beam": _written(self.beam.params),
            "mode": self.mode,
            "consumed": self.consumed,
            "pending": base64.b64encode(self.pending).decode(),
        }
        return Packed(meta, snapshot.head, data)

    @classmethod
    async def unpacked(cls, packed: Packed, lm: AsyncTokenLM) -> Self:
        """The state that was packed; evaluates each context of the beam once."""
        meta, head, data = packed
        trunk = _ids(data)
        beam = await Snapshot(trunk, head).restored(lm, _read(meta["beam"]))
        pending = base64.b64decode(meta["pending"])
        return cls(beam, meta["mode"], meta["consumed"], pending, (trunk, data))


@dataclass(frozen=True)
class TokenState(SessionState):
    """A token LM's state.

    Attributes:
        lm_state: the state.
        consumed: how many tokens were consumed, those that were left out again included.
    """

    kind = "token"

    lm_state: StatefulTokenizedLM
    consumed: int

    @property
    def length(self) -> int:
        """How many tokens were consumed."""
        return self.consumed

    @property
    def context_bytes(self) -> int:
        """Tokens have limits of their own."""
        return 0

    @property
    def nbytes(self) -> int:
        """About how much memory it takes."""
        return POINTER * len(self.lm_state.context)

    @property
    def at_limit(self) -> bool:
        """See ``SessionState``."""
        fits = self.lm_state.model.max_context_tokens
        return fits is not None and len(self.lm_state.context) > fits

    def on(self, lm: AsyncTokenLM) -> Self:
        """See ``SessionState``."""
        old = self.lm_state
        state = StatefulTokenizedLM(lm, old.context, old.n_calls, old.max_context_length)
        return replace(self, lm_state=state)

    async def settled(self) -> Self:
        """See ``SessionState``."""
        return self

    async def advanced(self, by: Step) -> Self:
        """See ``SessionState``."""
        return await self.prefilled(by, None)

    async def prefilled(self, by: Input, mode: str | None) -> Self:
        """See ``SessionState``; evaluates nothing."""
        if mode is not None:
            raise FieldError("prefill goes with byte sessions only", "prefill")
        vocab, context = self.lm_state.model.vocab, self.lm_state.context
        lm, kept = self.lm_state.model, self.lm_state.max_context_length
        if by.tokens is not None:
            tokens: Sequence[int] = by.tokens
            check_fits([*context, *tokens], lm, kept)
            check_ids(tokens, vocab, "tokens")
        else:
            most = lm.max_context_tokens if kept is None else None
            given = _context(by, vocab)
            after = await by_length(given.length, given.tokens_after, context, vocab, most)
            tokens = after[len(context) :]
        return self._followed_by(tokens)

    def _followed_by(self, tokens: Sequence[int]) -> Self:
        """The state after tokens, which may be one more than the model takes."""
        old, most = self.lm_state, self.lm_state.max_context_length
        context = [*old.context, *tokens]
        if most is not None:
            context = context[-most:]
        state = StatefulTokenizedLM(old.model, context, old.n_calls, most)
        return replace(self, lm_state=state, consumed=self.consumed + len(tokens))

    async def next(self, call: NextCall) -> Any:
        """See ``SessionState``."""
        for name in ("prune", "drawable"):
            if getattr(call, name):
                raise FieldError(f"{name} goes with byte sessions only", name)
        if call.top is None:
            raise FieldError(
                "give top, or ask for the whole row with accept: application/octet-stream", "top"
            )
        return top_tokens(await self.row(), call.top)

    async def row(self) -> NDArray[np.float32]:
        """The distribution over the next token, float32 ``[vocab.size]``."""
        return await self.lm_state.logp_next()

    async def grown(self, call: Generation, draw: Draw | None) -> AsyncIterator[Grown]:
        """See ``SessionState``."""
        if isinstance(call, Drawing) and (call.valid_utf8 or call.method == "byte"):
            name = "valid_utf8" if call.valid_utf8 else "method"
            raise FieldError(f"{name} goes with byte sessions only", name)
        vocab = self.lm_state.model.vocab
        stops = call.automaton
        held: list[_Token] = []
        given, state, node, size, left = self, self, 0, 0, call.steps
        finish: FinishReason = "length"
        logprob_of_eos = 0.0
        async with aclosing(self._tokens(call, draw)) as tokens:
            async for token, logprob in tokens:
                if token in vocab.eos_token_ids:
                    finish, logprob_of_eos = "eos", logprob
                    break
                state = state._followed_by([token])
                data = vocab.token_bytes[token]
                held.append(_Token(token, data, logprob, state))
                size += len(data)
                left -= 1
                for n, b in enumerate(data, start=1):
                    node = stops.follow(node, b)
                    if stops.ended[node]:
                        # What is kept ends before the stop string begins.
                        size += n - len(data) - stops.ended[node]
                        finish = "stop"
                        break
                if finish == "stop":
                    while held and sum(len(one.data) for one in held) > size:
                        held.pop()
                    break
                if not left:
                    finish = "steps"
                    break
                if ready := _whole(held, size - stops.begun[node]):
                    given = held[ready - 1].state
                    yield _grown(held[:ready], given, call.logprobs)
                    size -= sum(len(one.data) for one in held[:ready])
                    del held[:ready]
        last = _grown(held, held[-1].state if held else given, call.logprobs)
        if last.logprob is not None:
            last = last._replace(logprob=last.logprob + logprob_of_eos)
        yield last._replace(finish_reason=finish)

    def _tokens(
        self, call: Generation, draw: Draw | None
    ) -> AsyncGenerator[tuple[int, float], None]:
        """Tokens one after another, at most ``steps`` that count, up to where the model is full.

        The model generates them by itself where that is the same: no row is asked for, nor changed
        by a filter, and nothing is forgotten on the way.
        """
        lm, most = self.lm_state.model, self.lm_state.max_context_length
        has_room = most is None or len(self.lm_state.context) + call.steps <= most
        plain = not call.logprobs
        if draw is not None:
            plain = by_tokens("auto", lm, draw, logprobs=call.logprobs)
        if plain and has_room and not self.at_limit and isinstance(lm, GeneratingTokenLM):
            return self._generated(lm, call.steps, draw)
        return self._chosen(call.steps, draw)

    async def _chosen(
        self, steps: int, draw: Draw | None
    ) -> AsyncGenerator[tuple[int, float], None]:
        """Tokens with their log-probabilities, each chosen from a row."""
        state = self
        for _ in range(steps):
            if state.at_limit:
                return
            row = await state.row()
            token = int(row.argmax()) if draw is None else draw.among(row)
            yield token, float(row[token])
            state = state._followed_by([token])

    async def _generated(
        self, lm: GeneratingTokenLM, steps: int, draw: Draw | None
    ) -> AsyncGenerator[tuple[int, float], None]:
        """Tokens that the model generates by itself; nobody knows their log-probabilities."""
        chunks = lm.generate(
            self.lm_state.context,
            steps,
            temperature=0.0 if draw is None else 1.0,
            seed=None if draw is None else draw.next_seed(),
            stop_token_ids=lm.vocab.eos_token_ids,
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                for token in chunk.token_ids:
                    yield token, math.nan

    @property
    def tokens(self) -> int:
        """See ``SessionState``."""
        return len(self.lm_state.context)

    def candidates(self) -> list[Candidate]:
        """The one tokenization that there is."""
        tokens = list(self.lm_state.context)
        return [Candidate(weight=0.0, tokens=tokens, partial=bytes_out(b""))]

    def packed(self, before: bytes) -> Packed:
        """See ``SessionState``."""
        trunk = _bytes(self.lm_state.context)
        most = self.lm_state.max_context_length
        return Packed({"consumed": self.consumed, "max_context_length": most}, b"", trunk)

    @classmethod
    async def unpacked(cls, packed: Packed, lm: AsyncTokenLM) -> Self:
        """The state that was packed; evaluates nothing."""
        most = packed.meta["max_context_length"]
        state = StatefulTokenizedLM(lm, _ids(packed.trunk), max_context_length=most)
        return cls(state, packed.meta["consumed"])


class _Token(NamedTuple):
    token: int
    data: bytes
    logprob: float
    state: TokenState


def _whole(held: Sequence[_Token], size: int) -> int:
    """How many tokens lie within the first ``size`` bytes."""
    count = 0
    for one in held:
        size -= len(one.data)
        if size < 0:
            break
        count += 1
    return count


def _grown(held: Sequence[_Token], state: TokenState, logprobs: bool) -> Grown:
    data = b"".join(one.data for one in held)
    logprob = float(sum(one.logprob for one in held)) if logprobs else None
    return Grown(data, tuple(one.token for one in held), logprob, state, None)


def unpack(kind: str, packed: Packed, lm: AsyncTokenLM) -> Any:
    """The state that was packed, by its kind."""
    states: dict[str, type[ByteState | TokenState]] = {"byte": ByteState, "token": TokenState}
    if kind not in states:
        raise SnapshotError(f"there are no sessions of kind {kind!r}")
    return states[kind].unpacked(packed, lm)


def text_length(by: Input) -> int:
    """How many bytes of text there are."""
    if by.bytes is not None:
        return len(by.bytes.data)
    return sum(len(s.data) for s in by.segments or () if s.token is None)


def _context(by: Input, vocab: ByteVocab) -> Context:
    if by.bytes is not None:
        return Context([Text(by.bytes.data)])
    segments = []
    for i, segment in enumerate(by.segments or ()):
        try:
            segments.append(segment.segment(vocab))
        except VocabError as error:
            raise FieldError(str(error), f"segments[{i}].token") from error
    return Context(segments)


def _bytes(ids: Sequence[int]) -> bytes:
    return np.array(ids, "<u4").tobytes()


def _ids(data: bytes) -> tuple[int, ...]:
    return tuple(np.frombuffer(data, "<u4").tolist())


def _written(params: BeamParams) -> dict[str, Any]:
    eos = params.eos_byte_strings
    return {
        "K": params.K,
        "prune_threshold": params.prune_threshold,
        "eos": None if eos is None else [list(t) if isinstance(t, bytes) else t for t in eos],
        "heal": params.heal,
        "heal_max_backoff": params.heal_max_backoff,
        "heal_max_splits": params.heal_max_splits,
        "special_tokens": params.special_tokens,
        "max_context_length": params.max_context_length,
        "deferred": params.deferred,
        "tokenizations": params.tokenizations,
        "keep_canonical": params.keep_canonical,
    }


def _read(written: dict[str, Any]) -> BeamParams:
    given = dict(written)
    eos = given.pop("eos")
    tokens = None if eos is None else [bytes(t) if isinstance(t, list) else t for t in eos]
    return BeamParams(**given, eos_byte_strings=tokens)
