"""Distributions over the next byte: ``LazyByteProbs``, an array, and ``Chart``, a dictionary of it.

This module must not know models, tries or beams.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bytelm.compiled import compiled
from bytelm.errors import ByteError

EOT = 256
"""Index of "end of token"; -inf in results, since tokens are not visible to a byte LM."""
EOS = 257
"""Index, and symbol, of "end of sequence". Answers of the API have it at 256, in place of EOT."""
SIZE = 258


@compiled()
def log_normalised(total: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(total / sum(total)), elementwise."""
    z = 0.0
    for x in total:
        z += x
    out = np.empty_like(total)
    for i in range(total.size):
        out[i] = math.log(total[i] / z) if total[i] > 0.0 else -math.inf
    return out


Symbol = int | None
"""What a Chart of bytes is keyed by: 0..255, None (EOT) or 257 (EOS)."""


def escape(data: bytes) -> str:
    """Bytes as readable text: like ``repr`` without quotes, and spaces made visible."""
    return repr(data)[2:-1].replace(" ", "␣")


def check_symbol(b: int) -> int:
    """``b`` itself, if it is a byte or EOS.

    Raises:
        ByteError: otherwise.
    """
    if isinstance(b, (int, np.integer)) and (0 <= b <= 255 or b == EOS):
        return int(b)
    raise ByteError(f"{b!r} is neither a byte (0..255) nor EOS ({EOS})")


def checked_bytes(values: bytes | Iterable[int]) -> bytes:
    """Bytes, or byte values, as bytes.

    Raises:
        ByteError: when a value is not in 0..255.
    """
    if isinstance(values, (bytes, bytearray, memoryview)):
        return bytes(values)
    values = list(values)
    for b in values:
        if not isinstance(b, (int, np.integer)) or not 0 <= b <= 255:
            raise ByteError(f"{b!r} is not a byte (0..255)")
    return bytes(values)


class LazyByteProbs:
    """A distribution over the next byte.

    Args:
        ps: float64 ``[258]``: 256 bytes, EOT, EOS.
        log_space: whether ``ps`` holds natural logarithms (the default) or probabilities.
        kept: what ``drawable`` is in proportion to, where it is another distribution.
    """

    __slots__ = ("_kept", "log_space", "ps")

    def __init__(
        self,
        ps: NDArray[np.float64],
        log_space: bool = True,
        kept: NDArray[np.float64] | None = None,
    ) -> None:
        if len(ps) != SIZE:
            raise ByteError(f"a byte distribution has {SIZE} entries, got {len(ps)}")
        self.ps = ps
        self.log_space = log_space
        self._kept = kept

    @property
    def drawable(self) -> LazyByteProbs:
        """What greedy and sampling choose from.

        The same distribution, except where some of it stands in for what nobody evaluated
        (``BeamParams.deferred``): no byte is ever drawn from that.
        """
        if self._kept is None:
            return self
        return LazyByteProbs(log_normalised(self._kept))

    def __getitem__(self, b: Symbol) -> float:
        """The entry of a byte, of EOT (None) or of EOS (257)."""
        if b is None:
            return float(self.ps[EOT])
        return float(self.ps[check_symbol(b)])

    def materialize(self) -> Chart:
        """All entries, keyed by 0..255, None (EOT) and 257 (EOS)."""
        values = np.asarray(self.ps).tolist()
        chart = Chart(-np.inf if self.log_space else 0.0, enumerate(values[:256]))
        chart[None] = values[EOT]
        chart[EOS] = values[EOS]
        return chart

    def pretty(self) -> Chart:
        """As ``materialize``, keyed by ``b"a"``, ``"EOT"`` and ``"EOS"`` for reading."""
        names: dict[Hashable, Hashable] = {None: "EOT", EOS: "EOS"}
        return self.materialize().map_keys(
            lambda b: names.get(b, bytes([b]) if b in range(256) else b)
        )

    def top(self, k: int) -> Chart:
        """The ``k`` largest entries, largest first."""
        return self.materialize().top(k)

    def argmax(self) -> int:
        """The most likely byte, or 257 for EOS; the smallest of equals."""
        return int(self.ps.argmax())

    def map_values(self, f: Callable[[float], Any]) -> Chart:
        """A Chart of ``f`` of each entry."""
        return self.materialize().map_values(f)

    def __repr__(self) -> str:
        return f"LazyByteProbs({self.pretty().top(5)!r}, …)"

    def _repr_html_(self) -> str:
        return self.pretty().top(10)._repr_html_()


