"""States and token LMs that live on a server are held to the laws of local ones."""

import asyncio
import gc
import math
import runpy
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.errors import ByteError, ContextTooLong, EmptyBeam, InputError, Terminated
from bytelm.generating.draws import Draw
from bytelm.generating.generation import generate
from bytelm.generating.score import score
from bytelm.models.byte_lm import StatefulByteLM
from bytelm.models.ensemble import Ensemble
from bytelm.models.logprobs import EOS, LazyByteProbs
from bytelm.models.testing import (
    BruteForce,
    StubLM,
    assert_chain_rule,
    assert_exact,
    assert_immutable,
    assert_lower_bound,
    assert_normalised,
    assert_prune_keeps_one,
    assert_reproducible,
)
from bytelm.models.token_lm import AsyncTokenLM
from bytelm_client import (
    AsyncClient,
    Beam,
    CannotConnect,
    Client,
    NotFound,
    RemoteByteLM,
    RemoteTokenLM,
    messages,
    segments,
    special,
)
from tests.served import served_params

TOY_SERVER = Path(__file__).with_name("toy_server.py")
EXACT: Any = {"beam": {"K": None, "prune_threshold": 0}, "prefill": "exact"}


@pytest.fixture(scope="module")
def toys() -> dict[str, StubLM]:
    toy = runpy.run_path(str(TOY_SERVER))["toy"]
    return {name: toy(name) for name in ("one", "other")}


@pytest.fixture(scope="module")
def toy_urls(start_stub: Callable[..., str]) -> dict[str, str]:
    return {name: start_stub(name, script=TOY_SERVER) for name in ("one", "other")}


@pytest.fixture
async def toy_client(toy_urls: dict[str, str]) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(toy_urls["one"]) as client:
        yield client


@pytest.fixture
def truth(toys: dict[str, StubLM]) -> BruteForce:
    return BruteForce(toys["one"].row, toys["one"].vocab)


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url) as client:
        yield client


# The laws.


async def test_law_1_distributions_sum_to_one(toy_client: AsyncClient) -> None:
    state = await RemoteByteLM.initial(toy_client)
    for b in b"abcab":
        await assert_normalised(state)
        state = await (state.prune() << b)
        await assert_normalised(state.prune())


async def test_law_2_conditionals_sum_to_the_probability(toy_client: AsyncClient) -> None:
    with Client(toy_client.base_url) as eager:

        def log_z(state: StatefulByteLM) -> float:
            assert isinstance(state, RemoteByteLM)
            candidates = eager.resume(state.session.id).candidates()
            return float(np.logaddexp.reduce([c.weight for c in candidates]))

        await assert_chain_rule(await RemoteByteLM.initial(toy_client, **EXACT), b"abcab", log_z)


async def test_law_3_states_do_not_change(toy_client: AsyncClient) -> None:
    state = await (await RemoteByteLM.initial(toy_client, b"ab")).prefill(b"c")
    await assert_immutable(state, b"abc")
    await assert_immutable(state.prune(), b"abc")


@pytest.mark.parametrize("text", [b"", b"a", b"ab", b"abca", b"cabbc"])
async def test_laws_4_and_5_brute_force_agrees(
    toy_client: AsyncClient, truth: BruteForce, text: bytes
) -> None:
    initial = await RemoteByteLM.initial(toy_client, **EXACT)
    await assert_exact(await initial.prefill(text), text, truth)
    state = initial
    for b in text:
        state = await (state << b)
    await assert_exact(state, text, truth)
    pruned = await RemoteByteLM.initial(toy_client, text, beam={"K": 1}, prefill="exact")
    weights = [c.weight for c in await pruned.session.candidates()]
    assert_lower_bound(float(np.logaddexp.reduce(weights)), text, truth)


async def test_law_6_a_seed_repeats_a_text(toy_client: AsyncClient) -> None:
    state = await RemoteByteLM.initial(toy_client)
    for draw in ({"seed": 4}, {"seed": 4, "temperature": 0.7}):
        await assert_reproducible(lambda draw=draw: state.sample(b"ab", 12, Draw(**draw)))  # type: ignore[misc]


