"""Server-sent events, from bytes in pieces to what goes over the wire."""

import asyncio
import base64
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm_server.answers import bytes_out
from bytelm_server.streams import Channel, Text, encoded


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(bounds)]


@given(st.text() | st.binary(), st.lists(st.integers(0, 99), max_size=8))
def test_pieces_together_are_what_is_written_at_once(text: str | bytes, cuts: list[int]) -> None:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    pieces = pieces_of(data, cuts)
    growing = Text()
    outs = [growing.out(p, last=i == len(pieces) - 1) for i, p in enumerate(pieces)]
    assert b"".join(base64.b64decode(out["base64"]) for out in outs) == data
    texts = [out["text"] for out in outs]
    whole = bytes_out(data)["text"]
    assert (None in texts) == (whole is None)
    if whole is not None:
        assert "".join(t for t in texts if t is not None) == whole


def test_an_incomplete_character_waits() -> None:
    growing = Text()
    assert growing.out("né".encode()[:2])["text"] == "n"
    assert growing.out("né".encode()[2:])["text"] == "é"
    assert growing.out(b"\xe2")["text"] == ""
    assert growing.out(b"", last=True)["text"] is None


@given(st.text())
def test_an_event_is_one_line_to_any_reader_of_lines(text: str) -> None:
    (line, empty) = encoded({"text": text}).decode().splitlines()
    assert empty == ""
    assert json.loads(line.removeprefix("data: ")) == {"text": text}


async def test_a_channel_gives_every_event_and_then_the_error() -> None:
    channel = Channel()

    async def work() -> None:
        for i in range(5):
            await channel.put({"i": i})
        raise ValueError("the end")

    seen = []

    async def read() -> None:
        async for event in channel.of(work()):
            seen.append(event["i"])

    with pytest.raises(ValueError, match="the end"):
        await read()
    assert seen == [0, 1, 2, 3, 4]


async def test_a_channel_that_is_closed_ends_the_work() -> None:
    channel, put, ended = Channel(), 0, asyncio.Event()

    async def work() -> None:
        nonlocal put
        try:
            while True:
                await channel.put({})
                put += 1
        finally:
            ended.set()

    events = channel.of(work())
    await anext(events)
    await events.aclose()
    assert ended.is_set()
    assert put <= 2


async def test_no_task_runs_far_ahead_of_the_reader() -> None:
    channel, put = Channel(), 0

    async def work() -> None:
        nonlocal put
        for _ in range(100):
            await channel.put({})
            put += 1

    events = channel.of(work())
    await anext(events)
    for _ in range(50):
        await asyncio.sleep(0)
    assert put <= 2
    assert len([event async for event in events]) == 99
