"""Rows of a known text: numbers as they are written, and against brute force."""

import json
from typing import Any

import numpy as np
import pytest

from bytelm.models.logprobs import EOS, SIZE
from bytelm.models.testing import BruteForce, StubLM
from bytelm.settings import ServerSettings
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server import text_rows
from bytelm_server.errors import NoContinuation
from bytelm_server.requests import RowsCall
from bytelm_server.row_stream import WIDTH, RowFormat
from bytelm_server.service import ByteService

VOCAB = ByteVocab.from_bytes(
    [b"", b"", b"a", b"b", b"c", b"ab", b"abc", b"ca"], bos_token_id=0, eos_token_ids=(1,)
)
FORMATS = [RowFormat("float32"), RowFormat("float16")]


def service(**settings: Any) -> ByteService:
    return ByteService(StubLM(VOCAB, 3), ServerSettings(max_K=None, **settings))


def call(**body: Any) -> RowsCall:
    return RowsCall.model_validate({"context": "", **body})


async def body_of(call: RowsCall) -> bytes:
    return b"".join([piece async for piece in text_rows.rows(service(), call)])


@pytest.mark.parametrize("text", ["", "a", "abcab"])
async def test_rows_are_those_of_all_tokenizations(text: str) -> None:
    beam = {"K": None, "prune_threshold": 0.0, "deferred": False}
    body = await body_of(call(text=text, beam=beam, prefill="exact", context="ca"))
    have = np.frombuffer(body, "<f4").reshape(-1, WIDTH)
    truth = BruteForce(service().lm.row, VOCAB)  # type: ignore[attr-defined]
    whole = b"ca" + text.encode()
    want = [truth.logp_next(whole[:end]) for end in range(2, len(whole) + 1)]
    assert len(have) == len(text) + 1
    for row, ps in zip(have, want, strict=True):
        np.testing.assert_allclose(row[:256], ps[:256], atol=2e-5)
        assert row[256] == pytest.approx(ps[EOS], abs=2e-5)


async def test_what_was_made_comes_before_an_error() -> None:
    """However few rows it is."""
    made: list[bytes] = []

    async def read(text: str) -> None:
        async for piece in text_rows.rows(service(), call(text=text)):
            made.append(piece)

    with pytest.raises(NoContinuation, match=r"^byte 45 \(0x78\) is in no token") as error:
        await read("abcab" * 9 + "x" + "ab" * 9)
    assert error.value.param == "text"
    rows = np.frombuffer(b"".join(made), "<f4").reshape(-1, WIDTH)
    assert len(rows) == 46
    assert rows[-1][ord("x")] == -np.inf
    assert np.isfinite(rows[:-1, ord("a")]).all()


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.dtype.name)
def test_what_is_finite_stays_finite(form: RowFormat) -> None:
    ps = np.full(SIZE, -np.inf)
    ps[:4] = 0.0, -1e-9, -65504.0, -1e9
    ps[EOS] = -12.34567
    row = np.frombuffer(form.rows([ps, ps]), form.dtype).reshape(2, WIDTH)[1]
    assert np.isfinite(row[:4]).all()
    assert np.isneginf(row[4:256]).all()
    exact = np.maximum(ps[[0, 1, 2, EOS]], np.finfo(form.dtype).min)
    np.testing.assert_allclose(row[[0, 1, 2, 256]], exact, rtol=2.0**-11, atol=3e-8)
    assert row[3] == max(-1e9, float(np.finfo(form.dtype).min))


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.dtype.name)
def test_an_end_is_told_from_rows_and_never_fills_one(form: RowFormat) -> None:
    size = WIDTH * form.dtype.itemsize
    for length in range(2 * size):
        told = {"error": "x" * length}
        end = form.end(told)
        assert np.isnan(np.frombuffer(end[: form.dtype.itemsize], form.dtype)).all()
        assert json.loads(end[form.dtype.itemsize :]) == told
        assert len(end) % size
