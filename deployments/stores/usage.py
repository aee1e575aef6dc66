"""The ledger of usage in one SQLite file, or in PostgreSQL where gateways on several machines share it.

The file is the journal of this machine's gateways, too: what they write goes there first, in commits that many requests
share, and requests that are open stand in it, so that a gateway which dies leaves word of them.
"""

import fcntl
import os
import sqlite3
import weakref
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from cluster.family import Family
from cluster.usage import Usage
from deployments.stores.postgres_tables import Layout, PostgresTables
from deployments.stores.sqlite_file import SqliteFile
from deployments.stores.usage_rows import EVENT, UsageRows

USAGE_FILE, JOURNAL_FILE = "usage.sqlite", "usage-journal.sqlite"  # in the state folder
VERSION = 1
COLUMNS = """
    seq {seq} PRIMARY KEY{auto},
    id {text} NOT NULL UNIQUE,
    at_s {whole} NOT NULL,
    kind {text} NOT NULL,
    org {text} NOT NULL,
    project {text} NOT NULL,
    key_id {text} NOT NULL,
    model {text} NOT NULL,
    tier_asked {text} NOT NULL,
    tier_served {text} NOT NULL,
    code {text} NOT NULL,
    input_tokens {whole} NOT NULL,
    cached_tokens {whole} NOT NULL,
    output_tokens {whole} NOT NULL,
    reasoning_tokens {whole} NOT NULL,
    estimated {whole} NOT NULL,
    video_s {whole} NOT NULL,
    gpu_s {real} NOT NULL,
    price_nusd {whole} NOT NULL
"""
HELD_COLUMNS = """
    id {text} PRIMARY KEY,
    at_s {whole} NOT NULL,
    tier {text} NOT NULL,
    gpu_s {real} NOT NULL,
    usd_per_gpu_hour {real} NOT NULL
"""
LITE = {"seq": "INTEGER", "auto": " AUTOINCREMENT", "text": "TEXT", "whole": "INTEGER", "real": "REAL"}
POST = {
    "seq": "bigint GENERATED ALWAYS AS IDENTITY",
    "auto": "",
    "text": "text",
    "whole": "bigint",
    "real": "double precision",
}
SQLITE_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS usage_events ({COLUMNS.format(**LITE)}) STRICT;
CREATE INDEX IF NOT EXISTS usage_events_at ON usage_events (at_s);
CREATE INDEX IF NOT EXISTS usage_events_key ON usage_events (key_id, at_s);
CREATE TABLE IF NOT EXISTS usage_held ({HELD_COLUMNS.format(**LITE)}) STRICT;
CREATE INDEX IF NOT EXISTS usage_held_at ON usage_held (at_s);
CREATE TABLE IF NOT EXISTS usage_open ({COLUMNS.format(**LITE)}, gateway TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS usage_shipped (seq INTEGER NOT NULL) STRICT;
CREATE TRIGGER IF NOT EXISTS usage_events_update BEFORE UPDATE ON usage_events
    BEGIN SELECT RAISE(ABORT, 'usage_events is only added to'); END;
CREATE TRIGGER IF NOT EXISTS usage_events_delete BEFORE DELETE ON usage_events
    WHEN OLD.seq > (SELECT coalesce(max(seq), 0) FROM usage_shipped)
    BEGIN SELECT RAISE(ABORT, 'usage_events is only added to'); END;
"""
POSTGRES_SCHEMA = f"""
CREATE TABLE usage_layout (version integer NOT NULL);
INSERT INTO usage_layout VALUES ({VERSION});
CREATE TABLE usage_events ({COLUMNS.format(**POST)});
CREATE INDEX usage_events_at ON usage_events (at_s);
CREATE INDEX usage_events_key ON usage_events (key_id, at_s);
CREATE TABLE usage_held ({HELD_COLUMNS.format(**POST)});
CREATE INDEX usage_held_at ON usage_held (at_s);
CREATE FUNCTION usage_kept() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'usage_events is only added to'; END $$;
CREATE TRIGGER usage_kept BEFORE UPDATE OR DELETE ON usage_events FOR EACH ROW EXECUTE FUNCTION usage_kept();
"""
LAYOUT = Layout(
    of="usage",
    table="usage_layout",
    version=VERSION,
    schema=POSTGRES_SCHEMA,
    lock=7_205_759_405,
    path="accounts.database",
)
OPENED = (
    f"INSERT INTO usage_open ({', '.join(EVENT)}, gateway) VALUES ({', '.join('?' * (len(EVENT) + 1))}) "
    "ON CONFLICT DO NOTHING"  # a commit that was made, and not heard of, is made again
)
SETTLED = f"INSERT INTO usage_events ({', '.join(EVENT)}) VALUES ({', '.join('?' * len(EVENT))}) ON CONFLICT DO NOTHING"


class PostgresUsage(UsageRows):
    def __init__(self, url: str) -> None:
        """Raises Unavailable, ConfigurationError."""
        self._tables = PostgresTables(url, LAYOUT)

    def _run(self, statement: str, values: Sequence[object]) -> list[Any]:
        return self._tables.run(statement, values)

    def close(self) -> None:
        self._tables.close()


class SqliteUsage(UsageRows):
    """A commit survives the death of the process at once, and that of the machine within a second or so: SQLite's

    synchronous level is NORMAL, and `sync` flushes.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError."""
        self._path = path
        self._file = SqliteFile(path, "usage", VERSION, _laid_out)
        self._run("PRAGMA synchronous = NORMAL", ())
        self._locks: list[weakref.finalize[[int], SqliteUsage]] = []

    def _run(self, statement: str, values: Sequence[object]) -> list[Any]:
        return self._file.run(statement, values)

    def close(self) -> None:
        """A gateway of this store counts as dead from now on."""
        self._file.close()
        for release in self._locks:
            release()

    def live(self, gateway: str) -> None:
        """Its open requests are its own while this process lives: the system lets the lock go with it."""
        lock = os.open(self._lock_of(gateway), os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self._file.checkpoints_apart()  # `sync` makes them
        self._locks.append(weakref.finalize(self, os.close, lock))

    def commit(
        self,
        gateway: str,
        opened: Sequence[Usage],
        settled: Sequence[Usage],
        forgotten: Collection[str] = (),
        *,
        at_once: bool = False,
    ) -> None:
        """All of it at once: a request that is settled, or used nothing and is forgotten, is open no more.

        Raises Busy where it was to be `at_once` and somebody else writes.
        """
        done = {event.id for event in settled}.union(forgotten)
        with self._file.transaction(at_once=at_once) as connection:
            still = [(*_row(event), gateway) for event in opened if event.id not in done]
            connection.executemany(OPENED, still)
            connection.executemany(SETTLED, [_row(event) for event in settled])
            connection.executemany("DELETE FROM usage_open WHERE id = ?", [(each,) for each in done])

    def lost(self) -> tuple[Usage, ...]:
        """Requests whose gateway has died under them are settled now, as lost, at no charge; these."""
        gone = [name for (name,) in self._run("SELECT DISTINCT gateway FROM usage_open", ()) if not self._lives(name)]
        found: list[Usage] = []
        for name in gone:
            rows = self._run(f"SELECT {', '.join(EVENT)} FROM usage_open WHERE gateway = ?", (name,))
            events = [Usage(**dict(zip(EVENT, row, strict=True))) for row in rows]
            self.commit(name, (), events)
            found += events
            self._lock_of(name).unlink(missing_ok=True)
        return tuple(found)

    def unshipped(self, limit: int) -> tuple[int, tuple[Usage, ...]]:
        """The oldest events behind what was shipped, and how far they reach."""
        ((edge,),) = self._run("SELECT coalesce(max(seq), 0) FROM usage_shipped", ())
        rows = self._run(
            f"SELECT seq, {', '.join(EVENT)} FROM usage_events WHERE seq > ? ORDER BY seq LIMIT ?", (edge, limit)
        )
        return (rows[-1][0] if rows else edge), tuple(Usage(**dict(zip(EVENT, row[1:], strict=True))) for row in rows)

    def shipped(self, edge: int) -> None:
        """Events up to there are in the database of all; they go here."""
        with self._file.transaction() as connection:
            connection.execute("INSERT INTO usage_shipped VALUES (?)", (edge,))
            connection.execute("DELETE FROM usage_shipped WHERE seq < (SELECT max(seq) FROM usage_shipped)")
            connection.execute("DELETE FROM usage_events WHERE seq <= ?", (edge,))

    def sync(self) -> bool:
        """What was committed reaches the disk; False where not all of it did."""
        return self._file.checkpoint()

    def _lives(self, gateway: str) -> bool:
        try:
            lock = os.open(self._lock_of(gateway), os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def _lock_of(self, gateway: str) -> Path:
        return self._path.with_name(f"{self._path.stem}.{gateway}.lock")


def usage_of(family: Family) -> UsageRows:
    """Where usage is asked for: the database that the family names, or the file. Raises as they do."""
    url = family.accounts.database
    return SqliteUsage(Path(family.state_folder) / USAGE_FILE) if url is None else PostgresUsage(url)


def _row(event: Usage) -> tuple[object, ...]:
    return tuple(getattr(event, name) for name in EVENT)


def _laid_out(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in (0, VERSION):
        return int(version)
    connection.executescript(f"BEGIN IMMEDIATE; {SQLITE_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT")
    return VERSION
