"""The model's life behind the server: starts, deaths, restarts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bytelm.models.testing import StubLM
from bytelm.settings import ServerSettings
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server.backend import Backend
from bytelm_server.errors import Unavailable
from bytelm_server.requests import GreedyCall

VOCAB = ByteVocab.from_bytes([b"a", b"b", b""], eos_token_ids=[2])
CALL = GreedyCall.model_validate({"context": "a", "steps": 2})


class Mortal(StubLM):
    is_alive = True


class Models:
    """Starts models, or fails to, as it is told."""

    def __init__(self, *fates: str) -> None:
        self.fates = list(fates)
        self.started: list[Mortal] = []
        self.ended = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[StubLM]:
        if (self.fates.pop(0) if self.fates else "lives") == "fails":
            raise RuntimeError("no memory")
        self.started.append(Mortal(VOCAB))
        try:
            yield self.started[-1]
        finally:
            self.ended += 1


def backend(models: Models, **settings: Any) -> Backend:
    return Backend(models.open, ServerSettings(engine_restart_seconds=0, **settings))


async def until(status: str, one: Backend) -> None:
    async with asyncio.timeout(30):
        while one.status != status:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_model_that_died_is_ended_and_another_one_started() -> None:
    models = Models()
    one = backend(models)
    async with one.running():
        first = await one.started()
        models.started[0].is_alive = False
        assert one.status == "dead"
        with pytest.raises(Unavailable):
            _ = one.service
        await until("ready", one)
        assert models.ended == 1
        assert one.restarts == 1
        assert one.service is not first
        assert len((await one.service.greedy(CALL))["results"]) == 1
    assert models.ended == 2


async def test_a_start_that_fails_after_a_death_is_tried_again() -> None:
    models = Models("lives", "fails", "fails", "lives")
    one = backend(models)
    async with one.running():
        await one.started()
        models.started[0].is_alive = False
        await until("ready", one)
        assert one.restarts == 3


async def test_so_many_deaths_in_a_row_are_final() -> None:
    models = Models("lives", *["fails"] * 9)
    one = backend(models, max_engine_restarts=3)
    async with one.running():
        await one.started()
        models.started[0].is_alive = False
        async with asyncio.timeout(30):
            while one.restarts < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert (one.status, one.restarts) == ("dead", 3)
        assert len(models.fates) == 6
        with pytest.raises(Unavailable) as refused:
            _ = one.service
        assert refused.value.code == "dead"


async def test_the_first_start_is_not_tried_again() -> None:
    models = Models("fails")
    one = backend(models)
    async with one.running():
        with pytest.raises(RuntimeError, match="no memory"):
            await one.started()
        assert (one.status, one.restarts) == ("dead", 0)


async def test_the_pauses_grow_to_a_bound() -> None:
    one = Backend(Models().open, ServerSettings(engine_restart_seconds=2))
    assert [one._pause(n) for n in range(1, 8)] == [2, 4, 8, 16, 32, 60, 60]


async def test_a_server_can_stop_while_its_model_is_away() -> None:
    models = Models("lives", *["fails"] * 9)
    one = Backend(models.open, ServerSettings(engine_restart_seconds=1000))
    async with one.running():
        await one.started()
        models.started[0].is_alive = False
        await asyncio.sleep(0.3)
    assert models.ended == 1
    assert one.status == "draining"
