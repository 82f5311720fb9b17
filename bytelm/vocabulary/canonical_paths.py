"""Canonical paths: whether tokens can be the beginning of a canonical tokenization of some text.

Tokens t₁ … tₙ are *admitted* when there is a text whose canonical ids, `vocab.encode`'s, begin with
them; they are *whole* when they are the canonical ids of their own bytes. Decided token by token,
in states that hold only what the future depends on:

- Within a piece of the text, byte-pair merges give tokens exactly when every two neighbours are
  what their joint text is merged to: until a merge crosses the place between two of them, what
  happens in them is what happens in the pair alone, and a merge that would cross there would cross
  in the pair, too. So the last token is all that has to be known.
- Where pieces end may depend on characters that are not there yet. `splitting.Splitter` keeps
  every way to cut with what it takes for it to be right.
- A token may end inside a character: its bytes wait for the others.
- Bytes that are no UTF-8 end the text for the tokenizer; runs of them are spelled by longest match.

- Where the tokenizer changes text (NFC, SentencePiece's mark for a space), `vocab.encode` spells
  what was given by longest match. In such places, from where they may begin to the end of the
  word, more than one tokenization is admitted; everywhere else exactly the canonical ones.

A state is a set of such *readings*. It is admitted when one of them can come to an end: mostly at
once, since a text may end, else some tokens later, which is looked for.

Knows vocabularies; must not know beams or models.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import chain
from typing import NamedTuple, TypeGuard

from bytelm.errors import VocabError
from bytelm.vocabulary.pipeline import Pipeline
from bytelm.vocabulary.splitting import Splitter
from bytelm.vocabulary.text_changes import Beginnings, is_absorbed
from bytelm.vocabulary.utf8 import BOUNDARY, state_after
from bytelm.vocabulary.vocab import ByteVocab

_NONE = -1
_UNKNOWN = -2


class TextReading(NamedTuple):
    """A way to read tokens as text.

    `split` is the splitter's state, `partial` the beginning of a character, `last` the token before
    in the same piece (-1 at a cut, -2 where text was changed), `piece` the piece's bytes where some
    longer piece may be looked up as a whole.
    """

    split: int
    partial: bytes = b""
    last: int = _NONE
    piece: bytes | None = None


class RawReading(NamedTuple):
    """A way to read tokens as bytes that are no UTF-8.

    `tokens` are those at the end which more bytes may spell otherwise, `partial` the bytes at the
    end that may turn out to begin a character.
    """

    tokens: tuple[int, ...] = ()
    partial: bytes = b""


class ChangeReading(NamedTuple):
    """A way to read tokens as text that the tokenizer will have changed some characters later.

    Longest match spelled `data` behind the splitter's state `split`; `tokens` are as in
    `RawReading`.
    """

    split: int
    data: bytes = b""
    tokens: tuple[int, ...] = ()


Reading = TextReading | RawReading | ChangeReading
_START = TextReading(Splitter.start)
_RAW = RawReading()
Readings = frozenset[Reading]


@dataclass(frozen=True)
class PathState:
    """Where a path of tokens stands. Equal where everything that may follow is judged alike."""

    readings: Readings
    _paths: CanonicalPaths = field(repr=False, compare=False)

    def step(self, token_id: int) -> PathState | None:
        """The state one token later; None where no text's canonical tokenization begins so."""
        readings = self._paths.stepped(self.readings, token_id)
        return None if readings is None else PathState(readings, self._paths)

    @property
    def is_whole(self) -> bool:
        """Whether the tokens are the canonical tokenization of exactly their bytes."""
        return self._paths.is_whole(self.readings)


