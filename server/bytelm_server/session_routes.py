"""HTTP to the calls of sessions and back, and to rows of tokens; nothing else."""

import math
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from numpy.typing import NDArray

from bytelm_server import session_examples as examples
from bytelm_server.documented import FAILURES, Responses, with_stream
from bytelm_server.errors import DeadlinePassed, ErrorBody, FieldError, Unavailable
from bytelm_server.examples import ROWS_ANSWER
from bytelm_server.reading import JsonRoute
from bytelm_server.row_stream import RowFormat
from bytelm_server.sessions import answers, bodies
from bytelm_server.sessions.batch import SessionBatch
from bytelm_server.sessions.calls import MOST_LISTED, SessionCalls
from bytelm_server.sessions.rows import SessionRows
from bytelm_server.sessions.service import Sessions
from bytelm_server.token_rows import TokenRows
from bytelm_server.wire import JsonResponse
from bytelm_server.work import Served, Work, Working

OCTETS = "application/octet-stream"

_CHANGES: Responses = {
    **FAILURES,
    409: {"model": ErrorBody, "description": "Another version, key or model than expected."},
    507: {"model": ErrorBody, "description": "There is no room to keep what would be new."},
}
_OF_ONE: Responses = {
    **FAILURES,
    404: {"model": ErrorBody, "description": "There is no such session, or not for this key."},
    410: {"model": ErrorBody, "description": "The session has expired."},
}
_MOVES: Responses = {**_OF_ONE, **_CHANGES}
_ROWS: dict[str, Any] = {OCTETS: {"schema": {"type": "string", "format": "binary"}}}

router = APIRouter(route_class=JsonRoute)


async def _calls(request: Request, backend: Served, work: Working) -> AsyncIterator[SessionCalls]:
    sessions: Sessions = request.app.state.sessions
    calls = sessions.of(backend, work.caller)
    # Left when the answer is sent, as the work is.
    with calls.using(filter(None, [request.path_params.get("session_id")])):
        yield calls


Calls = Annotated[SessionCalls, Depends(_calls)]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=bodies.LONGEST_KEY,
        description="Sent again with the same key and body, the call answers as it did and "
        "changes nothing; with another call or body it is refused. A session keeps the newest 256.",
    ),
]
IfVersion = Annotated[
    int | None,
    Query(
        ge=1,
        le=bodies.LAST_VERSION,
        description="Only if the session has this version; else 409.",
    ),
]


def _wants_octets(request: Request) -> bool:
    return OCTETS in request.headers.get("accept", "")


def _octets(rows: Sequence[NDArray[np.float32]], shape: Sequence[int]) -> Response:
    """Rows as bytes, written one after another: all together may be a hundred megabytes."""

    async def data() -> AsyncIterator[bytes]:
        for row in rows:
            yield row.astype("<f4", copy=False).tobytes()

    headers = {
        "X-Shape": ",".join(map(str, shape)),
        "Content-Length": str(4 * math.prod(shape)),
    }
    return StreamingResponse(data(), media_type=OCTETS, headers=headers)


@router.post(
    "/v1/token_logprobs",
    tags=["tokens"],
    response_model=answers.TokenRows,
    responses={
        200: {
            **examples.TOKEN_LOGPROBS_ANSWER,
            "content": {**examples.TOKEN_LOGPROBS_ANSWER["content"], **_ROWS},
        },
        **FAILURES,
    },
)
async def token_logprobs(
    request: Request,
    work: Working,
    backend: Served,
    call: Annotated[bodies.TokenLogprobsCall, Body(openapi_examples=examples.TOKEN_LOGPROBS)],
) -> Response:
    """The distribution over the token after each context, as the model gives it.

    With `Accept: application/octet-stream` and no `top`: raw little-endian float32, a row of all
    ids for each context; the header `X-Shape` has rows and columns. One bad context fails the call.
    """
    service = backend.service
    service.limits.check_contexts(len(call.contexts))
    if call.top is None and not _wants_octets(request):
        raise FieldError(f"give top, or ask for whole rows with accept: {OCTETS}", "top")
    rows = TokenRows(service, work.caller.cache_salt)
    if call.top is None:
        found = await work.result(rows.rows(call.contexts))
        return _octets(found, [len(found), len(found[0])])
    service.limits.check_rows(len(call.contexts), call.top)
    return JsonResponse(await work.result(rows.answer(call.contexts, call.top)))


