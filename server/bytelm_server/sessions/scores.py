"""Scores after a session's state, as answers.

Must not know how a session moves.
"""

from dataclasses import replace

from bytelm_server.counting import CountingLM, usage_of
from bytelm_server.errors import FieldError, NoContinuation
from bytelm_server.scoring import Scoring, Wanted
from bytelm_server.sessions.replies import Answer
from bytelm_server.sessions.states import ByteState, SessionState


async def scored(
    state: SessionState, lm: CountingLM, wanted: Wanted, *, advance: bool
) -> tuple[SessionState, Answer]:
    """Scores after a state, and the state behind the only continuation, or the same.

    Raises:
        FieldError: the state is no byte LM's.
        InputError: with ``advance``, what is wrong with the continuation.
        NoContinuation: with ``advance``, it has no probability.
    """
    if not isinstance(state, ByteState):
        raise FieldError("token sessions have no scores of bytes", "continuations")
    lm.bytes_in += wanted.length
    scoring = Scoring(wanted)
    await scoring.refuse(state.beam.check_room)
    if scoring.is_open:
        await scoring.after(state.beam, keep=advance)
    if advance:
        scoring.check_the_first()
    results = await scoring.results(lm.vocab)
    if advance:
        if scoring.behind is None:
            raise NoContinuation(
                "no session can stand behind what has no probability, score it with advance false: "
                + str(results[0].get("reason")),
                "continuations[0]",
            )
        consumed = state.consumed + wanted.length
        state = replace(state, beam=scoring.behind, consumed=consumed)
    return state, {"results": results, "usage": usage_of(lm)}
