"""``bytelm keys``: the API keys of a server on this machine.

The server's part is imported inside the commands.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bytelm.errors import InputError
from bytelm.settings import ServerSettings
from bytelm_client.cli.console import one_line_errors, tables
from bytelm_client.cli.flags import read_settings
from bytelm_client.cli.texts import printable

keys = typer.Typer(
    help="Make, list and revoke the API keys of a server on this machine.", no_args_is_help=True
)

File = Annotated[
    Path | None,
    typer.Option(
        "--keys-file",
        help="The file of keys [BYTELM_KEYS_FILE; default: ~/.config/bytelm/keys.json]",
        show_default=False,
    ),
]


def _path(given: Path | None) -> Path:
    path = given or read_settings(ServerSettings, {}).keys_file
    if path is None:
        raise InputError("BYTELM_KEYS_FILE is none: name the file with --keys-file")
    return path


@keys.command()
@one_line_errors()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, for your own list.")],
    keys_file: File = None,
) -> None:
    """Make a key and show it, once; running servers take it at once."""
    from bytelm_server.keys import KeyFile

    if not name.strip() or not name.isprintable():
        raise InputError(f"a key's name is one line of text, got {name!r}")
    key, secret = KeyFile(_path(keys_file)).create(name)
    note = Console(stderr=True, highlight=False, soft_wrap=True)
    note.print(f"{key.id} for {name}. Keep it well: it is not shown again.", markup=False)
    try:
        print(secret, flush=True)
    except OSError:
        # Nobody will ever know it.
        KeyFile(_path(keys_file)).revoke(key.id)
        raise


@keys.command("list")
@one_line_errors()
def list_(keys_file: File = None) -> None:
    """Show all keys: their ids, names and ages, never the keys themselves."""
    from bytelm_server.keys import KeyFile

    path = _path(keys_file)
    found = KeyFile(path).load()
    if not found:
        print(f"There are no keys in {path}: servers are open to whoever reaches them.")
        return
    table = Table("id", "name", "created", box=None, pad_edge=False)
    table.columns[0].no_wrap = table.columns[2].no_wrap = True
    for key in found:
        table.add_row(key.id, Text(printable(key.name), overflow="fold"), key.created)
    tables().print(table)


@keys.command()
@one_line_errors()
def revoke(
    id: Annotated[str, typer.Argument(help="The key's id, as in `bytelm keys list`.")],
    keys_file: File = None,
) -> None:
    """Refuse a key from now on; running servers do so at once."""
    from bytelm_server.keys import KeyFile

    key = KeyFile(_path(keys_file)).revoke(id)
    print(f"Revoked {key.id} of {printable(key.name)}.")
