"""Scores of long files: in order, so many calls at a time, in memory that does not grow."""

import asyncio
import io
import random
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bytelm.errors import InputError
from bytelm.generating.spans import words
from bytelm_client.cli.kept import Kept
from bytelm_client.cli.parts import Cut, Part, Parts, lines
from bytelm_client.cli.reports import JsonReport
from bytelm_client.cli.scoring import Run
from bytelm_client.cli.source import Source
from bytelm_client.cli.windows import Piece, Windows, in_order
from bytelm_client.errors import TookTooLong


class Fake:
    """A client that scores each byte by its value, when its turn comes."""

    def __init__(self) -> None:
        self.under_way = self.most = self.bytes = 0
        self.longest = 10_000

    async def models(self) -> list[Any]:
        limits = {"context_tokens": 1000}
        return [SimpleNamespace(limits=limits, fingerprint="fake")]

    async def score(self, context: bytes, text: bytes, **options: Any) -> Any:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        for _ in range(random.randrange(3)):
            await asyncio.sleep(0)
        self.under_way -= 1
        if len(text) > self.longest:
            raise TookTooLong("too long", status=504, type="timeout", code="deadline_passed")
        self.bytes += len(text)
        return SimpleNamespace(logprobs=-np.frombuffer(text, np.uint8).astype(np.float64))


async def report(client: Any, path: Path, sink: Any, kept: Kept | None = None) -> None:
    with Source.opened(path) as source:
        run = Run(source, kept, {}, 4)
        await run.report(client, None, None, sink, JsonReport, "words")


class Nowhere(io.RawIOBase):
    """Rows that nobody keeps."""

    def write(self, data: Any) -> int:
        return len(data)


async def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = []
    for size in (100_000, 400_000):
        file = tmp_path / str(size)
        file.write_bytes(b"a-word-of-twenty-by " * (size // 20))
        tracemalloc.start()
        client = Fake()
        await report(client, file, Nowhere())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert client.bytes == size
        assert client.most == 4
    # Not even a byte for each byte more.
    assert peaks[1] < peaks[0] + 300_000


async def test_what_is_kept_is_not_scored_again(tmp_path: Path) -> None:
    file, whole = tmp_path / "text", io.BytesIO()
    file.write_bytes(bytes(range(1, 256)) * 40)
    await report(Fake(), file, whole)
    with Source.opened(file) as source:
        digest = source.digest()
    of = {"file": digest, "model": "fake", "window": [2000, 1000, 256], "beam": {}}
    with Kept.opened(tmp_path / "out") as kept:
        kept.go_on(of, 10200)
        kept.add(-np.frombuffer(file.read_bytes()[:2700], np.uint8).astype(np.float64))
    client, rows = Fake(), io.BytesIO()
    with Kept.opened(tmp_path / "out") as kept:
        await report(client, file, rows, kept)
        assert kept.count == 10200
    # The piece that was kept in part is scored as a whole, so that its numbers are the same.
    assert client.bytes == 10200 - 2512
    assert rows.getvalue() == whole.getvalue()


async def test_what_takes_too_long_is_scored_in_smaller_pieces(tmp_path: Path) -> None:
    file, whole, halved = tmp_path / "text", io.BytesIO(), io.BytesIO()
    file.write_bytes(bytes(range(1, 256)) * 10)
    await report(Fake(), file, whole)
    client = Fake()
    client.longest = 100
    await report(client, file, halved)
    assert halved.getvalue() == whole.getvalue()
    client.longest = 0
    with pytest.raises(TookTooLong):
        await report(client, file, halved)


async def test_results_come_in_order_and_wait_for_no_more_than_are_under_way() -> None:
    begun: list[int] = []
    first = asyncio.Event()

    async def work(piece: Piece) -> int:
        begun.append(piece.start)
        if piece.start == 0:
            await first.wait()
        return piece.start

    pieces = Windows(None, None, 10).pieces(1000)
    results = in_order(work, pieces, 3)
    waiting = asyncio.ensure_future(anext(results))
    for _ in range(100):
        await asyncio.sleep(0)
    assert begun == [0, 10, 20, 30, 40, 50]
    first.set()
    assert (await waiting)[1] == 0
    assert [found async for _, found in results] == list(range(10, 1000, 10))


async def test_the_first_error_ends_what_is_under_way() -> None:
    ended: list[int] = []

    async def work(piece: Piece) -> None:
        if piece.start == 10:
            raise ValueError("no")
        try:
            await asyncio.sleep(0 if piece.start == 0 else 1000)
        finally:
            ended.append(piece.start)

    with pytest.raises(ValueError, match="no"):
        async for _ in in_order(work, Windows(None, None, 10).pieces(100), 3):
            pass
    assert sorted(ended)[:2] == [0, 20]


@pytest.mark.parametrize("cut", [lines, words])
@given(
    st.one_of(
        st.binary(max_size=30), st.text("a 北，、(\n\r\u3000か\u3099", max_size=12).map(str.encode)
    ),
    st.lists(st.integers(0, 30)),
)
def test_parts_are_the_same_wherever_pieces_end(cut: Cut, data: bytes, places: list[int]) -> None:
    parts, found = Parts(cut), list[Part]()
    ends = [*sorted(min(place, len(data)) for place in places), len(data)]
    for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        piece = data[start:end]
        logprobs = -np.frombuffer(piece, np.uint8).astype(np.float64)
        found += parts.take(piece, logprobs, last=i == len(ends) - 1)
    assert [(part.start, part.end) for part in found] == cut(data)
    assert [part.data for part in found] == [data[start:end] for start, end in cut(data)]
    assert [part.number for part in found] == list(range(1, len(found) + 1))
    assert all(part.logprob == -sum(part.data) for part in found)


def test_a_file_that_becomes_shorter_is_told(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"hello")
    with Source.opened(file) as source:
        file.write_bytes(b"he")
        with pytest.raises(InputError, match="text has become shorter while it was read"):
            source.read(0, 5)
