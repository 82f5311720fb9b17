"""Lines scored from the beginning: what a beam gives no probability, and what it loses at worst.

500 lines, everyday ones and those spoilt by typing, mixing languages, case and symbols, are scored
at the service's defaults, and bytes of probability 0 counted; the everyday ones also with the
reference of ``accuracy_beam``. ``python -m tests.benchmarks.accuracy_lines`` writes a table.
"""

from __future__ import annotations

import asyncio
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bytelm.settings import ServerSettings
from tests.benchmarks import accuracy
from tests.benchmarks.accuracy import Bench, Progress
from tests.benchmarks.accuracy_beam import REFERENCE, Setting, key, measure
from tests.benchmarks.lines import EVERYDAY, spoilt
from tests.benchmarks.texts import Text

COUNT, FULL_COUNT = 120, 500
TOLD = 10
"""How many of the worst bytes are shown."""


def default() -> Setting:
    """What the service does when a call says nothing."""
    fields = ServerSettings.model_fields
    return Setting(
        fields["default_tokenizations"].default,
        True,
        fields["default_keep_canonical"].default,
        fields["default_K"].default,
        fields["default_prune_threshold"].default,
    )


def lines(count: int) -> list[Text]:
    """So many lines, the everyday ones first."""
    everyday = [Text("everyday", "", line.encode()) for line in EVERYDAY]
    more = [Text("spoilt", "", line.encode()) for line in spoilt(count - len(everyday))]
    return [*everyday, *more]


def report(bench: Bench, texts: list[Text], folder: Path) -> None:
    """Writes the table."""
    setting = default()
    rows, worst = [], []
    for name in ("everyday", "spoilt"):
        of = [text for text in texts if text.name == name]
        made = [bench.journal.get(**key(text, setting)) for text in of]
        logprobs = [np.array(one["logprobs"]) for one in made]
        size = sum(map(len, logprobs))
        zeros = [int(np.count_nonzero(~np.isfinite(one))) for one in logprobs]
        cells = [
            f"{len(of)} {name}",
            str(size),
            f"{sum(one['calls'] for one in made) / size:.2f}",
            f"{-sum(one.sum() for one in logprobs) / size / math.log(2):.3f}",
            str(sum(zeros)),
            str(sum(map(bool, zeros))),
        ]
        if name == "everyday":
            for text, one in zip(of, logprobs, strict=True):
                wide = bench.journal.get(**key(text, REFERENCE))["logprobs"]
                worst += [(e, text.data, at) for at, e in enumerate(np.subtract(wide, one))]
            excess = np.array([e for e, _, _ in worst])
            cells += [f"{excess.mean() / math.log(2):+.4f}", f"{excess.max():.2f}"]
        else:
            cells += ["", ""]
        rows.append("| " + " | ".join(cells) + " |")
    found = [
        "# Lines from their beginning",
        "",
        f"Model {bench.model}; {setting.mode}, K={setting.K}, threshold "
        f"{setting.prune_threshold:g}, from an empty context. Excess and worst byte: compared "
        f"with {REFERENCE.mode}, K={REFERENCE.K}, threshold {REFERENCE.prune_threshold:g}.",
        "",
        "| lines | bytes | evaluations per byte | bits per byte | bytes of probability 0 "
        "| lines with such | excess bits per byte | worst byte, nats |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: |",
        *rows,
        "",
        "The worst bytes, in nats below the reference:",
        "",
    ]
    for nats, data, at in sorted(worst, reverse=True)[:TOLD]:
        before = data[:at].decode(errors="replace")
        found.append(f"- {nats:.2f}: `{before}` and then `{data[at : at + 1]!r}`")
    accuracy.write(folder / "accuracy_lines.md", "\n".join([*found, ""]))


async def main(options: Any) -> None:
    """The whole benchmark."""
    async with accuracy.opened(options, 0) as bench:
        texts = lines(FULL_COUNT if options.full else COUNT)
        wanted = [(text, REFERENCE) for text in texts if text.name == "everyday"]
        wanted += [(text, default()) for text in texts]
        missing = [one for one in wanted if bench.journal.get(**key(*one)) is None]
        progress = Progress("lines from their beginning", bench.lm)
        total = sum(len(text.data) for text, _ in wanted)
        progress.start(total, total - sum(len(text.data) for text, _ in missing))
        calls = [partial(measure, bench, progress, *one) for one in missing]
        await accuracy.all_of(calls, options.concurrency)
        progress.finish()
        await asyncio.to_thread(report, bench, texts, options.results)


if __name__ == "__main__":
    accuracy.run(main(accuracy.parser(__doc__ or "").parse_args()))
