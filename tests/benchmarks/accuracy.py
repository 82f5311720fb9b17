"""What the accuracy benchmarks share: the model, what is done already, progress and intervals.

A benchmark is a number of *measurements*. Each is kept in a journal as soon as it is made, and the
evaluations behind all of them in one store, so that a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bytelm
from bytelm import download as models
from bytelm.errors import BytelmError
from bytelm.models.testing import StubLM
from bytelm.settings import Paths
from bytelm.vocabulary.vocab import ByteVocab
from tests.benchmarks.row_store import ClosableLM, RowStore, StoredLM
from tests.benchmarks.texts import Text, texts

RESULTS = Path(__file__).parent / "results"
STUB = "stub"
"""As a model's name: pseudo-random distributions, to try a benchmark without a model."""
ALGORITHM = [
    *("beam/*", "canonical", "canonical_paths", "families/*", "healing", "logprobs", "pipeline"),
    *("places", "prefill", "rows", "split*", "stand_in", "text_changes", "trie"),
]
"""The modules of bytelm that a measurement depends on."""
STORE_GB, FULL_STORE_GB = 8.0, 24.0
RESAMPLES = 10_000
INTERRUPTED = 130


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments of all accuracy benchmarks."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--full", action="store_true", help="the full run instead of the sample")
    made.add_argument("--bytes", type=int, help="of each text (256, in the full run 1024)")
    made.add_argument("--model", help=f"a folder or name; {STUB}: none, to try the benchmark")
    made.add_argument("--chinese", type=Path, help="a file of Chinese text")
    made.add_argument("--concurrency", type=int, default=24, help="measurements at a time")
    made.add_argument("--store-gb", type=float, help="evaluations kept on disk (8, full run: 24)")
    made.add_argument("--results", type=Path, default=RESULTS, help="where tables are written")
    return made


class Journal:
    """Measurements made so far, a line each; what a kill left of a last line is dropped."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        """Opens a journal.

        Args:
            path: its file.
            about: what every measurement depends on; those made with another one do not count.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._about = about
        self._done: dict[str, Any] = {}
        self._file = path.open("a+b")
        self._file.seek(0)
        whole = 0
        for line in self._file:
            if line.endswith(b"\n"):
                whole += len(line)
                key, value = json.loads(line)
                self._done[key] = value
        self._file.truncate(whole)

    def get(self, **what: Any) -> Any:
        """The measurement of ``what``, or None."""
        return self._done.get(self._key(what))

    def add(self, value: Any, **what: Any) -> None:
        """Keep the measurement of ``what``."""
        key = self._key(what)
        self._done[key] = value
        self._file.write(json.dumps([key, value]).encode() + b"\n")
        self._file.flush()

    def _key(self, what: dict[str, Any]) -> str:
        return json.dumps(self._about | what, sort_keys=True)

    def close(self) -> None:
        """Close its file."""
        self._file.close()


class Progress:
    """Says how far a benchmark is, how fast it goes and how long it will take.

    Args:
        label: what is under way.
        lm: whose evaluations are counted.
    """

    def __init__(self, label: str, lm: StoredLM) -> None:
        self._label = label
        self._lm = lm
        self.start(0, 0)

    def start(self, total: int, found: int) -> None:
        """The work begins.

        Args:
            total: bytes in all.
            found: those that earlier runs did.
        """
        self._total = total
        self._found = self._done = found
        self._began = self._said = time.monotonic()

    def advance(self, walked: int = 1) -> None:
        """So many bytes were just done."""
        self._done += walked
        now = time.monotonic()
        if now - self._said >= (1 if sys.stderr.isatty() else 15):
            self._said = now
            self._say()

    def _say(self, end: str = "") -> None:
        gone = self.seconds
        new = self._done - self._found
        left = f"about {_clock(gone / new * (self._total - self._done))} left" if new else ""
        line = (
            f"{self._label}: {self._done} of {self._total} bytes, "
            f"{self._lm.evaluated} new evaluations ({self._lm.evaluated / gone:.0f}/s), "
            f"{self._lm.remembered} from the store, {_clock(gone)} gone, {left}"
        )
        live = sys.stderr.isatty()
        print(f"\r\033[K{line}" if live else line, end=end if live else "\n", file=sys.stderr)
        sys.stderr.flush()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def finish(self) -> None:
        """The last line."""
        self._say(end="\n")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


@dataclass
class Bench:
    """What a benchmark works with.

    Attributes:
        lm: the model, with its evaluations on disk.
        journal: the measurements made so far.
        texts: what is measured on.
        model: the model's name, for the reader of a table.
    """

    lm: StoredLM
    journal: Journal
    texts: list[Text]
    model: str


