"""Prompts and outputs: bytes from the command line or stdin, bytes or JSON lines to stdout."""

import base64
import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bytelm.errors import InputError
from bytelm_client.cli.flags import finite

if TYPE_CHECKING:
    from bytelm_client.contexts import Context
    from bytelm_client.results import Continuation

Prompt = Annotated[
    str | None,
    typer.Argument(help="The prompt, bytes of any kind; - or nothing: read it from stdin."),
]
Chat = Annotated[bool, typer.Option("--chat", help="The prompt is a user's message to a chat.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON lines.")]
Width = Annotated[
    str | None,
    typer.Option(
        "--K", help="Beam width, or none for unlimited; default: the server's.", metavar="INT|none"
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--prune-threshold",
        callback=finite,
        help="Prune threshold of the beam; default: the server's.",
    ),
]
Tokenizations = Annotated[
    Literal["all", "canonical"] | None,
    typer.Option(
        "--tokenizations",
        help="What is summed over; canonical is faster; default: the server's.",
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        "--window",
        min=2,
        help="Bytes of a window; default: twice the model's longest context in tokens.",
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        "--stride", min=1, help="Bytes between windows' beginnings; default: half a window."
    ),
]
Exact = Annotated[bool, typer.Option("--exact", help="Follow the beam through all of the prompt.")]


def prompt_bytes(prompt: str | None) -> bytes:
    """The prompt that a command was given.

    Raises:
        InputError: when there is none.
    """
    if prompt is not None and prompt != "-":
        # What is no text in the user's encoding arrives escaped.
        return os.fsencode(prompt)
    if prompt is None and sys.stdin.isatty():
        raise InputError("give a prompt, or - to type one (end it with Ctrl-D)")
    return sys.stdin.buffer.read()


def context_of(data: bytes, chat: bool) -> "Context":
    """The context that a prompt is.

    Raises:
        InputError: when a message is not UTF-8.
    """
    if not chat:
        return data
    from bytelm_client.contexts import messages

    try:
        return messages([{"role": "user", "content": data.decode()}])
    except UnicodeDecodeError as error:
        raise InputError(f"a message of a chat is UTF-8 text: {error}") from None


def beam_options(
    width: str | None,
    threshold: float | None,
    exact: bool = False,
    tokenizations: Literal["all", "canonical"] | None = None,
) -> dict[str, Any]:
    """What the flags say of the beam and the way to it.

    Raises:
        InputError: when the width is no number.
    """
    beam: dict[str, Any] = {}
    if width is not None:
        if width != "none" and not width.isdecimal():
            raise InputError(f"--K is a number or none, got {width!r}")
        beam["K"] = None if width == "none" else int(width)
    if threshold is not None:
        beam["prune_threshold"] = threshold
    if tokenizations is not None:
        beam["tokenizations"] = tokenizations
    options: dict[str, Any] = {"beam": beam} if beam else {}
    return {**options, "prefill": "exact"} if exact else options


def shown(data: bytes) -> str:
    """Bytes as one line of readable text: spaces and new lines made visible, the rest escaped."""
    text = data.decode(errors="backslashreplace").replace(" ", "␣").replace("\n", "⏎")
    return printable(text)


def printable(text: str) -> str:
    """A text with whatever is not to be seen, or would move the cursor, as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def ending(data: bytes, most: int = 200) -> str:
    """The last bytes of a text, as ``shown``."""
    if len(data) <= most:
        return shown(data)
    kept = data[-most:]
    while kept and 0x80 <= kept[0] < 0xC0 and len(kept) > most - 3:
        kept = kept[1:]  # the rest of a character
    return "…" + shown(kept)


def write(data: bytes) -> None:
    """Bytes to stdout, at once."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def write_json(line: Any) -> None:
    """A JSON line to stdout, at once."""
    write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


def bytes_out(data: bytes) -> dict[str, Any]:
    """Bytes as the API writes them; ``text`` is null where they are not UTF-8."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = None
    return {"text": text, "base64": base64.b64encode(data).decode("ascii")}


def continuation_json(made: "Continuation") -> dict[str, Any]:
    """A continuation as JSON."""
    return {
        **bytes_out(made.bytes),
        "logprob": made.logprob,
        "finish_reason": made.finish_reason,
        "index": made.index,
        "sample": made.sample,
    }
