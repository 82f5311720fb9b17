"""The laws of a byte LM, as assertions, and token LMs without a model to run them on.

Any implementation of ``StatefulByteLM`` is held to these laws; see each function. This module is
for tests; nothing else imports it.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from bytelm.errors import ContextTooLong
from bytelm.models.byte_lm import StatefulByteLM
from bytelm.models.logprobs import EOS, EOT
from bytelm.models.token_lm import Chunk, Usage
from bytelm.vocabulary.canonical import CanonicalEncoder, Span
from bytelm.vocabulary.pipeline import Pipeline, byte_pair_merge
from bytelm.vocabulary.split_stages import Stage
from bytelm.vocabulary.vocab import ByteVocab

T = TypeVar("T")
K = TypeVar("K")


class StubLM:
    """An AsyncTokenLM of pseudo-random distributions, each a function of seed and context.

    Args:
        vocab: the vocabulary.
        seed: another seed gives another model.
        spread: standard deviation of the logits; larger is more decided.
        rows: how many distributions there are, made beforehand, from which a context picks; None
            makes one for each context.
        max_context_tokens: the longest context that is answered.
        silent: ids that never get any probability.
    """

    def __init__(
        self,
        vocab: ByteVocab,
        seed: int = 0,
        spread: float = 2.0,
        rows: int | None = None,
        max_context_tokens: int | None = None,
        silent: Sequence[int] = (),
    ) -> None:
        self.vocab = vocab
        self.max_context_tokens = max_context_tokens
        self.evaluations = 0
        self.tokens_generated = 0
        self._seed = seed
        self._spread = spread
        self._silent = list(silent)
        self._rows = (
            None if rows is None else [self._row(bytes([i % 256, i // 256])) for i in range(rows)]
        )

    def _row(self, name: bytes) -> NDArray[np.float32]:
        digest = hashlib.blake2b(name, key=self._seed.to_bytes(8, "little"), digest_size=8)
        random = np.random.default_rng(int.from_bytes(digest.digest(), "little"))
        logits = random.normal(scale=self._spread, size=self.vocab.size)
        logits[self._silent] = -np.inf
        logits -= logits.max()
        row = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
        row.flags.writeable = False
        return row

    def row(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The distribution after a context, float32 ``[vocab.size]``, log-probabilities."""
        if self._rows is not None:
            return self._rows[hash(tuple(token_ids)) % len(self._rows)]
        return self._row(np.asarray(token_ids, np.int64).tobytes())

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """See ``AsyncTokenLM``; counts in ``evaluations``."""
        most = self.max_context_tokens
        if most is not None and len(token_ids) > most:
            raise ContextTooLong(f"{len(token_ids)} tokens are more than the {most} that fit")
        self.evaluations += 1
        return self.row(token_ids)

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
        """See ``GeneratingTokenLM``; one token in each chunk, counted in ``tokens_generated``."""
        context, random = list(token_ids), np.random.default_rng(seed)
        most = self.max_context_tokens
        if most is not None and len(context) > most:
            raise ContextTooLong(f"{len(context)} tokens are more than the {most} that fit")
        reason: Literal["stop", "length"] | None = None
        while reason is None:
            await asyncio.sleep(0)
            logits = self.row(context).astype(np.float64)
            logits[np.asarray(banned_token_ids, np.int64)] = -np.inf
            bounds = np.exp((logits - logits.max()) / max(temperature, 1e-5)).cumsum()
            token = int(bounds.searchsorted(random.random() * bounds[-1], side="right"))
            context.append(token)
            self.tokens_generated += 1
            made = len(context) - len(token_ids)
            if token in stop_token_ids:
                reason = "stop"
            elif made == max_tokens or (most is not None and len(context) > most):
                reason = "length"
            yield Chunk((token,), reason)


