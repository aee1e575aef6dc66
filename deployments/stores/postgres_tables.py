"""Tables of ours in a PostgreSQL database, as the stores beside it use them, for several gateways on several machines.

The password comes from the file that PGPASSFILE names, as libpq reads it, never from the URL. There is one connection,
used by one thread at a time; where it was cut, as by a server that restarted, the statement is asked once more on a new
one. Whoever asks must see to it that this is safe: what the first attempt may have done unseen, the second finds done.
"""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.json import set_json_loads

from cluster.errors import ConfigurationError, Unavailable

log = logging.getLogger("ray.serve")
CONNECT_S = 5
ANSWER_S = 10  # of a statement, and of packets on their way
FAULTS = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """`schema` makes the tables, among them `table`, whose one row is the version. `of` names in errors what they hold.

    `lock`: of this layout, among the advisory locks of the database.
    """

    of: str
    table: str
    version: int
    schema: str
    lock: int
    path: str = "video.database"  # of the URL in the family file


class PostgresTables:
    """A server that does not answer is Unavailable after CONNECT_S, or twice ANSWER_S where it hangs."""

    def __init__(self, url: str, layout: Layout) -> None:
        """The tables are made where there are none. Raises Unavailable, ConfigurationError."""
        self._lock = Lock()
        self._connection: psycopg.Connection | None = None
        self._of = layout.of
        self._where = f"{layout.path}: {url}"
        self._conninfo = _checked(url, layout.path)
        try:
            version = _laid_out(self._connected(), layout)
        except psycopg.Error as error:
            self._disconnect()
            if isinstance(error, FAULTS):
                raise Unavailable(
                    f"{self._where}: {_line(error)}; a server that takes us is allowed; start it, or mend the URL"
                ) from error
            raise ConfigurationError(
                f"{self._where}: {_line(error)}; a database where this user may make tables is allowed; grant it"
            ) from error
        if version != layout.version:
            self._disconnect()
            raise ConfigurationError(
                f"{self._where}: its layout is version {version}; version {layout.version} is allowed; serve it with "
                "the release that made it, or name another database"
            )

    def run(self, statement: str, values: Sequence[object]) -> list[Any]:
        """Its rows, none where it returns none. `?` stands for a value. Raises Unavailable."""
        asked = statement.replace("?", "%s")
        with self._lock:
            if self._connection is not None:
                with contextlib.suppress(*FAULTS):
                    return _rows(self._connection.execute(asked, values))
                self._disconnect()
            try:
                return _rows(self._connected().execute(asked, values))
            except FAULTS as error:
                self._disconnect()
                log.warning("%s: %s", self._where, _line(error))
                raise Unavailable(
                    f"{self._of}: the database does not answer; one that does is allowed; try again soon"
                ) from error

    def close(self) -> None:
        """A later call connects again."""
        with self._lock:
            self._disconnect()

    def another(self) -> psycopg.Connection:
        """A connection of its own, for who listens. Raises psycopg.Error."""
        return psycopg.connect(self._conninfo, autocommit=True)

    def _connected(self) -> psycopg.Connection:
        self._connection = psycopg.connect(self._conninfo, autocommit=True)
        set_json_loads(_as_it_is, self._connection)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


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
    options = f"{given.pop('options', '')} -c statement_timeout={ANSWER_S}s"
    return make_conninfo("", **waits, **given, options=options)


def _laid_out(connection: psycopg.Connection, layout: Layout) -> int:
    """The version of the layout, which one of several gateways that start at once makes."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (layout.lock,))
        (found,) = connection.execute("SELECT to_regclass(%s)", (layout.table,)).fetchall()
        if found[0] is None:
            connection.execute(layout.schema)
        (version,) = connection.execute(f"SELECT version FROM {layout.table}").fetchall()
    return int(version[0])


def _rows(cursor: psycopg.Cursor[Any]) -> list[Any]:
    return cursor.fetchall() if cursor.description else []


def _as_it_is(document: str | bytes) -> str | bytes:
    return document


def _line(error: psycopg.Error) -> str:
    return " ".join(str(error).split())