async def test_law_7_pruning_leaves_something(toy_client: AsyncClient) -> None:
    beam: Any = {"K": 1, "prune_threshold": 0.9}
    state = await RemoteByteLM.initial(toy_client, b"abca", beam=beam)
    pruned = state.prune()
    likely = {id(s): int(np.isfinite((await s.logp_next()).ps).sum()) for s in (state, pruned)}
    state.prune = lambda: pruned  # type: ignore[method-assign]
    assert_prune_keeps_one(state, lambda s: likely[id(s)])


# A state is a local one's drop-in.


async def test_it_is_the_local_state(client: AsyncClient, lm: Any) -> None:
    local = await ByteBeamState.initial(lm, served_params())
    remote = await RemoteByteLM.initial(client)
    for b in b"the ant":
        assert np.array_equal((await local.logp_next()).ps, (await remote.logp_next()).ps)
        local, remote = await (local.prune() << b), await (remote.prune() << b)
    assert remote.context == b"the ant"
    assert await remote.greedy(b"hello", 9) == await local.greedy(b"hello", 9)
    for text in (b"heth", b""):
        there, here = await score(remote, text, eos=True), await score(local, text, eos=True)
        # As rows come, in float32.
        assert np.allclose(there.logprobs, here.logprobs, rtol=1e-6)
        assert there.eos == pytest.approx(here.eos, rel=1e-6)
    prefilled = await (await RemoteByteLM.initial(client)).prefill(b"the ant ")
    want = await (await ByteBeamState.initial(lm, local.params)).prefill(b"the ant ")
    assert np.array_equal((await prefilled.logp_next()).ps, (await want.logp_next()).ps)


async def test_unpruned_steps_are_unpruned(client: AsyncClient, lm: Any) -> None:
    local = await ByteBeamState.initial(lm, served_params(K=1))
    remote = await RemoteByteLM.initial(client, beam={"K": 1})
    for b in b"the":
        local, remote = await (local << b), await (remote << b)
    assert np.array_equal((await local.logp_next()).ps, (await remote.logp_next()).ps)
    pruned = (await local.prune().logp_next()).ps
    assert np.array_equal(pruned, (await remote.prune().logp_next()).ps)
    assert not np.array_equal(pruned, (await remote.logp_next()).ps)


async def test_draws_of_ones_own_walk(client: AsyncClient, lm: Any) -> None:
    local = await ByteBeamState.initial(lm, served_params())
    remote = await RemoteByteLM.initial(client)

    def second(p: Any) -> int:
        return int(list(p.top(2))[1])

    assert await remote.sample(b"he", 7, second) == await local.sample(b"he", 7, second)
    cold = await remote.sample(b"he", 7, Draw(temperature=0))
    assert cold == await local.greedy(b"he", 7)
    assert len(await remote.sample(b"he", 7)) == 9
    filtered = await remote.sample(b"he", 7, Draw(top_k=1))
    assert filtered == await local.greedy(b"he", 7)
    assert await remote.sample(b"he", 0) == await remote.greedy(b"he", 0) == b"he"


async def test_contexts_of_all_kinds_come_first(client: AsyncClient) -> None:
    state = await RemoteByteLM.initial(client, segments(special("<|im_start|>"), "é", b"\xff"))
    assert state.context == b"\xc3\xa9\xff"
    chat = await RemoteByteLM.initial(client, messages([{"role": "user", "content": "hi"}]))
    assert (await (chat << 97)).context == b"a"
    assert (await RemoteByteLM.initial(client, "é")).context == "é".encode()


