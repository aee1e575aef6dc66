"""Video jobs in one SQLite file, so that what was accepted survives a restart.

Write-ahead logging lets several processes read while one writes; every commit reaches the disk (SQLite's default
synchronous level). One connection per store, used by one thread at a time. Every question but `unfinished` and `update`
names the owner, and a job of another owner is answered as if it did not exist.
"""

import sqlite3
from dataclasses import astuple, fields
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from cluster.errors import ConfigurationError, InvalidRequest
from deployments.video.jobs import VideoJob

JOBS_FILE = "jobs.sqlite"  # in the state folder
BUSY_S = 10.0  # how long a writer waits for another process's commit
VERSION = 1
COLUMNS = tuple(field.name for field in fields(VideoJob))
SCHEMA = """
CREATE TABLE IF NOT EXISTS video_jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt TEXT NOT NULL,
    negative_prompt TEXT NOT NULL,
    seconds INTEGER NOT NULL,
    size TEXT NOT NULL,
    fps INTEGER NOT NULL,
    steps INTEGER NOT NULL,
    guidance REAL NOT NULL,
    seed INTEGER NOT NULL,
    created_at_s INTEGER NOT NULL,
    status TEXT NOT NULL,
    steps_done INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    completed_at_s INTEGER,
    expires_at_s INTEGER,
    error_code TEXT,
    error_message TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS video_jobs_of_owner ON video_jobs (owner, seq);
CREATE INDEX IF NOT EXISTS video_jobs_unfinished ON video_jobs (seq) WHERE status IN ('queued', 'in_progress');
"""
SELECT = f"SELECT {', '.join(COLUMNS)} FROM video_jobs"
INSERT = f"INSERT INTO video_jobs ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
UPDATE = f"UPDATE video_jobs SET {', '.join(f'{name} = ?' for name in COLUMNS)} WHERE id = ?"


class JobStore:
    """Blocking, microseconds to read and one disk flush to write; safe to call from any thread."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError where the file cannot be used."""
        self._lock = Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)  # prompts are private; SQLite gives its side files the same mode
            self._connection = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version in (0, VERSION):
                self._connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
                return
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(
                f"{path}: {error}; a video job database that this process may write is allowed; move the file away"
            ) from error
        self._connection.close()
        raise ConfigurationError(
            f"{path}: its layout is version {version}; version {VERSION} is allowed; serve it with the release that "
            "wrote it, or move the file away"
        )

    def create(self, job: VideoJob) -> None:
        self._run(INSERT, astuple(job))

    def update(self, job: VideoJob) -> bool:
        """False where the job has been deleted meanwhile: then its rendering may stop."""
        return self._changed(UPDATE, (*astuple(job), job.id))

    def get(self, owner: str, job_id: str) -> VideoJob | None:
        rows = self._run(f"{SELECT} WHERE id = ? AND owner = ?", (job_id, owner))
        return _job(rows[0]) if rows else None

    def page(
        self, owner: str, *, after: str | None = None, limit: int = 20, order: Literal["asc", "desc"] = "desc"
    ) -> tuple[tuple[VideoJob, ...], bool]:
        """A page in order of creation, and whether more follow. Raises InvalidRequest where `after` is no job."""
        side, edge = (">", 0) if order == "asc" else ("<", 2**63 - 1)
        if after is not None:
            place = self._run("SELECT seq FROM video_jobs WHERE id = ? AND owner = ?", (after, owner))
            if not place:
                raise InvalidRequest(
                    f"after: {after!r} is no video of this key; the id of one is allowed; list again without after",
                    param="after",
                )
            edge = place[0][0]
        question = f"{SELECT} WHERE owner = ? AND seq {side} ? ORDER BY seq {order} LIMIT ?"
        rows = self._run(question, (owner, edge, limit + 1))
        return tuple(_job(row) for row in rows[:limit]), len(rows) > limit

    def delete(self, owner: str, job_id: str) -> bool:
        return self._changed("DELETE FROM video_jobs WHERE id = ? AND owner = ?", (job_id, owner))

    def unfinished(self) -> tuple[VideoJob, ...]:
        """Every owner's queued and interrupted jobs, oldest first: what a restart puts back into the queue."""
        rows = self._run(f"{SELECT} WHERE status IN ('queued', 'in_progress') ORDER BY seq", ())
        return tuple(_job(row) for row in rows)

    def counts(self) -> dict[str, int]:
        """How many jobs of all owners there are, by status."""
        return dict(self._run("SELECT status, count(*) FROM video_jobs GROUP BY status", ()))

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _run(self, statement: str, values: tuple[object, ...]) -> list[Any]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def _changed(self, statement: str, values: tuple[object, ...]) -> bool:
        with self._lock:
            return self._connection.execute(statement, values).rowcount == 1


def _job(row: tuple[Any, ...]) -> VideoJob:
    return VideoJob(**dict(zip(COLUMNS, row, strict=True)))