@router.post(
    "/v1/sessions",
    tags=["sessions"],
    response_model=answers.Moved,
    responses={200: examples.CREATE_ANSWER, **_CHANGES},
)
async def create(
    work: Working,
    calls: Calls,
    call: Annotated[bodies.CreateCall, Body(openapi_examples=examples.CREATE)],
    key: Key = None,
) -> JsonResponse:
    """A new session: a handle to the state after a context, which calls move on."""
    return JsonResponse(await work.result(calls.create(call, key)))


@router.get(
    "/v1/sessions",
    tags=["sessions"],
    response_model=answers.Page,
    responses={200: examples.PAGE_ANSWER, **FAILURES},
)
async def page(
    calls: Calls,
    after: Annotated[str, Query(description="`next` of the page before.")] = "",
    limit: Annotated[
        int, Query(ge=1, le=MOST_LISTED, description="Sessions on the page, at most.")
    ] = 100,
) -> JsonResponse:
    """The sessions of this API key, oldest first."""
    return JsonResponse(await calls.page(after, limit))


@router.post(
    "/v1/sessions:batch",
    tags=["sessions"],
    response_model=answers.Batch,
    responses={200: examples.BATCH_ANSWER, **FAILURES},
)
async def batch(
    work: Working,
    calls: Calls,
    call: Annotated[bodies.BatchCall, Body(openapi_examples=examples.BATCH)],
    key: Key = None,
) -> JsonResponse:
    """Many calls in one, run together; each has its answer, or its error, in its place.

    A key is each call's that has none of its own, together with the call's place: sent again, those
    that were made answer as they did, and the others are made.
    """
    made = SessionBatch(calls, call, key)
    with calls.using(made.session_ids):
        try:
            return JsonResponse(await work.result(made.run()))
        except (DeadlinePassed, Unavailable) as error:
            if not any(made.results):
                raise
            return JsonResponse(made.so_far(error))


@router.get(
    "/v1/sessions/{session_id}",
    tags=["sessions"],
    response_model=answers.Session,
    responses={200: examples.SESSION_ANSWER, **_OF_ONE},
)
async def get(
    work: Working,
    calls: Calls,
    session_id: str,
    candidates: Annotated[bool, Query(description="With the beam's candidates.")] = False,
    wait: Annotated[bool, Query(description="After the calls that came before.")] = False,
) -> JsonResponse:
    """What a session is: where it stands, and until when it is kept.

    It does not wait for a call that moves the session, except with `candidates` or `wait`.
    """
    if not candidates and not wait:
        # It needs no model, and waits for nobody.
        return JsonResponse(await calls.look(session_id))
    call = bodies.GetCall(candidates=candidates)
    return JsonResponse(await work.result(calls.get(session_id, call)))


@router.delete(
    "/v1/sessions/{session_id}",
    tags=["sessions"],
    response_model=answers.Ended,
    responses={200: examples.ENDED_ANSWER, **_MOVES},
)
async def delete(
    work: Working, calls: Calls, session_id: str, if_version: IfVersion = None, key: Key = None
) -> JsonResponse:
    """End a session: no call finds it any more."""
    call = bodies.DeleteCall(if_version=if_version)
    return JsonResponse(await work.result(calls.delete(session_id, call, key)))


@router.post(
    "/v1/sessions/{session_id}/fork",
    tags=["sessions"],
    response_model=answers.Moved,
    responses={200: examples.CREATE_ANSWER, **_MOVES},
)
async def fork(
    work: Working,
    calls: Calls,
    session_id: str,
    call: Annotated[bodies.ForkCall, Body(openapi_examples=examples.FORK)],
    key: Key = None,
) -> JsonResponse:
    """A second session at the same state, or moved on from it; this one stays as it is."""
    return JsonResponse(await work.result(calls.fork(session_id, call, key)))


@router.post(
    "/v1/sessions/{session_id}/advance",
    tags=["sessions"],
    response_model=answers.Moved,
    responses={200: examples.MOVED_ANSWER, **_MOVES},
)
async def advance(
    work: Working,
    calls: Calls,
    session_id: str,
    call: Annotated[bodies.AdvanceCall, Body(openapi_examples=examples.ADVANCE)],
    key: Key = None,
) -> JsonResponse:
    """Move a session on, byte by byte (or token by token)."""
    return JsonResponse(await work.result(calls.advance(session_id, call, key)))


