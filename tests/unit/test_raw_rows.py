"""What a model may answer with, and what is refused, whoever reads the row."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from bytelm.beam import BeamParams, ByteBeamState
from bytelm.beam.rows import RowSource
from bytelm.compat.genlm import GenlmModel, from_genlm
from bytelm.errors import InputError, RowError
from bytelm.models.raw_rows import as_row
from bytelm.models.testing import StubLM
from bytelm.models.token_lm import StatefulTokenizedLM
from bytelm.settings import ServerSettings
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server.app import create_app

# BOS, EOS, a special token, and text.
VOCAB = ByteVocab.from_bytes(
    [b"", b"", b"", b"a", b"b", b"ab", b"ab"], bos_token_id=0, eos_token_ids=[1]
)
SIZE = VOCAB.size
ROW = StubLM(VOCAB).row([0])


class Answering(StubLM):
    """A token LM that answers with what it is given."""

    def __init__(self, answer):
        super().__init__(VOCAB)
        self.answer = answer

    async def next_token_logprobs(self, token_ids):
        return self.answer


async def by_rows(lm):
    return (await RowSource(lm).evaluate((0,))).logprobs


async def by_beam(lm):
    state = await ByteBeamState.initial(lm, BeamParams(5))
    return (await state.logp_next()).ps


async def by_prefill(lm):
    state = await ByteBeamState.initial(lm, BeamParams(5))
    return (await (await state.prefill(b"ab" * 40)).logp_next()).ps


async def by_tokens(lm):
    return await StatefulTokenizedLM.initial(lm).logp_next()


async def by_genlm(lm):
    model = GenlmModel.__new__(GenlmModel)
    model._lm, model._silent = lm, [2]
    return (await model.next_token_logprobs([0])).numpy()


READERS = [by_rows, by_beam, by_prefill, by_tokens, by_genlm]


def with_value(value, token):
    row = ROW.copy()
    row[token] = value
    return row


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("token", range(SIZE))
@pytest.mark.parametrize(("value", "said"), [(np.nan, r"1 NaN"), (np.inf, r"1 \+inf")])
async def test_nan_and_inf_are_refused_whatever_the_token(read, token, value, said):
    with pytest.raises(RowError, match=rf"{said} among {SIZE}, the first for token {token}"):
        await read(Answering(with_value(value, token)))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("token", [2, 3, 5])
async def test_a_probability_of_zero_is_none_of_them(read, token):
    assert not np.isnan(await read(Answering(with_value(-np.inf, token)))).any()


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (ROW[:-1], f"{SIZE - 1} log-probabilities for {SIZE} tokens"),
        (np.append(ROW, ROW), f"{2 * SIZE} log-probabilities for {SIZE} tokens.*pads"),
        (ROW[:0], f"0 log-probabilities for {SIZE} tokens"),
        (ROW[None], rf"float32 \[1, {SIZE}\] instead of float32 \[{SIZE}\]"),
        (ROW[0], rf"float32 \[\] instead of float32 \[{SIZE}\]"),
        (ROW.astype(np.int64), rf"a ndarray of int64 instead of float32 \[{SIZE}\]"),
        (ROW.astype(object), "a ndarray of object"),
        (torch.zeros(SIZE, dtype=torch.long), r"a Tensor of torch\.int64"),
        (torch.zeros(1, SIZE), rf"torch\.float32 \[1, {SIZE}\] instead"),
        (list(ROW), "a list instead"),
        (None, "a NoneType instead"),
    ],
)
async def test_what_has_not_the_shape_of_a_row_is_refused(read, answer, said):
    with pytest.raises(RowError, match=said):
        await read(Answering(answer))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "answer",
    [
        ROW.astype(np.float64),
        ROW.astype(">f4"),
        np.repeat(ROW, 2)[::2],
        torch.from_numpy(ROW.copy()),
        torch.from_numpy(ROW.copy()).double().requires_grad_(),
    ],
)
async def test_every_kind_of_floats_is_read(read, answer):
    assert await read(Answering(answer)) == pytest.approx(await read(Answering(ROW)))


@pytest.mark.parametrize("read", READERS)
async def test_half_precision_is_read(read):
    got = await read(Answering(torch.from_numpy(ROW.copy()).bfloat16()))
    assert got == pytest.approx(await read(Answering(ROW)), abs=0.05)


@pytest.mark.parametrize("read", READERS)
async def test_a_row_without_any_probability_is_refused(read):
    with pytest.raises(RowError, match=r"no token any probability"):
        await read(Answering(np.full(SIZE, -np.inf, np.float32)))


@pytest.mark.filterwarnings("error")
async def test_what_float32_cannot_hold_is_infinite():
    huge = with_value(0.0, 3).astype(np.float64)
    huge[3] = 1e300
    with pytest.raises(RowError, match=r"\+inf"):
        await by_rows(Answering(huge))
    with pytest.raises(RowError, match="log-probability of 100"):
        await by_rows(Answering(with_value(100.0, 3)))
    huge[3] = -1e300
    assert (await by_rows(Answering(huge)))[3] == -np.inf


def test_a_row_as_it_should_be_is_not_copied():
    assert as_row(ROW, SIZE) is ROW


async def test_a_wrong_row_leaves_the_state_as_it_was():
    lm = Answering(with_value(np.nan, 3))
    state = await ByteBeamState.initial(lm, BeamParams(5))
    for call in (state.logp_next(), state.advanced(ord("a"))):
        with pytest.raises(RowError):
            await call
    lm.answer = ROW
    assert (await state.logp_next()).ps == pytest.approx(await by_beam(Answering(ROW)))


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf])
async def test_a_backend_models_rows_are_refused_too(padding, value):
    model = SimpleNamespace(
        byte_vocab=list(VOCAB.token_bytes),
        tokenizer=SimpleNamespace(bos_token_id=0, eos_token_id=1),
    )
    values = torch.tensor([*with_value(value, 4), *[-5.0] * padding])

    async def next_token_logprobs(token_ids):
        return values

    model.next_token_logprobs = next_token_logprobs
    for answer in (
        from_genlm(model).next_token_logprobs([0]),
        StatefulTokenizedLM.initial(model, [0]).logp_next(),
    ):
        with pytest.raises(RowError, match="for token 4"):
            await answer
    values = torch.tensor([*ROW, *[np.nan] * padding])
    assert len(await from_genlm(model).next_token_logprobs([0])) == SIZE
    values = values[None]
    with pytest.raises(RowError, match=r"float32 \[1,"):
        await StatefulTokenizedLM.initial(model, [0]).logp_next()


def test_it_is_an_error_about_what_was_given():
    assert issubclass(RowError, InputError)


SESSION = {"kind": "token", "context": {"tokens": [0]}}
CALLS = [
    ("/v1/token_logprobs", {"contexts": [[0]], "top": 2}),
    ("/v1/token_logprobs", {"contexts": [[0]]}),
    ("/v1/next_bytes", {"context": ""}),
    ("/v1/greedy", {"context": "a", "steps": 3}),
    ("/v1/sample", {"context": "a", "steps": 3, "method": "byte", "seed": 1}),
    ("/v1/score", {"context": "a", "continuations": ["b"]}),
    ("/v1/rows", {"context": "a", "text": "b"}),
    ("GET", "next?top=2"),
    ("GET", "next"),
    ("greedy", {"steps": 3, "logprobs": True}),
]


@pytest.mark.parametrize(
    "answer", [with_value(np.nan, 2), with_value(np.inf, 4), ROW[:-1], np.append(ROW, ROW)]
)
@pytest.mark.parametrize(("path", "body"), CALLS)
def test_the_server_says_that_its_model_is_at_fault(path, body, answer):
    lm = Answering(ROW)
    octets = {"accept": "application/octet-stream"}
    with TestClient(create_app(lm, ServerSettings(session_store="memory"))) as http:
        if not path.startswith("/"):
            made = http.post("/v1/sessions", json=SESSION).json()
        lm.answer = answer
        if path.startswith("/"):
            reply = http.post(path, json=body, headers={} if "top" in body else octets)
        else:
            place = f"/v1/sessions/{made['id']}"
            if path == "GET":
                reply = http.get(f"{place}/{body}", headers={} if "top" in body else octets)
            else:
                reply = http.post(f"{place}/{path}", json=body)
    told = reply.json()
    if reply.status_code == 200:  # of a batch, each item has its own
        (told,) = told["results"]
    else:
        assert reply.status_code == 500
    error = told["error"]
    assert (error["type"], error["code"]) == ("internal_error", "internal_error")
    assert error["message"].startswith("the model")