class Chart(dict[Any, Any]):
    """A dictionary from symbols to numbers, with a default and what distributions need.

    Args:
        zero: the value of a key that is missing.
        vals: initial (key, value) pairs or a mapping.
    """

    def __init__(self, zero: Any, vals: Iterable[tuple[Any, Any]] | dict[Any, Any] = ()) -> None:
        self.zero = zero
        super().__init__(vals)

    def __missing__(self, key: Any) -> Any:
        return self.zero

    def spawn(self) -> Chart:
        """An empty Chart with the same default."""
        return Chart(self.zero)

    def copy(self) -> Chart:
        """A Chart with the same entries."""
        return Chart(self.zero, self)

    def __add__(self, other: dict[Any, Any]) -> Chart:
        total = self.copy()
        for key, value in other.items():
            total[key] += value
        return total

    def __mul__(self, other: dict[Any, Any]) -> Chart:
        return Chart(self.zero, {k: v * other[k] for k, v in self.items()}).trim()

    def trim(self) -> Chart:
        """Without the entries that equal the default."""
        return self.filter(lambda key: self[key] != self.zero)

    def filter(self, keep: Callable[[Any], bool]) -> Chart:
        """The entries whose key passes ``keep``."""
        return Chart(self.zero, [(k, v) for k, v in self.items() if keep(k)])

    def map_values(self, f: Callable[[Any], Any]) -> Chart:
        """``f`` of every value, and of the default."""
        return Chart(f(self.zero), [(k, f(v)) for k, v in self.items()])

    def map_keys(self, f: Callable[[Any], Any]) -> Chart:
        """The same values under ``f`` of every key."""
        return Chart(self.zero, [(f(k), v) for k, v in self.items()])

    def project(self, f: Callable[[Any], Any]) -> Chart:
        """The values under ``f`` of every key, summed where these are equal."""
        total = self.spawn()
        for key, value in self.items():
            total[f(key)] += value
        return total

    def argmax(self) -> Any:
        """The key of the largest value; the first of equals."""
        return max(self, key=self.__getitem__)

    def argmin(self) -> Any:
        """The key of the smallest value; the first of equals."""
        return min(self, key=self.__getitem__)

    def max(self) -> Any:
        """The largest value."""
        return max(self.values())

    def min(self) -> Any:
        """The smallest value."""
        return min(self.values())

    def sum(self) -> Any:
        """The sum of all values."""
        return sum(self.values())

    def normalize(self) -> Chart:
        """Every value divided by the sum; unchanged when that is zero."""
        total = self.sum()
        return self.map_values(lambda v: v / total) if total else self.copy()

    def sort(self, *, key: Callable[[Any], Any] | None = None, reverse: bool = False) -> Chart:
        """Ordered by key."""
        return Chart(self.zero, [(k, self[k]) for k in sorted(self, key=key, reverse=reverse)])

    def sort_descending(self) -> Chart:
        """Ordered by value, largest first."""
        return self.sort(key=lambda k: -self[k])

    def top(self, k: int) -> Chart:
        """The ``k`` largest entries, largest first."""
        return Chart(self.zero, list(self.sort_descending().items())[:k])

    def metric(self, other: dict[Any, Any]) -> float:
        """The largest absolute difference of two Charts."""
        return max((abs(self[k] - other[k]) for k in self.keys() | other.keys()), default=0.0)

    def assert_equal(
        self,
        want: dict[Any, Any],
        *,
        domain: Iterable[Any] | None = None,
        tol: float = 1e-5,
        verbose: bool = False,
        throw: bool = True,
    ) -> None:
        """Raises AssertionError with all keys at which the two differ by more than ``tol``.

        Prints these with ``verbose``; without ``throw``, raises nothing.
        """
        want = want if isinstance(want, Chart) else Chart(self.zero, want)
        keys = self.keys() | want.keys() if domain is None else domain
        wrong = {k: (self[k], want[k]) for k in keys if not abs(self[k] - want[k]) <= tol}
        if verbose:
            print(f"(have, want) differ by more than {tol}: {wrong}")
        if wrong and throw:
            raise AssertionError(f"(have, want) differ by more than {tol}: {wrong}")

    def to_dict(self) -> dict[Any, Any]:
        """A plain dictionary of the entries."""
        return dict(self)

    def __repr__(self) -> str:
        return repr({k: v for k, v in self.items() if v != self.zero})

    def __str__(self, style_value: Callable[[Any, Any], str] = lambda k, v: str(v)) -> str:
        best_first = self.trim().sort_descending().items()
        lines = [f"  {k!r}: {style_value(k, v)}," for k, v in best_first]
        return "\n".join(["Chart {", *lines, "}"])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td><pre>{html.escape(repr(k))}</pre></td><td><pre>{html.escape(str(v))}</pre></td></tr>"
            for k, v in self.trim().items()
        )
        table = f"<table><tr><th>key</th><th>value</th></tr>{rows}</table>"
        return f'<div style="font-family: Monospace;">{table}</div>'