@router.post(
    "/v1/sessions/{session_id}/prefill",
    tags=["sessions"],
    response_model=answers.Moved,
    responses={200: examples.MOVED_ANSWER, **_MOVES},
)
async def prefill(
    work: Working,
    calls: Calls,
    session_id: str,
    call: Annotated[bodies.PrefillCall, Body(openapi_examples=examples.PREFILL)],
    key: Key = None,
) -> JsonResponse:
    """Move a session on by a long text, which is read at once instead of byte by byte."""
    return JsonResponse(await work.result(calls.prefill(session_id, call, key)))


@router.get(
    "/v1/sessions/{session_id}/next",
    tags=["sessions"],
    response_model=answers.Next,
    responses={
        200: {
            **examples.NEXT_ANSWER,
            "content": {**examples.NEXT_ANSWER["content"], **_ROWS},
        },
        **_OF_ONE,
    },
)
async def next_symbol(
    request: Request,
    work: Working,
    calls: Calls,
    session_id: str,
    top: Annotated[
        int | None, Query(ge=1, description="Only the most probable, this many.")
    ] = None,
    prune: Annotated[bool, Query(description="That of the pruned state.")] = False,
    drawable: Annotated[
        bool, Query(description="With what greedy and sampling choose from, nothing deferred.")
    ] = False,
) -> Response:
    """The distribution over what comes next: bytes and EOS, or tokens.

    Token sessions need `top`, or `Accept: application/octet-stream` for the whole row.
    """
    if top is None and not prune and not drawable and _wants_octets(request):
        row = await work.result(calls.row(session_id))
        return _octets([row], row.shape)
    call = bodies.NextCall(top=top, prune=prune, drawable=drawable)
    return JsonResponse(await work.result(calls.next(session_id, call)))


@router.post(
    "/v1/sessions/{session_id}/greedy",
    tags=["sessions"],
    response_model=answers.Generated,
    responses={200: with_stream(examples.GREEDY_ANSWER, answers.SessionEvent), **_MOVES},
)
async def greedy(
    work: Working,
    calls: Calls,
    session_id: str,
    call: Annotated[bodies.SessionGreedyCall, Body(openapi_examples=examples.GREEDY)],
    key: Key = None,
) -> Response:
    """The most probable continuation; the session moves on behind it."""
    return await _generated(work, calls, session_id, call, key)


@router.post(
    "/v1/sessions/{session_id}/sample",
    tags=["sessions"],
    response_model=answers.Generated,
    responses={200: with_stream(examples.SAMPLE_ANSWER, answers.SessionEvent), **_MOVES},
)
async def sample(
    work: Working,
    calls: Calls,
    session_id: str,
    call: Annotated[bodies.SessionSampleCall, Body(openapi_examples=examples.SAMPLE)],
    key: Key = None,
) -> Response:
    """A drawn continuation; the session moves on behind it."""
    return await _generated(work, calls, session_id, call, key)


@router.post(
    "/v1/sessions/{session_id}/score",
    tags=["sessions"],
    response_model=answers.ScoredHere,
    responses={200: examples.SCORE_ANSWER, **_MOVES},
)
async def score(
    work: Working,
    calls: Calls,
    session_id: str,
    call: Annotated[bodies.SessionScoreCall, Body(openapi_examples=examples.SCORE)],
    key: Key = None,
) -> JsonResponse:
    """How likely given bytes are after the session's state; the session moves on behind them."""
    return JsonResponse(await work.result(calls.score(session_id, call, key)))


@router.post(
    "/v1/sessions/{session_id}/rows",
    tags=["sessions"],
    response_class=Response,
    responses={200: ROWS_ANSWER, **_MOVES},
)
async def rows(
    work: Working,
    calls: Calls,
    session_id: str,
    call: Annotated[bodies.SessionRowsCall, Body(openapi_examples=examples.ROWS)],
    key: Key = None,
) -> Response:
    """The distributions along a text from the session's state; the session moves on behind it.

    Rows are written as by `/v1/rows`; what the session is then stands behind them with `usage`. It
    moves on when all were made; an error may stand behind the last, too. Sent again by its key, the
    call reads the text anew, from where it did before.
    """
    form, count = RowFormat(call.dtype), len(call.text.data) + 1
    return await work.rows(SessionRows(calls, session_id, call, key).pieces(), form, count)


async def _generated(
    work: Work,
    calls: SessionCalls,
    session_id: str,
    call: bodies.SessionGreedyCall | bodies.SessionSampleCall,
    key: str | None,
) -> Response:
    if not call.stream:
        return JsonResponse(await work.result(calls.generate(session_id, call, key)))
    if key is not None:
        raise FieldError(
            "a stream cannot be sent again: go on from the session's version and length",
            "Idempotency-Key",
        )
    return await work.stream(calls.events(session_id, call))
