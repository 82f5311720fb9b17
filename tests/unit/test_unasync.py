"""What is made of the awaited client is up to date, and has the same calls."""

import inspect
import runpy
from pathlib import Path
from typing import Any

import pytest

import bytelm_client as api
from bytelm_client._plan import Plan

SCRIPT = Path(__file__).parents[2] / "client" / "unasync.py"
PAIRS: list[tuple[type[Any], type[Any]]] = [
    (api.AsyncClient, api.Client),
    (api.AsyncSession, api.Session),
    (api.AsyncStream, api.Stream),
]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_what_is_made_is_up_to_date(script: dict[str, Any]) -> None:
    wanted = script["written"]()
    assert len(wanted) == 4
    for path, text in wanted.items():
        assert path.read_text() == text, f"run python {SCRIPT}"


def calls(kind: type[Any]) -> dict[str, list[str]]:
    return {
        name.replace("aclose", "close"): list(inspect.signature(call).parameters)
        for name, call in inspect.getmembers(kind, callable)
        if not name.startswith("_")
    }


@pytest.mark.parametrize(("awaited", "waited"), PAIRS)
def test_both_clients_have_the_same_calls(awaited: type[Any], waited: type[Any]) -> None:
    assert calls(awaited) == calls(waited)


def test_a_plan_has_the_calls_of_a_session_but_streams() -> None:
    wanted = {name: names for name, names in calls(api.Session).items() if "stream" not in name}
    wanted["get"] = wanted.pop("refresh")
    assert calls(Plan) == wanted


@pytest.mark.parametrize("kind", [waited for _, waited in PAIRS])
def test_nothing_awaited_is_left(kind: type[Any]) -> None:
    source = Path(inspect.getfile(kind)).read_text()
    for word in ("await", "Async", "async ", "asyncio", "aclose", "aread", "__a"):
        assert word not in source.split("\n", 1)[1]