async def test_the_end_of_the_text(toy_client: AsyncClient) -> None:
    state = await RemoteByteLM.initial(toy_client, b"ab")
    ended = await (state << EOS)
    assert (ended.terminated, ended.context) == (True, b"ab")
    for call in (ended.logp_next(), ended << 97, ended.prefill(b"a"), ended.greedy(b"", 3)):
        with pytest.raises(Terminated):
            await call
    beam: Any = {"special_tokens": "literal"}
    endless = await RemoteByteLM.initial(toy_client, b"ab", beam=beam)
    with pytest.raises(EmptyBeam, match="cannot end"):
        await (endless << EOS)


async def test_a_draw_of_ones_own_ends_where_the_model_is_full(
    client: AsyncClient, lm: Any
) -> None:
    text = b"#" * 196
    local = await (await ByteBeamState.initial(lm, BeamParams(K=5))).prefill(text)
    remote = await RemoteByteLM.initial(client, text, beam={"K": 5, "prune_threshold": 0})

    def hash_only(p: Any) -> int:
        return ord("#")

    made = await remote.sample(b"", 9, hash_only)
    assert made == await local.sample(b"", 9, hash_only) == b"####"
    for b in made:
        assert not remote.at_limit
        remote = await (remote.prune() << b)
    assert remote.at_limit
    assert remote.prune().at_limit
    assert (await score(remote, b"")).logprob == 0
    with pytest.raises(ContextTooLong):
        await score(remote, b"#")


async def test_errors_are_those_of_local_states(client: AsyncClient) -> None:
    beam: Beam = {"K": 1, "prune_threshold": 0.9, "heal": False, "deferred": False}
    state = await RemoteByteLM.initial(client, beam=beam)
    state = await state.prefill(b"hheth", "exact")
    with pytest.raises(EmptyBeam, match="no tokenization"):
        await (state.prune() << ord("i"))
    with pytest.raises(ByteError):
        await (state << 256)
    with pytest.raises(ByteError):
        await state.prefill([300])
    with pytest.raises(ContextTooLong):
        await state.prefill(b"x" * 300)
    with pytest.raises(CannotConnect):
        await RemoteByteLM.initial("http://127.0.0.1:9")


# What lives on the server ends there.


def living(url: str) -> set[str]:
    with Client(url) as client:
        return {info.id for info in client.sessions()}


async def test_states_that_nobody_refers_to_end(client: AsyncClient, url: str) -> None:
    before = living(url)
    state = await RemoteByteLM.initial(client)
    for b in b"hello":
        state = await (state.prune() << b)
    await state.greedy(b"xyz", 5)
    gc.collect()
    for _ in range(1000):
        if living(url) - before == {state.session.id}:
            break
        await asyncio.sleep(0.05)
    assert living(url) - before == {state.session.id}
    pruned = state.prune()
    del state
    gc.collect()
    await asyncio.sleep(0.2)
    assert living(url) - before == {pruned.session.id}
    await pruned.cleanup()
    assert living(url) - before == set()
    with pytest.raises(NotFound):
        await pruned.logp_next()


async def test_a_failed_step_leaves_nothing(client: AsyncClient, url: str) -> None:
    before = living(url)
    state = await RemoteByteLM.initial(client)
    with pytest.raises(ContextTooLong):
        await state.prefill(b"x" * 300)
    gc.collect()
    await state.cleanup()
    assert living(url) - before == set()


async def test_leaving_a_state_ends_all_that_came_of_it(client: AsyncClient, url: str) -> None:
    before = living(url)
    async with await RemoteByteLM.initial(client, "a") as state:
        first = state
        between = await state.prefill(b"b")
        state = await (between << 99)
        assert len(living(url) - before) == 3
    assert living(url) - before == set()
    assert await client.health() == "ready"
    for old in (first, between, state):
        with pytest.raises(NotFound):
            await old.logp_next()


async def test_a_client_made_for_states_ends_with_the_last(url: str) -> None:
    before = living(url)
    async with await RemoteByteLM.initial(url, "a") as state:
        own = state._handle.keeper.client
        other = await (state << 98)
        await state.cleanup()
        assert not own._http.is_closed
        await other.cleanup()
        assert own._http.is_closed
    with pytest.raises(ContextTooLong):
        await RemoteByteLM.initial(url, "x" * 300)
    assert living(url) - before == set()


