"""Tables of ours in a PostgreSQL database, as the stores beside it use them, for several gateways on several machines.

The password comes from the file that PGPASSFILE names, as libpq reads it, never from the URL. Where a connection was
cut in a statement, as by a server that ended, the statement is asked once more on another one. Whoever asks must see to
it that this is safe: what the first attempt may have done unseen, the second finds done.
"""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.json import set_json_loads
from psycopg_pool import ConnectionPool, PoolTimeout, TooManyRequests

from cluster.errors import ConfigurationError, Unavailable

log = logging.getLogger("ray.serve")
CONNECT_S = 5
ANSWER_S = 10  # of a statement, and of packets on their way
TRIES = 3  # of a statement: what the pool was just connecting may be cut off, too
WAIT_S = 2.0  # for a connection
MOST = 4  # connections
MOST_WAITING = 64  # threads without one
FAULTS = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """`schema` makes the tables, among them `table`, whose one row is the version. `of` names in errors what they hold.

    `lock`: of this layout, among the advisory locks of the database. `next`: by version, what makes the next one of it;
    gateways of either may run meanwhile.
    """

    of: str
    table: str
    version: int
    schema: str
    lock: int
    next: Mapping[int, str] = field(default_factory=dict)
    path: str = "video.database"  # of the URL in the family file


class _Connection(psycopg.Connection[Any]):
    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """libpq waits for ever for a server that takes what it is sent and says nothing."""
        return super().wait(gen, interval, ANSWER_S if timeout is None else timeout)


class PostgresTables:
    """A server that does not answer is Unavailable after WAIT_S, or some more than ANSWER_S where it hangs.

    Up to MOST threads ask at once; others wait for one of their connections. A server that is not there at the start
    may come later: until then every call is Unavailable.
    """

    def __init__(self, url: str, layout: Layout) -> None:
        """The tables are made where there are none. Raises ConfigurationError."""
        self._lock = Lock()
        self._layout, self._laid_out = layout, False
        self._where = f"{layout.path}: {url}"
        self._conninfo = _checked(url, layout.path)
        self._pool: ConnectionPool[_Connection] | None = None
        with contextlib.suppress(Unavailable):
            self.lay_out()

    def run(self, statement: str, values: Sequence[object]) -> list[Any]:
        """Its rows, none where it returns none. `?` stands for a value. Raises Unavailable, ConfigurationError."""
        self.lay_out()
        asked = statement.replace("?", "%s")
        pool, until_s = self._opened(), time.monotonic() + ANSWER_S
        for left in reversed(range(TRIES)):
            try:
                return _run(pool, asked, values)
            except FAULTS as error:
                over = not left or time.monotonic() >= until_s
                if over or isinstance(error, (PoolTimeout, TooManyRequests)):
                    raise self._unavailable(error) from error
                pool.drain()  # a server that ended has cut all of them
        raise AssertionError

    def close(self) -> None:
        """A later call connects again."""
        with self._lock:
            if self._pool is not None:
                self._pool.close(timeout=WAIT_S)
            self._pool = None

    def another(self) -> psycopg.Connection:
        """A connection of its own, for who listens. Raises psycopg.Error."""
        return psycopg.connect(self._conninfo, autocommit=True)

    def _opened(self) -> ConnectionPool[_Connection]:
        with self._lock:
            if self._pool is None:
                self._pool = ConnectionPool(
                    self._conninfo,
                    connection_class=_Connection,
                    kwargs={"autocommit": True},
                    configure=_configured,
                    min_size=0,
                    max_size=MOST,
                    max_waiting=MOST_WAITING,
                    timeout=WAIT_S,
                    reconnect_timeout=WAIT_S,
                    name=self._layout.of,
                    open=True,
                )
            return self._pool

    def lay_out(self) -> None:
        """Once. Other calls do so first, but for `another`. Raises Unavailable, ConfigurationError."""
        if self._laid_out:
            return
        try:
            with contextlib.closing(_Connection.connect(self._conninfo, autocommit=True)) as connection:
                version = _laid_out(connection, self._layout)
        except FAULTS as error:
            raise self._unavailable(error) from error
        except psycopg.Error as error:
            raise ConfigurationError(
                f"{self._where}: {_line(error)}; a database where this user may make tables is allowed; grant it"
            ) from error
        if version != self._layout.version:
            raise ConfigurationError(
                f"{self._where}: its layout is version {version}; version {self._layout.version} is allowed; serve it "
                "with the release that made it, or name another database"
            )
        self._laid_out = True

    def _unavailable(self, error: psycopg.Error) -> Unavailable:
        log.warning("%s: %s", self._where, _line(error))
        return Unavailable(f"{self._layout.of}: the database does not answer; one that does is allowed; try again soon")


def _run(pool: ConnectionPool[_Connection], asked: str, values: Sequence[object]) -> list[Any]:
    with pool.connection() as connection:
        try:
            return _rows(connection.execute(asked, values))
        except FAULTS:
            connection.close()  # it may be in the midst of the statement
            raise


def _configured(connection: _Connection) -> None:
    set_json_loads(_as_it_is, connection)


def _checked(url: str, path: str) -> str:
    """What libpq is told: the URL, and how long it may wait."""
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(
            f"{path}: {_line(error)}; a URL such as postgresql://user@host/database is allowed; mend it"
        ) from error
    if given.pop("password", None) is not None:
        raise ConfigurationError(
            f"{path}: given with a password; a URL without one is allowed; move it into the file that PGPASSFILE names"
        )
    waits = {"connect_timeout": CONNECT_S, "tcp_user_timeout": 1000 * ANSWER_S}
    bounds = "".join(f" -c {each}={ANSWER_S}s" for each in ("statement_timeout", "idle_in_transaction_session_timeout"))
    options = f"{given.pop('options', '')}{bounds}"
    return make_conninfo("", **waits, **given, options=options)


def _laid_out(connection: psycopg.Connection, layout: Layout) -> int:
    """The version of the layout, which one of several gateways that start at once makes."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (layout.lock,))
        (found,) = connection.execute("SELECT to_regclass(%s)", (layout.table,)).fetchall()
        if found[0] is None:
            connection.execute(layout.schema)
        ((version,),) = connection.execute(f"SELECT version FROM {layout.table}").fetchall()
        while version in layout.next:
            connection.execute(layout.next[version])
            version += 1
            connection.execute(f"UPDATE {layout.table} SET version = %s", (version,))
    return int(version)


def _rows(cursor: psycopg.Cursor[Any]) -> list[Any]:
    return cursor.fetchall() if cursor.description else []


def _as_it_is(document: str | bytes) -> str | bytes:
    return document


def _line(error: psycopg.Error) -> str:
    return " ".join(str(error).split())
