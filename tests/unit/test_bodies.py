"""The bodies of the API: what is taken, and what bytes look like."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bytelm.generating.stop_strings import StopStrings
from bytelm_server.answers import bytes_out
from bytelm_server.contexts import BytesIn, ContextIn
from bytelm_server.requests import Beam, GreedyCall, NextBytesCall, SampleCall
from bytelm_server.sessions.replies import digest


def read(body: object) -> bytes:
    return BytesIn.model_validate(body).data


@given(st.text())
def test_a_string_and_text_are_utf8(text: str) -> None:
    assert read(text) == read({"text": text}) == text.encode()


@given(st.binary())
def test_bytes_survive_the_way_out_and_in(data: bytes) -> None:
    assert read({"base64": bytes_out(data)["base64"]}) == data


@given(st.binary())
def test_text_is_given_exactly_where_bytes_are_utf8(data: bytes) -> None:
    text = bytes_out(data)["text"]
    if text is None:
        with pytest.raises(UnicodeDecodeError):
            data.decode()
    else:
        assert text.encode() == data


@given(st.binary(min_size=1).map(base64.b64encode), st.sampled_from("!-_ \n*"), st.integers(0))
def test_what_is_not_base64_is_refused(encoded: bytes, junk: str, where: int) -> None:
    text = encoded.decode()
    where %= len(text)
    with pytest.raises(ValidationError, match="not base64"):
        read({"base64": text[:where] + junk + text[where:]})


@pytest.mark.parametrize("body", [{}, {"text": "a", "base64": "YQ=="}, {"text": None}])
def test_one_form_and_only_one(body: object) -> None:
    with pytest.raises(ValidationError, match="one of text and base64"):
        read(body)


@pytest.mark.parametrize("body", [5, None, [], {"text": 5}, {"text": "a", "more": 1}])
def test_what_is_no_context_is_refused(body: object) -> None:
    with pytest.raises(ValidationError):
        read(body)


def test_a_malformed_item_does_not_spoil_the_others() -> None:
    call = NextBytesCall.model_validate({"contexts": ["a", {"base64": "!"}, {"text": "b"}]})
    good, bad, other = call.contexts or []
    assert isinstance(good, ContextIn)
    assert isinstance(bad, ValidationError)
    assert isinstance(other, ContextIn)
    assert (good.data, other.data) == (b"a", b"b")


def test_an_absent_width_is_not_an_unlimited_one() -> None:
    absent = GreedyCall.model_validate({"context": "a", "steps": 1}).beam
    unlimited = GreedyCall.model_validate({"context": "a", "steps": 1, "beam": {"K": None}}).beam
    assert "K" not in absent.model_fields_set
    assert "K" in unlimited.model_fields_set


@pytest.mark.parametrize("absent", [None, False])
def test_what_is_not_supported_may_be_absent_explicitly(absent: object) -> None:
    body = {"steps": 1, "stop": None, "top_p": None}
    context = {"text": "a", "tokens": absent}
    assert SampleCall.model_validate({**body, "context": context}).steps == 1
    with pytest.raises(ValidationError, match="not supported yet"):
        SampleCall.model_validate({**body, "context": {"text": "a", "tokens": [1]}})


@pytest.mark.parametrize(
    ("given", "stops"),
    [
        (None, []),
        ([], []),
        (".", [b"."]),
        ({"base64": "/w=="}, [b"\xff"]),
        (["é", {"text": "b"}], ["é".encode(), b"b"]),
    ],
)
def test_stop_strings_are_one_or_a_list(given: object, stops: list[bytes]) -> None:
    body = {"context": "a", "steps": 1, "stop": given}
    assert GreedyCall.model_validate(body).stops == stops


def test_eos_tokens_are_byte_values_or_ids() -> None:
    assert Beam.model_validate({"eos_tokens": [[46], [0, 255], 7]}).eos_tokens == [
        b".",
        b"\x00\xff",
        7,
    ]


@pytest.mark.parametrize("token", [-1, True, 1.0, "a", None, [], [256], [-1], [True], ["a"], [[1]]])
def test_what_is_no_eos_token_is_refused(token: object) -> None:
    with pytest.raises(ValidationError, match="a token's id, or its bytes"):
        Beam.model_validate({"eos_tokens": [token]})


@pytest.mark.parametrize(
    "body",
    [
        {"segments": [], "text": "a"},
        {"segments": [], "messages": [{"role": "user", "content": "a"}]},
        {"messages": []},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": 3}]},
        {"messages": [{"role": "user", "content": "a", "name": "b"}]},
        {"segments": [{}]},
        {"segments": [{"token": "a", "text": "b"}]},
        {"segments": [7]},
        {"text": "a", "add_generation_prompt": True},
    ],
)
def test_what_is_no_context_of_segments_or_messages_is_refused(body: object) -> None:
    with pytest.raises(ValidationError):
        ContextIn.model_validate(body)


def test_the_automaton_of_a_calls_stop_strings_is_made_once() -> None:
    call = SampleCall.model_validate({"context": "a", "steps": 1, "stop": ["ab", "c"]})
    assert call.automaton is call.automaton
    assert StopStrings.of(call.automaton) is call.automaton
    assert digest("sample", call) == digest("sample", call.model_copy())
