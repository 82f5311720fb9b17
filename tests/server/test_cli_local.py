"""Commands that serve their own model in their own process."""

from pathlib import Path
from typing import Any

from bytelm_client import Client
from bytelm_client.cli.models import Where, served_here, unlimited


async def test_a_model_of_ones_own_is_served_to_its_user_alone(
    stub: dict[str, Any], url: str
) -> None:
    lm = stub["SteeredLM"]()
    async with served_here(lm, unlimited()) as client:
        assert await client.health() == "ready"
        made = await client.greedy("hello", 100, beam={"K": None})
        assert len(made.bytes) > 64
        stream = client.stream_greedy("hello", 20)
        pieces = [piece async for piece in stream]
        assert len(pieces) > 1
        want = Client(url).greedy("hello", 20).bytes
        assert b"".join(pieces) == want
        transport: Any = client._http._transport
        folder = Path(transport._pool._uds).parent
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


def test_where_a_commands_model_is(monkeypatch: Any) -> None:
    assert Where.given(None, None, "x") == Where(None, None, "x")
    assert Where.given("http://a", "k").url == "http://a"
    assert Where.of_a_server(None, None).url == "http://127.0.0.1:8000"
    monkeypatch.setenv("BYTELM_URL", "http://b")
    assert Where.given(None, None).url == "http://b"
    assert Where.of_a_server(None, None).url == "http://b"
