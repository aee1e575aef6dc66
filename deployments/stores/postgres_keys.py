"""API keys in PostgreSQL, for gateways on several machines.

Each look-up must be fast and must hold up nobody's event loop, so a thread keeps a copy of the keys that are valid: the
database tells every change as it commits (LISTEN), and is asked every BEAT_S whether it still answers. A gateway that
has not heard from it for STALE_S refuses everybody, since it could not know who was revoked.
"""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import psycopg

from cluster.access import KeyRecord
from cluster.errors import Unavailable
from deployments.stores.key_rows import ALL, COLUMNS, POSTGRES_KEEP, KeyRows, found, sha256
from deployments.stores.postgres_tables import Layout, PostgresTables

log = logging.getLogger("ray.serve")
BEAT_S = 1.0
STALE_S = 3.0
AGAIN_S = 0.5
CHANNEL = "moray_keys"
SCHEMA = f"""
CREATE TABLE key_layout (version integer NOT NULL);
INSERT INTO key_layout VALUES (1);
CREATE TABLE keys (
    sha256 bytea PRIMARY KEY,
    id text NOT NULL UNIQUE,
    name text NOT NULL,
    plan text,
    created_s double precision NOT NULL,
    revoked_s double precision,
    org text NOT NULL,
    project text NOT NULL,
    scopes text,
    expires_s double precision,
    previous_sha256 bytea UNIQUE,
    previous_until_s double precision
);
CREATE TABLE key_acts (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at_s double precision NOT NULL,
    actor text NOT NULL,
    from_ text NOT NULL,
    act text NOT NULL,
    subject text NOT NULL,
    outcome text NOT NULL
);
{POSTGRES_KEEP.format(table="key_acts")}
CREATE FUNCTION key_told() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_notify('{CHANNEL}', NEW.id); RETURN NULL; END $$;
CREATE TRIGGER key_told AFTER INSERT OR UPDATE ON keys FOR EACH ROW EXECUTE FUNCTION key_told();
"""
LAYOUT = Layout(of="keys", table="key_layout", version=1, schema=SCHEMA, lock=7_205_759_404, path="accounts.database")
VALID = f"SELECT {ALL}, previous_until_s, sha256, previous_sha256 FROM keys WHERE revoked_s IS NULL"


class PostgresKeys(KeyRows):
    """The tables are made where there are none. Every call raises Unavailable where the database does not answer."""

    def __init__(self, url: str) -> None:
        """Raises Unavailable, ConfigurationError."""
        self._tables = PostgresTables(url, LAYOUT)
        self._valid: dict[bytes, tuple[Any, ...]] = {}  # rows of VALID, by the hash of each secret
        self._heard_s = -STALE_S  # monotonic; never yet
        self._changing = threading.Lock()
        self._closed = threading.Event()
        self._listening: threading.Thread | None = None

    def close(self) -> None:
        self._closed.set()
        if self._listening is not None:
            self._listening.join()
        self._tables.close()

    def find(self, secret: str) -> KeyRecord | None:
        if self._listening is None:
            self._listening = threading.Thread(target=self._listen, name="moray-keys", daemon=True)
            self._listening.start()  # first: it goes on trying where this one look fails
            self._read()
        if time.monotonic() - self._heard_s > STALE_S:
            raise Unavailable("keys: the database does not answer; one that does is allowed; try again soon")
        digest = sha256(secret)
        row = self._valid.get(digest)
        return None if row is None else found(row[: len(COLUMNS) + 2], digest)

    def _run(self, statement: str, values: Sequence[object]) -> list[Any]:
        rows = self._tables.run(statement, values)
        if self._listening is not None and " keys " in statement and not statement.startswith("SELECT"):
            self._read()  # who changed a key sees it at once, and hears of it once more
        return rows

    def _read(self) -> None:
        """All of them. Raises Unavailable."""
        with self._changing:
            asked_s = time.monotonic()
            self._replace(self._tables.run(VALID, ()), asked_s)

    def _replace(self, rows: Sequence[Sequence[Any]], asked_s: float) -> None:
        self._valid = {bytes(part): tuple(row) for row in rows for part in row[-2:] if part is not None}
        self._heard_s = asked_s

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                with self._tables.another() as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    self._follow(connection)
            except psycopg.Error as error:
                log.warning("keys: %s; tried again", " ".join(str(error).split()))
                self._closed.wait(AGAIN_S)

    def _follow(self, connection: psycopg.Connection) -> None:
        """Until the store closes. Reads all first: what changed before it listened was told to nobody."""
        changed = True
        while not self._closed.is_set():
            with self._changing:
                asked_s = time.monotonic()
                if changed:
                    self._replace(connection.execute(VALID.encode()).fetchall(), asked_s)
                else:
                    connection.execute("SELECT 1")
                    self._heard_s = asked_s
            changed = any(True for _ in connection.notifies(timeout=BEAT_S, stop_after=1))
