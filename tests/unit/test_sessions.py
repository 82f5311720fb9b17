"""What sessions keep in memory, and what a call that breaks off leaves behind."""

import asyncio
import base64
import gc
import itertools
import random
import tracemalloc
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from bytelm.errors import EngineDead
from bytelm.models.testing import StubLM
from bytelm.prompts.context import Context, begin
from bytelm.settings import ServerSettings
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server.callers import Caller
from bytelm_server.errors import Unavailable
from bytelm_server.service import ByteService
from bytelm_server.sessions import bodies
from bytelm_server.sessions.calls import SessionCalls
from bytelm_server.sessions.failures import NoSuchSession, StoreFull, VersionConflict
from bytelm_server.sessions.rows import SessionRows
from bytelm_server.sessions.service import Sessions
from bytelm_server.stores import Full, Record, Reply, SessionStore
from bytelm_server.stores.memory import MemoryStore
from tests.served import served_params

MOST_PER_IDLE_SESSION = 64 * 1024


def vocab_of(size: int) -> ByteVocab:
    """A vocabulary of the size that models have: many words, most behind a space."""
    draws = random.Random(5)
    words = {bytes([b]) for b in range(256)}
    while len(words) < size - 2:
        word = bytes(draws.choices(b"abcdefghijklmnopqrstuvwxyz", k=draws.randint(2, 9)))
        words.add((b" " if draws.random() < 0.6 else b"") + word)
    return ByteVocab.from_bytes([b"", b"", *sorted(words)], bos_token_id=0, eos_token_ids=[1])


class Stopping(StubLM):
    """A StubLM that can be told to wait, or to die."""

    def __init__(self, vocab: ByteVocab, **options: Any) -> None:
        super().__init__(vocab, **options)
        self.go = asyncio.Event()
        self.go.set()
        self.is_dead = False

    async def next_token_logprobs(self, token_ids):
        await self.go.wait()
        if self.is_dead:
            raise EngineDead("a process of the engine ended")
        return await super().next_token_logprobs(token_ids)


SMALL = ByteVocab.from_bytes(
    [b"", b"", *(bytes([b]) for b in b"abc "), b"ab", b" a", b"bc"],
    bos_token_id=0,
    eos_token_ids=[1],
)


class Served:
    """Sessions over a model, as one caller uses them."""

    def __init__(self, lm: StubLM, store: SessionStore | None = None, **settings: Any) -> None:
        self.lm = lm
        self.settings = ServerSettings(**settings)
        self.store = store or MemoryStore(self.settings.max_sessions)
        self.sessions = Sessions(self.store, self.settings)
        self.service = ByteService(lm, self.settings)

    @property
    def calls(self) -> SessionCalls:
        return self.sessions.of(self, Caller())

    async def create(self, **body: Any) -> str:
        made = await self.calls.create(bodies.CreateCall(**body))
        session_id: str = made["id"]
        return session_id

    async def advance(self, session_id: str, text: str, key: str | None = None) -> Any:
        call = bodies.AdvanceCall.model_validate({"bytes": text})
        return await self.calls.advance(session_id, call, key)

    async def next(self, session_id: str) -> Any:
        return (await self.calls.next(session_id, bodies.NextCall()))["results"][0]


@pytest.fixture
async def served() -> Served:
    return Served(Stopping(SMALL))


def traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def test_an_idle_session_takes_little_memory() -> None:
    """Even in the memory store, which keeps all of it in this process."""
    lm = StubLM(vocab_of(50_000), rows=8, spread=1.0)
    served = Served(lm, session_idle_seconds=0)
    await served.next(await served.create(context="the "))
    sessions = 8
    tracemalloc.start()
    try:
        before = traced()
        for i in range(sessions):
            text = f"session {i}: an apple a day keeps the doctor away " * 4
            session_id = await served.create(context={"text": text}, beam={"K": 5})
            await served.advance(session_id, "and ")
            await served.next(session_id)
        busy = traced() - before
        served.sessions.held.drop_idle()
        idle = traced() - before
    finally:
        tracemalloc.stop()
    assert len(served.sessions.held) == served.sessions.held.nbytes == 0
    assert idle / sessions < MOST_PER_IDLE_SESSION
    # There was something to let go of.
    assert busy / sessions > MOST_PER_IDLE_SESSION


async def test_memory_is_counted_as_it_is_taken() -> None:
    served = Served(StubLM(vocab_of(50_000), spread=1.0))
    await served.next(await served.create(context="the "))
    tracemalloc.start()
    try:
        before, counted = traced(), served.sessions.held.nbytes
        for i in range(8):
            await served.next(await served.create(context=f"number {i} and "))
        took = traced() - before
    finally:
        tracemalloc.stop()
    assert served.sessions.held.nbytes - counted == pytest.approx(took, rel=0.2)


