"""What type checkers know of the client: `make lint` reads these, nothing runs them."""

from collections.abc import AsyncIterator
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

from bytelm import BeamParams
from bytelm_client import (
    AsyncClient,
    AsyncSession,
    AsyncStream,
    Call,
    Client,
    Continuation,
    NextBytes,
    NextTokens,
    RemoteByteLM,
    SampleOptions,
    Score,
    Session,
    SessionInfo,
    Stream,
)


def _of_a_client(client: Client, n: int) -> None:
    assert_type(client.next_bytes("a", timeout=3), NextBytes)
    assert_type(client.next_bytes(["a", "b"]), list[NextBytes])
    assert_type(client.greedy(bytearray(b"a"), 3, beam=BeamParams(K=3)), Continuation)
    assert_type(client.sample("a", 3).text, str)
    assert_type(client.sample("a", 3, n=1), Continuation)
    assert_type(client.sample(["a"], 3, n=n), list[Continuation])
    assert_type(client.sample("a", 3, n=n), Continuation | list[Continuation])
    assert_type(client.score("a", "b"), Score)
    assert_type(client.score("a", ["b"]), list[Score])
    assert_type(client.stream_greedy("a", 3), Stream)
    assert_type(client.rows("a", b"b"), NDArray[np.float32])
    assert_type(client.rows("a", "b", dtype="float16", timeout=3), NDArray[np.float16])
    assert_type(client.token_logprobs(np.array([1])), NextTokens)
    assert_type(client.token_logprobs([[1], [2]]), list[NextTokens])
    options: SampleOptions = {"seed": 1, "stop": b".", "timeout": None}
    assert_type(client.sample("a", 3, **options), Continuation)


def _of_a_session(session: Session, n: int) -> None:
    assert_type(session.sample(3).text, str)
    assert_type(session.sample(3, n=1, seed=1), Continuation)
    assert_type(session.sample(3, n=n, advance=False), Continuation | list[Continuation])
    assert_type(session.score("a", spans="words"), Score)
    assert_type(session.score(["a"], advance=False, spans=[[(0, 1)]]), list[Score])
    assert_type(session.next(prune=True), NextBytes)
    assert_type(session.fork(b"a"), Session)
    assert_type(session.advance(np.array([1]), timeout=3), SessionInfo)
    assert_type(session.plan.advance("a"), Call[SessionInfo])
    assert_type(session.plan.sample(3), Call[Continuation])
    assert_type(session.plan.score("a"), Call[Score])
    assert_type(session.plan.next_tokens(), Call[NextTokens])
    assert_type(session.stream_sample(3), Stream)
    assert_type(session.rows("a", if_version=1), NDArray[np.float32])
    assert_type(session.rows("a", dtype="float16"), NDArray[np.float16])


async def _of_what_is_awaited(client: AsyncClient) -> AsyncIterator[bytes]:
    assert_type((await client.sample("a", 3)).text, str)
    async with client.session("a") as session, session.fork() as other:
        assert_type(session, AsyncSession)
        assert_type(await session.sample(3), Continuation)
        assert_type(await other.next(), NextBytes)
        assert_type(session.stream_greedy(3), AsyncStream)
        async for piece in other.stream_greedy(3):
            yield piece
    assert_type(await client.session("a"), AsyncSession)
    async with await RemoteByteLM.initial(client) as state:
        assert_type(await (state << 97), RemoteByteLM)
