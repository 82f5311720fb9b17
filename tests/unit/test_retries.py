"""When a call is sent again, and how long to wait before; nothing is sent here."""

import email.utils
import time

import httpx
import pytest

from bytelm_client.retries import FIRST_WAIT, Attempts


def answer(status: int, retry_after: str | None = None) -> httpx.Response:
    return httpx.Response(
        status, headers={} if retry_after is None else {"Retry-After": retry_after}
    )


@pytest.mark.parametrize("status", [200, 400, 404, 409, 410, 500, 504, 507])
def test_these_answers_are_taken_as_they_are(status: int) -> None:
    assert Attempts(3).after_answer(answer(status)) is None


@pytest.mark.parametrize("status", [429, 502, 503])
def test_after_these_an_answer_may_come_later(status: int) -> None:
    attempts = Attempts(2)
    waits = [attempts.after_answer(answer(status)) for _ in range(3)]
    assert waits[0] is not None
    assert waits[1] is not None
    assert waits[2] is None


def test_waits_double_and_differ_between_clients() -> None:
    waits = [Attempts(1).after_answer(answer(503)) or 0 for _ in range(20)]
    assert len(set(waits)) > 1
    attempts = Attempts(5)
    for i in range(5):
        wait = attempts.after_answer(answer(503))
        assert wait is not None
        assert FIRST_WAIT * 2**i / 2 <= wait <= FIRST_WAIT * 2**i


def test_the_servers_wish_counts() -> None:
    assert Attempts(1).after_answer(answer(429, "7")) == 7
    soon = email.utils.formatdate(time.time() + 30, usegmt=True)
    wait = Attempts(1).after_answer(answer(503, soon))
    assert wait is not None
    assert 25 <= wait <= 30
    assert Attempts(1).after_answer(answer(503, email.utils.formatdate(0, usegmt=True))) == 0


def test_a_wish_to_wait_for_long_is_an_error_at_once() -> None:
    assert Attempts(3).after_answer(answer(429, "3600")) is None


def test_a_wish_that_is_not_understood_is_none() -> None:
    wait = Attempts(1).after_answer(answer(503, "soon"))
    assert wait is not None
    assert wait <= FIRST_WAIT


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (httpx.ConnectError(""), True),
        (httpx.ConnectTimeout(""), True),
        (httpx.ReadError(""), True),
        (httpx.RemoteProtocolError(""), True),
        (httpx.ReadTimeout(""), False),
        (httpx.InvalidURL(""), False),
        (httpx.UnsupportedProtocol(""), False),
    ],
)
def test_broken_connections_are_made_again(error: Exception, again: bool) -> None:
    assert (Attempts(1).after_error(error) is not None) == again
    assert Attempts(0).after_error(error) is None


def test_what_must_not_happen_twice_is_sent_again_only_if_it_has_not_begun() -> None:
    for status in (429, 503):
        assert Attempts(1, once=True).after_answer(answer(status)) is not None
    assert Attempts(1, once=True).after_answer(answer(502)) is None
    for error in (httpx.ConnectError("refused"), httpx.ConnectTimeout("no answer")):
        assert Attempts(1, once=True).after_error(error) is not None
    for broken in (httpx.ReadError("reset"), httpx.WriteError(""), httpx.RemoteProtocolError("")):
        assert Attempts(1, once=True).after_error(broken) is None
        assert Attempts(1).after_error(broken) is not None