@asynccontextmanager
async def opened(options: argparse.Namespace, size: int) -> AsyncIterator[Bench]:
    """The model, journal and texts that command-line options ask for."""
    folder = models.resolve(None if options.model == STUB else options.model, progress=say)
    config = json.loads((folder / "config.json").read_text())
    vocab = ByteVocab.from_pretrained(folder, vocab_size=config["vocab_size"])
    stub = options.model == STUB
    fingerprint = STUB if stub else _fingerprint(folder, vocab)
    cache = Paths().cache_dir / "benchmarks"
    path = cache / f"rows-{fingerprint}.f32"
    store_gb = options.store_gb or (FULL_STORE_GB if options.full else STORE_GB)
    store = RowStore(path, vocab.size, int(store_gb * 2**30))
    longest = config.get("max_position_embeddings")
    lm = StoredLM(vocab, longest, store, lambda: _started(folder, vocab, stub))
    about = {"model": fingerprint, "algorithm": _algorithm()}
    journal = Journal(cache / "accuracy.jsonl", about)
    try:
        found = texts(size, options.chinese)
        yield Bench(lm, journal, found, STUB if stub else folder.name)
    finally:
        journal.close()
        await lm.close()


async def _started(folder: Path, vocab: ByteVocab, stub: bool) -> ClosableLM:
    if stub:
        return _ClosableStub(vocab)
    say("starting the engine (about 40 seconds)")
    from bytelm.vllm.engine import VllmEngine

    return await VllmEngine.start(folder)


class _ClosableStub(StubLM):
    async def close(self) -> None:
        """Nothing is held."""


def _fingerprint(folder: Path, vocab: ByteVocab) -> str:
    digest = hashlib.sha256(vocab.fingerprint().encode())
    for path in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _algorithm() -> str:
    folder = Path(bytelm.__file__).parent
    files = [file for name in ALGORITHM for file in sorted(folder.glob(f"{name}.py"))]
    sources = b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(sources).hexdigest()[:16]


def digest(text: Text) -> str:
    """Names a text's bytes in a journal."""
    return hashlib.sha256(text.data).hexdigest()[:16]


async def all_of(calls: Sequence[Callable[[], Awaitable[None]]], concurrency: int) -> None:
    """Runs calls in order, so many at a time; the first error ends all, and is raised."""
    turn = asyncio.Semaphore(concurrency)

    async def one(call: Callable[[], Awaitable[None]]) -> None:
        async with turn:
            await call()

    try:
        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(one(call))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def run(main: Awaitable[None]) -> None:
    """Runs a benchmark; Ctrl-C and SIGTERM end it cleanly, and a second start goes on."""

    async def interruptible() -> bool:
        task = asyncio.ensure_future(main)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        await asyncio.wait({task})
        if task.cancelled():
            return False
        task.result()
        return True

    try:
        finished = asyncio.run(interruptible())
    except BytelmError as error:
        raise SystemExit(f"error: {error}") from error
    if not finished:
        say("\nstopped; the same command goes on from here")
        raise SystemExit(INTERRUPTED)


def say(line: str) -> None:
    """A line for whoever waits."""
    print(line, file=sys.stderr, flush=True)


def interval(groups: Sequence[Sequence[NDArray[np.float64]]]) -> tuple[float, float, float]:
    """The mean of all values and its bootstrap 95% interval.

    Args:
        groups: for each text its clusters of values; the clusters are resampled, since values
            that are near each other are not independent.
    """
    random = np.random.default_rng(0)
    sums = np.zeros(RESAMPLES)
    counts = np.zeros(RESAMPLES)
    for clusters in groups:
        total = np.array([cluster.sum() for cluster in clusters])
        size = np.array([len(cluster) for cluster in clusters])
        drawn = random.integers(len(clusters), size=(RESAMPLES, len(clusters)))
        sums += total[drawn].sum(axis=1)
        counts += size[drawn].sum(axis=1)
    mean = float(np.mean(np.concatenate([value for clusters in groups for value in clusters])))
    low, high = np.percentile(sums / counts, [2.5, 97.5])
    return mean, float(low), float(high)


def write(path: Path, content: str) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(content)
    new.replace(path)
    say(f"wrote {path}")


def sources(found: Sequence[Text]) -> str:
    """The texts, for a table's readers."""
    return "; ".join(f"{text.name}: {text.source}, {len(text.data)} bytes" for text in found)
