"""Real texts to measure on, found where Python is installed: English, code and Chinese."""

from __future__ import annotations

import inspect
import platform
import re
import shlex
import sysconfig
from dataclasses import dataclass
from pathlib import Path

HAN = re.compile("[\u4e00-\u9fff]")
PROSE = re.compile(rb"\n\n(?=([A-Z][a-z]*(?: [a-z]+,?){5}))")
"""Where a paragraph begins with some plain words."""


@dataclass(frozen=True)
class Text:
    """A text and where it is from.

    Attributes:
        name: its kind.
        source: where it is from, for the reader of a table.
        data: its bytes, valid UTF-8.
    """

    name: str
    source: str
    data: bytes

    def beginning(self, size: int) -> Text:
        """Its first ``size`` bytes, cut after a whole character."""
        cut = self.data[:size].decode(errors="ignore").encode()
        return Text(self.name, self.source, cut)


def texts(size: int, chinese: Path | None = None) -> list[Text]:
    """English, code and Chinese, ``size`` bytes of each, or as much as there is.

    Args:
        size: bytes of each at most.
        chinese: a file to take instead of the Chinese that is found.

    Raises:
        SystemExit: no Chinese text is found.
    """
    return [text.beginning(size) for text in (_english(), _code(), _chinese(chinese))]


def excerpts(count: int, size: int, series: int = 0) -> list[bytes]:
    """Excerpts of English prose, Python's reference, each beginning with a paragraph.

    Lines that only underline a heading are left out.

    Args:
        count: how many, from places spread evenly.
        size: bytes of each.
        series: another number, up to 7, gives other excerpts.
    """
    from pydoc_data.topics import topics

    lines = "\n\n".join(text for _, text in sorted(topics.items())).splitlines(keepends=True)
    kept = [line for line in lines if not line.strip() or re.search(r"[^\W_]", line)]
    reference = "".join(kept).encode()
    begins = [found.start(1) for found in PROSE.finditer(reference, 0, len(reference) - size)]
    # Some topics are there twice.
    found = list(dict.fromkeys(reference[begin : begin + size] for begin in begins))
    apart = len(found) / count
    return [found[int((i + series / 8) * apart)] for i in range(count)]


def _english() -> Text:
    from pydoc_data.topics import topics

    # The heading is a line of stars.
    prose = topics["objects"].split("\n\n", 1)[1].lstrip("\n")
    return Text("English", f"Python {_python()} documentation, topic “objects”", prose.encode())


def _code() -> Text:
    source = inspect.getsource(shlex.shlex.read_token)
    return Text("code", f"Python {_python()} standard library, shlex.read_token", source.encode())


def _chinese(given: Path | None) -> Text:
    if given is not None:
        return Text("Chinese", given.name, given.read_text().encode())
    python = Path(sysconfig.get_path("stdlib")) / "test/cjkencodings/gb18030-utf8.txt"
    gnupg = Path("/usr/share/gnupg/help.zh_CN.txt")
    if python.is_file():
        source = f"Python {_python()}, test/cjkencodings/{python.name}"
        # The last line is Korean.
        lines = [line for line in _lines(python) if not re.search("[\uac00-\ud7af]", line)]
    elif gnupg.is_file():
        source = "GnuPG's help.zh_CN.txt, its Chinese lines"
        lines = [line for line in _lines(gnupg) if HAN.search(line)]
    else:
        raise SystemExit(
            "error: no Chinese text is found: this Python has no test/cjkencodings, and there is "
            f"no {gnupg}; name a file with --chinese"
        )
    return Text("Chinese", source, "".join(lines).encode())


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


def _python() -> str:
    return ".".join(platform.python_version_tuple()[:2])
