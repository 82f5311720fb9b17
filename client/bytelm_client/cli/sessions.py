"""``bytelm sessions``: the sessions on a server."""

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bytelm.errors import InputError
from bytelm_client.cli import models
from bytelm_client.cli.console import one_line_errors, say, tables
from bytelm_client.cli.texts import Json, bytes_out, shown, write_json

if TYPE_CHECKING:
    from bytelm_client import AsyncClient
    from bytelm_client.results import SessionInfo

WHOLE = 100
"""Columns that a table of sessions surely fits into."""

sessions = typer.Typer(
    help="List, show and end the sessions on a server.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@sessions.command("list")
def list_(json: Json = False, url: models.ServerUrl = None, api_key: models.ApiKey = None) -> None:
    """List the sessions of this key, oldest first."""
    as_json = json or not sys.stdout.isatty()

    async def work(client: "AsyncClient") -> None:
        found = [info async for info in client.sessions()]
        if as_json:
            for info in found:
                write_json(_info_json(info))
        else:
            _table(found)

    models.run(models.Where.of_a_server(url, api_key), work)


@sessions.command()
def show(
    session_id: Annotated[str, typer.Argument(help="The session's id.", metavar="ID")],
    json: Json = False,
    url: models.ServerUrl = None,
    api_key: models.ApiKey = None,
) -> None:
    """Show a session: what it is, and the tokenizations that it follows."""
    as_json = json or not sys.stdout.isatty()

    async def work(client: "AsyncClient") -> None:
        session = await client.resume(session_id)
        candidates = await session.candidates()
        if as_json:
            write_json(
                {
                    **_info_json(session.info),
                    "candidates": [
                        {
                            "weight": c.weight,
                            "tokens": list(c.tokens),
                            "partial": bytes_out(c.partial),
                        }
                        for c in candidates
                    ],
                }
            )
            return
        vocab = await client.vocab()
        _table([session.info])
        for c in candidates:
            text = b"".join(vocab.token_bytes[i] for i in c.tokens[-16:])
            more = "…" if len(c.tokens) > 16 else ""
            print(f"  {c.weight:10.2f}  {more}{shown(text)}‖{shown(c.partial)}")

    models.run(models.Where.of_a_server(url, api_key), work)


@sessions.command()
def delete(
    ids: Annotated[
        list[str] | None, typer.Argument(help="The sessions' ids.", metavar="ID...")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="All sessions of this key.")] = False,
    url: models.ServerUrl = None,
    api_key: models.ApiKey = None,
) -> None:
    """End sessions."""
    with one_line_errors():
        if bool(ids) == all_:
            raise InputError("name sessions, or give --all")

    async def work(client: "AsyncClient") -> None:
        if ids:
            for session_id in ids:
                await (await client.resume(session_id)).delete()
        else:
            from bytelm_client import AsyncSession

            found = [AsyncSession(client, info) async for info in client.sessions()]
            most = (await client.models())[0].limits["contexts"] or len(found)
            for i in range(0, len(found), most):
                await client.batch([one.plan.delete() for one in found[i : i + most]])
            say(f"ended {len(found)} sessions")

    models.run(models.Where.of_a_server(url, api_key), work)


def _info_json(info: "SessionInfo") -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(info)


def _table(found: "list[SessionInfo]") -> None:
    from rich.table import Table

    headings = ("id", "kind", "length", "version", "evaluations", "expires in")
    table = Table(*headings, box=None, pad_edge=False, collapse_padding=True)
    for column in table.columns:
        column.no_wrap = True
    console = tables()
    # An id is of no use without its end: a narrower terminal wraps the line.
    console.width = max(console.width, WHOLE)
    for info in found:
        left = f"{max(0.0, info.expires_at - time.time()):.0f} s"
        numbers = [str(info.length), str(info.version), str(info.n_calls)]
        table.add_row(info.id, info.kind, *numbers, left)
    console.print(table)
