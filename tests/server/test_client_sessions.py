"""Sessions of both clients on a real server: every call, and once whatever the connection does."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bytelm_client import (
    AsyncClient,
    Beam,
    Client,
    Conflict,
    InvalidRequest,
    ItemsFailed,
    NotFound,
    Session,
    SessionInfo,
    segments,
    special,
)
from tests.server.proxy import Proxy, proxy_to


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture
def session(client: Client) -> Iterator[Session]:
    with client.session("hello") as session:
        yield session


def standing(info: SessionInfo) -> tuple[int, int]:
    return info.version, info.length


def test_a_session_stands_after_its_context(client: Client, session: Session) -> None:
    assert (session.kind, session.version, session.length) == ("byte", 1, 5)
    assert list(session.next().logprobs) == list(client.next_bytes("hello").logprobs)
    assert repr(session) == f"Session({session.id!r}, 5 bytes, version 1)"


def test_it_moves_on(client: Client, session: Session) -> None:
    session.advance(b"\xff")
    session.advance("é")
    assert (session.version, session.length) == (3, 8)
    with client.session(b"hello\xff\xc3\xa9", prefill="exact") as other:
        assert list(session.next().logprobs) == list(other.next().logprobs)
    assert session.prefill(" the other half of it").length == 29


def test_a_fork_is_another_session(client: Client, session: Session) -> None:
    with session.fork() as same, session.fork("llo") as moved:
        assert len({session.id, same.id, moved.id}) == 3
        assert (same.length, moved.length, session.length) == (5, 8, 5)
        moved.advance(b"x")
        assert list(same.next().logprobs) == list(session.next().logprobs)
    with pytest.raises(NotFound):
        moved.refresh()


def test_leaving_a_session_ends_it(client: Client) -> None:
    with client.session() as session:
        pass
    with pytest.raises(NotFound):
        client.resume(session.id)
    with client.session() as session:
        session.delete()


def test_what_goes_wrong_inside_is_what_is_told(url: str) -> None:
    own = Client(url)

    def fail() -> None:
        with own.session() as session:
            own.close()
            session.next()

    with pytest.raises(RuntimeError, match="closed"):
        fail()


def test_a_session_can_be_resumed_by_its_id(url: str, session: Session) -> None:
    with Client(url) as other:
        again = other.resume(session.id)
        assert again.info == session.info
        again.advance("!")
    assert session.version == 1
    assert session.refresh().version == session.version == 2


def test_its_options_reach_the_server(client: Client) -> None:
    beam: Beam = {"K": 2, "prune_threshold": 0.1}
    with client.session("hello", beam=beam, prefill="exact", ttl=77, max_context_length=50) as s:
        assert list(s.next().logprobs) == list(
            client.next_bytes("hello", beam=beam, prefill="exact").logprobs
        )
        assert len(s.candidates()) >= 1
        assert 0 < s.info.expires_at - s.fork(ttl=7).info.expires_at < 77


def test_segments_are_a_context_and_can_follow(client: Client) -> None:
    with client.session(segments(special("<|im_start|>"), "user")) as s:
        s.advance(segments("\n", special("<|im_end|>"), b"\xff"))
        assert s.length == 6


def test_pruning_is_a_choice(client: Client) -> None:
    with client.session("th", beam={"K": 1, "prune_threshold": 0}) as s:
        pruned = s.next(prune=True)
        with s.fork("e", prune=False) as wide, s.fork("e") as narrow:
            assert len(wide.candidates()) > len(narrow.candidates())
        assert list(pruned.logprobs) != list(s.next().logprobs)


def test_continuations_are_those_of_stateless_calls(client: Client, session: Session) -> None:
    want = client.greedy("hello", 9, logprobs=True, stop="q")
    look = session.greedy(9, advance=False, logprobs=True, stop="q")
    assert (look.bytes, look.logprob) == (want.bytes, want.logprob)
    assert session.version == 1
    moved = session.greedy(9, stop="q")
    assert moved.bytes == want.bytes
    assert (session.version, session.length) == (2, 5 + len(want.bytes))


def test_samples_are_drawn_by_the_seed(client: Client, session: Session) -> None:
    want = client.sample("hello", 9, n=3, seed=4, method="byte")
    look = session.sample(9, n=3, advance=False, seed=4, method="byte")
    assert isinstance(want, list)
    assert isinstance(look, list)
    assert [one.bytes for one in look] == [one.bytes for one in want]
    one = session.sample(9, seed=4, method="byte")
    assert not isinstance(one, list)
    assert one.bytes == want[0].bytes
    assert session.length == 5 + len(one.bytes)


def test_a_token_session_counts_and_returns_tokens(client: Client, lm: Any) -> None:
    with client.session([266, 104, 105], kind="token") as s:
        assert (s.kind, s.length) == ("token", 3)
        s.advance([257])
        s.advance("he")
        row = s.next_tokens()
        want = lm.row([266, 104, 105, 257, 256])
        assert np.array_equal(row.logprobs, want)
        assert row.top(2)[0] == (int(want.argmax()), float(want.max()))
        made = s.greedy(3)
        assert made.tokens is not None
        assert made.bytes == b"".join(lm.vocab.token_bytes[i] for i in made.tokens)
        with pytest.raises(TypeError, match="next_tokens"):
            s.next()
        stream = s.stream_greedy(3)
        list(stream)
        assert (s.version, s.length) == standing(s.refresh())


def test_token_rows_are_the_models(client: Client, lm: Any) -> None:
    contexts = [[266], [266, 104]]
    rows = client.token_logprobs(contexts)
    for row, context in zip(rows, contexts, strict=True):
        assert np.array_equal(row.logprobs, lm.row(context))
    assert rows[0].logprobs.dtype == np.float32
    assert np.array_equal(client.token_logprobs([266]).logprobs, rows[0].logprobs)


def test_sessions_are_listed_page_by_page(url: str, client: Client) -> None:
    made = [client.session() for _ in range(3)]
    listed = [info.id for info in client.sessions()]
    assert [s.id for s in made] == [i for i in listed if i in {s.id for s in made}]
    client.batch([s.plan.delete() for s in made])
    assert not {s.id for s in made} & {info.id for info in client.sessions()}


def test_a_batch_is_many_calls(client: Client, session: Session) -> None:
    with client.session("a") as other:
        moved, told, made = client.batch(
            [session.plan.advance("x"), other.plan.next(), other.plan.greedy(5)]
        )
        assert (moved.version, session.version) == (2, 2)
        assert list(told.logprobs) == list(client.next_bytes("a").logprobs)
        assert made.bytes == client.greedy("a", 5).bytes
        assert other.length == 6
        bad = [session.plan.advance("y", if_version=1), session.plan.get()]
        with pytest.raises(ItemsFailed) as caught:
            client.batch(bad)
    assert isinstance(caught.value.errors[0], Conflict)
    assert caught.value.results[1].version == 2


def test_calls_of_a_batch_have_their_options(client: Client) -> None:
    with client.session("hhet", beam={"K": 1, "prune_threshold": 0.0}) as session:
        session.advance("h", prune=False)
        pruned, whole = session.next(prune=True), session.next()
        assert list(pruned.logprobs) != list(whole.logprobs)
        told, candidates = client.batch([session.plan.next(prune=True), session.plan.candidates()])
        assert list(told.logprobs) == list(pruned.logprobs)
        assert candidates == session.candidates()


def test_a_change_can_depend_on_the_version(session: Session) -> None:
    session.advance("a", if_version=1)
    with pytest.raises(Conflict) as caught:
        session.greedy(3, if_version=1)
    assert caught.value.code == "version_conflict"


def test_what_cannot_follow(client: Client) -> None:
    beam: Beam = {"K": 1, "prune_threshold": 0.9, "heal": False, "deferred": False}
    with client.session("hheth", beam=beam, prefill="exact") as session:
        assert session.next().logprobs[ord("i")] == -math.inf
        with pytest.raises(InvalidRequest) as caught:
            session.advance("i")
        assert caught.value.code == "no_continuation"


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    with proxy_to(url) as proxy:
        yield proxy


def test_a_change_whose_answer_is_lost_happens_once(proxy: Proxy, client: Client) -> None:
    with Client(proxy.url) as shaky, client.session("hello") as kept:
        session = shaky.resume(kept.id)
        want = client.greedy("hello", 9).bytes
        proxy.break_after = 1
        assert session.greedy(9).bytes == want
        assert (session.version, session.length) == (2, 14)
        proxy.break_after = 1
        session.advance("x")
        assert kept.refresh() == session.info
        assert kept.version == 3
        shaky.close()


def test_a_session_whose_answer_is_lost_is_made_once(proxy: Proxy, client: Client) -> None:
    before = {info.id for info in client.sessions()}
    proxy.break_after = 1
    with Client(proxy.url) as shaky:
        made = shaky.session("hello")
        assert {info.id for info in client.sessions()} - before == {made.id}
        proxy.break_after = 1
        forked = made.fork("x")
        assert {info.id for info in client.sessions()} - before == {made.id, forked.id}
        proxy.break_after = 1
        made.delete()
        client.resume(forked.id).delete()
    assert {info.id for info in client.sessions()} == before


def test_a_batch_whose_answer_is_lost_happens_once(proxy: Proxy, client: Client) -> None:
    with client.session("a") as one, client.session("b") as other, Client(proxy.url) as shaky:
        proxy.break_after = 1
        shaky.batch([one.plan.advance("x"), other.plan.advance("y")])
        assert (one.refresh().version, other.refresh().version) == (2, 2)


async def test_the_async_client_does_the_same(url: str, client: Client, lm: Any) -> None:
    async with AsyncClient(url) as a, a.session("hello") as s:
        assert list((await s.next()).logprobs) == list(client.next_bytes("hello").logprobs)
        await s.advance("x")
        await s.prefill("y")
        assert s.length == 7
        async with s.fork("z") as fork:
            assert fork.length == 8
        with pytest.raises(NotFound):
            await fork.refresh()
        again = await a.resume(s.id)
        assert again.info == await s.refresh()
        made = await s.greedy(5)
        drawn = await s.sample(5, seed=1, n=2, advance=False)
        assert isinstance(drawn, list)
        stream = s.stream_greedy(5)
        assert b"".join([piece async for piece in stream])
        assert b"".join([piece async for piece in s.stream_sample(5, seed=1, advance=False)])
        assert (s.version, s.length) == standing(await s.refresh())
        assert s.id in [info.id async for info in a.sessions()]
        assert (await a.batch([s.plan.next()]))[0].logprobs.shape == (257,)
        assert await s.candidates()
        token = await a.session([266], kind="token")
        assert np.array_equal((await token.next_tokens()).logprobs, lm.row([266]))
        assert np.array_equal((await a.token_logprobs([[266]]))[0].logprobs, lm.row([266]))
        await token.delete()
        assert made.bytes
    with pytest.raises(NotFound):
        client.resume(s.id)
