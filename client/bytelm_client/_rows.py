"""Rows of raw numbers, read as they come. Must not send anything.

A body has the rows of the header ``X-Shape``, one after another. None has NaN, so that a NaN where
a row would begin says that JSON follows: an error, or what else there is to tell.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bytelm_client.errors import api_error_of

Dtype = Literal["float32", "float16"]
Float32Rows: TypeAlias = NDArray[np.float32]
Float16Rows: TypeAlias = NDArray[np.float16]
Rows: TypeAlias = Float32Rows | Float16Rows
"""Natural log-probabilities ``[rows, 257]``: of 256 bytes, then of EOS (``EOS_INDEX``)."""


class Numbers(NamedTuple):
    """A body of numbers, read.

    Attributes:
        rows: the rows, or those that were not read before.
        end: what stands behind them.
    """

    rows: NDArray[Any]
    end: Mapping[str, Any]


class RowReader:
    """Reads one body.

    Args:
        headers: the answer's.

    Attributes:
        count: how many rows there were so far.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.count = 0
        *rows, self._width = (int(n) for n in headers["x-shape"].split(","))
        self._rows = rows[0] if rows else 1
        self._dtype = np.dtype(headers.get("x-dtype", "<f4"))
        self._rest = b""
        self._has_ended = False

    def take(self, data: bytes) -> NDArray[Any]:
        """The rows that are whole now."""
        data = self._rest + data
        size = 0 if self._has_ended else self._width * self._dtype.itemsize
        count = len(data) // size if size else 0
        rows = np.frombuffer(data, self._dtype, count * self._width).reshape(count, self._width)
        if (ends := np.isnan(rows[:, :1]).nonzero()[0]).size:
            rows, self._has_ended = rows[: ends[0]], True
        self._rest = data[len(rows) * size :]
        self.count += len(rows)
        return rows.astype(self._dtype.newbyteorder("="))

    def end(self) -> Mapping[str, Any]:
        """What stands behind the rows, when all has come.

        Raises:
            APIError: what went wrong in the middle.
            ValueError: when it is no such body, or not all of it.
        """
        told: Mapping[str, Any] = {}
        if self._rest:
            if not np.isnan(np.frombuffer(self._rest, self._dtype, 1)[0]):
                raise ValueError("a row is not whole")
            told = json.loads(self._rest[self._dtype.itemsize :])
        if "error" in told:
            raise api_error_of(told["error"])
        if self.count != self._rows:
            raise ValueError(f"{self.count} of {self._rows} rows came")
        return told


def read_numbers(headers: Mapping[str, str], body: bytes) -> Numbers:
    """A body that has come as a whole; raises as ``RowReader.end``."""
    reader = RowReader(headers)
    rows = reader.take(body)
    return Numbers(rows, reader.end())


def read_rows(numbers: Numbers) -> Rows:
    """The rows alone."""
    return numbers.rows
