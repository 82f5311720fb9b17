"""A file of prompts to a file of results, so that a killed run can go on where it stopped.

Each line of the input is a prompt: a JSON string, or an object with ``context`` and any other
fields of the call. Each result is a line of the output: ``{"line", "of", "results"}``, and ``"id"``
where the prompt has one. ``of`` names the prompt and the options that the results belong to. A line
is written whole, right when its results are there; what a killed run left of a line is cut off.
Prompts that fail are told on stderr, with their line, and tried again by the next run. When a run
ends, the output is put in the order of the input.
"""

import asyncio
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from bytelm.errors import InputError
from bytelm_client.cli.console import Count, error_line, say
from bytelm_client.errors import APIError

if TYPE_CHECKING:
    from bytelm_client.client import AsyncClient

BEGINNING = b'{"line": '
"""What every result begins with."""


@dataclass(frozen=True)
class Prompt:
    """One line of the input."""

    line: int
    of: str
    body: dict[str, Any]
    id: Any = None


class Batch:
    """One run over a file.

    Args:
        call: what to do with each prompt.
        input: the file of prompts.
        output: the file of results.
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

    async def run(self, client: "AsyncClient", concurrency: int) -> None:
        """Get the results that are missing.

        Raises:
            InputError: when a file cannot be read or written, or the output is of another run.
            BytelmClientError: when the server is at fault; what is done is kept.
        """
        with self._opened() as (source, sink):
            done = self._done(source, sink)
            source.seek(0)
            total = sum(1 for line in source if line.strip())
            source.seek(0)
            if done:
                say(f"{len(done)} of {total} prompts are done already")
            try:
                with Count(self.call, total, "prompts", len(done)) as count:
                    await self._all(client, self._prompts(source, done), sink, count, concurrency)
                os.fsync(sink)
            except OSError as error:
                raise InputError(f"{self.output} cannot be written: {error.strerror}") from None
            except BaseException:
                say(
                    f"stopped with {count.done - self.failed} of {total} prompts done; the same "
                    "command goes on from there"
                )
                raise
            self._in_order()
            if self.failed:
                error_line(f"{self.failed} of {total} prompts failed; run again to try these again")

    async def _all(
        self,
        client: "AsyncClient",
        prompts: Iterator[Prompt],
        sink: int,
        count: Count,
        concurrency: int,
    ) -> None:
        async def worker() -> None:
            for prompt in prompts:
                try:
                    answer = await client.call(f"/v1/{self.call}", prompt.body)
                    results = _read(answer)
                except APIError as error:
                    # All others concern every prompt alike.
                    if error.status not in (400, 413, 504):
                        raise
                    self._fail(prompt.line, str(error))
                else:
                    row = {"line": prompt.line, "of": prompt.of}
                    if prompt.id is not None:
                        row["id"] = prompt.id
                    line = json.dumps({**row, "results": results}, ensure_ascii=False)
                    # By one call, unbuffered: a killed run leaves whole lines.
                    os.write(sink, line.encode() + b"\n")
                count.add()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(worker())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _fail(self, line: int, message: str) -> None:
        self.failed += 1
        error_line(f"{self.input}, line {line}: {message}")

    @contextmanager
    def _opened(self) -> Iterator[tuple[BinaryIO, int]]:
        try:
            source = self.input.open("rb")
        except OSError as error:
            raise InputError(f"{self.input} cannot be read: {error.strerror}") from None
        with source:
            try:
                sink = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            except OSError as error:
                raise InputError(f"{self.output} cannot be written: {error.strerror}") from None
            try:
                fcntl.flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(source.fileno()), os.fstat(sink)):
                    raise InputError(f"{self.output} is the input, too: choose another output")
                yield source, sink
            except BlockingIOError:
                raise InputError(f"another run is writing to {self.output}") from None
            finally:
                os.close(sink)

    def _done(self, source: BinaryIO, sink: int) -> set[int]:
        """The lines of the input that have results; half a line at the end is cut off.

        Raises:
            InputError: when they are no results, or of other prompts or options.
        """
        of: dict[int, str] = {}
        end = 0
        with self.output.open("rb") as rows:
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

    def _prompts(self, source: BinaryIO, done: set[int]) -> Iterator[Prompt]:
        """The prompts that have no results yet; empty lines are none."""
        for number, line in enumerate(source, 1):
            if number in done or not line.strip():
                continue
            try:
                prompt = self._prompt(number, line)
            except ValueError as error:
                self._fail(number, str(error))
            else:
                yield prompt

    def _prompt(self, number: int, line: bytes) -> Prompt:
        try:
            given = json.loads(line)
        except ValueError as error:
            raise ValueError(f"not JSON: {error}") from None
        if isinstance(given, str):
            message = {"messages": [{"role": "user", "content": given}]}
            given = {"context": message if self.chat else given}
        if not isinstance(given, dict) or "context" not in given:
            raise ValueError("a prompt is a string, or an object with `context`")
        own = {name: value for name, value in given.items() if name not in ("id", "stream")}
        body = {**self._options, **own}
        if "seed" in self._options and "seed" not in own:
            # The same seed for all would draw alike where prompts are alike.
            body["seed"] = _seed(self._options["seed"], number)
        return Prompt(number, self._of(line), body, given.get("id"))

    def _of(self, line: bytes) -> str:
        return hashlib.sha256(self._name.encode() + b"\n" + line.strip()).hexdigest()[:16]

    def _in_order(self) -> None:
        """Put the results in the order of the prompts, all at once."""
        rows = self.output.read_bytes().splitlines(keepends=True)
        numbers = [json.loads(row)["line"] for row in rows]
        if numbers == sorted(numbers):
            return
        new = self.output.with_name(f".{self.output.name}.sorted")
        with new.open("wb") as file:
            file.writelines(row for _, row in sorted(zip(numbers, rows, strict=True)))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.output)


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