class BruteForce:
    """Prefix probabilities of bytes by summing over all tokenizations; for small vocabularies.

    Args:
        row: the distribution after a context, log-probabilities over ids.
        vocab: the vocabulary.
        initial_context: the tokens before any byte.
    """

    def __init__(
        self,
        row: Callable[[Sequence[int]], NDArray[np.float32]],
        vocab: ByteVocab,
        initial_context: Sequence[int] | None = None,
    ) -> None:
        self._row = row
        self._vocab = vocab
        self._initial = tuple(vocab.initial_context if initial_context is None else initial_context)
        self._known: dict[tuple[int, ...], tuple[dict[int, float], float]] = {}

    def _probs(self, context: tuple[int, ...]) -> tuple[dict[int, float], float]:
        if context in self._known:
            return self._known[context]
        row = np.exp(self._row(context).astype(np.float64))
        spelled = {i: row[i] for i, b in enumerate(self._vocab.token_bytes) if b}
        eos = sum(row[i] for i in self._vocab.eos_token_ids)
        total = sum(spelled.values()) + eos
        self._known[context] = {i: p / total for i, p in spelled.items()}, eos / total
        return self._known[context]

    def prefix(self, text: bytes, context: tuple[int, ...] | None = None) -> float:
        """Probability that the text generated after ``context`` begins with ``text``."""
        if not text:
            return 1.0
        context = self._initial if context is None else context
        total = 0.0
        for i, p in self._probs(context)[0].items():
            token = self._vocab.token_bytes[i]
            if token.startswith(text):
                total += p
            elif text.startswith(token):
                total += p * self.prefix(text[len(token) :], (*context, i))
        return total

    def whole(self, text: bytes, context: tuple[int, ...] | None = None) -> float:
        """Probability that the text generated after ``context`` is exactly ``text``, then EOS."""
        context = self._initial if context is None else context
        probs, eos = self._probs(context)
        if not text:
            return eos
        return sum(
            p * self.whole(text[len(self._vocab.token_bytes[i]) :], (*context, i))
            for i, p in probs.items()
            if text.startswith(self._vocab.token_bytes[i])
        )

    def logp_next(self, text: bytes) -> NDArray[np.float64]:
        """The distribution after ``text``: float64 ``[258]``, natural logarithms."""
        total = np.zeros(258)
        for b in set(b"".join(self._vocab.token_bytes)):
            total[b] = self.prefix(text + bytes([b]))
        total[EOS] = self.whole(text)
        with np.errstate(divide="ignore"):
            return np.log(total) - math.log(self.prefix(text))


async def assert_normalised(state: StatefulByteLM, tol: float = 1e-6) -> None:
    """Law 1: the probabilities of 256 bytes and EOS sum to 1; EOT has none."""
    ps = (await state.logp_next()).ps
    assert ps[EOT] == -np.inf, "EOT must have no probability"
    assert abs(np.exp(ps).sum() - 1.0) <= tol, f"sums to {np.exp(ps).sum()}"


