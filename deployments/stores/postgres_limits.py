"""Limits in PostgreSQL, for gateways on several machines. Its clock is the server's.

An account's row is locked while the law is asked. Commits wait for no disk (synchronous_commit off), since each request
waits for them: a server that crashes may forget what the last fraction of a second wrote, and nothing older.
"""

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg

from cluster.errors import ConfigurationError, Unavailable
from cluster.limits import Account
from deployments.stores.limit_rows import ANSWER_S, VERSION, Law, LimitRows, Run, T, account_of, unusable
from deployments.stores.postgres_tables import FAULTS, Layout, PostgresTables

log = logging.getLogger("ray.serve")
CONNECTIONS = 4  # of each gateway; other calls wait for one
LAYOUT = Layout(
    of="limits",
    table="limit_layout",
    version=VERSION,
    schema=f"""
CREATE TABLE limit_layout (version integer NOT NULL);
INSERT INTO limit_layout VALUES ({VERSION});
CREATE TABLE limit_accounts (
    tenant text PRIMARY KEY,
    at_s double precision NOT NULL,
    buckets text NOT NULL
);
CREATE TABLE limit_reservations (
    tenant text NOT NULL,
    id text NOT NULL,
    until_s double precision NOT NULL,
    held text NOT NULL,
    PRIMARY KEY (tenant, id)
);
CREATE INDEX limit_reservations_ending ON limit_reservations (tenant, until_s);
""",
    lock=7_205_759_411,
    path="limits.store",
)
OPEN = "INSERT INTO limit_accounts (tenant, at_s, buckets) VALUES (%s, 0, '{}') ON CONFLICT DO NOTHING"
LOCK = (
    "SELECT at_s, buckets, extract(epoch FROM clock_timestamp())::float8 FROM limit_accounts "
    "WHERE tenant = %s FOR UPDATE"
)


class PostgresLimits(LimitRows):
    """A connection that was cut is made anew, once per call; to ask a second time is safe, as the law says of ids."""

    def __init__(self, url: str, clock: Callable[[], float] | None = None) -> None:
        """The tables are made where there are none, once the server is there. Raises ConfigurationError."""
        super().__init__(CONNECTIONS)
        self._clock = clock
        self._tables = PostgresTables(url, LAYOUT)
        self._idle: deque[psycopg.Connection] = deque()

    def _judged(self, tenant: str, ids: Sequence[str], law: Law[T], at_once: bool = False) -> T:
        if self._idle:
            with contextlib.suppress(*FAULTS):
                return super()._judged(tenant, ids, law)
            self._close()  # a server that restarted has cut them all
        try:
            return super()._judged(tenant, ids, law)
        except FAULTS as error:
            log.warning("limits: %s", " ".join(str(error).split()))
            raise Unavailable(
                "limits: the database does not answer; one that does is allowed; try again soon"
            ) from error

    @contextlib.contextmanager
    def _account(self, tenant: str, at_once: bool) -> Iterator[tuple[Run, float, Account]]:
        connection = self._taken()
        try:
            with connection.pipeline(), connection.transaction():  # three waits for the server: lock, read, write

                def run(statement: str, values: Sequence[object]) -> list[Any]:
                    asked = connection.execute(statement.replace("?", "%s"), values)
                    return asked.fetchall() if statement.startswith("SELECT") else []

                connection.execute(OPEN, (tenant,))
                ((at_s, buckets, now_s),) = connection.execute(LOCK, (tenant,)).fetchall()
                yield run, self._clock() if self._clock else now_s, account_of(at_s, buckets)
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)

    def _taken(self) -> psycopg.Connection:
        try:
            return self._idle.pop()
        except IndexError:
            self._lay_out()
            connection = self._tables.another()
            connection.execute(f"SET synchronous_commit = off; SET statement_timeout = {int(ANSWER_S * 1000)}")
            return connection

    def _lay_out(self) -> None:
        """Of a server that was not there at the start. Raises Unavailable."""
        try:
            self._tables.lay_out()
        except ConfigurationError as error:
            log.error("%s", error.message)
            raise unusable() from error

    def _close(self) -> None:
        while self._idle:
            self._idle.pop().close()
