"""Video jobs in PostgreSQL, for several gateways, on several machines, that share one queue.

`FOR UPDATE SKIP LOCKED` lets each claim a job at once without waiting for another's claim. Where the connection was cut
the statement is asked again: what the first attempt may have done unseen, the second finds done. A job that was claimed
unseen waits for its lease to end.
"""

from collections.abc import Sequence
from typing import Any

from deployments.stores.job_rows import UNFINISHED, VERSION, JobRows
from deployments.stores.postgres_tables import Layout, PostgresTables

SCHEMA = f"""
CREATE TABLE video_layout (version integer NOT NULL);
INSERT INTO video_layout VALUES ({VERSION});
CREATE TABLE video_jobs (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text NOT NULL UNIQUE,
    owner text NOT NULL,
    request json NOT NULL,
    parent_id text,
    priority bigint NOT NULL,
    model text NOT NULL,
    created_at_s bigint NOT NULL,
    status text NOT NULL,
    stage text NOT NULL,
    steps_done bigint NOT NULL,
    attempts bigint NOT NULL,
    broke bigint NOT NULL DEFAULT 0,
    way text,
    completed_at_s bigint,
    expires_at_s bigint,
    error_code text,
    error_message text,
    signed smallint,
    idempotency_key text,
    claimed_by text,
    lease_until_s double precision
);
CREATE INDEX video_jobs_of_owner ON video_jobs (owner, seq);
CREATE INDEX video_jobs_unfinished ON video_jobs (priority DESC, seq) WHERE {UNFINISHED};
CREATE UNIQUE INDEX video_jobs_asked_once ON video_jobs (owner, idempotency_key);
CREATE INDEX video_jobs_of_parent ON video_jobs (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX video_jobs_expiring ON video_jobs (expires_at_s) WHERE expires_at_s IS NOT NULL;
CREATE TABLE video_characters (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text NOT NULL UNIQUE,
    owner text NOT NULL,
    name text NOT NULL,
    file text NOT NULL,
    created_at_s bigint NOT NULL
);
CREATE INDEX video_characters_of_owner ON video_characters (owner, seq);
"""
NEXT = {2: "ALTER TABLE video_jobs ADD COLUMN broke bigint NOT NULL DEFAULT 0, ADD COLUMN way text"}
LAYOUT = Layout(of="videos", table="video_layout", version=VERSION, schema=SCHEMA, lock=7_205_759_403, next=NEXT)


class PostgresJobs(JobRows):
    """A server that does not answer is Unavailable."""

    skip_locked = "FOR UPDATE SKIP LOCKED"

    def __init__(self, url: str) -> None:
        """The tables are made where there are none. Raises Unavailable, ConfigurationError."""
        self._tables = PostgresTables(url, LAYOUT)

    def close(self) -> None:
        """A later call connects again."""
        self._tables.close()

    def _run(self, statement: str, values: Sequence[object]) -> list[Any]:
        return self._tables.run(statement, values)
