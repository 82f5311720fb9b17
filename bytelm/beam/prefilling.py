"""How a beam consumes bytes that are known, and what it leaves out where they are too many.

See ``bytelm.beam.prefill`` for trunks.
"""

from __future__ import annotations

import asyncio
import math

from bytelm.beam.base import B
from bytelm.beam.candidates import NONE
from bytelm.beam.deferred import NOTHING, Path
from bytelm.beam.late import Known, Part
from bytelm.beam.moving import joined, moved_by
from bytelm.beam.prefill import TAIL, Trunk, TrunkFinder
from bytelm.beam.pruning import keeping, prune
from bytelm.beam.ration import MOST, RATION, narrowed
from bytelm.beam.read_ahead import Ahead
from bytelm.beam.waves import LONG, KnownWalk
from bytelm.models.ordered_rows import Answer
from bytelm.threads import by_length
from bytelm.vocabulary.trie import ROOT

AHEAD = 64
"""How many evaluations a fast prefill submits at once at most; each holds a row of memory."""


async def walked(beam: B, bs: bytes) -> B:
    """The state after bytes, byte by byte."""
    if len(bs) < LONG:
        state = beam
        for b in bs:
            state = await state.prune().advanced(b)
        return state
    walk = KnownWalk(beam, bs, reports=False)
    for _ in bs:
        await walk.advance()
    return walk.state


async def from_trunk(beam: B, trunk: Trunk) -> B:
    """The state behind a trunk, walked on through the rest.

    The rest's canonical tokenization is where most of the weight will be: its evaluations are
    submitted ahead of the walk, the longest first. A cache that keeps what this one computes
    leaves a single token to each of the others; submitted together, all would compute the same.
    """
    base = (*beam._anchor, *trunk.tokens)
    lengths = range(len(trunk.rest_tokens) + 1)
    ahead = [(*base, *trunk.rest_tokens[:n]) for n in lengths if beam._fits(len(base) + n)]
    ahead = ahead[:AHEAD]
    submitted: dict[Path, asyncio.Future[Answer]] = {}
    try:
        for path in reversed(ahead):
            submitted[path] = asyncio.ensure_future(beam.source.ask(path))
            if path is ahead[-1]:
                await submitted[path]
        state = at_trunk(beam, trunk)
        known = Known(*state._roots[0], ROOT)
        state.source = beam.source.knowing(submitted)
        ration = RATION - len(submitted)
        for at, b in enumerate(trunk.rest):
            if beam.params.prune_threshold and len(submitted) + state.source.asked > MOST:
                ended = await canonical_behind(state, known, trunk, at)
                if ended is not None:
                    state = ended
                    break
            before = prune(state)
            is_spent = state.source.asked > ration * (at + 1) / len(trunk.rest)
            before.params = narrowed(beam.params) if is_spent else beam.params
            state = await moved_by(before, b)
            state.params = beam.params
        # The canonical tokens of the whole text are likely to be asked for next.
        done = [(path, answer) for path, answer in submitted.items() if answer.done()]
        nodes = state._candidates.node
        answers = Ahead.of(done, state._paths)
        state._ahead = answers.of_candidates(beam.source.trie, state._paths, nodes)
        return state
    finally:
        for task in submitted.values():
            task.cancel()
        await asyncio.gather(*submitted.values(), return_exceptions=True)


def at_trunk(beam: B, trunk: Trunk) -> B:
    """The state right behind a trunk, whose own weight nobody knows."""
    if not trunk.tokens and not beam._text:
        return beam._with((), NONE, beam._roots)
    state = beam._with((), NONE, [((*beam._anchor, *trunk.tokens), 0.0)])
    state._deferred = NOTHING
    state._is_weighed = False
    return state


async def canonical_behind(beam: B, known: Known, trunk: Trunk, at: int) -> B | None:
    """The state behind all of a rest, of which ``at`` bytes are walked, without further walk.

    The rest's canonical tokenization goes on, with its exact weight; all else is deferred.

    Args:
        beam: the state.
        known: the trunk's tokens.
        trunk: what the rest is behind of.
        at: how many bytes of the rest this state has consumed.

    Returns:
        The state; None if the tokenization has no probability or does not fit.
    """
    source, rest = beam.source, trunk.rest
    *ended, last = trunk.rest_tokens
    path, weight, partial = known.path, known.weight, source.vocab.token_bytes[last]
    if not beam._fits(len(path) + len(ended)):
        return None
    for token in ended:
        weight += (await source.evaluate(path)).log_prob(token)
        path = (*path, token)
    row = await source.evaluate(path)
    part = Part.of(path, weight, row, source.trie, source.trie.descend(partial))
    if part is None or part.weight == -math.inf:
        return None
    state = joined(beam, [], NONE, [part])
    if beam.params.deferred:
        deferred = beam._deferred.without(beam.log_weight)
        for i in range(at, len(rest)):
            log_q = source.stand_in.log_of(rest[i : i + 1], rest[:i])
            deferred = deferred.after(rest[i], log_q, ())
        state._deferred = deferred.settled(state.log_weight)
    return state


async def with_room(beam: B) -> B:
    """The same text with room for a token behind each candidate.

    Where there is none, only the end of the text is left to condition on.
    """
    most = beam._most
    if most is None or all(len(path) < most for path in beam._paths):
        return beam
    # Bytes of EOS tokens can only be there because somebody prefilled them.
    spelling = beam._reading(beam.source.spelling_eos())
    state = await ending(spelling, beam._text, TAIL)
    return state._weighing_as(beam)._reading(beam.source)


async def ending(beam: B, text: bytes, tail: int) -> B:
    """The state after ``text`` behind the anchor, by no more than half as many tokens as fit.

    What its walk made too long to go on is left out; of nothing else, the canonical
    tokenization is in its place.
    """
    finder = TrunkFinder.of(beam.source.vocab)
    base, rest = await by_length(len(text), halved, beam, text)
    trunk = await finder.found(rest, tail)
    state = await from_trunk(base, trunk)
    assert beam._most is not None
    kept = [i for i, path in enumerate(state._paths) if len(path) < beam._most]
    if kept or not state._paths:
        return keeping(state, kept)
    before = at_trunk(base, trunk)
    known = Known(*before._roots[0], ROOT)
    return await canonical_behind(before, known, trunk, 0) or state


def halved(beam: B, text: bytes) -> tuple[B, bytes]:
    """The beginning of a state, and what it is to consume, in half as many tokens as fit.

    The first token stays in its place: models do not work well without it.
    """
    vocab, anchor = beam.source.vocab, beam._anchor
    assert beam._most is not None
    half = beam._most // 2
    rest = TrunkFinder.of(vocab).last(text, half)
    room = half - len(vocab.encode(text)) if rest == text else 0
    kept = (*anchor[:1], *anchor[max(1, len(anchor) - max(room, 0)) :])
    is_cut = beam._is_cut or kept != anchor or rest != text
    return beam._anchored(kept, 0.0, is_cut, is_weighed=False), rest


def shortened(beam: B) -> B:
    """A state right behind its anchor, of which only the end is left if it is too long."""
    if beam._fits(len(beam._anchor)) or beam._most is None:
        return beam
    return halved(beam, b"")[0]._weighing_as(beam)
