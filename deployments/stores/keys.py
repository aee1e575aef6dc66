"""API keys in one SQLite file, or in PostgreSQL where gateways on several machines share them.

WAL mode lets every gateway process read while another writes, and each look-up sees the last commit: a revoked key is
refused at once, everywhere.
"""

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.access import KeyRecord
from cluster.errors import ConfigurationError
from cluster.family import Family
from deployments.stores.key_rows import SQLITE_KEEP, KeyRows
from deployments.stores.postgres_keys import PostgresKeys

__all__ = ["KEYS_FILE", "KeyRecord", "KeyStore", "keys_of"]

KEYS_FILE = "keys.sqlite"  # in the state folder
_BUSY_TIMEOUT_S = 5.0
_FIRST_COLUMNS = "sha256, id, name, created_s, revoked_s"  # of files that know no plans yet
_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    sha256 BLOB PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    created_s REAL NOT NULL,
    revoked_s REAL
) STRICT, WITHOUT ROWID;
"""
_SINCE = {  # columns that came later; a key from before is of the default project, with all scopes but admin
    "plan": "TEXT",
    "org": "TEXT NOT NULL DEFAULT 'default'",
    "project": "TEXT NOT NULL DEFAULT 'default'",
    "scopes": "TEXT",
    "expires_s": "REAL",
    "previous_sha256": "BLOB",
    "previous_until_s": "REAL",
}
_REST = f"""
CREATE UNIQUE INDEX IF NOT EXISTS keys_rotated ON keys (previous_sha256) WHERE previous_sha256 IS NOT NULL;
CREATE TABLE IF NOT EXISTS key_acts (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at_s REAL NOT NULL,
    actor TEXT NOT NULL,
    from_ TEXT NOT NULL,
    act TEXT NOT NULL,
    subject TEXT NOT NULL,
    outcome TEXT NOT NULL
) STRICT;
{SQLITE_KEEP.format(table="key_acts")}
"""


class KeyStore(KeyRows):
    """One connection; use it from one thread at a time. Every failure of the file is a ConfigurationError."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        with self._readable():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not self._path.exists():
                _create_file(self._path)
            if self._path.is_file():
                self._path.chmod(0o600)  # SQLite gives its side files the same mode
            self._db = _open(self._path)

    def close(self) -> None:
        self._db.close()

    def _run(self, statement: str, values: Sequence[object]) -> list[Any]:
        with self._readable():
            return self._db.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise ConfigurationError(
                f"{self._path}: {error}; a SQLite file that this user may read and write is allowed; "
                "mend its owner and mode, or move it away and create the keys anew"
            ) from error


def keys_of(family: Family) -> KeyRows:
    """The database that the family names, or a file in the state folder. Raises ConfigurationError, Unavailable."""
    url = family.accounts.database
    return KeyStore(Path(family.state_folder) / KEYS_FILE) if url is None else PostgresKeys(url)


def _create_file(path: Path) -> None:
    """A new store appears whole: two processes that turn one fresh file to WAL at once can fail each other."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder) / path.name
        _open(draft).close()
        draft.chmod(0o600)
        with contextlib.suppress(FileExistsError):  # another process was quicker
            os.link(draft, path)


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    # The write lock proves at start, not at the first key, that the file can be written.
    db.execute("BEGIN IMMEDIATE")
    db.execute(_SCHEMA)
    db.execute(f"SELECT {_FIRST_COLUMNS} FROM keys LIMIT 1")
    there = {row[1] for row in db.execute("PRAGMA table_info(keys)")}
    for column, kind in _SINCE.items():
        if column not in there:
            db.execute(f"ALTER TABLE keys ADD COLUMN {column} {kind}")
    for statement in _statements(_REST):
        db.execute(statement)
    db.execute("COMMIT")
    return db


def _statements(script: str) -> Iterator[str]:
    """One by one: executescript would commit the transaction first."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
