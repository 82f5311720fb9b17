"""What a session handle knows, in whatever order it is told; no server."""

import random
from typing import Any

import pytest

from bytelm_client._session_calls import SessionCalls
from bytelm_client.results import SessionInfo


def said(version: int, length: int, expires_at: float = 0.0) -> dict[str, Any]:
    return {
        "id": "a",
        "kind": "byte",
        "version": version,
        "length": length,
        "at_limit": False,
        "n_calls": 0,
        "expires_at": expires_at,
    }


@pytest.fixture
def calls() -> SessionCalls:
    return SessionCalls(SessionInfo.from_json(said(1, 5)))


def event(version: int, length: int) -> dict[str, Any]:
    return {"version": version, "length": length, "at_limit": False}


def test_the_newest_answer_counts_whenever_it_comes(calls: SessionCalls) -> None:
    for seed in range(20):
        calls.info = SessionInfo.from_json(said(1, 5))
        asked = [calls.get({}) for _ in range(8)]
        answers = [said(2 + i // 2, 10 + i // 2, i) for i in range(8)]
        order = random.Random(seed).sample(range(8), 8)
        for i in order:
            assert asked[i].read(answers[i]).version == answers[i]["version"]
        assert (calls.info.version, calls.info.length, calls.info.expires_at) == (5, 13, 7)


def test_a_stream_and_calls_beside_it_count_once(calls: SessionCalls) -> None:
    follow = calls.follower()
    follow(event(2, 6))
    calls.get({}).read(said(9, 13))
    for version in range(3, 10):
        follow(event(version, version + 4))
        assert (calls.info.version, calls.info.length) == (9, 13)
    follow(event(10, 14))
    assert (calls.info.version, calls.info.length) == (10, 14)


def test_a_version_that_a_server_lost_is_believed(calls: SessionCalls) -> None:
    calls.get({}).read(said(7, 70))
    calls.get({}).read(said(4, 40))
    assert (calls.info.version, calls.info.length) == (4, 40)
    late = calls.get({})
    calls.get({}).read(said(6, 60))
    late.read(said(5, 50))
    assert calls.info.version == 6
