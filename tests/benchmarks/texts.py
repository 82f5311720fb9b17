"""Real texts to measure on, found where Python is installed: English, code and Chinese.

Beside them two that were written for this: Russian, and a page of lines that are hard.
"""

# ruff: noqa: E501

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


def written(size: int) -> list[Text]:
    """Russian and hard lines, ``size`` bytes of each."""
    return [
        Text("Russian", "a letter from the country", RUSSIAN.encode()).beginning(size),
        Text("hard lines", "typos, names, tables, addresses", HARD.encode()).beginning(size),
    ]


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


RUSSIAN = """\
Здравствуй, Маша! Вот уже вторая неделя, как мы живём на даче. Дом старый, крыша немного течёт, \
зато из окна видно реку и лес на другом берегу. По утрам дедушка ходит на рыбалку и почти всегда \
возвращается с пустым ведром, но очень довольный. Я помогаю бабушке в огороде: мы посадили морковь, \
укроп и двадцать кустов клубники. Соседский кот каждый вечер приходит к нам за молоком. Вчера была \
гроза, и электричество отключили до самого утра, поэтому мы сидели при свечах и рассказывали \
страшные истории. Напиши, когда ты сможешь приехать: в субботу есть автобус в 9:40, а мы встретим \
тебя на станции. Не забудь взять тёплый свитер и книгу, которую я тебе дал весной.
"""

HARD = """\
I definately recieved you're package yesturday, but teh box was allready open...
Her name is Siobhán O'Rourke-Nguyễn; she's from Aix-en-Provence, isn't she?
Dr. Müller-Lüdenscheidt, Königsallee 17b, 40212 Düsseldorf, Tel. +49 211 9847-03
The variables are separable, as Fran said: f(x, y) = g(x)·h(y).
OMG 😂😂 that was sooo funny!!! 🎉 c u l8er @ Zoë's 💃🏽
https://www.example.org/a/2024/03/17/x.html?lang=de&ref=nl%20q#sec-4
| Schrauben M8x40 | 250 | 12,95 € |
|-----------------|----:|--------:|
Pzt/q:r wvut 0x7ffdeadbeef 4f3a9c 1e-07 NaN 192.168.17.254:8443
Żółć, jaźń, gęś; şişe, çiğdem; người đẹp; façade naïve coöperate
17.03.2024 09:45:12,381 -17.5°C 42% 3.14159 №8 §12(3) ½ l
rock 'n' roll, y'all'd've, the '90s, Hawai'i, 'tis, o'clock, Bob's & Jess'
git commit -m "fix(api): don't drop NoneType in _parse_args (#1234)" && make -j8
Floccinaucinihilipilification and pneumonoultramicroscopic are loooong words
{"id":17,"tags":["a","ß"],"n":{"k":null,"π":3.14}}<a href='/x?y=1&amp;z'>ok</a>
今天 is 星期五, завтра — суббота, and أمس was الخميس.
"""
