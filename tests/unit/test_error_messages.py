"""What errors say, and that the table of them is what the code has."""

import re
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import pytest
from pydantic import ValidationError

import bytelm_server
from bytelm.models.testing import StubLM
from bytelm.settings import ServerSettings
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server import errors
from bytelm_server.app import create_app
from bytelm_server.contexts import Body
from bytelm_server.errors import ERRORS, CallError, validation_detail
from bytelm_server.requests import GreedyCall, NextBytesCall, SampleCall, ScoreCall
from bytelm_server.sessions.bodies import AdvanceCall, BatchCall, CreateCall, TokenLogprobsCall

ONE = {"context": "a", "steps": 1}
BYTES = r'give a string, \{"text": …\} or \{"base64": …\}'
CONTEXT = r'give a string, \{"text": …\}, \{"base64": …\}, \{"segments": …\} or \{"messages": …\}'
SEED = "seed: must be an integer of at most 64 bits"

SAID: list[tuple[type[Body], dict[str, Any], str]] = [
    (SampleCall, {**ONE, "seed": float(2**64)}, SEED),
    (SampleCall, {**ONE, "seed": -float(2**64)}, SEED),
    (SampleCall, {**ONE, "seed": 1.5}, "seed: input should be a valid integer"),
    (SampleCall, {**ONE, "n": float(2**70)}, "n: must be an integer of at most 64 bits"),
    (GreedyCall, {**ONE, "stop": 5}, "stop: " + BYTES + ", or a list of these"),
    (GreedyCall, {**ONE, "stop": True}, "stop: " + BYTES + ", or a list of these"),
    (GreedyCall, {**ONE, "stop": ["a", 5]}, r"stop\[1\]: " + BYTES),
    (GreedyCall, {**ONE, "stop": [["a"]]}, r"stop\[0\]: " + BYTES),
    (GreedyCall, {**ONE, "stop": {"text": 5}}, r"stop\[0\].text: input should be a valid string"),
    (GreedyCall, {**ONE, "context": 5}, "context: " + CONTEXT),
    (GreedyCall, {**ONE, "context": ["a"]}, "context: " + CONTEXT),
    (GreedyCall, {**ONE, "context": {"segments": "a"}}, "context.segments: must be a list"),
    (GreedyCall, {**ONE, "context": {"messages": [5]}}, r"messages\[0\]: must be an object"),
    (GreedyCall, {**ONE, "contexts": 5}, "contexts: must be a list"),
    (GreedyCall, {**ONE, "beam": 5}, "beam: must be an object"),
    (
        NextBytesCall,
        {"context": "a", "beam": {"eos_tokens": 4}},
        "beam.eos_tokens: must be a list",
    ),
    (
        NextBytesCall,
        {"context": "a", "beam": {"eos_tokens": [1.5]}},
        "give a token's id, or its",
    ),
    (ScoreCall, {"context": "a", "continuations": "b"}, "continuations: must be a list"),
    (CreateCall, {"kind": "token", "context": {"tokens": 5}}, "context.tokens: must be a list"),
    (AdvanceCall, {"bytes": ["a"]}, "bytes: " + BYTES),
    (AdvanceCall, {"segments": [5]}, r"segments\[0\]: give a string, .* or \{\"token\": …\}"),
    (AdvanceCall, {"tokens": [1, "a"]}, r"tokens\[1\]: input should be a valid integer"),
    (BatchCall, {"calls": {}}, "calls: must be a list"),
    (TokenLogprobsCall, {"contexts": [5]}, r"contexts\[0\]: must be a list"),
]


@pytest.mark.parametrize(("kind", "body", "said"), SAID)
def test_a_wrong_value_is_told_in_the_words_of_the_api(
    kind: type[Body], body: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError) as error:
        kind.model_validate(body)
    message = validation_detail(error.value.errors())["message"]
    assert re.search(said, message)
    assert "instance" not in message
    assert "dictionary" not in message


def test_of_a_list_the_first_wrong_item_is_told() -> None:
    with pytest.raises(ValidationError) as error:
        AdvanceCall.model_validate({"tokens": ["a"] * 100_000})
    assert error.value.error_count() == 1


def test_messages_are_no_longer_than_somebody_reads() -> None:
    made = errors.invalid_request("a" * 10**6, "invalid_value", "b" * 10**6)
    assert len(made["message"]) < 1100
    assert made["param"] is not None
    assert len(made["param"]) < 300
    with pytest.raises(ValidationError) as error:
        GreedyCall.model_validate({**ONE, "x" * 10**6: 1})
    detail = validation_detail(error.value.errors())
    assert len(detail["message"]) < 1100
    assert detail["code"] == "unknown_field"


def every_kind(kind: type[CallError] = CallError) -> set[type[CallError]]:
    return {kind}.union(*(every_kind(one) for one in kind.__subclasses__()))


def test_the_table_of_errors_has_what_the_code_has() -> None:
    root = Path(bytelm_server.__file__).parent
    for module in walk_packages(bytelm_server.__path__, "bytelm_server."):
        if ".on_ray" not in module.name:
            import_module(module.name)
    for kind in every_kind() - {CallError}:
        if kind.__module__.startswith("bytelm_server."):
            assert kind.code in ERRORS[kind.type, kind.status], kind
    source = "\n".join(path.read_text() for path in root.rglob("*.py"))
    of_engines = [*re.findall(r'Unavailable\(\s*"(\w+)"', source), "starting", "dead"]
    assert set(of_engines) == set(ERRORS["unavailable", 503])
    listed = {code for codes in ERRORS.values() for code in codes}
    for code in listed:
        assert source.count(f'"{code}"') > 1 or code in {
            "request_timeout",
            "unsupported_media_type",
        }, f"nothing answers {code}"


def test_the_documentation_has_the_table_of_errors() -> None:
    lm = StubLM(ByteVocab.from_bytes([b"a", b""], eos_token_ids=[1]))
    about = create_app(lm, ServerSettings(session_store="memory")).openapi()["info"]["description"]
    for (type_, status), codes in ERRORS.items():
        assert f"| `{type_}` | {status} | `{'`, `'.join(codes)}` |" in about