# Ensembles of remote states.


async def test_an_ensemble_over_two_servers_with_different_tokenizers(
    toys: dict[str, StubLM], toy_urls: dict[str, str]
) -> None:
    truths = [BruteForce(lm.row, lm.vocab) for lm in toys.values()]
    states = [await RemoteByteLM.initial(toy_urls[name], **EXACT) for name in toys]
    for text in (b"", b"a", b"abc"):
        mixed = await Ensemble(states, [1, 3]).prefill(text)
        have = np.exp((await mixed.logp_next()).ps)
        parts = [
            share * truth.prefix(text) * np.exp(truth.logp_next(text))
            for share, truth in zip([1, 3], truths, strict=True)
        ]
        total = np.sum(parts, axis=0)
        assert have == pytest.approx(total / total.sum(), abs=1e-6)
        assert sum(s * t.prefix(text) for s, t in zip([1, 3], truths, strict=True)) == (
            pytest.approx(4 * math.exp(np.logaddexp.reduce(mixed.log_weights)), abs=1e-6)
        )


async def test_an_ensemble_of_a_local_and_a_remote_model(client: AsyncClient, lm: Any) -> None:
    local = await ByteBeamState.initial(lm, served_params())
    one, other = await local.prefill(b"the "), await RemoteByteLM.initial(client, b"an")
    both = Ensemble([one, other], mode="product")
    made = await both.greedy(b"", 5)
    twins = Ensemble([one, await local.prefill(b"an")], mode="product")
    assert made == await twins.greedy(b"", 5)
    pieces = [piece async for piece in generate(both, 5, LazyByteProbs.argmax)]
    assert b"".join(piece.data for piece in pieces) == made


# Token LMs.


@pytest.fixture
async def remote_lm(url: str) -> AsyncIterator[RemoteTokenLM]:
    async with await RemoteTokenLM.start(url) as lm:
        yield lm


async def test_a_remote_token_lm_is_the_model(remote_lm: RemoteTokenLM, lm: Any) -> None:
    assert isinstance(remote_lm, AsyncTokenLM)
    assert remote_lm.vocab.fingerprint() == lm.vocab.fingerprint()
    assert remote_lm.max_context_tokens == lm.max_context_tokens
    contexts = [[266], [266, 1, 2], [266, 257]]
    rows = await asyncio.gather(*[remote_lm.next_token_logprobs(c) for c in contexts])
    for row, context in zip(rows, contexts, strict=True):
        assert np.array_equal(row, lm.row(context))
    with pytest.raises(ContextTooLong):
        await remote_lm.next_token_logprobs([266] * 300)


@pytest.mark.parametrize("text", [b"", b"the ant", b"the ant and the other ants are all the same"])
async def test_states_over_it_are_local_ones(
    remote_lm: RemoteTokenLM, lm: Any, text: bytes
) -> None:
    params = served_params()
    remote = await (await ByteBeamState.initial(remote_lm, params)).prefill(text, mode="exact")
    local = await (await ByteBeamState.initial(lm, params)).prefill(text, mode="exact")
    assert np.array_equal((await remote.logp_next()).ps, (await local.logp_next()).ps)


async def test_with_the_vocabulary_at_hand_they_are_prefilled_fast(url: str, lm: Any) -> None:
    remote_lm = RemoteTokenLM(url, vocab=lm.vocab)
    params = served_params()
    text = b"the ant and the other ants are all the same"
    remote = await (await ByteBeamState.initial(remote_lm, params)).prefill(text)
    local = await (await ByteBeamState.initial(lm, params)).prefill(text)
    assert np.array_equal((await remote.logp_next()).ps, (await local.logp_next()).ps)
    await remote_lm.aclose()