async def test_states_that_are_used_least_leave_memory_first() -> None:
    served = Served(Stopping(SMALL), session_cache_bytes=40_000)
    sessions = [await served.create(context="abc ab") for _ in range(20)]
    wanted = [await served.next(one) for one in sessions]
    held = served.sessions.held
    assert held.nbytes <= 40_000
    assert 0 < len(held) < 20
    evaluations = served.lm.evaluations
    await served.next(sessions[-1])
    assert served.lm.evaluations == evaluations
    # No session is lost by it.
    for one, result in zip(sessions, wanted, strict=True):
        again = await served.next(one)
        assert np.array_equal(again["logprobs"], result["logprobs"])


async def test_a_session_that_is_at_work_stays_in_memory(served: Served) -> None:
    session_id = await served.create(context="abc")
    lm = served.lm
    assert isinstance(lm, Stopping)
    lm.go.clear()
    moving = asyncio.create_task(served.advance(session_id, "abcab"))
    await asyncio.sleep(0)
    served.sessions.held.idle_seconds = 0
    served.sessions.held.drop_idle()
    assert len(served.sessions.held) == 1
    lm.go.set()
    assert (await moving)["version"] == 2


async def test_calls_for_what_is_not_there_leave_nothing(served: Served) -> None:
    for i in range(50):
        with pytest.raises(NoSuchSession):
            await served.next(f"nothing {i}")
    assert len(served.sessions.held) == 0


async def test_calls_take_their_turn_in_the_order_of_arrival(served: Served) -> None:
    session_id = await served.create()
    letters = "abcabcaabbcc"
    calls = [asyncio.create_task(served.advance(session_id, b)) for b in letters]
    answers = await asyncio.gather(*calls)
    assert [a["version"] for a in answers] == list(range(2, 2 + len(letters)))


async def test_sessions_do_not_wait_for_each_other(served: Served) -> None:
    slow, quick = await served.create(context="a"), await served.create(context="b")
    await served.next(quick)
    lm = served.lm
    assert isinstance(lm, Stopping)
    lm.go.clear()
    waiting = asyncio.create_task(served.advance(slow, "abcabc"))
    await asyncio.sleep(0.01)
    info = await served.calls.get(quick, bodies.GetCall())
    assert info["version"] == 1
    assert not waiting.done()
    lm.go.set()
    await waiting


@pytest.mark.parametrize("steps", range(12))
async def test_a_call_that_is_cancelled_happens_wholly_or_not_at_all(
    served: Served, steps: int
) -> None:
    """Wherever it was: store and memory agree afterwards, and so does what it tells."""
    session_id = await served.create(context="ab")
    call = asyncio.create_task(served.advance(session_id, "c"))
    for _ in range(steps):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait({call})
    stored = await served.store.load(session_id)
    assert stored is not None
    assert stored.version == (1 if call.cancelled() else call.result()["version"])
    answer = await served.advance(session_id, " ")
    assert answer["version"] == stored.version + 1
    assert answer["length"] == (4 if stored.version == 2 else 3)
    twin = await served.create(context="ab")
    for b in "c " if stored.version == 2 else " ":
        await served.advance(twin, b)
    results = [(await served.next(one))["logprobs"] for one in (session_id, twin)]
    assert np.array_equal(*results)


async def test_an_engine_that_dies_changes_nothing(served: Served) -> None:
    """And a new one goes on."""
    session_id = await served.create(context="ab")
    lm = served.lm
    assert isinstance(lm, Stopping)
    lm.is_dead = True
    with pytest.raises(EngineDead):
        await served.advance(session_id, "cabca")
    served.service = ByteService(Stopping(SMALL), served.settings)
    evaluations = lm.evaluations
    answer = await served.advance(session_id, "cabca")
    assert (answer["version"], answer["length"]) == (2, 7)
    assert lm.evaluations == evaluations


class Stubborn(MemoryStore):
    """A store with no room for changes, or whose records others change."""

    refuses: Exception | None = None
    others: Any = None

    async def commit(self, record: Record, expected: int, kept: int, reply: Reply | None) -> None:
        if self.refuses is not None:
            raise self.refuses
        if self.others is not None:
            await self.others(record)
        await super().commit(record, expected, kept, reply)


class Shared(Stubborn):
    """One that other servers use as well."""

    is_shared = True


async def test_a_change_that_cannot_be_kept_has_not_happened() -> None:
    store = Stubborn(8)
    served = Served(Stopping(SMALL), store)
    session_id = await served.create(context="ab")
    before = await served.next(session_id)
    for error, raised in [(Full(), StoreFull), (OSError("the disk is gone"), Unavailable)]:
        store.refuses = error
        with pytest.raises(raised):
            await served.advance(session_id, "c")
        store.refuses = None
        assert (await served.calls.get(session_id, bodies.GetCall()))["version"] == 1
        after = await served.next(session_id)
        assert np.array_equal(after["logprobs"], before["logprobs"])


