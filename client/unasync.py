"""Writes what is waited for, and plans, from what is awaited: one source for three faces.

::

    python client/unasync.py

``_async/client.py``, ``session.py`` and ``stream.py`` with ``await`` and its kin left out are
``_sync``; the calls of ``_async/session.py``, built but not sent, are ``_plan.py``.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent / "bytelm_client"
SOURCES = ("client", "session", "stream")
MADE = '"""Made from ``{source}`` by ``client/unasync.py``: change that one."""\n\n'

SYNC = [
    # An opening is a session already where one waits for it.
    (r"\n\n +To be awaited, or entered by ``async with``\.", ""),
    (r"from bytelm_client\._async\.opening import Opening\n", ""),
    (r"return Opening\(self, call\)", "return Session(self, self._send(call))"),
    (r"\bOpening\b", "Session"),
    (r"\basync (?=def|for|with)", ""),
    (r"\(await ([\w.]+\([^()]*\))\)", r"\1"),
    (r"\bawait ", ""),
    (r"\bawaited\b", "waited for"),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"\bimport asyncio\b", "import time"),
    (r"\banext\b", "next"),
    (r"\baclose\b", "close"),
    (r"\baread\b", "read"),
    (r"\baiter_(bytes|lines)\b", r"iter_\1"),
    (r"__a(enter|exit|next)__", r"__\1__"),
    (r"\bAsyncGenerator\[(\w+), None\]", r"Generator[\1, None, None]"),
    (r"\bAsync(Client|Session|Stream|Iterator|Generator|BaseTransport)\b", r"\1"),
    (r"\b_async\b", "_sync"),
]
"""What is different where one waits: patterns and what stands in their place, one after another."""


def sync_of(source: str) -> str:
    """The text of a module of ``_sync``."""
    for pattern, instead in SYNC:
        source = re.sub(pattern, instead, source)
    return source


def plan_of(source: str) -> str:
    """The text of ``_plan.py``: a method for each call that a session sends."""
    tree = ast.parse(source)
    (session,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    methods = [plan for node in session.body if (plan := _as_plan(source, node))]
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return "\n".join(
        [
            *(ast.unparse(node) for node in imports),
            "from bytelm_client._calls import Call",
            "from bytelm_client._session_calls import SessionCalls",
            "\n\nclass Plan:",
            '    """The calls of a session to send with others, by ``client.batch``."""\n',
            "    def __init__(self, calls: SessionCalls) -> None:",
            "        self._calls = calls\n",
            # Nothing of a plan has happened: it gets what a session refreshes.
            *(method.replace("def refresh", "def get") for method in methods),
        ]
    )


def _as_plan(source: str, node: ast.stmt) -> str:
    """A method whose call is built, but not sent; nothing where it sends none."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return ""
    assert node.returns is not None
    gives = _source(source, node.returns)
    match node.body[-1]:
        case ast.Return(value=ast.Await(value=ast.Call(func=ast.Attribute(attr="_send")) as send)):
            changes = {node.returns: f"Call[{gives}]", send: _source(source, send.args[0])}
        case ast.Return(value=ast.Call(func=ast.Attribute(attr="_opening")) as send):
            changes = {node.returns: "Call[SessionInfo]", send: _source(source, send.args[0])}
        case ast.Expr(value=ast.Constant(value=body)) if body is ...:
            changes = {node.returns: f"Call[{gives}]"}
        case _:
            return ""
    begins = [_place(source, d.lineno, d.col_offset - 1) for d in node.decorator_list]
    at, text = min([_place(source, node.lineno, node.col_offset), *begins]), ""
    for old, new in changes.items():
        text += source[at : _place(source, old.lineno, old.col_offset)] + new
        at = _place(source, old.end_lineno, old.end_col_offset)
    return (
        f"    {sync_of(text + source[at : _place(source, node.end_lineno, node.end_col_offset)])}\n"
    )


def _source(source: str, node: ast.expr) -> str:
    return ast.get_source_segment(source, node) or ""


def _place(source: str, line: int | None, column: int | None) -> int:
    """Where in a text a node begins or ends."""
    assert line is not None
    assert column is not None
    lines = source.splitlines(keepends=True)
    return len("".join(lines[: line - 1])) + len(lines[line - 1].encode()[:column].decode())


def _formatted(source: str, name: str) -> str:
    """As ``ruff`` has it, with imports in order."""
    for how in (["check", "--select", "I,F401", "--fix", "--quiet"], ["format", "--quiet"]):
        command = [sys.executable, "-m", "ruff", *how, "--stdin-filename", name, "-"]
        source = subprocess.run(
            command, input=source, capture_output=True, text=True, check=True, cwd=PACKAGE
        ).stdout
    return source


def written() -> dict[Path, str]:
    """What each file that is made should have."""
    files = {}
    for name in SOURCES:
        source = (PACKAGE / "_async" / f"{name}.py").read_text()
        _, rest = source.split("\n", 1)
        made = MADE.format(source=f"_async/{name}.py") + sync_of(rest)
        files[PACKAGE / "_sync" / f"{name}.py"] = made
    session = (PACKAGE / "_async" / "session.py").read_text()
    files[PACKAGE / "_plan.py"] = MADE.format(source="_async/session.py") + plan_of(session)
    return {path: _formatted(text, str(path)) for path, text in files.items()}


if __name__ == "__main__":
    for path, text in written().items():
        path.write_text(text)
