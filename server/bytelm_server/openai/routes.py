"""HTTP to calls in OpenAI's shape and back; nothing else."""

from typing import Annotated

from fastapi import APIRouter, Body, Response

from bytelm_server.answers import Model
from bytelm_server.documented import DOORS, FAILURES, NO_SUCH_MODEL, NOT_READY, with_chunks
from bytelm_server.examples import MODEL_ANSWER
from bytelm_server.openai import answers, bodies, examples, tokenizer
from bytelm_server.openai.calls import checked_model
from bytelm_server.openai.chat import Chatting
from bytelm_server.openai.completions import Completing
from bytelm_server.reading import JsonRoute
from bytelm_server.wire import JsonResponse
from bytelm_server.work import Served, Working

router = APIRouter(route_class=JsonRoute)

_OF_MODEL = {**FAILURES, **NO_SUCH_MODEL}


@router.post(
    "/v1/completions",
    tags=["openai"],
    response_model=answers.Completion,
    responses={
        200: with_chunks(
            examples.COMPLETION_ANSWER, answers.CompletionChunk, examples.COMPLETION_STREAM
        ),
        **_OF_MODEL,
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


@router.post(
    "/v1/chat/completions",
    tags=["openai"],
    response_model=answers.ChatCompletion,
    responses={
        200: with_chunks(examples.CHAT_ANSWER, answers.ChatChunk, examples.CHAT_STREAM),
        **_OF_MODEL,
    },
)
async def chat_completions(
    work: Working,
    backend: Served,
    call: Annotated[bodies.ChatCall, Body(openapi_examples=examples.CHATS)],
) -> Response:
    """The next message of a chat, in the shape of OpenAI's API, where a byte is a token."""
    chatting, salt = Chatting(backend.service, call), work.caller.cache_salt
    if call.stream:
        return await work.stream(chatting.events(salt))
    return JsonResponse(await work.result(chatting.answer(salt)))


@router.get(
    "/v1/models/{model:path}",
    tags=["server"],
    response_model=Model,
    responses={200: MODEL_ANSWER, **_OF_MODEL},
)
async def model(backend: Served, model: str) -> JsonResponse:
    """The model by its name, or as `default`."""
    checked_model(backend.service, model)
    return JsonResponse(backend.service.model())


@router.get(
    "/tokenizer_info",
    tags=["server"],
    response_model=tokenizer.TokenizerInfo,
    responses={200: examples.INFO_ANSWER, **DOORS, **NOT_READY},
)
async def tokenizer_info(backend: Served) -> JsonResponse:
    """What clients ask of a tokenizer's configuration, as vLLM tells it."""
    return JsonResponse(tokenizer.info(backend.service))


@router.post(
    "/tokenize",
    tags=["openai"],
    response_model=tokenizer.Tokens,
    responses={200: examples.TOKENS_ANSWER, **_OF_MODEL},
)
async def tokenize(
    backend: Served,
    call: Annotated[tokenizer.TokenizeCall, Body(openapi_examples=examples.TOKENIZE)],
) -> JsonResponse:
    """The tokens of a text, as vLLM and llama.cpp tell them: bytes; EOS's name alone is 256."""
    return JsonResponse(tokenizer.tokenized(backend.service, call))


@router.post(
    "/detokenize",
    tags=["openai"],
    response_model=tokenizer.Untokenized,
    responses={200: examples.UNTOKENIZED_ANSWER, **_OF_MODEL},
)
async def detokenize(
    backend: Served,
    call: Annotated[tokenizer.DetokenizeCall, Body(openapi_examples=examples.DETOKENIZE)],
) -> JsonResponse:
    """The text of tokens, as vLLM and llama.cpp tell it: bytes; 256 is EOS's name."""
    return JsonResponse(tokenizer.untokenized(backend.service, call))