class CanonicalPaths:
    """Judges paths of tokens for one vocabulary. What was judged is remembered, up to a bound."""

    def __init__(self, vocab: ByteVocab, pipeline: Pipeline) -> None:
        self._vocab = vocab
        self._bytes = vocab.token_bytes
        self._pipeline = pipeline
        self._spelled = frozenset(data for data in vocab.token_bytes if len(data) == 1)
        self._check()
        self._splitter = Splitter(pipeline.stages, self._can_spell)
        self._longest_match = vocab.encoder.longest_match
        self._distinct = sorted(set(vocab.token_bytes) - {b""})
        self._whole = sorted(pipeline.whole or ())
        self._beginnings = Beginnings(pipeline.change, self._texts()) if pipeline.change else None
        self.start = PathState(frozenset({_START}), self)
        self.stepped = lru_cache(1 << 16)(self._stepped)
        self._alone = lru_cache(1 << 16)(self._is_alone)
        self._pair = lru_cache(1 << 18)(self._is_pair)
        self._read = lru_cache(max(1 << 17, 2 * len(self._bytes)))(self._read_characters)
        self._begun = lru_cache(1 << 12)(self._begun_by)
        self._cut_between = lru_cache(1 << 12)(self._splitter.cuts_between)
        self._forgotten_at = lru_cache(1 << 12)(self._splitter.forgets)
        self._fitting = lru_cache(64)(self._fits)
        self._comes_to_an_end = lru_cache(1 << 16)(self._search)

    @classmethod
    def of(cls, vocab: ByteVocab) -> CanonicalPaths:
        """The paths of a vocabulary, made at the first call and kept with the vocabulary.

        VocabError names what makes its canonical tokenizations unknown.
        """
        paths: CanonicalPaths | None = vocab.__dict__.get("_canonical_paths")
        if paths is None:
            if vocab.encoder.tokenizer is None:
                raise VocabError(
                    "a vocabulary without a tokenizer has no canonical tokenizations:"
                    " use all tokenizations"
                )
            paths = cls(vocab, vocab.encoder.tokenizer.pipeline())
            vocab.__dict__["_canonical_paths"] = paths
        return paths

    def warm_up(self) -> None:
        """Read every token, for which the first search through all of them would wait."""
        for token_id in range(len(self._bytes)):
            self._read(b"", token_id)

    def after(self, tokens: Sequence[int]) -> PathState:
        """The state behind tokens that begin a canonical tokenization.

        Looks only at those behind the last place where the text is cut for certain.
        """
        state: PathState | None = self.start
        for token_id in tokens[self._settled(tokens) :]:
            state = state and state.step(token_id)
        if state is None:
            raise ValueError("no text's canonical tokenization begins with these tokens")
        return state

    def _settled(self, tokens: Sequence[int]) -> int:
        """How many tokens the state behind all of them does not depend on."""
        literals, change = self._pipeline.literals, self._pipeline.change
        if change is not None:
            text = self._vocab.decode(tokens).decode(errors="ignore")
            if change.apply(text) != text:
                return 0
        for n in range(len(tokens) - 1, 0, -1):
            if tokens[n] in literals or tokens[n - 1] in literals or self._is_changing(tokens, n):
                continue
            left = self._read(b"", tokens[n - 1])
            right = self._read(b"", tokens[n])
            if not (left and left[0] and not left[1] and right and right[0]):
                continue
            first = right[0][0]
            if self._cut_between(left[0][-1], first) or (
                self._pipeline.whole is None and self._forgotten_at(first)
            ):
                return n
        return 0

    def _is_changing(self, tokens: Sequence[int], n: int) -> bool:
        """Whether text that begins before a token may be changed by what follows this token."""
        beginnings, data = self._beginnings, self._bytes[tokens[n]]
        if beginnings is not None:
            for token_id in reversed(tokens[max(n - 32, 0) : n]):
                data = self._bytes[token_id] + data
                text = _text(data)
                if text is not None and beginnings.may_come(text, _open_end(data)):
                    return True
        return False

    @property
    def change(self) -> Callable[[str], str] | None:
        """What the tokenizer does to text before it reads it.

        Where it changes something, more than one tokenization is admitted.
        """
        return None if self._pipeline.change is None else self._pipeline.change.apply

    def is_whole(self, readings: Readings) -> bool:
        """Whether the text may end here."""
        return any(
            isinstance(one, RawReading) or (_is_cut(one) and self._splitter.ends(one.split))
            for one in readings
        )

    def _check(self) -> None:
        """VocabError where ids are not what the tokenizer takes them for."""
        pipeline, vocab = self._pipeline, self._vocab
        reason = None
        if pipeline.top >= vocab.size:
            reason = "the tokenizer has tokens that the model does not have"
        elif any(not self._bytes[i] for i in pipeline.literals):
            reason = "an added token is special for the model alone"
        elif any(pipeline.merge([i]) == [i] for i in range(vocab.size) if not self._bytes[i]):
            reason = "a token that text is made of is special for the model"
        elif pipeline.characters is None and not all(
            bytes([byte]) in self._spelled for data in vocab.token_bytes for byte in data
        ):
            reason = "it has tokens with bytes that are no tokens themselves"
        if reason:
            raise VocabError(
                f"canonical tokenizations are not known for this vocabulary: {reason};"
                " use all tokenizations"
            )

    def _texts(self) -> list[bytes]:
        """The bytes of the tokens that the tokenizer finds as text."""
        ids = set(range(self._vocab.size)) - self._pipeline.byte_ids
        return [self._bytes[i] for i in ids if self._bytes[i]]

    def _can_spell(self, character: str) -> bool:
        known = self._pipeline.characters
        if known is not None:
            return bool(self._pipeline.byte_ids) or character in known
        return all(bytes([byte]) in self._spelled for byte in character.encode())

    def _stepped(self, readings: Readings, token_id: int) -> Readings | None:
        after = frozenset(found for one in readings for found in self._after(one, token_id))
        # Cuts first: what is inside a piece has to be searched for an end.
        by_cost = sorted(after, key=lambda one: not _is_cut(one))
        return after if any(map(self._may_end, by_cost)) else None

    def _may_end(self, one: Reading) -> bool:
        """Whether the text may end, here or later; at a cut it may, else that is looked for."""
        return not (isinstance(one, TextReading) and one.last >= 0) or self._comes_to_an_end(one)

    def _after(self, one: Reading, token_id: int) -> Iterator[Reading]:
        """The readings that a reading becomes with one more token."""
        if isinstance(one, RawReading):
            yield from self._raw(one, token_id)
            yield from self._after_text(_START, token_id)
            yield from self._changing(ChangeReading(Splitter.start), token_id)
        elif isinstance(one, ChangeReading):
            yield from self._changing(one, token_id)
        elif one.last == _UNKNOWN:
            yield from self._after_change(one, token_id)
        else:
            if one.last == _NONE and self._splitter.ends(one.split):
                yield from self._raw(_RAW, token_id)
            yield from self._after_text(one, token_id)
            if self._beginnings and not one.partial:
                yield from self._changing(ChangeReading(one.split), token_id)

    def _after_text(self, one: TextReading, token_id: int) -> Iterator[TextReading]:
        splitter, pipeline = self._splitter, self._pipeline
        at_cut = one.last == _NONE
        if at_cut and token_id in pipeline.literals:
            for cut in splitter.literal(one.split, pipeline.literals[token_id]):
                yield TextReading(cut)
        read = self._read(one.partial, token_id)
        if read is None:
            return
        classes, rest = read
        merged = self._alone(token_id) if at_cut else self._pair(one.last, token_id)
        complete, piece = merged, None
        if pipeline.whole is not None and (at_cut or one.piece is not None):
            piece = (one.piece or b"") + self._bytes[token_id]
            found = pipeline.whole.get(piece)
            complete = found == token_id if at_cut else merged and found is None
            if not self._begins_whole(piece):
                piece = None
        if not (merged or complete):
            return
        for after in splitter.read(one.split, classes):
            if merged and (not rest or splitter.goes_on(after, self._begun(rest))):
                yield TextReading(after, rest, token_id, piece)
            if complete and not rest:
                for cut in splitter.cut(after):
                    yield TextReading(cut)

    def _raw(self, one: RawReading, token_id: int) -> Iterator[RawReading]:
        """The reading with one more token of bytes that are no UTF-8, if it is that."""
        data = one.partial + self._bytes[token_id]
        if not self._bytes[token_id] or not _is_raw(data):
            return
        tokens = self._longest((*one.tokens, token_id))
        if tokens is not None:
            yield RawReading(tokens, _open_end(data))

    def _longest(self, tokens: tuple[int, ...]) -> tuple[int, ...] | None:
        """The tokens at the end that more bytes may spell otherwise; None for no longest match."""
        spelled = b"".join([self._bytes[i] for i in tokens])
        if self._longest_match.encode(spelled) != list(tokens):
            return None
        while tokens and not _has_longer(self._distinct, spelled):
            spelled = spelled[len(self._bytes[tokens[0]]) :]
            tokens = tokens[1:]
        return tokens

    def _changing(self, one: ChangeReading, token_id: int) -> Iterator[Reading]:
        """The readings with one more token of text that is spelled as it was given."""
        change, beginnings = self._pipeline.change, self._beginnings
        data = one.data + self._bytes[token_id]
        text = _text(data)
        if change is None or beginnings is None or text is None or not self._bytes[token_id]:
            return
        tokens = self._longest((*one.tokens, token_id))
        if tokens is None:
            return
        changed = change.apply(text)
        if changed != text:
            yield from self._unknown(one.split, changed, _open_end(data))
        elif beginnings.may_come(text, _open_end(data)) and self._goes_on(one.split, text):
            yield ChangeReading(one.split, data, tokens)

    def _goes_on(self, split: int, text: str) -> bool:
        """Whether a text may begin with its first character, changed or not."""
        return not text or bool(self._splitter.step(split, self._splitter.class_of(text[0])))

    def _after_change(self, one: TextReading, token_id: int) -> Iterator[Reading]:
        """The readings where any token may follow, until a cut or a token that begins a word."""
        data = one.partial + self._bytes[token_id]
        text = _text(data)
        if text is None or not self._bytes[token_id]:
            return
        in_word = not text.startswith(" ") or text.isspace()
        for after in self._unknown(one.split, text, _open_end(data)):
            if in_word or _is_cut(after):
                yield after
            if not _is_cut(after):
                yield after._replace(last=token_id)

    def _unknown(self, split: int, text: str, rest: bytes) -> Iterator[TextReading]:
        """The readings behind text that some tokens stand for, cut in any way."""
        splitter, states = self._splitter, {split}
        for character in text:
            number = splitter.class_of(character)
            before = states | {cut for one in states for cut in splitter.cut(one)}
            states = states if is_absorbed(character) else set()
            states = states.union(*(splitter.step(one, number) for one in before))
        for after in states:
            yield TextReading(after, rest, _UNKNOWN)
            if not rest:
                for cut in splitter.cut(after):
                    yield TextReading(cut)

    def _is_alone(self, token_id: int) -> bool:
        """Whether a token's text as a piece is merged to this token."""
        return token_id in self._pipeline.byte_ids or self._pipeline.merge([token_id]) == [token_id]

    def _is_pair(self, left: int, right: int) -> bool:
        """Whether the joint text of two tokens is merged to them."""
        if self._pipeline.byte_ids.isdisjoint((left, right)):
            return self._pipeline.merge([left, right]) == [left, right]
        return self._alone(left) and self._alone(right)  # characters that are never merged

    def _begins_whole(self, piece: bytes) -> bool:
        return _has_longer(self._whole, piece)

    def _read_characters(
        self, partial: bytes, token_id: int
    ) -> tuple[tuple[int, ...], bytes] | None:
        """The classes of the characters that a token ends, and the beginning of one that it leaves.

        None where this is no UTF-8, or not how the token spells characters.
        """
        data = partial + self._bytes[token_id]
        rest = _open_end(data)
        try:
            text = data[: len(data) - len(rest)].decode()
        except UnicodeDecodeError:
            return None
        known = self._pipeline.characters
        if known is not None:
            if token_id in self._pipeline.byte_ids:
                if text in known:
                    return None
            elif partial or rest:
                return None
        if not self._bytes[token_id]:
            return None
        return tuple([self._splitter.class_of(character) for character in text]), rest

    def _begun_by(self, partial: bytes) -> frozenset[int]:
        """The classes of the characters that bytes begin; all where these are too many to ask."""
        length = 2 if partial[0] < 0xE0 else 3 if partial[0] < 0xF0 else 4
        missing = length - len(partial)
        if missing > 2:
            return frozenset(self._splitter.known_classes)
        codes = partial[0] & (0x7F >> length)
        for byte in partial[1:]:
            codes = codes << 6 | byte & 0x3F
        found = range(codes << 6 * missing, codes + 1 << 6 * missing)
        smallest, surrogates = {2: 0x80, 3: 0x800, 4: 0x10000}[length], range(0xD800, 0xE000)
        return frozenset(
            self._splitter.class_of(chr(code))
            for code in found
            if smallest <= code < 0x110000 and code not in surrogates
        )

    def _search(self, one: TextReading) -> bool:
        """Whether some tokens more bring a reading inside a piece to an end."""
        seen, waiting = {one}, deque([one])
        while waiting:
            for after in self._onwards(waiting.popleft()):
                if after.last == _NONE:
                    return True
                if after not in seen:
                    seen.add(after)
                    waiting.append(after)
        return False

    def _onwards(self, one: TextReading) -> Iterator[TextReading]:
        """The readings some tokens later, behind the character that is under way."""
        starts = self._inside if one.partial else self._singles
        for token_id in chain(starts, () if one.partial else self._fitting(one.split)):
            for after in self._after_text(one, token_id):
                if one.partial and after.partial.startswith(one.partial):
                    yield from self._onwards(after)
                else:
                    yield after

    def _fits(self, split: int) -> list[int]:
        """The tokens that can be next inside a piece, for all that the splitter knows."""
        splitter = self._splitter
        return [
            token_id
            for token_id, data in enumerate(self._bytes)
            if data and (read := self._read(b"", token_id)) and splitter.read(split, read[0])
        ]

    @cached_property
    def _singles(self) -> list[int]:
        """The tokens of one byte, with which most searches are over."""
        return [i for i, data in enumerate(self._bytes) if len(data) == 1]

    @cached_property
    def _inside(self) -> list[int]:
        """The tokens that begin inside a character, the short ones first."""
        inside = [i for i, data in enumerate(self._bytes) if data and 0x80 <= data[0] < 0xC0]
        return sorted(inside, key=lambda i: len(self._bytes[i]))


def _is_cut(one: Reading) -> TypeGuard[TextReading]:
    return isinstance(one, TextReading) and one.last == _NONE


def _text(data: bytes) -> str | None:
    """The characters of bytes that may end inside one."""
    try:
        return data[: len(data) - len(_open_end(data))].decode()
    except UnicodeDecodeError:
        return None


def _open_end(data: bytes) -> bytes:
    """The beginning of a character that bytes end in."""
    if state_after(data) == BOUNDARY:
        return b""
    start = max(place for place in range(len(data)) if data[place] >= 0xC0)
    return data[start:]


def _is_raw(data: bytes) -> bool:
    """Whether no byte belongs to a character."""
    return all("\udc80" <= c <= "\udcff" for c in data.decode(errors="surrogateescape"))


def _has_longer(texts: list[bytes], data: bytes) -> bool:
    """Whether one of the sorted texts goes on behind `data`."""
    place = bisect_right(texts, data)
    return place < len(texts) and texts[place].startswith(data)
