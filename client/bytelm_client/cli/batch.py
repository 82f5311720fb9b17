"""A file of prompts to a file of results, so that a killed run can go on where it stopped.

Each line of the input is a prompt: a JSON string, or an object with ``context`` and any other
fields of the call. Each result is a line of the output: ``{"line", "of", "results"}``, and ``"id"``
where the prompt has one. ``of`` names the prompt and the options that the results belong to. A line
is written whole, right when its results are there; what a killed run left of a line is cut off.
Prompts that fail are told on stderr, with their line, and tried again by the next run. When a run
ends, the output is put in the order of the input. An output that is no file, such as a pipe, or
``-`` (stdout), gets the results as they come, and nothing is read back from it.
"""

import asyncio
import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from bytelm.errors import InputError
from bytelm_client.cli.console import Count, error_line, say
from bytelm_client.cli.files import DASH, check_apart, is_kept, lock, name_of, reading, writing
from bytelm_client.errors import APIError

if TYPE_CHECKING:
    from bytelm_client import AsyncClient

BEGINNING = b'{"line": '
"""What every result begins with."""


@dataclass(frozen=True)
class Prompt:
    """One line of the input."""

    of: str
    body: dict[str, Any]
    id: Any = None


@dataclass(frozen=True)
class Files:
    """The files of a run.

    Attributes:
        source: the prompts.
        sink: where results go.
        kept: whether results can be read back from there.
        done: the lines of the prompts that have results.
    """

    source: BinaryIO
    sink: int
    kept: bool
    done: set[int]


