"""Rows of numbers as clients read them, however the network cuts them; no server."""

import itertools
import json

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm_client import BadAnswer, Client, InvalidRequest
from bytelm_client._rows import RowReader

WIDTH = 257
ERROR = {"type": "invalid_request", "message": "no", "param": "text", "code": "no_continuation"}


def table(rows: int, dtype: str) -> np.ndarray:
    made = np.random.default_rng(rows).normal(-9, 3, (rows, WIDTH)).astype(dtype)
    made[:, 5:9] = -np.inf
    return made


def end(told: object, dtype: str) -> bytes:
    return np.array(np.nan, dtype).tobytes() + json.dumps(told).encode()


def headers(rows: int, dtype: str) -> dict[str, str]:
    return {"x-shape": f"{rows},{WIDTH}", "x-dtype": dtype}


@given(
    rows=st.integers(0, 5),
    dtype=st.sampled_from(["<f4", "<f2"]),
    told=st.none() | st.fixed_dictionaries({"usage": st.text("0123é", max_size=3000)}),
    cuts=st.lists(st.integers(0, 9000), max_size=6),
)
def test_rows_are_read_wherever_the_body_is_cut(
    rows: int, dtype: str, told: object, cuts: list[int]
) -> None:
    want = table(rows, dtype)
    body = want.tobytes() + (b"" if told is None else end(told, dtype))
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    reader = RowReader(headers(rows, dtype))
    have = [reader.take(body[a:b]) for a, b in itertools.pairwise(places)]
    assert np.array_equal(np.concatenate(have), want)
    assert reader.end() == (told or {})
    assert reader.count == rows


def client(body: bytes, rows: int = 3, dtype: str = "<f4") -> Client:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=body, headers=headers(rows, dtype))

    return Client("http://nowhere", http=httpx.Client(transport=httpx.MockTransport(answer)))


def test_rows_can_be_written_to_and_are_of_the_machines_own_kind() -> None:
    for dtype, kind in (("<f4", np.float32), ("<f2", np.float16)):
        rows = client(table(3, dtype).tobytes(), dtype=dtype).rows("", "ab")
        assert rows.dtype == kind
        rows -= 1


def test_an_error_behind_rows_is_raised_as_any_other() -> None:
    body = table(2, "<f4").tobytes() + end({"error": ERROR}, "<f4") + b" "
    with pytest.raises(InvalidRequest) as error:
        client(body).rows("", "ab")
    assert (error.value.status, error.value.code, error.value.param) == (
        400,
        "no_continuation",
        "text",
    )
    pieces = client(body).stream_rows("", "ab")
    assert np.array_equal(next(pieces), table(2, "<f4"))
    with pytest.raises(InvalidRequest):
        next(pieces)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        table(2, "<f4").tobytes(),
        table(4, "<f4").tobytes(),
        table(3, "<f4").tobytes()[:-1],
        table(3, "<f4").tobytes()[:-1028],
        table(3, "<f4").tobytes() + b"{}",
        table(2, "<f4").tobytes() + end({}, "<f4"),
        table(2, "<f4").tobytes() + np.array(np.nan, "<f4").tobytes() + b"{",
    ],
)
def test_a_body_that_is_not_whole_is_never_taken_for_one(body: bytes) -> None:
    with pytest.raises(BadAnswer):
        client(body).rows("", "ab")
    with pytest.raises(BadAnswer):
        list(client(body).stream_rows("", "ab"))
