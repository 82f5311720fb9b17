r"""What ``bytelm score`` writes: of each part of a text, and of all of it.

In CSV a word that is no UTF-8 has ``\xNN`` for such bytes, and for NUL, which many readers do not
take; where it stands is in ``start`` and ``end``. Words are quoted, since they begin with white
space; what is not finite is ``inf``.
"""

import codecs
import csv
import json
import math
from abc import ABC, abstractmethod
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from bytelm_client.cli.console import say, tables
from bytelm_client.cli.parts import Part, bits_of
from bytelm_client.cli.texts import bytes_out, shown

Kind = Literal["lines", "words", "total"]
"""Of which parts is told; of all of a text only by ``total``."""


class Total:
    """All of a text, so far."""

    def __init__(self) -> None:
        self.bytes = self.impossible = 0
        self._pieces: list[float] = []

    def add(self, logprobs: NDArray[np.float64]) -> None:
        """The next bytes."""
        finite = logprobs[~np.isneginf(logprobs)]
        self.bytes += len(logprobs)
        self.impossible += len(logprobs) - len(finite)
        self._pieces.append(math.fsum(finite))

    @property
    def bits(self) -> float:
        """What all of it takes."""
        return math.inf if self.impossible else self._possible

    @property
    def without(self) -> float:
        """Bits per byte of those that have a probability."""
        return self._possible / max(self.bytes - self.impossible, 1)

    @property
    def _possible(self) -> float:
        return bits_of(math.fsum(self._pieces))

    def row(self) -> dict[str, Any]:
        """The numbers, by name."""
        return {**_numbers(self.bits, self.bytes), "impossible": self.impossible}


class Report(ABC):
    """Tells of a text.

    Args:
        sink: where to.
        kind: of which parts.
    """

    def __init__(self, sink: BinaryIO, kind: Kind) -> None:
        self.sink = sink
        self.kind = kind

    @abstractmethod
    def part(self, part: Part) -> None:
        """Tell of a part."""

    @abstractmethod
    def end(self, total: Total) -> None:
        """Tell of all of it."""


class JsonReport(Report):
    """JSON lines; null for what is not finite."""

    def part(self, part: Part) -> None:
        """See ``Report``."""
        if self.kind == "words":
            where = {"start": part.start, "end": part.end}
            found = {"bits": part.bits, "logprob": part.logprob}
            self._write({**bytes_out(part.data), **where, **found})
        else:
            self._write({"line": part.number, **_numbers(part.bits, len(part.data))})

    def end(self, total: Total) -> None:
        """See ``Report``."""
        self._write({"total": True, **total.row()})

    def _write(self, row: dict[str, Any]) -> None:
        row = {name: None if _is_infinite(value) else value for name, value in row.items()}
        self.sink.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


class CsvReport(Report):
    """A table as CSV; of all of the text on stderr, where parts are told of."""

    def __init__(self, sink: BinaryIO, kind: Kind) -> None:
        super().__init__(sink, kind)
        # Words are quoted whatever is in them: readers may strip white space otherwise.
        self._rows = csv.writer(
            codecs.getwriter("utf-8")(sink), quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n"
        )
        columns = {
            "lines": ["line", "bytes", "bits", "bits_per_byte"],
            "words": ["word", "start", "end", "bits", "logprob"],
            "total": ["bytes", "bits", "bits_per_byte", "impossible"],
        }
        sink.write(",".join(columns[kind]).encode() + b"\n")

    def part(self, part: Part) -> None:
        """See ``Report``."""
        if self.kind == "words":
            word = part.data.decode(errors="backslashreplace").replace("\0", "\\x00")
            self._rows.writerow([word, part.start, part.end, part.bits, part.logprob])
        else:
            self._rows.writerow([part.number, *_numbers(part.bits, len(part.data)).values()])

    def end(self, total: Total) -> None:
        """See ``Report``."""
        if self.kind == "total":
            self._rows.writerow(total.row().values())
        else:
            per_byte = total.bits / total.bytes
            say(f"all: {total.bytes} bytes, {total.bits:.1f} bits, {per_byte:.3f} bits/byte")


class TableReport(Report):
    """A table for readers, at the end."""

    def __init__(self, sink: BinaryIO, kind: Kind) -> None:
        super().__init__(sink, kind)
        from rich.table import Table

        self._console = tables()
        names = {
            "words": ["start", "bytes", "bits"],
            "lines": ["line", "bytes", "bits", "bits/byte"],
            "total": ["", "bytes", "bits", "bits/byte"],
        }
        self._table = Table(*names[kind], "", box=None, pad_edge=False)
        for column in self._table.columns[:-1]:
            # The text alone gives way where a line has no room.
            column.justify, column.no_wrap = "right", True

    def part(self, part: Part) -> None:
        """See ``Report``."""
        from rich.text import Text

        begun = shown(part.data.rstrip(b"\n")[: 4 * self._console.width])
        first = part.start if self.kind == "words" else part.number
        self._row(
            str(first),
            len(part.data),
            part.bits,
            Text(begun, style="dim", no_wrap=True, overflow="ellipsis"),
        )

    def end(self, total: Total) -> None:
        """See ``Report``."""
        self._row("all", total.bytes, total.bits)
        self._console.print(self._table)

    def _row(self, first: str, size: int, bits: float, *text: Any) -> None:
        numbers = [first, str(size), f"{bits:.1f}"]
        if self.kind != "words":
            numbers.append(f"{bits / size:.3f}")
        self._table.add_row(*numbers, *text)


def _numbers(bits: float, size: int) -> dict[str, Any]:
    return {"bytes": size, "bits": bits, "bits_per_byte": bits / size}


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and math.isinf(value)
