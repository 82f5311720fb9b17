"""The server while its model starts, dies, or works for clients that are gone."""

import json
import time
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection

import httpx

BODY = {"context": "hello", "steps": 3}


def test_calls_wait_outside_until_the_model_has_started(
    start_stub: Callable[..., str], until: Callable[[Callable[[], bool]], None]
) -> None:
    http = httpx.Client(base_url=start_stub("--wait"), timeout=60)
    health = http.get("/health")
    assert (health.status_code, health.json()) == (503, {"status": "starting"})
    for answer in (http.post("/v1/greedy", json=BODY), http.get("/v1/models")):
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "starting"
    http.post("/test/start")
    until(lambda: http.get("/health").status_code == 200)
    assert http.post("/v1/greedy", json=BODY).status_code == 200


def test_a_dead_engine_is_said_to_be_dead(own: httpx.Client) -> None:
    own.post("/test/die")
    health = own.get("/health")
    assert (health.status_code, health.json()) == (503, {"status": "dead"})
    answer = own.post("/v1/greedy", json=BODY)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "dead"


def test_an_engine_that_died_is_started_again_and_sessions_go_on(
    start_stub: Callable[..., str], until: Callable[[Callable[[], bool]], None]
) -> None:
    url = start_stub("--again", "--set", "engine_restart_seconds=0.5")
    http = httpx.Client(base_url=url, timeout=60)
    made = http.post("/v1/sessions", json={"kind": "byte", "context": "hel"}).json()
    session = f"/v1/sessions/{made['id']}"
    assert http.post(f"{session}/advance", json={"bytes": "lo"}).status_code == 200
    before = http.get(f"{session}/next").json()["results"]
    http.post("/test/die")
    seen = []

    def is_back() -> bool:
        seen.append(http.get("/health").json()["status"])
        if seen[-1] != "ready":
            answer = http.post("/v1/greedy", json=BODY)
            assert answer.status_code in (200, 503)
            if answer.status_code == 503:
                assert answer.json()["error"]["code"] in ("dead", "starting")
                assert int(answer.headers["retry-after"]) > 0
        return "dead" in seen and seen[-1] == "ready"

    until(is_back)
    assert "starting" in seen
    assert http.get(f"{session}/next").json()["results"] == before
    assert http.post("/v1/greedy", json=BODY).status_code == 200
    assert "bytelm_engine_restarts_total 1.0" in http.get("/metrics").text


def test_an_engine_that_dies_ends_the_call(own: httpx.Client) -> None:
    own.post("/test/delay", params={"value": 0.05})
    with httpx.Client(base_url=own.base_url, timeout=60) as other:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor() as threads:
            call = threads.submit(
                other.post, "/v1/greedy", json={"contexts": ["a", "b"], "steps": 60}
            )
            time.sleep(0.5)
            own.post("/test/die")
            answer = call.result(30)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "dead"


def test_nothing_is_computed_for_a_client_that_has_gone(
    own: httpx.Client, until: Callable[[Callable[[], bool]], None]
) -> None:
    own.post("/test/delay", params={"value": 0.1})
    body = json.dumps({"contexts": [f"{i} " for i in range(8)], "steps": 64})

    def count() -> int:
        evaluations: int = own.get("/test/evaluations").json()
        return evaluations

    def still() -> bool:
        before = count()
        time.sleep(0.5)
        return count() == before

    with closing(HTTPConnection(own.base_url.host, own.base_url.port or 80)) as connection:
        headers = {"Host": "localhost", "Content-Type": "application/json"}
        connection.request("POST", "/v1/greedy", body, headers)
        until(lambda: count() > 0)
    until(still)
    assert count() < 8 * 64


def test_an_idle_connection_outlives_what_clients_keep(http: httpx.Client, url: str) -> None:
    """Else a call may go into a connection that is being closed; httpx keeps them for 5 seconds."""
    address = httpx.URL(url)
    connection = HTTPConnection(address.host, address.port, timeout=60)
    connection.connect()
    connection.auto_open = 0  # it must be the same one
    with closing(connection):
        for pause in (0, 6.5):
            time.sleep(pause)
            connection.request("GET", "/health", headers={"Host": "localhost"})
            with connection.getresponse() as response:
                assert response.status == 200
                response.read()
