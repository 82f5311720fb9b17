"""Who may call a server: with keys, and without."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from bytelm_server.keys import KeyFile

BODY = {"context": "hello", "steps": 3}


def code_of(response: httpx.Response) -> tuple[int, str]:
    assert set(response.json()) == {"error"}
    return response.status_code, response.json()["error"]["code"]


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> KeyFile:
    return KeyFile(tmp_path_factory.mktemp("keys") / "keys.json")


@pytest.fixture(scope="module")
def secret(key_file: KeyFile) -> str:
    return key_file.create("Alice")[1]


@pytest.fixture(scope="module")
def locked_url(start_stub: Callable[..., str], key_file: KeyFile, secret: str) -> str:
    return start_stub("--metered", "--set", f"keys_file={key_file.path}")


@pytest.fixture
def locked(locked_url: str) -> Iterator[httpx.Client]:
    """A server with keys, and a client without one."""
    with httpx.Client(base_url=locked_url, timeout=60) as client:
        yield client


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_a_call_with_a_key_is_answered(locked: httpx.Client, secret: str) -> None:
    assert locked.post("/v1/greedy", json=BODY, headers=bearer(secret)).status_code == 200
    lower = {"authorization": f"bearer {secret}"}
    assert locked.get("/v1/models", headers=lower).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer"}]
)
def test_a_call_without_a_key(locked: httpx.Client, headers: dict[str, str]) -> None:
    answer = locked.post("/v1/greedy", json=BODY, headers=headers)
    assert code_of(answer) == (401, "missing_key")
    assert answer.json()["error"]["type"] == "unauthorized"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_call_with_another_key(locked: httpx.Client, secret: str) -> None:
    for wrong in ("bytelm_x", secret + "x", secret[:-1]):
        answer = locked.post("/v1/greedy", json=BODY, headers=bearer(wrong))
        assert code_of(answer) == (401, "unknown_key")
        assert wrong not in answer.text


@pytest.mark.parametrize(
    ("path", "needs"),
    [
        ("/health", False),
        ("/docs", False),
        ("/docs/swagger-ui-bundle.js", False),
        ("/docs/nothing.js", True),
        ("/openapi.json", False),
        ("/v1/models", True),
        ("/v1/vocab", True),
        ("/v1/nothing", True),
    ],
)
def test_what_needs_a_key(locked: httpx.Client, path: str, needs: bool) -> None:
    assert (locked.get(path).status_code == 401) == needs


def test_without_a_key_not_even_the_body_is_looked_at(locked: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    answer = locked.post("/v1/greedy", content=b"{", headers=headers)
    assert code_of(answer) == (401, "missing_key")


def test_docs_say_that_calls_need_a_key(locked: httpx.Client, http: httpx.Client) -> None:
    document = locked.get("/openapi.json").json()
    assert document["paths"]["/v1/greedy"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in document["paths"]["/health"]["get"]
    without = http.get("/openapi.json").json()
    assert "security" not in without["paths"]["/v1/greedy"]["post"]


def test_a_new_key_opens_and_a_revoked_one_does_not(
    locked: httpx.Client, key_file: KeyFile
) -> None:
    key, secret = key_file.create("Bob")
    assert locked.get("/v1/models", headers=bearer(secret)).status_code == 200
    key_file.revoke(key.id)
    assert code_of(locked.get("/v1/models", headers=bearer(secret))) == (401, "unknown_key")


CONTEXT = {"context": "hello"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/next_bytes", CONTEXT),
        ("/v1/greedy", {**CONTEXT, "steps": 3}),
        ("/v1/greedy", {**CONTEXT, "steps": 3, "stream": True}),
        ("/v1/sample", {**CONTEXT, "steps": 3}),
        ("/v1/sample", {**CONTEXT, "steps": 3, "method": "byte"}),
        ("/v1/score", {**CONTEXT, "continuations": ["a"]}),
        ("/v1/rows", {**CONTEXT, "text": "a"}),
        ("/v1/sessions", CONTEXT),
        ("/v1/completions", {"prompt": "hello"}),
        ("/v1/completions", {"prompt": "hello", "stream": True}),
        ("/v1/completions", {"prompt": "hello", "echo": True, "logprobs": 0, "max_tokens": 0}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
    ],
)
def test_each_key_has_its_own_cache(
    locked: httpx.Client, key_file: KeyFile, path: str, body: dict[str, Any]
) -> None:
    assert code_of(locked.post(path, json=body)) == (401, "missing_key")
    key, secret = key_file.create("Carol")
    before = set(locked.get("/test/salts", headers=bearer(secret)).json())
    answer = locked.post(path, json=body, headers=bearer(secret))
    assert answer.status_code == 200
    after = set(locked.get("/test/salts", headers=bearer(secret)).json())
    assert after - before == {key.id}
    key_file.revoke(key.id)


def test_keys_do_not_see_each_others_sessions(locked: httpx.Client, key_file: KeyFile) -> None:
    secrets = [key_file.create(name)[1] for name in ("Dan", "Eve")]
    made = locked.post("/v1/sessions", json={}, headers=bearer(secrets[0])).json()
    path = f"/v1/sessions/{made['id']}"
    assert locked.get(path, headers=bearer(secrets[0])).status_code == 200
    stranger = bearer(secrets[1])
    assert locked.get(path, headers=stranger).status_code == 404
    assert locked.delete(path, headers=stranger).status_code == 404
    for call, body in [
        ("advance", {"bytes": "a"}),
        ("prefill", {"bytes": "a"}),
        ("fork", {}),
        ("greedy", {"steps": 1}),
        ("greedy", {"steps": 1, "stream": True}),
        ("sample", {"steps": 1}),
    ]:
        answer = locked.post(f"{path}/{call}", json=body, headers=stranger)
        assert answer.status_code == 404, call
    assert locked.get(f"{path}/next", headers=stranger).status_code == 404
    assert locked.get("/v1/sessions", headers=stranger).json()["data"] == []
    assert locked.get(path, headers=bearer(secrets[0])).json()["version"] == made["version"]


def test_keys_share_a_cache_where_that_is_wanted(
    start_stub: Callable[..., str], key_file: KeyFile, secret: str
) -> None:
    url = start_stub(
        "--metered", "--set", f"keys_file={key_file.path}", "--set", "share_cache=true"
    )
    with httpx.Client(base_url=url, headers=bearer(secret)) as client:
        assert client.post("/v1/greedy", json=BODY).status_code == 200
        assert client.get("/test/salts").json() == [None]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[", "a.b"]
)
def test_a_name_that_is_not_the_servers_is_refused(http: httpx.Client, host: str) -> None:
    assert code_of(http.get("/v1/models", headers={"Host": host})) == (403, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1", "[::1]:8000", "bytelm"])
def test_names_that_no_stranger_can_have_are_the_servers(http: httpx.Client, host: str) -> None:
    assert http.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "nonsense"]
)
def test_pages_of_others_are_refused(http: httpx.Client, origin: str) -> None:
    answer = http.post("/v1/greedy", json=BODY, headers={"Origin": origin})
    assert code_of(answer) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in answer.headers


def test_the_servers_own_page_may_call(http: httpx.Client, url: str) -> None:
    assert http.post("/v1/greedy", json=BODY, headers={"Origin": url}).status_code == 200


def test_no_page_is_told_that_it_may_call(http: httpx.Client) -> None:
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = http.options("/v1/greedy", headers=asked)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_a_page_and_a_name_that_are_allowed(start_stub: Callable[..., str]) -> None:
    page, name = "https://lab.example", "bytes.example"
    url = start_stub("--set", f"cors_origins={page},http://b", "--set", f"allowed_hosts={name}")
    with httpx.Client(base_url=url) as client:
        asked = {"Origin": page, "Access-Control-Request-Method": "POST"}
        asked["Access-Control-Request-Headers"] = "content-type"
        assert client.options("/v1/greedy", headers=asked).status_code == 200
        answer = client.post("/v1/greedy", json=BODY, headers={"Origin": page, "Host": name})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == page
        other = client.post("/v1/greedy", json=BODY, headers={"Origin": "http://c"})
        assert code_of(other) == (403, "origin_not_allowed")
        assert "access-control-allow-origin" not in other.headers


def test_content_of_another_type_is_refused(http: httpx.Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = http.post("/v1/greedy", content=b'{"context":"a"}', headers={"content-type": kind})
        assert code_of(answer) == (415, "unsupported_media_type")
