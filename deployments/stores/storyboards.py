"""Storyboards, each one JSON document beside what queries need, where the video jobs are: a SQLite file, or PostgreSQL.

A row is written whole, and only over the one that was read: `revision` counts, so that of two who write one waits for
the other's words. The shots' videos are rows of the job store; nothing here is lost with them. Every statement may be
asked again, for SQL that both databases speak.
"""

import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Any, Literal, Protocol

from pydantic import TypeAdapter

from cluster.errors import InvalidRequest
from cluster.family import Video
from cluster.storyboard import Character, Shot, Warned
from deployments.stores.postgres_tables import Layout, PostgresTables
from deployments.stores.sqlite_file import SqliteFile

STORYBOARDS_FILE = "storyboards.sqlite"  # in the state folder
VERSION = 2  # of the layout; 1 had no states and no end
State = Literal["in_progress", "joining", "completed", "incomplete", "failed"]
UNSETTLED = "state IN ('in_progress', 'joining')"
INDEXES = f"""
CREATE INDEX storyboards_of_owner ON storyboards (owner, seq);
CREATE INDEX storyboards_unsettled ON storyboards (seq) WHERE {UNSETTLED};
CREATE UNIQUE INDEX storyboards_asked_once ON storyboards (owner, idempotency_key);
CREATE INDEX storyboards_expiring ON storyboards (expires_at_s) WHERE expires_at_s IS NOT NULL
"""
SCHEMA = f"""
CREATE TABLE storyboards (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    idempotency_key TEXT,
    state TEXT NOT NULL,
    expires_at_s INTEGER,
    revision INTEGER NOT NULL,
    document TEXT NOT NULL
) STRICT;
{INDEXES}
"""
# All of them are looked at again, and so get their states.
FROM_FIRST = """
INSERT INTO storyboards (id, owner, idempotency_key, state, revision, document)
SELECT id, owner, idempotency_key, 'in_progress', revision, document FROM before ORDER BY seq;
DROP TABLE before
"""
POSTGRES = Layout(
    of="storyboards",
    table="storyboard_layout",
    version=VERSION,
    schema=f"""
CREATE TABLE storyboard_layout (version integer NOT NULL);
INSERT INTO storyboard_layout VALUES ({VERSION});
CREATE TABLE storyboards (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text NOT NULL UNIQUE,
    owner text NOT NULL,
    idempotency_key text,
    state text NOT NULL,
    expires_at_s bigint,
    revision bigint NOT NULL,
    document json NOT NULL
);
{INDEXES}
""",
    lock=7_205_759_420,
)
WRITE = (
    "UPDATE storyboards SET state = ?, expires_at_s = ?, revision = ?, document = ? "
    "WHERE id = ? AND revision = ? RETURNING id"
)
INSERT = (
    "INSERT INTO storyboards (id, owner, idempotency_key, state, expires_at_s, revision, document) "
    "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING id"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """A shot as it is rendered. `asked`: the body of its /v1/videos, as JSON. `video_id`: None until it is accepted;

    `job_id`: what it will be, for which limits are reserved already; None of a storyboard of an earlier version.
    `earlier`: the videos of the takes before this one. `refused`: why it was not accepted. `ended`: how, once that was
    seen and counted.
    """

    shot: Shot
    asked: str
    job_id: str | None = None
    video_id: str | None = None
    earlier: tuple[str, ...] = ()
    refused: str | None = None
    ended: Literal["ok", "failed"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retake:
    """A request for another take that had an idempotency key. `request`: a digest of what was asked."""

    key: str
    request: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Storyboard:
    """`request`: a digest of what was asked. `priority`: of its shots. `joined`: the videos that its cut is made of.

    `state`: as it was last seen; of one that is settled nothing is to be done until somebody asks again, and it expires
    at `expires_at_s`, or never. `joining_until_s`: who joins it has so long. `stamp`: of the last write, another for
    each.
    """

    id: str
    owner: str
    created_at_s: int
    request: str
    title: str
    cast: tuple[Character, ...]
    takes: tuple[Take, ...]
    warnings: tuple[Warned, ...] = ()
    priority: int = 0
    idempotency_key: str | None = None
    retakes: tuple[Retake, ...] = ()
    state: State = "in_progress"
    joined: tuple[str, ...] = ()
    joined_at_s: int | None = None
    expires_at_s: int | None = None
    signed: bool | None = None
    cut_error: str | None = None
    joining_until_s: float = 0.0
    revision: int = 0
    stamp: str = ""

    @property
    def videos(self) -> tuple[str | None, ...]:
        return tuple(take.video_id for take in self.takes)


DOCUMENT = TypeAdapter(Storyboard)


class Database(Protocol):
    """SqliteFile or PostgresTables."""

    def run(self, statement: str, values: Sequence[object]) -> list[Any]: ...

    def close(self) -> None: ...


class StoryboardStore:
    """Blocking; any thread may call. What returned is on disk. Every call raises Unavailable where the database does

    not answer or has no room. A storyboard of another owner is answered as if it did not exist.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, board: Storyboard) -> Storyboard:
        """The storyboard, or the earlier one of its owner with its idempotency key.

        Raises ValueError where its id is taken.
        """
        while True:
            key = board.idempotency_key
            row = (board.id, board.owner, key, board.state, board.expires_at_s, board.revision, _text(board))
            if self._database.run(INSERT, row):
                return board
            if earlier := self.asked(board.owner, key):
                return earlier
            if (taken := self._found("id = ?", (board.id,))) and taken[0] != board:
                raise ValueError(f"id: {board.id} is taken; a new one is allowed; draw again")
            if taken:  # written by an attempt whose answer was lost
                return board
            # What was in the way has been deleted meanwhile.

    def asked(self, owner: str, idempotency_key: str | None) -> Storyboard | None:
        return self._one("owner = ? AND idempotency_key = ?", (owner, idempotency_key))

    def update(self, board: Storyboard) -> Storyboard | None:
        """As it is now; None where it was deleted, or written by another since it was read."""
        now = replace(board, revision=board.revision + 1, stamp=token_hex(8))
        row = (now.state, now.expires_at_s, now.revision, _text(now))
        if self._database.run(WRITE, (*row, now.id, board.revision)):
            return now
        # An attempt whose answer was lost may have written it.
        there = self._one("id = ? AND revision = ?", (now.id, now.revision))
        return now if there == now else None

    def get(self, owner: str, board_id: str) -> Storyboard | None:
        return self._one("owner = ? AND id = ?", (owner, board_id))

    def page(
        self, owner: str, *, after: str | None = None, limit: int = 20, order: Literal["asc", "desc"] = "desc"
    ) -> tuple[tuple[Storyboard, ...], bool]:
        """A page in order of creation, and whether more follow. Raises InvalidRequest where `after` is none of them."""
        side, edge = (">", 0) if order == "asc" else ("<", 2**63 - 1)
        if after is not None:
            place = self._database.run("SELECT seq FROM storyboards WHERE owner = ? AND id = ?", (owner, after))
            if not place:
                raise InvalidRequest(
                    f"after: {after!r} is no storyboard of this key; the id of one is allowed; leave it out",
                    param="after",
                )
            edge = place[0][0]
        found = self._found(f"owner = ? AND seq {side} ? ORDER BY seq {order} LIMIT ?", (owner, edge, limit + 1))
        return found[:limit], len(found) > limit

    def delete(self, owner: str, board_id: str) -> bool:
        """False where there is none."""
        statement = "DELETE FROM storyboards WHERE owner = ? AND id = ? RETURNING id"
        return bool(self._database.run(statement, (owner, board_id)))

    def forget(self, board: Storyboard) -> None:
        """It has expired. One that was written since it was read stays."""
        statement = "DELETE FROM storyboards WHERE id = ? AND revision = ? RETURNING id"
        self._database.run(statement, (board.id, board.revision))

    def unsettled(self) -> tuple[Storyboard, ...]:
        """Of all owners, oldest first."""
        return self._found(f"{UNSETTLED} ORDER BY seq", ())

    def expired(self, now_s: float) -> tuple[Storyboard, ...]:
        """Those whose rows and cuts are due to be deleted."""
        return self._found("expires_at_s <= ? ORDER BY seq", (now_s,))

    def present(self, ids: Collection[str]) -> frozenset[str]:
        """Of these, at most 100, those that there are, whosever."""
        question = f"SELECT id FROM storyboards WHERE id IN ({', '.join('?' * len(ids))})"
        return frozenset(row[0] for row in self._database.run(question, tuple(ids)))

    def counts(self) -> dict[str, int]:
        """How many of all owners there are, by state."""
        return dict(self._database.run("SELECT state, count(*) FROM storyboards GROUP BY state", ()))

    def close(self) -> None:
        self._database.close()

    def _one(self, where: str, values: Sequence[object]) -> Storyboard | None:
        found = self._found(where, values)
        return found[0] if found else None

    def _found(self, where: str, values: Sequence[object]) -> tuple[Storyboard, ...]:
        rows = self._database.run(f"SELECT document FROM storyboards WHERE {where}", values)
        return tuple(DOCUMENT.validate_json(row[0]) for row in rows)


def in_file(path: Path) -> StoryboardStore:
    """A file of layout 1 becomes one of this layout. Raises ConfigurationError where the file cannot be used."""
    return StoryboardStore(SqliteFile(path, "storyboards", VERSION, _laid_out))


def in_postgres(url: str) -> StoryboardStore:
    """Raises Unavailable, ConfigurationError."""
    return StoryboardStore(PostgresTables(url, POSTGRES))


def boards_of(video: Video, state_folder: Path) -> StoryboardStore:
    """Where the family's jobs are. Raises ConfigurationError, Unavailable."""
    return in_file(state_folder / STORYBOARDS_FILE) if video.database is None else in_postgres(video.database)


def _text(board: Storyboard) -> str:
    return DOCUMENT.dump_json(board).decode()


def _laid_out(connection: sqlite3.Connection) -> int:
    """The version of the layout, brought up to date in one transaction where that can be."""
    connection.execute("BEGIN IMMEDIATE")
    with connection:  # commits, or rolls all of it back
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, 1):
            return int(version)
        statements = SCHEMA.split(";")
        if version == 1:
            for index in ("of_owner", "unsettled", "asked_once"):
                connection.execute(f"DROP INDEX storyboards_{index}")
            connection.execute("ALTER TABLE storyboards RENAME TO before")
            statements += FROM_FIRST.split(";")
        for statement in statements:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
    return VERSION
