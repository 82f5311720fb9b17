"""Long texts: refused early where they do not fit, read in threads where they do."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mistral_common
import pytest

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.errors import ContextTooLong
from bytelm.generating.score import score
from bytelm.models.testing import StubLM
from bytelm.prompts.context import Context, Special, Text, begin
from bytelm.vocabulary.vocab import ByteVocab

SHIPPED = Path(mistral_common.__file__).parent / "data"
PARAMS = BeamParams(K=1)
ENGLISH = b"The capital of France is Paris, and nobody doubts it. " * 6000
BOS = Special(1)


class Watched:
    """A vocabulary's encoder that tells what it is asked, and in which thread."""

    def __init__(self, encoder: Any) -> None:
        self._encode = encoder.encode
        self.lengths: list[int] = []
        self.in_main: list[int] = []

    def encode(self, data: bytes) -> list[int]:
        self.lengths.append(len(data))
        if threading.current_thread() is threading.main_thread():
            self.in_main.append(len(data))
        ids: list[int] = self._encode(data)
        return ids


@pytest.fixture
def vocab() -> ByteVocab:
    return ByteVocab.from_file(SHIPPED / "tokenizer.model.v1")


@pytest.fixture
def watched(vocab: ByteVocab) -> Watched:
    made = Watched(vocab.encoder)
    vocab.encoder.encode = made.encode  # type: ignore[method-assign]
    return made


CONTEXTS: dict[str, Callable[[bytes], Context]] = {
    "text": lambda text: Context([Text(text)]),
    "behind a special token": lambda text: Context([BOS, Text(text)]),
    "before a special token": lambda text: Context([Text(text), BOS]),
    "in pieces": lambda text: Context(
        [part for i in range(0, len(text), 1000) for part in (BOS, Text(text[i : i + 1000]))]
    ),
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
@pytest.mark.parametrize("text", [ENGLISH, b"a" * 300_000], ids=["words", "no words"])
async def test_what_cannot_fit_whatever_it_is_is_not_tokenized(vocab, watched, context, text):
    lm = StubLM(vocab, max_context_tokens=100)
    with pytest.raises(ContextTooLong, match=r"is at least \d+ tokens long, .* at most 100"):
        await begin(lm, PARAMS, context(text))
    assert sum(watched.lengths) == 0
    assert lm.evaluations == 0


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
async def test_of_what_does_not_fit_no_more_is_tokenized_than_that_takes(vocab, watched, context):
    lm = StubLM(vocab, max_context_tokens=15_000)
    with pytest.raises(ContextTooLong, match=r"is at least \d+ tokens long"):
        await begin(lm, PARAMS, context(ENGLISH))
    # Of one segment behind which nothing is refused until it is read, all is.
    assert max(watched.lengths) < 100_000 or context is CONTEXTS["before a special token"]
    assert lm.evaluations == 0


@pytest.mark.parametrize("most", [None, 200])
@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
async def test_long_texts_are_tokenized_in_threads(vocab, watched, context, most):
    """So are those of which ``max_context_length`` leaves only the end."""
    params = BeamParams(K=1, max_context_length=most)
    await begin(StubLM(vocab, max_context_tokens=10_000), params, context(ENGLISH[:20_000]))
    assert max(watched.lengths) >= 1000
    assert max(watched.in_main, default=0) < 1000


async def test_continuations_that_do_not_fit_are_refused_before_any_evaluation(vocab):
    lm = StubLM(vocab, max_context_tokens=500)
    state = await (await ByteBeamState.initial(lm, PARAMS)).prefill(b"The capital")
    before = lm.evaluations
    with pytest.raises(ContextTooLong, match="the model takes at most 500"):
        await score(state, ENGLISH[:5000])
    assert lm.evaluations == before


async def test_a_continuation_with_a_byte_that_cannot_be_spelled_has_no_room_to_miss():
    lm = StubLM(ByteVocab.from_bytes([b"", b"a", b"b"], bos_token_id=0), max_context_tokens=20)
    state = await ByteBeamState.initial(lm, PARAMS)
    await state.check_room(b"ab" * 50 + b"z")
    with pytest.raises(ContextTooLong):
        await state.check_room(b"ab" * 50)


async def test_a_state_that_forgets_has_room_for_anything(vocab):
    lm = StubLM(vocab, max_context_tokens=50)
    state = await ByteBeamState.initial(lm, BeamParams(K=1, max_context_length=20))
    await state.check_room(ENGLISH)
