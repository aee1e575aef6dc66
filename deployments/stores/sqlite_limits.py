"""Limits in one SQLite file, for the gateways of one machine. Its clock is the machine's.

What a call wrote survives the death of its process; when the machine loses power, the last moments may be forgotten:
the file waits for no disk, since each request waits for it.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.limits import Account
from deployments.stores.limit_rows import ANSWER_S, VERSION, LimitRows, Run, account_of
from deployments.stores.sqlite_file import SqliteFile

SCHEMA = """
CREATE TABLE IF NOT EXISTS limit_accounts (
    tenant TEXT PRIMARY KEY,
    at_s REAL NOT NULL,
    buckets TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS limit_reservations (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    until_s REAL NOT NULL,
    held TEXT NOT NULL,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS limit_reservations_ending ON limit_reservations (tenant, until_s)
"""
OPEN = "INSERT INTO limit_accounts (tenant, at_s, buckets) VALUES (?, 0, '{}') ON CONFLICT DO NOTHING"
READ = "SELECT at_s, buckets FROM limit_accounts WHERE tenant = ?"


class SqliteLimits(LimitRows):
    """One thread, so that calls of one gateway wait in order; several gateways take turns by the file's lock."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Raises ConfigurationError where the file cannot be used."""
        super().__init__(threads=1)
        self._clock = clock
        self._file = SqliteFile(path, "limits", VERSION, _laid_out, busy_s=ANSWER_S)

    @contextlib.contextmanager
    def _account(self, tenant: str) -> Iterator[tuple[Run, float, Account]]:
        with self._file.transaction() as connection:

            def run(statement: str, values: Sequence[Any]) -> list[Any]:
                return connection.execute(statement, values).fetchall()

            found = run(READ, (tenant,))
            if not found:
                run(OPEN, (tenant,))
            yield run, self._clock(), account_of(*found[0]) if found else Account()

    def _close(self) -> None:
        self._file.close()


def _laid_out(connection: sqlite3.Connection) -> int:
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            return int(version)
        for statement in SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
    return VERSION
