"""What callers of the client may give as a context, and what they are told about anything else."""

from typing import Any

import pytest

from bytelm_client import messages, segments
from bytelm_client.contexts import bytes_json, context_json

CHAT = [{"role": "user", "content": "Hello"}]


def test_text_and_bytes_are_sent_as_they_are() -> None:
    assert context_json("é") == "é"
    given: list[Any] = [b"\xff", bytearray(b"\xff"), memoryview(b"\xff")]
    for data in given:
        assert context_json(data) == bytes_json(data) == {"base64": "/w=="}


@pytest.mark.parametrize("given", [CHAT[0], "Hello", b"Hello"])
def test_a_chat_is_a_list_of_messages(given: Any) -> None:
    with pytest.raises(TypeError, match="a list of messages, not a .*: put a single one in a list"):
        messages(given)


def test_a_message_has_a_role_and_a_content() -> None:
    with pytest.raises(TypeError, match="message 1 is no .*, but a str"):
        messages([*CHAT, "Hello"])  # type: ignore[list-item]


@pytest.mark.parametrize("given", [CHAT[0], CHAT, 5, None])
def test_what_is_no_context_is_named(given: Any) -> None:
    with pytest.raises(TypeError, match=r"a context is text, bytes, segments\(…\) or messages"):
        context_json(given)


def test_a_segment_is_text_bytes_or_special() -> None:
    with pytest.raises(TypeError, match="text or bytes are wanted here, not 5"):
        context_json(segments("a", 5))  # type: ignore[arg-type]
