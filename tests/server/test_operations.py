"""What an operator sees of a server: logs and metrics."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bytelm_server.keys import KeyFile

BODY = {"context": "hello", "steps": 3}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "stderr"


@pytest.fixture(scope="module")
def watched_url(start_stub: Callable[..., str], log: Path) -> str:
    with log.open("w") as stderr:
        return start_stub("--metered", "--set", "server_log_level=INFO", stderr=stderr)


@pytest.fixture
def watched(watched_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=watched_url, timeout=60) as client:
        yield client
        for session in client.get("/v1/sessions").json()["data"]:
            client.delete(f"/v1/sessions/{session['id']}")


def lines(log: Path, **wanted: Any) -> list[dict[str, Any]]:
    """The lines of a log that have these values; every line is JSON."""
    found = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in found if wanted.items() <= line.items()]


def samples(http: httpx.Client) -> dict[str, float]:
    """All metrics, by name and labels as Prometheus writes them."""
    answer = http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        sample.name + "".join(f"|{value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_every_request_is_a_line_of_the_log(watched: httpx.Client, log: Path) -> None:
    headers = {"X-Request-ID": "my-request.1"}
    answer = watched.post("/v1/greedy", json=BODY, headers=headers)
    assert answer.headers["x-request-id"] == "my-request.1"
    (line,) = lines(log, request_id="my-request.1")
    usage = answer.json()["usage"]
    assert line["level"] == "INFO"
    assert line["message"] == "POST /v1/greedy 200"
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/greedy", 200)
    assert line["client"] == "127.0.0.1"
    assert line["seconds"] >= 0
    assert re.match(r"\d{4}-\d\d-\d\dT", line["time"])
    assert {name: line[name] for name in usage} == usage


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 129, 'quote"'])
def test_a_request_without_a_good_id_gets_one(
    watched: httpx.Client, log: Path, given: str | None
) -> None:
    headers = {} if given is None else {"X-Request-ID": given}
    made = watched.get("/health", headers=headers).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert len(lines(log, request_id=made, path="/health")) == 1


def test_a_streams_line_has_what_it_took(watched: httpx.Client, log: Path) -> None:
    headers = {"X-Request-ID": "streamed"}
    watched.post("/v1/greedy", json={**BODY, "stream": True}, headers=headers)
    (line,) = lines(log, request_id="streamed")
    assert (line["bytes_in"], line["bytes_out"]) == (5, 3)


def test_what_a_batchs_calls_took_is_counted_together(watched: httpx.Client, log: Path) -> None:
    one, two = (watched.post("/v1/sessions", json={}).json()["id"] for _ in range(2))
    calls = [
        {"id": one, "call": "advance", "body": {"bytes": "hello"}},
        {"id": one, "call": "greedy", "body": {"steps": 3}},
        {"id": two, "call": "greedy", "body": {"steps": 2}},
        {"id": "nothing", "call": "greedy", "body": {"steps": 2}},
    ]
    before = samples(watched)
    headers = {"X-Request-ID": "batch"}
    answer = watched.post("/v1/sessions:batch", json={"calls": calls}, headers=headers).json()
    after = samples(watched)
    (line,) = lines(log, request_id="batch")
    took = [result["usage"] for result in answer["results"] if "usage" in result]
    for name in ("bytes_in", "bytes_out", "evaluations"):
        assert line[name] == sum(usage[name] for usage in took) > 0
    for name in ("bytes_in", "bytes_out"):
        assert after[f"bytelm_{name}_total"] - before[f"bytelm_{name}_total"] == line[name]


@pytest.mark.parametrize(
    ("call", "body"),
    [
        ("", {"context": "hello"}),
        ("/{id}/advance", {"bytes": "hello"}),
        ("/{id}/fork", {"advance": {"bytes": "hello"}}),
        ("/{id}/greedy", {"steps": 3}),
    ],
)
def test_a_retry_that_is_answered_as_before_counts_nothing(
    watched: httpx.Client, call: str, body: dict[str, Any]
) -> None:
    session = watched.post("/v1/sessions", json={}).json()["id"]

    def answer() -> dict[str, Any]:
        path = "/v1/sessions" + call.format(id=session)
        made = watched.post(path, json=body, headers={"Idempotency-Key": "once"})
        found: dict[str, Any] = made.json()
        return found

    def counted() -> float:
        found = samples(watched)
        return found["bytelm_bytes_in_total"] + found["bytelm_bytes_out_total"]

    before = counted()
    first = answer()
    once = counted()
    assert once - before == first["usage"]["bytes_in"] + first["usage"]["bytes_out"] > 0
    assert answer() == first
    assert counted() == once


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/greedy", {"context": "hello"}),
        ("/v1/sessions/{id}/greedy", {}),
        ("/v1/sessions/{id}/sample", {"advance": False, "n": 2, "method": "byte"}),
    ],
)
def test_a_stream_that_is_left_counts_as_far_as_it_got(
    watched: httpx.Client,
    log: Path,
    until: Callable[[Callable[[], bool]], None],
    path: str,
    body: dict[str, Any],
) -> None:
    session = watched.post("/v1/sessions", json={"context": "hello"}).json()["id"]
    before = samples(watched)
    watched.post("/test/delay", params={"value": 0.05})
    try:
        call = {**body, "steps": 60, "stream": True}
        with watched.stream("POST", path.format(id=session), json=call) as answer:
            request_id = answer.headers["x-request-id"]
            next(answer.iter_lines())
        until(lambda: bool(lines(log, request_id=request_id)))
    finally:
        watched.post("/test/delay", params={"value": 0})
    (line,) = lines(log, request_id=request_id)
    after = samples(watched)
    assert 0 < line["bytes_out"] < 60
    assert line["evaluations"] > 0
    for name in ("bytes_in", "bytes_out"):
        assert after[f"bytelm_{name}_total"] - before[f"bytelm_{name}_total"] == line[name]


def test_what_nobody_foresaw_is_logged_with_its_request(watched: httpx.Client, log: Path) -> None:
    headers = {"X-Request-ID": "broken"}
    watched.post("/test/break", params={"value": 1})
    try:
        assert watched.post("/v1/greedy", json=BODY, headers=headers).status_code == 500
    finally:
        watched.post("/test/break", params={"value": 0})
    error, _ = lines(log, request_id="broken")
    assert error["level"] == "ERROR"
    assert "a secret of the server" in error["exc_info"]


def test_texts_and_keys_are_not_logged(start_stub: Callable[..., str], tmp_path: Path) -> None:
    key, secret = KeyFile(tmp_path / "keys.json").create("Alice")
    log = tmp_path / "stderr"
    with log.open("w") as stderr:
        settings = ["--set", "server_log_level=INFO", "--set", f"keys_file={tmp_path}/keys.json"]
        url = start_stub(*settings, stderr=stderr)
    headers = {"Authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=url, headers=headers) as http:
        assert http.post("/v1/greedy", json={**BODY, "context": "private"}).status_code == 200
    (line,) = lines(log, path="/v1/greedy")
    assert line["key"] == key.id
    assert "private" not in log.read_text()
    assert secret not in log.read_text()


def test_requests_are_counted_by_call_and_status(watched: httpx.Client) -> None:
    before = samples(watched)
    assert watched.post("/v1/greedy", json=BODY).status_code == 200
    watched.post("/v1/greedy", json={**BODY, "stream": True})
    assert watched.post("/v1/greedy", json={**BODY, "steps": 0}).status_code == 400
    assert watched.post("/v1/greedy", json={**BODY, "context": "x" * 201}).status_code == 400
    assert watched.get("/v1/nothing/42").status_code == 404
    after = samples(watched)

    def more(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert more("bytelm_requests_total|POST /v1/greedy|200") == 2
    assert more("bytelm_requests_total|POST /v1/greedy|400") == 2
    assert more("bytelm_requests_total|other|404") == 1
    assert more("bytelm_request_seconds_count|POST /v1/greedy") == 4
    assert more("bytelm_request_seconds_bucket|POST /v1/greedy|+Inf") == 4
    assert more("bytelm_bytes_in_total") == 10
    assert more("bytelm_bytes_out_total") == 6
    assert not any("42" in name for name in after)


def test_methods_that_a_path_does_not_have_are_no_calls(watched: httpx.Client) -> None:
    before = samples(watched)
    for method in ("PATCH", "PURGE"):
        assert watched.request(method, "/health").status_code == 405
    after = samples(watched)
    name = "bytelm_requests_total|other|405"
    assert after[name] - before.get(name, 0) == 2
    assert not any("PATCH" in name or "PURGE" in name for name in after)


def test_what_the_engine_did_is_shown(watched: httpx.Client) -> None:
    before = samples(watched)
    usage = watched.post("/v1/greedy", json={**BODY, "context": "new"}).json()["usage"]
    after = samples(watched)
    for name in ("evaluations", "tokens_computed"):
        metric = f"bytelm_{name}_total"
        assert after[metric] - before[metric] == usage[name] > 0
    assert after["bytelm_evaluations_shared_total"] == 4
    assert after["bytelm_tokens_cached_total"] == 5
    tails = [after[f"bytelm_tail_{n}_total"] for n in ("hits", "misses", "tokens", "evictions")]
    assert tails == [3, 2, 40, 1]
    assert after["bytelm_evaluations_in_flight"] == 6
    assert (after["bytelm_slots"], after["bytelm_slots_free"]) == (8, 7)


def test_the_server_and_its_process_are_shown(watched: httpx.Client) -> None:
    found = samples(watched)
    statuses = {name: found[f"bytelm_status|{name}"] for name in ("starting", "ready", "dead")}
    assert statuses == {"starting": 0, "ready": 1, "dead": 0}
    assert found["bytelm_requests_in_progress"] == 1
    assert found["bytelm_tasks"] > 1
    assert found["bytelm_sessions"] == 0
    assert (found["bytelm_calls_running"], found["bytelm_calls_waiting"]) == (0, 0)
    assert found["process_resident_memory_bytes"] > 1e6


def test_sessions_are_counted(watched: httpx.Client) -> None:
    before = samples(watched)["bytelm_sessions"]
    made = [watched.post("/v1/sessions", json={}).json()["id"] for _ in range(3)]
    assert samples(watched)["bytelm_sessions"] == before + 3
    assert samples(watched)["bytelm_sessions_in_memory"] >= 3
    for session in made:
        watched.delete(f"/v1/sessions/{session}")
    assert samples(watched)["bytelm_sessions"] == before


def test_metrics_need_a_key_unless_they_are_public(
    start_stub: Callable[..., str], tmp_path: Path
) -> None:
    file = KeyFile(tmp_path / "keys.json")
    _, secret = file.create("Prometheus")
    closed = start_stub("--set", f"keys_file={file.path}")
    assert httpx.get(f"{closed}/metrics").status_code == 401
    headers = {"Authorization": f"Bearer {secret}"}
    assert httpx.get(f"{closed}/metrics", headers=headers).status_code == 200
    public = start_stub("--set", f"keys_file={file.path}", "--set", "public_metrics=true")
    assert httpx.get(f"{public}/metrics").status_code == 200


def test_metrics_are_there_before_the_model_is(start_stub: Callable[..., str]) -> None:
    with httpx.Client(base_url=start_stub("--wait")) as http:
        found = samples(http)
    assert found["bytelm_status|starting"] == 1
    assert "bytelm_evaluations_total" not in found