def test_another_vocabulary_is_refused(url: str, toys: dict[str, StubLM]) -> None:
    with pytest.raises(InputError, match="not that of the server"):
        RemoteTokenLM(url, vocab=toys["one"].vocab)


async def test_so_it_is_when_others_go_on(url: str, lm: Any, toys: dict[str, StubLM]) -> None:
    with pytest.raises(InputError, match="not that of the server"):
        await RemoteTokenLM.start(url, vocab=toys["one"].vocab)
    async with await RemoteTokenLM.start(AsyncClient(url), vocab=lm.vocab) as started:
        assert started.vocab is lm.vocab
    waited = RemoteTokenLM(url)
    assert waited.vocab.fingerprint() == lm.vocab.fingerprint()
    await waited.aclose()


async def test_a_cancelled_evaluation_leaves_the_others(remote_lm: RemoteTokenLM, lm: Any) -> None:
    first, second = (
        asyncio.ensure_future(remote_lm.next_token_logprobs([266, i])) for i in range(2)
    )
    await asyncio.sleep(0)
    first.cancel()
    assert np.array_equal(await second, lm.row([266, 1]))


async def test_an_evaluation_that_fails_is_an_error_for_each() -> None:
    with pytest.raises(CannotConnect):
        RemoteTokenLM("http://127.0.0.1:9", retries=0)


# Rows.


async def test_rows_are_those_of_the_walk_and_one_call(client: AsyncClient, begun: Any) -> None:
    text = b"the ant and the \xc3\xa9" * 3
    async with await RemoteByteLM.initial(client, "he ") as state:
        for each, want in (
            (state, await begun(b"he ")),
            (
                (await (state << ord("t"))).prune(),
                (await (await begun(b"he ") << ord("t"))).prune(),
            ),
        ):
            before = each.session.info
            have = np.array([q.ps async for q in each.rows(text)])
            walked = np.array([q.ps async for q in want.rows(text)])
            assert np.array_equal(have, walked.astype(np.float32))
            now = each.session.info
            assert (now.version, now.length) == (before.version, before.length)


async def test_a_state_is_at_hand_while_its_rows_are_read(client: AsyncClient) -> None:
    text = b"the ant and the ing" * 4
    async with await RemoteByteLM.initial(client, "he ") as state:
        async with aclosing(state.rows(text)) as rows:
            first = await anext(rows)
            assert np.array_equal(first.ps, (await state.logp_next()).ps.astype(np.float32))
            assert (await (await (state << ord("t"))).logp_next()).ps[ord("h")] > -np.inf
        assert len([q async for q in state.rows(b"")]) == 1


async def test_rows_fail_as_those_of_local_states(
    client: AsyncClient, start_stub: Callable[..., str]
) -> None:
    async def read(state: StatefulByteLM, text: bytes) -> None:
        async for _ in state.rows(text):
            have.append(1)

    have: list[int] = []
    async with await RemoteByteLM.initial(start_stub("--letters")) as state:
        with pytest.raises(EmptyBeam):
            await read(state, b"he\0")
        assert len(have) == 3
        with pytest.raises(ContextTooLong):
            await read(state, b"x" * 300)
        with pytest.raises(ByteError):
            await read(state, [256])  # type: ignore[arg-type]


async def test_rows_of_an_ensemble_over_servers(toy_urls: dict[str, str], toys: Any) -> None:
    local = Ensemble([await ByteBeamState.initial(toy, BeamParams(K=3)) for toy in toys.values()])
    options: Any = {"beam": {"K": 3, "prune_threshold": 0.0, "deferred": False}}
    async with (
        await RemoteByteLM.initial(toy_urls["one"], **options) as one,
        await RemoteByteLM.initial(toy_urls["other"], **options) as other,
    ):
        have = [q.ps async for q in Ensemble([one, other]).rows(b"abcab")]
    want = [q.ps async for q in local.rows(b"abcab")]
    np.testing.assert_allclose(np.exp(have), np.exp(want), atol=1e-6)