class Batch:
    """One run over a file.

    Args:
        call: what to do with each prompt.
        input: the file of prompts; ``-`` is stdin.
        output: the file of results; ``-`` is stdout.
        options: the call's, as the client takes them; a prompt's own fields come first.
        chat: prompts that are strings are users' messages.

    Attributes:
        failed: how many prompts failed.
    """

    def __init__(
        self,
        call: Literal["greedy", "sample"],
        input: Path,
        output: Path,
        options: dict[str, Any],
        chat: bool = False,
    ) -> None:
        self.call = call
        self.input = input
        self.output = output
        self.chat = chat
        self.failed = 0
        from bytelm_client.options import options_json

        self._options = options_json(options)
        self._name = json.dumps([call, chat, self._options], sort_keys=True)

    async def run(self, client: "AsyncClient", files: Files, concurrency: int) -> None:
        """Get the results that are missing.

        Raises:
            InputError: when the output cannot be written.
            BytelmClientError: when the server is at fault; what is done is kept.
        """
        files.source.seek(0)
        total = sum(1 for line in files.source if line.strip())
        files.source.seek(0)
        if files.done:
            say(f"{len(files.done)} of {total} prompts are done already")
        try:
            with Count(self.call, total, "prompts", len(files.done)) as count:
                await self._all(client, files, count, concurrency)
            if files.kept:
                os.fsync(files.sink)
        except BrokenPipeError:
            raise
        except OSError as error:
            where = "stdout" if str(self.output) == DASH else self.output
            raise InputError(f"{where} cannot be written: {error.strerror}") from None
        except BaseException:
            then = "; the same command goes on from there" if files.kept else ""
            say(f"stopped with {count.done - self.failed} of {total} prompts done{then}")
            raise
        if files.kept:
            self._in_order()
        if self.failed:
            then = "; run again to try these again" if files.kept else ""
            error_line(f"{self.failed} of {total} prompts failed{then}")

    async def _all(
        self, client: "AsyncClient", files: Files, count: Count, concurrency: int
    ) -> None:
        todo = (
            (number, line)
            for number, line in enumerate(files.source, 1)
            if number not in files.done and line.strip()
        )

        async def worker() -> None:
            for number, line in todo:
                try:
                    prompt = self._prompt(number, line)
                    results = _read(await client.call(f"/v1/{self.call}", prompt.body))
                except InputError as error:
                    self._fail(number, error)
                except APIError as error:
                    # All others concern every prompt alike.
                    if error.status not in (400, 413, 504):
                        raise
                    self._fail(number, error)
                else:
                    row = {"line": number, "of": prompt.of}
                    if prompt.id is not None:
                        row["id"] = prompt.id
                    result = json.dumps({**row, "results": results}, ensure_ascii=False)
                    # By one call, unbuffered: a killed run leaves whole lines.
                    os.write(files.sink, result.encode() + b"\n")
                count.add()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(worker())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _fail(self, line: int, error: Exception) -> None:
        self.failed += 1
        error_line(f"{name_of(self.input)}, line {line}: {error}")

    @contextmanager
    def opened(self) -> Iterator[Files]:
        """The files, as long as the run takes.

        Raises:
            InputError: when one cannot be read or written, or the output is of another run.
        """
        with reading(self.input) as file:
            # A pipe can be read only once.
            source = file if file.seekable() else io.BytesIO(file.read())
            sink = writing(self.output)
            try:
                kept = is_kept(sink, self.output)
                if kept:
                    check_apart(file, sink, self.output)
                    lock(sink, self.output)
                yield Files(source, sink, kept, self._done(source, sink) if kept else set())
            finally:
                os.close(sink)

    def _done(self, source: BinaryIO, sink: int) -> set[int]:
        """The lines of the input that have results; half a line at the end is cut off.

        Raises:
            InputError: when they are no results, or of other prompts or options.
        """
        of: dict[int, str] = {}
        end = 0
        with reading(self.output) as rows:
            for number, row in enumerate(rows, 1):
                whole = row.endswith(b"\n")
                # Only what bytelm began may be cut off.
                if not whole and row[: len(BEGINNING)] == BEGINNING[: len(row)]:
                    break
                end += len(row)
                try:
                    known: Any = json.loads(row) if whole else None
                    of[int(known["line"])] = str(known["of"])
                except (ValueError, LookupError, TypeError):
                    raise InputError(
                        f"{self.output}, line {number}, is no result of bytelm: choose another "
                        "output"
                    ) from None
        done = set(of)
        for number, line in enumerate(source, 1):
            if number in of and of.pop(number) != self._of(line):
                raise InputError(
                    f"{self.output} has results of another prompt or other options for line "
                    f"{number}: choose another output, or remove it"
                )
        if of:
            raise InputError(
                f"{self.output} has results for line {min(of)}, which {self.input} does not have: "
                "choose another output, or remove it"
            )
        os.ftruncate(sink, end)
        return done

    def _prompt(self, number: int, line: bytes) -> Prompt:
        try:
            given = json.loads(line)
            # Python reads NaN and halves of surrogate pairs, which neither JSON nor UTF-8 has.
            json.dumps(given, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise InputError(f"not JSON: {error}") from None
        if isinstance(given, str):
            message = {"messages": [{"role": "user", "content": given}]}
            given = {"context": message if self.chat else given}
        if not isinstance(given, dict) or "context" not in given:
            raise InputError("a prompt is a string, or an object with `context`")
        own = {name: value for name, value in given.items() if name not in ("id", "stream")}
        body = {**self._options, **own}
        if "seed" in self._options and "seed" not in own:
            # The same seed for all would draw alike where prompts are alike.
            body["seed"] = _seed(self._options["seed"], number)
        return Prompt(self._of(line), body, given.get("id"))

    def _of(self, line: bytes) -> str:
        return hashlib.sha256(self._name.encode() + b"\n" + line.strip()).hexdigest()[:16]

    def _in_order(self) -> None:
        """Put the results in the order of the prompts, all at once.

        Raises:
            InputError: when the folder cannot be written; the results stay as they are.
        """
        rows = self.output.read_bytes().splitlines(keepends=True)
        numbers = [json.loads(row)["line"] for row in rows]
        if numbers == sorted(numbers):
            return
        new = self.output.with_name(f".{self.output.name}.sorted")
        try:
            with new.open("wb") as file:
                file.writelines(row for _, row in sorted(zip(numbers, rows, strict=True)))
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.output)
        except OSError as error:
            raise InputError(
                f"{self.output} is whole, but not in order: {new} cannot be written: "
                f"{error.strerror}"
            ) from None


def _read(answer: Any) -> list[Any]:
    """The results of an answer.

    Raises:
        InvalidRequest: when one of them is an error.
    """
    from bytelm_client.errors import api_error_of

    for result in answer["results"]:
        if "error" in result:
            raise api_error_of(result["error"])
    results: list[Any] = answer["results"]
    return results


def _seed(seed: int, line: int) -> int:
    digest = hashlib.blake2b(f"{seed}:{line}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
