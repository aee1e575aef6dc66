"""Storyboards in one SQLite file of the state folder, each one JSON document beside what queries need.

A row is written whole, and only over the one that was read: `revision` counts, so that of two who write one waits for
the other's words. The shots' videos are rows of the job store, whichever that is; nothing here is lost with them.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from cluster.errors import InvalidRequest
from cluster.storyboard import Character, Shot, Warned
from deployments.stores.sqlite_file import SqliteFile

STORYBOARDS_FILE = "storyboards.sqlite"  # in the state folder
VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS storyboards (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    idempotency_key TEXT,
    settled INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    document TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS storyboards_of_owner ON storyboards (owner, seq);
CREATE INDEX IF NOT EXISTS storyboards_unsettled ON storyboards (seq) WHERE NOT settled;
CREATE UNIQUE INDEX IF NOT EXISTS storyboards_asked_once ON storyboards (owner, idempotency_key)
"""
WRITE = "UPDATE storyboards SET settled = ?, revision = ?, document = ? WHERE id = ? AND revision = ? RETURNING id"
INSERT = (
    "INSERT INTO storyboards (id, owner, idempotency_key, settled, revision, document) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT DO NOTHING RETURNING id"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """A shot as it is rendered. `asked`: the body of its /v1/videos, as JSON. `video_id`: None until it is accepted.

    `earlier`: the videos of the takes before this one. `refused`: why it was not accepted.
    """

    shot: Shot
    asked: str
    video_id: str | None = None
    earlier: tuple[str, ...] = ()
    refused: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Storyboard:
    """`request`: a digest of what was asked. `priority`: of its shots. `joined`: the videos that its cut is made of.

    `settled`: nothing is to be done until somebody asks again. `joining_until_s`: who joins it has so long.
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
    settled: bool = False
    joined: tuple[str, ...] = ()
    joined_at_s: int | None = None
    signed: bool | None = None
    cut_error: str | None = None
    joining_until_s: float = 0.0
    revision: int = 0

    @property
    def videos(self) -> tuple[str | None, ...]:
        return tuple(take.video_id for take in self.takes)


DOCUMENT = TypeAdapter(Storyboard)


class StoryboardStore:
    """Blocking; any thread may call. What returned is on disk. Every call raises Unavailable where the file is busy or

    has no room. A storyboard of another owner is answered as if it did not exist.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError where the file cannot be used."""
        self._file = SqliteFile(path, "storyboards", VERSION, _laid_out)

    def create(self, board: Storyboard) -> Storyboard:
        """The storyboard, or the earlier one of its owner with its idempotency key."""
        while True:
            text = DOCUMENT.dump_json(board).decode()
            key = board.idempotency_key
            if self._file.run(INSERT, (board.id, board.owner, key, int(board.settled), board.revision, text)):
                return board
            if earlier := self.asked(board.owner, key):
                return earlier

    def asked(self, owner: str, idempotency_key: str | None) -> Storyboard | None:
        found = self._found("owner = ? AND idempotency_key = ?", (owner, idempotency_key))
        return found[0] if found else None

    def update(self, board: Storyboard) -> Storyboard | None:
        """As it is now; None where it was deleted, or written by another since it was read."""
        now = replace(board, revision=board.revision + 1)
        text = DOCUMENT.dump_json(now).decode()
        wrote = self._file.run(WRITE, (int(now.settled), now.revision, text, now.id, board.revision))
        return now if wrote else None

    def get(self, owner: str, board_id: str) -> Storyboard | None:
        found = self._found("owner = ? AND id = ?", (owner, board_id))
        return found[0] if found else None

    def page(
        self, owner: str, *, after: str | None = None, limit: int = 20, order: Literal["asc", "desc"] = "desc"
    ) -> tuple[tuple[Storyboard, ...], bool]:
        """A page in order of creation, and whether more follow. Raises InvalidRequest where `after` is none of them."""
        side, edge = (">", 0) if order == "asc" else ("<", 2**63 - 1)
        if after is not None:
            place = self._file.run("SELECT seq FROM storyboards WHERE owner = ? AND id = ?", (owner, after))
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
        return bool(
            self._file.run("DELETE FROM storyboards WHERE owner = ? AND id = ? RETURNING id", (owner, board_id))
        )

    def unsettled(self) -> tuple[Storyboard, ...]:
        """Of all owners, oldest first."""
        return self._found("NOT settled ORDER BY seq", ())

    def close(self) -> None:
        self._file.close()

    def _found(self, where: str, values: Sequence[object]) -> tuple[Storyboard, ...]:
        rows = self._file.run(f"SELECT document FROM storyboards WHERE {where}", values)
        return tuple(DOCUMENT.validate_json(row[0]) for row in rows)


def _laid_out(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in (0, VERSION):
        return int(version)
    connection.executescript(f"{SCHEMA}; PRAGMA user_version = {VERSION}")
    return VERSION
