"""Limits in one SQLite file, for the gateways of one machine. Its clock is the machine's.

A call takes a tenth of a millisecond, and to hand it to a thread takes longer: where the file is free it is made on the
event loop, and in a thread where somebody else writes or many reservations have ended. Checkpoints, which wait for the
disk, have the thread.

What a call wrote survives the death of its process; when the machine loses power, the last moments may be forgotten:
the file waits for no disk, since each request waits for it.
"""

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import Unavailable
from cluster.limits import Account
from deployments.stores.limit_rows import ANSWER_S, VERSION, Law, LimitRows, Run, T, account_of
from deployments.stores.sqlite_file import Busy, SqliteFile

log = logging.getLogger("ray.serve")
CHECKPOINT_CALLS = 1000

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
    """One thread: calls of one gateway that wait do so in order. Several gateways take turns by the file's lock."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Raises ConfigurationError where the file cannot be used."""
        super().__init__(threads=1)
        self._clock = clock
        self._file = SqliteFile(path, "limits", VERSION, _laid_out, busy_s=ANSWER_S)
        self._file.checkpoints_apart()
        self._calls = 0

    async def _asked(self, tenant: str, ids: Sequence[str], law: Law[T]) -> T:
        self._calls += 1
        if self._calls % CHECKPOINT_CALLS == 0:
            self._threads.submit(self._checkpoint)
        try:
            return self._judged(tenant, ids, law, True)
        except Busy:
            return await super()._asked(tenant, ids, law)

    @contextlib.contextmanager
    def _account(self, tenant: str, at_once: bool) -> Iterator[tuple[Run, float, Account]]:
        with self._file.transaction(at_once=at_once) as connection:

            def run(statement: str, values: Sequence[Any]) -> list[Any]:
                return connection.execute(statement, values).fetchall()

            found = run(READ, (tenant,))
            if not found:
                run(OPEN, (tenant,))
            yield run, self._clock(), account_of(*found[0]) if found else Account()

    def _checkpoint(self) -> None:
        try:
            self._file.checkpoint()
        except Unavailable as failure:
            log.warning("%s; a checkpoint is tried again later", failure.message)

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
