"""Video jobs in one SQLite file, so that what was accepted survives a restart.

Write-ahead logging lets several processes read while one writes; every commit reaches the disk (SQLite's default
synchronous level). One connection per store, used by one thread at a time.
"""

import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from cluster.errors import ConfigurationError, Unavailable
from cluster.family import Video
from deployments.stores.job_rows import INSERT, UNFINISHED, VERSION, JobRows, row
from deployments.stores.postgres import PostgresJobs
from deployments.video.jobs import Jobs, VideoJob

log = logging.getLogger("ray.serve")
JOBS_FILE = "jobs.sqlite"  # in the state folder
BUSY_S = 10.0  # how long a writer waits for another process's commit
SCHEMA = f"""
CREATE TABLE video_jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    request TEXT NOT NULL,
    parent_id TEXT,
    priority INTEGER NOT NULL,
    model TEXT NOT NULL,
    created_at_s INTEGER NOT NULL,
    status TEXT NOT NULL,
    stage TEXT NOT NULL,
    steps_done INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    completed_at_s INTEGER,
    expires_at_s INTEGER,
    error_code TEXT,
    error_message TEXT,
    signed INTEGER,
    idempotency_key TEXT,
    claimed_by TEXT,
    lease_until_s REAL
) STRICT;
CREATE INDEX video_jobs_of_owner ON video_jobs (owner, seq);
CREATE INDEX video_jobs_unfinished ON video_jobs (priority DESC, seq) WHERE {UNFINISHED};
CREATE UNIQUE INDEX video_jobs_asked_once ON video_jobs (owner, idempotency_key);
CREATE INDEX video_jobs_of_parent ON video_jobs (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX video_jobs_expiring ON video_jobs (expires_at_s) WHERE expires_at_s IS NOT NULL;
CREATE TABLE video_characters (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    file TEXT NOT NULL,
    created_at_s INTEGER NOT NULL
) STRICT;
CREATE INDEX video_characters_of_owner ON video_characters (owner, seq)
"""
FIRST_COLUMNS = (
    "id", "owner", "model", "prompt", "negative_prompt", "seconds", "size", "fps", "steps", "guidance", "seed",
    "created_at_s", "status", "steps_done", "attempts", "completed_at_s", "expires_at_s", "error_code", "error_message",
)  # fmt: skip


class JobStore(JobRows):
    """Microseconds to read and one disk flush to write. A full disk and a busy file are Unavailable."""

    skip_locked = ""  # there is one writer at a time

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError where the file cannot be used. A file of layout 1 becomes one of this layout."""
        self._path = path
        self._lock = Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)  # prompts are private; SQLite gives its side files the same mode
            self._connection = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            version = _laid_out(self._connection)
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(
                f"{path}: {error}; a video job database that this process may write is allowed; move the file away"
            ) from error
        if version != VERSION:
            self._connection.close()
            raise ConfigurationError(
                f"{path}: its layout is version {version}; version {VERSION} is allowed; serve it with the release "
                "that wrote it, or move the file away"
            )

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _run(self, statement: str, values: Sequence[object]) -> list[Any]:
        try:
            with self._lock:
                return self._connection.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            log.warning("%s: %s", self._path, error)
            raise Unavailable(
                f"videos: {error}; a store that has room and is not busy is allowed; try again soon"
            ) from error


def _laid_out(connection: sqlite3.Connection) -> int:
    """The version of the layout, brought up to date in one transaction where that can be."""
    connection.execute("BEGIN IMMEDIATE")
    with connection:  # commits, or rolls all of it back
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, 1):
            return int(version)
        jobs = _first_layout(connection) if version == 1 else []
        for statement in SCHEMA.split(";"):
            connection.execute(statement)
        connection.executemany(INSERT.partition(" RETURNING")[0], map(row, jobs))
        connection.execute(f"PRAGMA user_version = {VERSION}")
    return VERSION


def _first_layout(connection: sqlite3.Connection) -> list[VideoJob]:
    """The jobs of a file of version 1, in order of creation; its table goes."""
    found = connection.execute(f"SELECT {', '.join(FIRST_COLUMNS)} FROM video_jobs ORDER BY seq").fetchall()
    connection.execute("DROP TABLE video_jobs")
    return [VideoJob(**dict(zip(FIRST_COLUMNS, each, strict=True))) for each in found]


def jobs_of(video: Video, state_folder: Path) -> Jobs:
    """The database that the family names, or a file in the state folder. Raises ConfigurationError, Unavailable."""
    return JobStore(state_folder / JOBS_FILE) if video.database is None else PostgresJobs(video.database)
