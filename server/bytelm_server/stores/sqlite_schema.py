"""The tables of a SQLite file of sessions, and how older files get them.

::

    sessions  id, owner, version, ttl, expires_at, living, meta, head
    trunks    session, part, data               in order of part, together a session's trunk
    replies   name, about, living, expires_at, body
              living: the session that it is about lives, and it as long
"""

import sqlite3

from bytelm_server.stores import first_format

FORMAT = 2

_REPLIES = """
CREATE TABLE replies (
    name TEXT PRIMARY KEY,
    about TEXT NOT NULL,
    living INTEGER NOT NULL,
    expires_at REAL NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX replies_about ON replies (about);
CREATE INDEX replies_until ON replies (expires_at) WHERE NOT living;
"""
_TABLES = """
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    version INTEGER NOT NULL,
    ttl REAL NOT NULL,
    expires_at REAL NOT NULL,
    living INTEGER NOT NULL,
    meta BLOB NOT NULL,
    head BLOB NOT NULL
);
CREATE INDEX living_of ON sessions (owner, id) WHERE living;
CREATE INDEX living_until ON sessions (expires_at) WHERE living;
CREATE INDEX dead_since ON sessions (expires_at) WHERE NOT living;
CREATE TABLE trunks (
    session TEXT NOT NULL,
    part INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (session, part)
) WITHOUT ROWID;
"""


class UnknownFormat(Exception):
    """The file was written by another version, in a format that is not known here."""


def prepare(db: sqlite3.Connection) -> None:
    """Let the file have the tables, in one transaction.

    Raises:
        UnknownFormat: it has others.
    """
    db.execute("BEGIN IMMEDIATE")
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if found == 0:
        _execute(db, _TABLES + _REPLIES)
    elif found == 1:
        _from_first(db)
    elif found != FORMAT:
        raise UnknownFormat
    db.execute(f"PRAGMA user_version = {FORMAT}")
    db.execute("COMMIT")


def _from_first(db: sqlite3.Connection) -> None:
    """From the format that kept a session's last reply with the session."""
    db.execute("DROP INDEX replies_until")
    db.execute("ALTER TABLE replies RENAME TO named")
    _execute(db, _REPLIES)
    db.execute("INSERT INTO replies SELECT name, name, 0, expires_at, body FROM named")
    db.execute("DROP TABLE named")
    last = db.execute(
        "SELECT id, owner, expires_at, reply FROM sessions WHERE living AND reply IS NOT NULL"
    )
    for session_id, owner, expires_at, reply in last:
        name, body = first_format.reply_of(owner, session_id, reply)
        db.execute(
            "INSERT OR REPLACE INTO replies VALUES (?, ?, 1, ?, ?)",
            (name, session_id, expires_at, body),
        )
    db.execute("ALTER TABLE sessions DROP COLUMN reply")


def _execute(db: sqlite3.Connection, statements: str) -> None:
    """All of them; ``executescript`` would commit before."""
    for statement in statements.split(";"):
        db.execute(statement)