async def test_a_change_that_others_come_before_goes_out_from_theirs() -> None:
    store = Shared(8)
    one, other = Served(Stopping(SMALL), store), Served(Stopping(SMALL), store)
    session_id = await one.create(context="ab")
    came = itertools.count()

    async def others(record: Record) -> None:
        store.others = None
        if next(came) == 0:
            await other.advance(session_id, "c")

    store.others = others
    answer = await one.advance(session_id, " ")
    assert (answer["version"], answer["length"]) == (3, 4)
    twin = await other.create(context="ab")
    for b in "c ":
        await other.advance(twin, b)
    results = [(await one.next(s))["logprobs"] for s in (session_id, twin)]
    assert np.array_equal(*results)

    async def always(record: Record) -> None:
        store.others = None
        await other.advance(session_id, "a")
        store.others = always

    store.others = always
    with pytest.raises(VersionConflict):
        await one.advance(session_id, " ")


async def test_rows_end_with_an_error_where_another_server_moved_the_session() -> None:
    store = Shared(8)
    one, other = Served(Stopping(SMALL), store), Served(Stopping(SMALL), store)
    session_id = await one.create(context="ab")
    call = bodies.SessionRowsCall.model_validate({"text": " abc" * 10})
    made: list[bytes] = []

    async def read() -> None:
        async for piece in SessionRows(one.calls, session_id, call, "k").pieces():
            made.append(piece)

    async def others(record: Record) -> None:
        store.others = None
        await other.advance(session_id, "c")

    store.others = others
    with pytest.raises(VersionConflict, match="go on from its version"):
        await read()
    assert len(b"".join(made)) == 41 * 257 * 4
    made.clear()
    await read()  # from where it is now: nothing was kept
    twin = await other.create(context="ab")
    for text in ("c", " abc" * 10):
        await other.advance(twin, text)
    assert np.array_equal(*[(await other.next(s))["logprobs"] for s in (session_id, twin)])


async def test_a_rebuilt_session_costs_one_evaluation_for_each_candidate() -> None:
    served = Served(Stopping(SMALL), session_cache_bytes=0)
    session_id = await served.create(context="abc ab")
    info = await served.calls.get(session_id, bodies.GetCall())
    evaluations = served.lm.evaluations
    assert info["version"] == 1
    assert served.lm.evaluations == evaluations
    got = await served.calls.get(session_id, bodies.GetCall(candidates=True))
    under_way = [c for c in got["candidates"] if c["partial"]["base64"]]
    assert served.lm.evaluations - evaluations == len(under_way) > 1


@pytest.mark.parametrize("method", ["token", "byte"])
@pytest.mark.parametrize("in_memory", [True, False])
async def test_a_stream_that_is_left_leaves_the_state_of_the_bytes_that_were_told(
    served: Served, method: Any, in_memory: bool
) -> None:
    """Drawn by tokens or by bytes; read again from the store or not."""
    session_id = await served.create(context="ab")
    call = bodies.SessionSampleCall(steps=30, seed=3, method=method, stream=True)
    told, versions = b"", []
    async with aclosing(served.calls.events(session_id, call)) as events:
        async for event in events:
            told += base64.b64decode(event["bytes"]["base64"])
            versions.append(event["version"])
            if len(versions) == 4:
                break
    assert versions == [2, 3, 4, 5]
    info = await served.calls.get(session_id, bodies.GetCall())
    assert (info["version"], info["length"]) == (5, 2 + len(told))
    if not in_memory:
        served.sessions.held.idle_seconds = 0
        served.sessions.held.drop_idle()
    params = served_params()
    state = await begin(served.lm, params, Context.of(b"ab"))
    if method == "token":
        state = await state.prefill(told)
    else:
        for b in told:
            state = await (state.prune() << b)
    result = await served.next(session_id)
    assert np.array_equal(result["logprobs"], (await state.logp_next()).ps[:256])
    # The session can be used again at once, and goes on from there.
    assert (await served.advance(session_id, "a"))["version"] == 6


async def test_a_stream_has_its_session_to_itself(served: Served) -> None:
    session_id = await served.create(context="ab")
    call = bodies.SessionGreedyCall(steps=9, stream=True)
    async with aclosing(served.calls.events(session_id, call)) as events:
        await anext(events)
        waiting = asyncio.create_task(served.advance(session_id, "a"))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await anext(events)
    assert (await waiting)["version"] == 4


async def test_a_new_session_that_somebody_finds_at_once_is_not_taken_back() -> None:
    """Its id is in the list as soon as it is stored, before its maker hears of it."""

    class Listed(MemoryStore):
        async def create(self, record: Record, reply: Reply | None, now: float) -> bytes | None:
            known = await super().create(record, reply, now)
            await mine.advance(record.id, "b")
            return known

    mine = Served(Stopping(SMALL), Listed(100))
    session_id = await mine.create(context="a")
    session = await mine.calls.get(session_id, bodies.GetCall())
    assert (session["version"], session["length"]) == (2, 2)
    other = Served(Stopping(SMALL))
    other_id = await other.create(context="a")
    await other.advance(other_id, "b")
    told, want = await mine.next(session_id), await other.next(other_id)
    assert np.array_equal(told["logprobs"], want["logprobs"])
