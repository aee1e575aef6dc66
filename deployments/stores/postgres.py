"""Video jobs in PostgreSQL, for several gateways, on several machines, that share one queue.

`FOR UPDATE SKIP LOCKED` lets each claim a job at once without waiting for another's claim. The password comes from the
file that PGPASSFILE names, as libpq reads it, never from the URL. A store has one connection, used by one thread at a
time; where it was cut, as by a server that restarted, the statement is asked once more on a new one. That is safe: what
the first attempt may have done unseen, the second finds done. A job that was claimed unseen waits for its lease to end.
"""

import contextlib
import logging
from collections.abc import Sequence
from threading import Lock
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.json import set_json_loads

from cluster.errors import ConfigurationError, Unavailable
from deployments.stores.job_rows import UNFINISHED, VERSION, JobRows

log = logging.getLogger("ray.serve")
CONNECT_S = 5
ANSWER_S = 10  # of a statement, and of packets on their way
FAULTS = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
LOCK = 7_205_759_403  # of this layout, among the advisory locks of the database
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


class PostgresJobs(JobRows):
    """A server that does not answer is Unavailable after CONNECT_S, or twice ANSWER_S where it hangs."""

    skip_locked = "FOR UPDATE SKIP LOCKED"

    def __init__(self, url: str) -> None:
        """The tables are made where there are none. Raises Unavailable, ConfigurationError."""
        self._lock = Lock()
        self._connection: psycopg.Connection | None = None
        self._where = f"video.database: {url}"
        self._conninfo = self._checked(url)
        try:
            version = _laid_out(self._connected())
        except psycopg.Error as error:
            self._disconnect()
            if isinstance(error, FAULTS):
                raise Unavailable(
                    f"{self._where}: {_line(error)}; a server that takes us is allowed; start it, or mend the URL"
                ) from error
            raise ConfigurationError(
                f"{self._where}: {_line(error)}; a database where this user may make tables is allowed; grant it"
            ) from error
        if version != VERSION:
            self._disconnect()
            raise ConfigurationError(
                f"{self._where}: its layout is version {version}; version {VERSION} is allowed; serve it with the "
                "release that made it, or name another database"
            )

    def close(self) -> None:
        """A later call connects again."""
        with self._lock:
            self._disconnect()

    def _run(self, statement: str, values: Sequence[object]) -> list[Any]:
        asked = statement.replace("?", "%s")
        with self._lock:
            if self._connection is not None:
                with contextlib.suppress(*FAULTS):
                    return self._connection.execute(asked, values).fetchall()
                self._disconnect()
            try:
                return self._connected().execute(asked, values).fetchall()
            except FAULTS as error:
                self._disconnect()
                log.warning("%s: %s", self._where, _line(error))
                raise Unavailable(
                    "videos: the database does not answer; one that does is allowed; try again soon"
                ) from error

    def _connected(self) -> psycopg.Connection:
        self._connection = psycopg.connect(self._conninfo, autocommit=True)
        set_json_loads(_as_it_is, self._connection)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _checked(self, url: str) -> str:
        """What libpq is told: the URL, and how long it may wait."""
        try:
            given = conninfo_to_dict(url)
        except psycopg.ProgrammingError as error:
            raise ConfigurationError(
                f"video.database: {_line(error)}; a URL such as postgresql://user@host/database is allowed; mend it"
            ) from error
        if given.pop("password", None) is not None:
            raise ConfigurationError(
                "video.database: given with a password; a URL without one is allowed; move it into the file that "
                "PGPASSFILE names"
            )
        waits = {"connect_timeout": CONNECT_S, "tcp_user_timeout": 1000 * ANSWER_S}
        options = f"{given.pop('options', '')} -c statement_timeout={ANSWER_S}s"
        return make_conninfo("", **waits, **given, options=options)


def _laid_out(connection: psycopg.Connection) -> int:
    """The version of the layout, which one of several gateways that start at once makes."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        (found,) = connection.execute("SELECT to_regclass('video_layout')").fetchall()
        if found[0] is None:
            connection.execute(SCHEMA)
        (version,) = connection.execute("SELECT version FROM video_layout").fetchall()
    return int(version[0])


def _as_it_is(document: str | bytes) -> str | bytes:
    return document


def _line(error: psycopg.Error) -> str:
    return " ".join(str(error).split())
