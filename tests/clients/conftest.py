"""What tests of clients share; they run in the clients' own venv, see ``__main__``."""

import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest

URL = os.environ.get("BYTELM_CLIENTS_URL")
if URL is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def url() -> str:
    """The server."""
    assert URL is not None
    return URL


@pytest.fixture(scope="session")
def key() -> str:
    """The key that it wants."""
    return os.environ["OPENAI_API_KEY"]


@pytest.fixture(scope="session")
def close() -> float:
    """How far apart log-probabilities of equal calls may be."""
    return float(os.environ["BYTELM_CLIENTS_CLOSE"])


@pytest.fixture(scope="session")
def post(url: str, key: str) -> Callable[..., Any]:
    """Makes one of the server's own calls, which must succeed, and gives its results."""
    import httpx

    def call(path: str, **body: Any) -> Any:
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.post(f"{url}{path}", json=body, headers=headers, timeout=120)
        assert answer.status_code == 200, answer.text
        return answer.json()["results"]

    return call


@pytest.fixture(scope="session")
def greedy(post: Callable[..., Any]) -> Callable[..., str]:
    """The greedy text after a context, as the server's own call has it."""
    import base64

    def text(context: Any, steps: int, **more: Any) -> str:
        (result,) = post("/v1/greedy", context=context, steps=steps, **more)
        return base64.b64decode(result["bytes"]["base64"]).decode(errors="replace")

    return text


@pytest.fixture
def show(request: pytest.FixtureRequest) -> Callable[[str, object], None]:
    """Prints what a client gave, with its name and version."""

    def line(client: str, found: object) -> None:
        print(f"\n    {client} {version(client)}, {request.node.name}: {found!r}")

    return line