async def assert_chain_rule(
    initial: StatefulByteLM,
    text: bytes,
    log_z: Callable[[StatefulByteLM], float],
    tol: float = 1e-6,
) -> None:
    """Law 2: the conditionals along ``text`` sum to its ``logZ``, walked or prefilled.

    Holds for unlimited K, threshold 0 and walked prefill.
    """
    state, total = initial, 0.0
    for b in text:
        total += (await state.logp_next())[b]
        state = await (state << b)
    assert abs(total - (log_z(state) - log_z(initial))) <= tol, (total, log_z(state))
    half = await (await initial.prefill(text[: len(text) // 2])).prefill(text[len(text) // 2 :])
    assert abs(log_z(half) - log_z(state)) <= tol, (log_z(half), log_z(state))


async def assert_immutable(state: StatefulByteLM, bytes_: Sequence[int], tol: float = 0.0) -> None:
    """Law 3: ``state << b`` never changes ``state``, nor what another child of it gives."""
    before = (await state.logp_next()).ps.copy()
    alone = [(await (await (state << b)).logp_next()).ps for b in bytes_]
    children = await asyncio.gather(*[_as_task(state << b) for b in bytes_])
    for child, want in zip(children, alone, strict=True):
        _assert_close((await child.logp_next()).ps, want, tol)
    _assert_close((await state.logp_next()).ps, before, tol)


async def assert_exact(
    state: StatefulByteLM, text: bytes, want: BruteForce, tol: float = 1e-6
) -> None:
    """Law 4: the distribution after ``text`` is that of brute force over all tokenizations.

    Holds for unlimited K and threshold 0; ``state`` must be the state after ``text``.
    """
    _assert_close((await state.logp_next()).ps, want.logp_next(text), tol)


def assert_lower_bound(log_z: float, text: bytes, want: BruteForce, tol: float = 1e-6) -> None:
    """Law 5: ``logZ`` never exceeds the text's true log-probability."""
    assert log_z <= math.log(want.prefix(text)) + tol, (log_z, math.log(want.prefix(text)))


async def assert_reproducible(generate: Callable[[], Awaitable[bytes]], others: int = 3) -> None:
    """Law 6, on StubLM: the same seed gives the same bytes, whatever else runs."""
    alone = await generate()
    together = await asyncio.gather(*[_as_task(generate()) for _ in range(others)])
    assert all(text == alone for text in together), (alone, together)


def assert_prune_keeps_one(state: StatefulByteLM, size: Callable[[StatefulByteLM], int]) -> None:
    """Law 7: ``prune`` never empties a beam that had a candidate."""
    assert size(state) == 0 or size(state.prune()) > 0


def assert_drawn_from(
    counts: Mapping[K, int], probs: Mapping[K, float], limit: float = 4.0
) -> None:
    """Independent draws have a distribution: chi-squared, outcomes expected below 5 times pooled.

    Args:
        counts: how often each outcome was drawn.
        probs: the probability of each; they sum to 1.
        limit: how many standard deviations the statistic may lie above its mean, as the cube root
            that makes it normal (Wilson and Hilferty 1931) has it.
    """
    impossible = [outcome for outcome in counts if not probs.get(outcome)]
    assert not impossible, f"drawn, but without probability: {impossible[:5]}"
    assert abs(sum(probs.values()) - 1.0) < 1e-6, f"sums to {sum(probs.values())}"
    total = sum(counts.values())
    cells = []
    pooled, expected = 0, 0.0
    for outcome, p in sorted(probs.items(), key=lambda item: item[1]):
        pooled, expected = pooled + counts.get(outcome, 0), expected + p * total
        if expected >= 5.0:
            cells.append((pooled, expected))
            pooled, expected = 0, 0.0
    statistic = sum((have - want) ** 2 / want for have, want in cells)
    free = len(cells) - 1
    assert free > 0, "too few draws to tell anything"
    spread = 2.0 / (9.0 * free)
    z = ((statistic / free) ** (1 / 3) - 1.0 + spread) / math.sqrt(spread)
    assert z < limit, f"chi-squared is {statistic:.1f} with {free} degrees of freedom, z = {z:.1f}"


async def _as_task(call: Awaitable[T]) -> T:
    return await call


def _assert_close(have: NDArray[np.float64], want: NDArray[np.float64], tol: float) -> None:
    """Equal within ``tol`` where both are finite; -inf in the same places."""
    finite = np.isfinite(want)
    assert np.array_equal(np.isfinite(have), finite), (
        f"-inf at different places: {np.flatnonzero(np.isfinite(have) != finite)[:10]}"
    )
    worst = np.max(np.abs(have[finite] - want[finite]), initial=0.0)
    assert worst <= tol, f"differ by {worst}"


class MergingToy:
    """A byte-pair tokenizer of a few tokens: the first of them are merged first.

    Args:
        token_bytes: the tokens, each byte of theirs among them; b"" for special ids.
        pattern: splits text into pieces; None leaves it whole.
        whole_pieces: whether a piece that is a token becomes it, whatever merges say.
    """

    def __init__(
        self, token_bytes: Sequence[bytes], pattern: str | None = None, whole_pieces: bool = False
    ) -> None:
        self._ranks = {data: i for i, data in reversed(list(enumerate(token_bytes))) if data}
        self._bytes = list(token_bytes)
        self._pattern = pattern
        self._whole = self._ranks if whole_pieces else None

    def ids(self, text: str) -> list[int]:
        """The token ids of ``text``."""
        ids: list[int] = []
        for piece in re.findall(self._pattern, text) if self._pattern else [text]:
            data = piece.encode()
            if self._whole and data in self._whole:
                ids.append(self._whole[data])
            else:
                ids += byte_pair_merge(data, self._ranks)
        return ids

    def spans(self, text: str) -> list[Span]:
        """Nothing: what cannot be spelled is left to the vocabulary's longest match."""
        return []

    def pipeline(self) -> Pipeline:
        """How the ids are made."""

        def matched(charset: str, text: str) -> list[str]:
            return re.findall(charset, text)

        def merge(ids: Sequence[int]) -> list[int]:
            return byte_pair_merge(b"".join([self._bytes[i] for i in ids]), self._ranks)

        stage = Stage.uncut()
        if self._pattern:
            stage = Stage.of_pattern(self._pattern, matched, gaps=False, possessive_braces=True)
        return Pipeline((stage,), merge, len(self._bytes) - 1, self._whole)


def merging_vocab(
    token_bytes: Sequence[bytes],
    pattern: str | None = None,
    *,
    whole_pieces: bool = False,
    eos_token_ids: Sequence[int] = (),
) -> ByteVocab:
    """A vocabulary whose canonical tokenizations are those of a ``MergingToy``."""
    plain = ByteVocab.from_bytes(token_bytes, eos_token_ids=eos_token_ids)
    toy = MergingToy(plain.token_bytes, pattern, whole_pieces)
    return replace(plain, encoder=CanonicalEncoder(plain.token_bytes, toy))
