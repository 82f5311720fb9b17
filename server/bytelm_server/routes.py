"""HTTP to service calls and back; nothing else."""

import logging
import math
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from bytelm_server import answers, examples, requests, text_rows
from bytelm_server.documented import DOORS, FAILURES, NOT_READY, with_stream
from bytelm_server.metrics import CONTENT_TYPE, Metrics
from bytelm_server.reading import JsonRoute
from bytelm_server.row_stream import RowFormat
from bytelm_server.sessions.service import Sessions
from bytelm_server.wire import JsonResponse
from bytelm_server.work import Served, Working

_log = logging.getLogger(__name__)

router = APIRouter(route_class=JsonRoute)
public = APIRouter(route_class=JsonRoute)
"""What needs no API key."""


@public.get(
    "/health",
    tags=["server"],
    response_model=answers.Health,
    responses={
        200: examples.HEALTH_ANSWER,
        403: DOORS[403],
        503: {
            "model": answers.Health,
            "description": "Starting, draining or dead; or sessions cannot be kept.",
        },
    },
)
async def health(request: Request, backend: Served) -> JsonResponse:
    """Whether the server can answer: 200 when it is ready, else 503."""
    sessions: Sessions = request.app.state.sessions
    status = backend.status
    if status == "ready" and sessions.fault is not None:
        return JsonResponse(answers.Health(status="store_failed", reason=sessions.fault), 503)
    return JsonResponse(answers.Health(status=status), 200 if status == "ready" else 503)


@router.get(
    "/metrics",
    tags=["server"],
    response_class=Response,
    responses={200: examples.METRICS_ANSWER, **DOORS},
)
async def metrics(request: Request) -> Response:
    """Counts, latencies and how the engine stands, for Prometheus; vLLM's own metrics beside."""
    found: Metrics = request.app.state.metrics
    sessions: Sessions = request.app.state.sessions
    found.sessions_in_memory.set(len(sessions.held))
    try:
        found.sessions.set(await sessions.count())
    except Exception:
        # What else there is to see counts all the more now.
        _log.exception("sessions could not be counted")
        found.sessions.set(math.nan)
    return Response(found.text(), media_type=CONTENT_TYPE)


@router.get(
    "/v1/models",
    tags=["server"],
    response_model=answers.Models,
    responses={200: examples.MODELS_ANSWER, **DOORS, **NOT_READY},
)
async def models(backend: Served) -> JsonResponse:
    """The model: name, fingerprint, vocabulary size, limits, initial context.

    In the shape of OpenAI's API, and what that does not have.
    """
    return JsonResponse(answers.Models(object="list", data=[backend.service.model()]))


@router.get(
    "/v1/vocab",
    tags=["server"],
    response_model=answers.Vocab,
    responses={
        200: examples.VOCAB_ANSWER,
        304: {"description": "As `If-None-Match` has it."},
        **DOORS,
        **NOT_READY,
    },
)
async def vocab(request: Request, backend: Served) -> Response:
    """The vocabulary: each id's bytes, spelling and kind; BOS, EOS. Large: keep it by its ETag."""
    made = await backend.service.vocab()
    headers = {"ETag": made.etag, "Cache-Control": "no-cache"}
    if made.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(made.body, media_type="application/json", headers=headers)


@router.post(
    "/v1/next_bytes",
    tags=["bytes"],
    response_model=answers.Answer[answers.NextBytes | answers.TopBytes | answers.ItemError],
    responses={200: examples.NEXT_BYTES_ANSWER, **FAILURES},
)
async def next_bytes(
    work: Working,
    backend: Served,
    call: Annotated[requests.NextBytesCall, Body(openapi_examples=examples.NEXT_BYTES)],
) -> JsonResponse:
    """The distribution over the byte after each context, and the probability that it ends there."""
    return JsonResponse(await work.result(backend.service.next_bytes(call, work.caller.cache_salt)))


@router.post(
    "/v1/greedy",
    tags=["bytes"],
    response_model=answers.Answer[answers.Continuation | answers.ItemError],
    responses={200: with_stream(examples.GREEDY_ANSWER, answers.Event), **FAILURES},
)
async def greedy(
    work: Working,
    backend: Served,
    call: Annotated[requests.GreedyCall, Body(openapi_examples=examples.GREEDY)],
) -> Response:
    """The most probable byte after each context, again and again."""
    salt = work.caller.cache_salt
    if call.stream:
        return await work.stream(backend.service.greedy_events(call, salt))
    return JsonResponse(await work.result(backend.service.greedy(call, salt)))


@router.post(
    "/v1/sample",
    tags=["bytes"],
    response_model=answers.Answer[answers.Sample | answers.ItemError],
    responses={200: with_stream(examples.SAMPLE_ANSWER, answers.Event), **FAILURES},
)
async def sample(
    work: Working,
    backend: Served,
    call: Annotated[requests.SampleCall, Body(openapi_examples=examples.SAMPLE)],
) -> Response:
    """Bytes drawn from the distribution after each context, one after another."""
    salt = work.caller.cache_salt
    if call.stream:
        return await work.stream(backend.service.sample_events(call, salt))
    return JsonResponse(await work.result(backend.service.sample(call, salt)))


@router.post(
    "/v1/score",
    tags=["bytes"],
    response_model=answers.Answer[answers.Score | answers.ItemError],
    responses={200: examples.SCORE_ANSWER, **FAILURES},
)
async def score(
    work: Working,
    backend: Served,
    call: Annotated[requests.ScoreCall, Body(openapi_examples=examples.SCORE)],
) -> JsonResponse:
    """How likely given bytes are after a context: log-probabilities and bits per byte."""
    return JsonResponse(await work.result(backend.service.score(call, work.caller.cache_salt)))


@router.post(
    "/v1/rows",
    tags=["bytes"],
    response_class=Response,
    responses={200: examples.ROWS_ANSWER, **FAILURES},
)
async def rows(
    work: Working,
    backend: Served,
    call: Annotated[requests.RowsCall, Body(openapi_examples=examples.ROWS)],
) -> Response:
    """The distributions before each byte of a text, and behind the last, as raw numbers.

    Rows come as they are made, little-endian: `numpy.frombuffer(body, headers["X-Dtype"])`, in the
    shape that the header `X-Shape` has. Each has the natural log-probabilities of the 256 bytes,
    then of EOS. Where a row cannot be made, since nothing continues with the byte before it, or for
    another reason, those before it stand, and behind them a NaN, then JSON to the end:
    `{"error": …}`. Such a body is no whole number of rows.
    """
    pieces = text_rows.rows(backend.service, call, work.caller.cache_salt)
    return await work.rows(pieces, RowFormat(call.dtype), len(call.text.data) + 1)
