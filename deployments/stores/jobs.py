"""Video jobs in one SQLite file, so that what was accepted survives a restart.

Write-ahead logging lets several processes read while one writes; every commit reaches the disk (SQLite's default
synchronous level). One connection per store, used by one thread at a time.
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.family import Video
from deployments.stores.job_rows import INSERT, UNFINISHED, VERSION, JobRows, row
from deployments.stores.postgres import PostgresJobs
from deployments.stores.sqlite_file import SqliteFile
from deployments.video.jobs import Jobs, VideoJob

JOBS_FILE = "jobs.sqlite"  # in the state folder
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
    broke INTEGER NOT NULL DEFAULT 0,
    way TEXT,
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
SECOND_LACKS = ("broke INTEGER NOT NULL DEFAULT 0", "way TEXT")
FIRST_COLUMNS = (
    "id", "owner", "model", "prompt", "negative_prompt", "seconds", "size", "fps", "steps", "guidance", "seed",
    "created_at_s", "status", "steps_done", "attempts", "completed_at_s", "expires_at_s", "error_code", "error_message",
)  # fmt: skip


class JobStore(JobRows):
    """Microseconds to read and one disk flush to write. A full disk and a busy file are Unavailable."""

    skip_locked = ""  # there is one writer at a time

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError where the file cannot be used. One of an earlier layout becomes one of this."""
        self._file = SqliteFile(path, "videos", VERSION, _laid_out)

    def close(self) -> None:
        self._file.close()

    def _run(self, statement: str, values: Sequence[object]) -> list[Any]:
        return self._file.run(statement, values)


def _laid_out(connection: sqlite3.Connection) -> int:
    """The version of the layout, brought up to date in one transaction where that can be."""
    connection.execute("BEGIN IMMEDIATE")
    with connection:  # commits, or rolls all of it back
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, 1, 2):
            return int(version)
        if version == 2:
            for column in SECOND_LACKS:
                connection.execute(f"ALTER TABLE video_jobs ADD COLUMN {column}")
        else:
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
