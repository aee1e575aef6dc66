"""A SQLite file of private things, as the stores beside it use it: what returned is on disk, and any thread may ask."""

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from cluster.errors import ConfigurationError, Unavailable

log = logging.getLogger("ray.serve")
BUSY_S = 10.0  # how long a writer waits for another process's commit
LONG_PAGES = 4000  # of a log: other processes' commits kept it from beginning anew


class Busy(Exception):
    """Somebody else writes at this moment."""


class SqliteFile:
    """One connection. `of` names in errors what it holds: videos, storyboards, limits."""

    def __init__(
        self,
        path: Path,
        of: str,
        version: int,
        lay_out: Callable[[sqlite3.Connection], int],
        busy_s: float = BUSY_S,
    ) -> None:
        """`lay_out` brings the layout up to date where it can, and returns its version.

        Raises ConfigurationError where the file cannot be used, or its layout is another one.
        """
        self._path, self._of, self._busy_s, self._lock = path, of, busy_s, Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)  # prompts are private; SQLite gives its side files the same mode
            self._connection = sqlite3.connect(path, timeout=busy_s, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            found = lay_out(self._connection)
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(
                f"{path}: {error}; a database of {of} that this process may write is allowed; move the file away"
            ) from error
        if found != version:
            self._connection.close()
            raise ConfigurationError(
                f"{path}: its layout is version {found}; version {version} is allowed; serve it with the release "
                "that wrote it, or move the file away"
            )

    def run(self, statement: str, values: Sequence[object]) -> list[Any]:
        """Raises Unavailable where the file is busy or has no room."""
        with self._usable(), self._lock:
            return self._connection.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def transaction(self, *, at_once: bool = False) -> Iterator[sqlite3.Connection]:
        """What is done within is done whole or not at all, and nobody else writes meanwhile. Raises Unavailable.

        `at_once`, for a thread that may not be held up: raises Busy where somebody else writes.
        """
        if not self._lock.acquire(blocking=not at_once):
            raise Busy
        try:
            with self._usable():
                self._begin(at_once)
                with self._connection:  # commits, or rolls all of it back
                    yield self._connection
        finally:
            self._lock.release()

    def _begin(self, at_once: bool) -> None:
        if not at_once:
            self._connection.execute("BEGIN IMMEDIATE")
            return
        with self._waiting(0.0):
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:  # of any kind: a file may be recovered
                    raise Busy from error
                raise

    @contextlib.contextmanager
    def _waiting(self, seconds: float) -> Iterator[None]:
        self._connection.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")
        try:
            yield
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {round(self._busy_s * 1000)}")

    def checkpoints_apart(self) -> None:
        """From now on no commit makes one; `checkpoint` does."""
        self.run("PRAGMA wal_autocheckpoint = 0", ())

    def checkpoint(self) -> bool:
        """What was committed reaches the disk: False where a reader or another checkpoint is in the way of some of it.

        The first commit behind it begins the log anew and waits for the disk, too: this makes it. Raises Unavailable.
        """
        with self._usable(), self._lock:
            busy, pages, done = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if pages > LONG_PAGES:
                with self._waiting(0.1):  # others write meanwhile in their threads
                    self._connection.execute("PRAGMA wal_checkpoint(RESTART)")
            self._connection.execute("BEGIN IMMEDIATE")
            with self._connection:
                (version,) = self._connection.execute("PRAGMA user_version").fetchone()
                self._connection.execute(f"PRAGMA user_version = {version}")
        return not busy and pages == done

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            log.warning("%s: %s", self._path, error)
            raise Unavailable(
                f"{self._of}: {error}; a store that has room and is not busy is allowed; try again soon"
            ) from error

    def close(self) -> None:
        with self._lock:
            self._connection.close()
