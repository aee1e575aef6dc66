"""Files, responses, conversations and batches as rows of one table, each one JSON document beside what queries need.

A row is written whole, and only over the one that was read: `revision` counts. Claiming a row counts too, so that a
holder whose lease ran out writes nothing more. Every statement may be asked again, in SQL that SQLite and PostgreSQL
both speak. The bytes of files lie in the store of files; nothing but their rows is here.
"""

import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from cluster.errors import InvalidRequest
from cluster.family import Gateway
from deployments.stores.postgres_tables import Layout, PostgresTables
from deployments.stores.sqlite_file import SqliteFile

OBJECTS_FILE = "objects.sqlite"  # in the state folder
VERSION = 1
Kind = Literal["file", "response", "conversation", "item", "batch", "line"]
Order = Literal["asc", "desc"]
INDEXES = """
CREATE INDEX api_objects_of_owner ON api_objects (owner, kind, seq);
CREATE INDEX api_objects_of_parent ON api_objects (parent, seq) WHERE parent IS NOT NULL;
CREATE INDEX api_objects_open ON api_objects (kind, seq) WHERE open = 1;
CREATE INDEX api_objects_expiring ON api_objects (expires_at_s) WHERE expires_at_s IS NOT NULL
"""
SCHEMA = f"""
CREATE TABLE api_objects (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    owner TEXT NOT NULL,
    parent TEXT,
    label TEXT NOT NULL,
    document TEXT NOT NULL,
    open INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    expires_at_s INTEGER,
    claimed_by TEXT,
    lease_until_s REAL
) STRICT;
{INDEXES}
"""
POSTGRES = Layout(
    of="objects",
    table="api_layout",
    version=VERSION,
    schema=f"""
CREATE TABLE api_layout (version integer NOT NULL);
INSERT INTO api_layout VALUES ({VERSION});
CREATE TABLE api_objects (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text NOT NULL UNIQUE,
    kind text NOT NULL,
    owner text NOT NULL,
    parent text,
    label text NOT NULL,
    document text NOT NULL,
    open smallint NOT NULL,
    revision bigint NOT NULL,
    expires_at_s bigint,
    claimed_by text,
    lease_until_s double precision
);
{INDEXES}
""",
    lock=7_205_759_410,
    path="gateway.database",
)
COLUMNS = ("id", "kind", "owner", "parent", "label", "document", "open", "revision", "expires_at_s")
ALL = ", ".join(COLUMNS)
MOST_AT_ONCE = 100  # rows of one statement: SQLite takes so many values
WRITE = (
    "UPDATE api_objects SET label = ?, document = ?, open = ?, expires_at_s = ?, revision = revision + 1"
    "{lease} WHERE id = ? AND revision = ? RETURNING id"
)
CLAIM = (
    "UPDATE api_objects SET claimed_by = ?, lease_until_s = ?, revision = revision + 1 WHERE seq = "
    "(SELECT seq FROM api_objects WHERE kind = ? AND open = 1 AND coalesce(lease_until_s, 0) <= ? "
    f"ORDER BY seq LIMIT 1 {{skip_locked}}) RETURNING {ALL}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """`parent`: of an item its conversation, of a line its batch. `label`: what listings may ask for. `open`: there is

    work to do, which whoever claims it does. It expires at `expires_at_s`, Unix seconds, or never.
    """

    id: str
    kind: Kind
    owner: str
    document: str
    parent: str | None = None
    label: str = ""
    open: bool = False
    revision: int = 0
    expires_at_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which objects of a listing: `limit` of them behind the one `after`, of a parent or with a label where given."""

    parent: str | None = None
    label: str | None = None
    after: str | None = None
    limit: int = 20
    order: Order = "desc"


class Database(Protocol):
    """SqliteFile or PostgresTables."""

    def run(self, statement: str, values: Sequence[object]) -> list[Any]: ...

    def close(self) -> None: ...


class Objects:
    """Blocking; any thread may call. What returned is on disk. Every call raises Unavailable where the database does

    not answer or has no room. An object of another owner is answered as if it did not exist. `skip_locked`: ends the
    question for the next row, where others may be claiming.
    """

    def __init__(self, database: Database, skip_locked: str = "") -> None:
        self._database = database
        self._claim = CLAIM.format(skip_locked=skip_locked)

    def create(self, *objects: Object) -> None:
        """All of them or none, in this order; those whose ids are there already stay as they are. At most 100."""
        assert 0 < len(objects) <= MOST_AT_ONCE
        rows = ", ".join([f"({', '.join('?' * len(COLUMNS))})"] * len(objects))
        values = tuple(value for each in objects for value in _row(each))
        self._database.run(f"INSERT INTO api_objects ({ALL}) VALUES {rows} ON CONFLICT DO NOTHING RETURNING id", values)

    def update(self, changed: Object, *, free_at_s: float | None = None) -> Object | None:
        """As it is now; None where it was deleted, claimed or written by another since it was read.

        With `free_at_s` nobody holds it any more, and nobody may claim it before then.
        """
        lease = "" if free_at_s is None else ", claimed_by = NULL, lease_until_s = ?"
        values: list[object] = [changed.label, changed.document, int(changed.open), changed.expires_at_s]
        values += [] if free_at_s is None else [free_at_s]
        now = replace(changed, revision=changed.revision + 1)
        if self._database.run(WRITE.format(lease=lease), (*values, changed.id, changed.revision)):
            return now
        # An attempt whose answer was lost may have written it.
        return now if self.get(changed.owner, changed.kind, changed.id) == now else None

    def get(self, owner: str, kind: Kind, object_id: str) -> Object | None:
        found = self._found("owner = ? AND kind = ? AND id = ?", (owner, kind, object_id))
        return found[0] if found else None

    def page(self, owner: str, kind: Kind, asked: Page) -> tuple[tuple[Object, ...], bool]:
        """A page in order of creation, and whether more follow. Raises InvalidRequest where `after` is none of them."""
        where, values = "owner = ? AND kind = ?", [owner, kind]
        for name, value in (("parent", asked.parent), ("label", asked.label)):
            if value is not None:
                where, values = f"{where} AND {name} = ?", [*values, value]
        side, edge = (">", 0) if asked.order == "asc" else ("<", 2**63 - 1)
        if asked.after is not None:
            place = self._database.run(f"SELECT seq FROM api_objects WHERE {where} AND id = ?", (*values, asked.after))
            if not place:
                raise InvalidRequest(
                    f"after: {asked.after[:64]!r} is no {kind} here; the id of one is allowed; leave it out",
                    param="after",
                )
            edge = place[0][0]
        rest = f"{where} AND seq {side} ? ORDER BY seq {asked.order} LIMIT ?"
        found = self._found(rest, (*values, edge, asked.limit + 1))
        return found[: asked.limit], len(found) > asked.limit

    def delete(self, owner: str, object_id: str) -> bool:
        """And all that has it as parent. False where there is none."""
        gone = "DELETE FROM api_objects WHERE owner = ? AND (id = ? OR parent = ?) RETURNING id"
        return bool(self._database.run(gone, (owner, object_id, object_id)))

    def clear(self, parent: str) -> None:
        """Delete all that has it as parent."""
        self._database.run("DELETE FROM api_objects WHERE parent = ? RETURNING id", (parent,))

    def present(self, ids: Collection[str]) -> frozenset[str]:
        """Of these, at most 100, those that there are, whosever."""
        question = f"SELECT id FROM api_objects WHERE id IN ({', '.join('?' * len(ids))})"
        return frozenset(row[0] for row in self._database.run(question, tuple(ids)))

    def children(self, parent: str) -> frozenset[str]:
        """Their ids."""
        rows = self._database.run("SELECT id FROM api_objects WHERE parent = ?", (parent,))
        return frozenset(row[0] for row in rows)

    def counts(self, parent: str) -> dict[str, int]:
        """Its children by label."""
        return dict(
            self._database.run("SELECT label, count(*) FROM api_objects WHERE parent = ? GROUP BY label", (parent,))
        )

    def unfinished(self, owner: str, kind: Kind) -> int:
        """How many open ones there are."""
        question = "SELECT count(*) FROM api_objects WHERE owner = ? AND kind = ? AND open = 1"
        return int(self._database.run(question, (owner, kind))[0][0])

    def claim(self, kind: Kind, holder: str, now_s: float, lease_s: float) -> Object | None:
        """The oldest open one that nobody holds, now held by `holder`; one whose lease has run out is nobody's."""
        rows = self._database.run(self._claim, (holder, now_s + lease_s, kind, now_s))
        return _object(rows[0]) if rows else None

    def renew(self, holder: str, ids: Collection[str], now_s: float, lease_s: float) -> dict[str, int]:
        """The revisions of those that it still holds and that are open, now held for longer."""
        if not ids:
            return {}
        statement = (
            "UPDATE api_objects SET lease_until_s = ? WHERE claimed_by = ? AND open = 1 "
            f"AND id IN ({', '.join('?' * len(ids))}) RETURNING id, revision"
        )
        return dict(self._database.run(statement, (now_s + lease_s, holder, *ids)))

    def expired(self, kind: Kind, now_s: float) -> tuple[Object, ...]:
        """Due to be deleted, oldest first, some at a time."""
        return self._found(
            "kind = ? AND expires_at_s <= ? AND open = 0 ORDER BY seq LIMIT ?", (kind, now_s, MOST_AT_ONCE)
        )

    def close(self) -> None:
        self._database.close()

    def _found(self, where: str, values: Sequence[object]) -> tuple[Object, ...]:
        return tuple(map(_object, self._database.run(f"SELECT {ALL} FROM api_objects WHERE {where}", values)))


def _row(given: Object) -> tuple[object, ...]:
    return tuple(int(value) if isinstance(value := getattr(given, name), bool) else value for name in COLUMNS)


def _object(row: Sequence[Any]) -> Object:
    told = dict(zip(COLUMNS, row, strict=True))
    return Object(**told | {"open": bool(told["open"])})


def in_file(path: Path) -> Objects:
    """Raises ConfigurationError where the file cannot be used."""
    return Objects(SqliteFile(path, "objects", VERSION, _laid_out))


def in_postgres(url: str) -> Objects:
    """Raises Unavailable, ConfigurationError."""
    return Objects(PostgresTables(url, POSTGRES), "FOR UPDATE SKIP LOCKED")


def objects_of(gateway: Gateway, state_folder: Path) -> Objects:
    """The database that the family names, or a file in the state folder. Raises ConfigurationError, Unavailable."""
    return in_file(state_folder / OBJECTS_FILE) if gateway.database is None else in_postgres(gateway.database)


def _laid_out(connection: sqlite3.Connection) -> int:
    connection.execute("BEGIN IMMEDIATE")
    with connection:  # commits, or rolls all of it back
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
    return VERSION if version == 0 else int(version)
