"""The distributions along a file, read by many calls and written as one array."""

from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bytelm.errors import InputError
from bytelm_client.cli.arrays import array_file
from bytelm_client.cli.console import Count
from bytelm_client.cli.source import Source
from bytelm_client.cli.windows import Piece, Windows, in_order, through
from bytelm_client.errors import InvalidRequest

if TYPE_CHECKING:
    from bytelm_client import AsyncClient

WIDTH = 257
"""Numbers of a row: of 256 bytes, then of EOS."""


class Reading:
    """Reads a file.

    Args:
        source: the file.
        context: what stands before each window.
        dtype: of the numbers.
        options: the calls'.
        concurrency: how many are under way at most.

    Attributes:
        shape: of the array.
    """

    def __init__(
        self,
        source: Source,
        context: bytes,
        dtype: Literal["float32", "float16"],
        options: dict[str, Any],
        concurrency: int,
    ) -> None:
        self.shape = (source.size + 1, WIDTH)
        self._source = source
        self._context = context
        self._dtype = dtype
        self._options = options
        self._concurrency = concurrency

    async def write(
        self, client: "AsyncClient", window: int | None, stride: int | None, output: Path
    ) -> None:
        """Write the array as it comes; it has its name when it is whole."""
        size = self._source.size
        windows = Windows.of((await client.models())[0].limits, window, stride)

        async def read(piece: Piece) -> NDArray[Any]:
            return await self._rows(client, piece)

        with (
            array_file(output, self.shape, self._dtype, self._source.file) as array,
            Count("reading", size, "bytes") as count,
        ):
            read_all = in_order(read, windows.pieces(size), self._concurrency)
            async with aclosing(read_all) as results:
                async for piece, rows in results:
                    array.write(rows.astype(rows.dtype.newbyteorder("<")).tobytes())
                    count.add(piece.end - piece.start)

    async def _rows(self, client: "AsyncClient", piece: Piece) -> NDArray[Any]:
        """The rows before each byte of a piece, and, if it is the last, the one behind it."""
        found: list[NDArray[Any]] = []

        async def read(context: bytes, text: bytes) -> int:
            at = piece.start + sum(map(len, found))
            before = self._context + context
            try:
                # How long a call may take is the server's to say.
                options: Any = {"dtype": self._dtype, "timeout": None, **self._options}
                rows = await client.rows(before, text, **options)
            except InvalidRequest as error:
                if error.code == "no_continuation":
                    raise InputError(f"behind the first {at} bytes, {error}") from None
                raise
            found.append(rows if at + len(text) == self._source.size else rows[:-1])
            return len(text)

        await through(self._source, piece, read)
        return np.concatenate(found)
