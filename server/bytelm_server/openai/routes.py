"""HTTP to calls in OpenAI's shape and back; nothing else."""

from typing import Annotated

from fastapi import APIRouter, Body, Response

from bytelm_server.documented import FAILURES, NO_SUCH_MODEL, with_chunks
from bytelm_server.openai import answers, bodies, examples
from bytelm_server.openai.completions import Completing
from bytelm_server.reading import JsonRoute
from bytelm_server.wire import JsonResponse
from bytelm_server.work import Served, Working

router = APIRouter(route_class=JsonRoute, tags=["openai"])


@router.post(
    "/v1/completions",
    response_model=answers.Completion,
    responses={
        200: with_chunks(
            examples.COMPLETION_ANSWER, answers.CompletionChunk, examples.COMPLETION_STREAM
        ),
        **FAILURES,
        **NO_SUCH_MODEL,
    },
)
async def completions(
    work: Working,
    backend: Served,
    call: Annotated[bodies.CompletionCall, Body(openapi_examples=examples.COMPLETIONS)],
) -> Response:
    """Text after prompts, in the shape of OpenAI's API, where a byte is a token.

    With `echo` and `logprobs` the prompt is scored.
    """
    completing, salt = Completing(backend.service, call), work.caller.cache_salt
    if call.stream:
        return await work.stream(completing.events(salt))
    return JsonResponse(await work.result(completing.answer(salt)))
