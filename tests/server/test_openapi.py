"""The API's description, and that the server is as it says."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.server.test_streams import streamed

CHECKS = [
    "only_documented_failures",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
]
TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def document(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_it_has_the_version(document: dict[str, Any]) -> None:
    assert document["info"]["version"] == version("bytelm")
    assert document["info"]["description"]


def test_every_call_is_described(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        assert operation["summary"], name
        assert len(operation["description"]) > 20, name
        assert operation["tags"], name
        for parameter in operation.get("parameters", []):
            about = parameter.get("description") or parameter["schema"].get("description")
            assert about or parameter["in"] == "path", (name, parameter["name"])


def test_every_body_and_every_answer_has_an_example(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        if "requestBody" in operation:
            (content,) = operation["requestBody"]["content"].values()
            assert content.get("examples") or content.get("example"), name
        good = operation["responses"]["200"]["content"]
        assert any("example" in content for content in good.values()), name


def test_every_call_says_how_it_fails(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        documented = set(operation["responses"])
        if name == "GET /health":  # it tells its status in place of an error
            assert documented == {"200", "403", "503"}
            continue
        assert documented >= {"200", "401", "403"}, name
        if operation["tags"] != ["server"]:
            assert documented >= {"400", "413", "415", "429", "500", "503", "504"}, name
        for status, answer in operation["responses"].items():
            if status in ("200", "304"):
                continue
            content = answer["content"]["application/json"]
            assert content["schema"]["$ref"].endswith("/ErrorBody"), (name, status)


STREAMS: list[tuple[str | None, dict[str, Any]]] = [
    ("byte", {"steps": 9, "stop": ["e"]}),
    ("byte", {"steps": 4, "advance": False, "logprobs": True}),
    ("token", {"steps": 9}),
    (None, {"contexts": ["hello", {"base64": "/w=="}], "steps": 9}),
    (None, {"contexts": ["hello", 5], "steps": 3}),
]


@pytest.mark.parametrize("call", ["greedy", "sample"])
@pytest.mark.parametrize(("kind", "body"), STREAMS)
def test_streams_are_as_described(
    http: httpx.Client, document: dict[str, Any], call: str, kind: str | None, body: dict[str, Any]
) -> None:
    path = url = f"/v1/{call}"
    if kind is not None:
        session = http.post("/v1/sessions", json={"kind": kind, "context": "hello"}).json()["id"]
        path, url = f"/v1/sessions/{{session_id}}/{call}", f"/v1/sessions/{session}/{call}"
    assert_described(http, document, path, url, body)


CHAT = [{"role": "user", "content": "hi"}]
CHUNKS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "hello", "max_tokens": 9, "stop": ["e"]}),
    ("/v1/completions", {"prompt": [[256, 104], [0xC3]], "echo": True, "logprobs": 2, "n": 2}),
    ("/v1/completions", {"prompt": "a", "stream_options": {"include_usage": True}}),
    ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 9}),
    ("/v1/chat/completions", {"messages": CHAT, "logprobs": True, "top_logprobs": 2, "n": 2}),
]


@pytest.mark.parametrize(("path", "body"), CHUNKS)
def test_chunks_are_as_described(
    http: httpx.Client, document: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    assert_described(http, document, path, path, body)


def assert_described(
    http: httpx.Client, document: dict[str, Any], path: str, url: str, body: dict[str, Any]
) -> None:
    answer = document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
    event, done = answer["itemSchema"]["properties"]["data"]["anyOf"]
    assert done == {"const": "[DONE]"}
    kinds = [{**kind, "additionalProperties": False} for kind in event["contentSchema"]["anyOf"]]
    schema = {"anyOf": kinds, "components": document["components"]}
    jsonschema.Draft202012Validator.check_schema(schema)
    events = streamed(http, url, body)
    assert events
    for each in events:
        jsonschema.validate(each, schema, jsonschema.Draft202012Validator)


@pytest.fixture(scope="module")
def report(start_stub: Callable[..., str]) -> subprocess.CompletedProcess[str]:
    """What schemathesis finds on a server of its own."""
    url = start_stub("--set", "call_seconds=5", "--set", "max_waiting_calls=2")
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
        *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
        *("--max-examples", "20", "--seed", "1", "--workers", "2", "--no-color"),
    ]
    hooks = {"SCHEMATHESIS_HOOKS": "tests.server.api_checks", "PYTHONPATH": str(TOP)}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=TOP, env={**os.environ, **hooks}
    )


def test_the_server_answers_as_it_is_described(report: subprocess.CompletedProcess[str]) -> None:
    assert report.returncode == 0, report.stdout + report.stderr


def test_every_call_was_tried(
    report: subprocess.CompletedProcess[str], document: dict[str, Any]
) -> None:
    count = len(list(operations(document)))
    assert f"Tested: {count}" in report.stdout, report.stdout
