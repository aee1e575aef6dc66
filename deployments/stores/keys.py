"""API keys in one SQLite file: `sk-moray-` and 40 random characters, 180 bits each, of which only the SHA-256 is kept.

A fast hash suits: nobody guesses 180 random bits. Look-up is by the hash, so its time says nothing about near misses.
WAL mode lets every gateway process read while another writes, and each look-up sees the last commit: a revoked key is
refused at once, everywhere. Times are Unix seconds, given by the caller.
"""

import contextlib
import hashlib
import os
import secrets
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ConfigurationError, InvalidRequest, NotFound

KEYS_FILE = "keys.sqlite"  # in the state folder
PREFIX = "sk-moray-"
_BUSY_TIMEOUT_S = 5.0
_COLUMNS = "id, name, plan, created_s, revoked_s"
_FIRST_COLUMNS = "sha256, id, name, created_s, revoked_s"  # of files that know no plans yet
_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    sha256 BLOB PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    created_s REAL NOT NULL,
    revoked_s REAL,
    plan TEXT
) STRICT, WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """`plan`: of the family file, None for a key that may use every tier."""

    id: str
    name: str
    plan: str | None
    created_s: float
    revoked_s: float | None


class KeyStore:
    """One connection; use it from one thread at a time. Every failure of the file is a ConfigurationError."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        with self._readable():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not self._path.exists():
                _create_file(self._path)
            if self._path.is_file():
                self._path.chmod(0o600)  # SQLite gives its side files the same mode
            self._db = _open(self._path)

    def create(self, name: str, now_s: float, plan: str | None = None) -> tuple[str, KeyRecord]:
        """A new key, shown this once, and its record."""
        if not name.isprintable() or not name.strip():
            raise InvalidRequest(f"name: given {name!r}; printable text is allowed; say who uses the key", param="name")
        key = PREFIX + secrets.token_urlsafe(30)
        record = KeyRecord(id=f"key_{secrets.token_hex(6)}", name=name, plan=plan, created_s=now_s, revoked_s=None)
        with self._readable():
            row = (_sha256(key), record.id, record.name, record.plan, record.created_s)
            self._db.execute("INSERT INTO keys (sha256, id, name, plan, created_s) VALUES (?, ?, ?, ?, ?)", row)
        return key, record

    def list(self) -> tuple[KeyRecord, ...]:
        """All keys, revoked ones too, oldest first."""
        with self._readable():
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY created_s, id").fetchall()
        return tuple(_record(row) for row in rows)

    def revoke(self, which: str, now_s: float) -> KeyRecord:
        """`which` is an id, the beginning of one that fits one key only, or a leaked key itself. Twice is once."""
        with self._readable():
            found = self._db.execute(
                "SELECT id FROM keys WHERE sha256 = ? OR substr(id, 1, length(?)) = ? ORDER BY id LIMIT 3",
                (_sha256(which), which, which),
            ).fetchall()
        shown = "the key" if which.startswith(PREFIX) else repr(which)
        if not found or not which:
            raise NotFound(f"keys: {shown} is unknown; ids as listed are allowed; list the keys", code="key_not_found")
        if len(found) > 1:
            raise InvalidRequest(
                f"keys: {shown} begins {found[0][0]}, {found[1][0]}; one key is meant; give more of it"
            )
        with self._readable():
            row = self._db.execute(
                f"UPDATE keys SET revoked_s = coalesce(revoked_s, ?) WHERE id = ? RETURNING {_COLUMNS}",
                (now_s, found[0][0]),
            ).fetchall()[0]
        return _record(row)

    def find(self, secret: str) -> KeyRecord | None:
        """The record of a key that is known and not revoked."""
        with self._readable():
            rows = self._db.execute(
                f"SELECT {_COLUMNS} FROM keys WHERE sha256 = ? AND revoked_s IS NULL", (_sha256(secret),)
            ).fetchall()
        return _record(rows[0]) if rows else None

    def close(self) -> None:
        self._db.close()

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise ConfigurationError(
                f"{self._path}: {error}; a SQLite file that this user may read and write is allowed; "
                "mend its owner and mode, or move it away and create the keys anew"
            ) from error


def _create_file(path: Path) -> None:
    """A new store appears whole: two processes that turn one fresh file to WAL at once can fail each other."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder) / path.name
        _open(draft).close()
        draft.chmod(0o600)
        with contextlib.suppress(FileExistsError):  # another process was quicker
            os.link(draft, path)


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    # The write lock proves at start, not at the first key, that the file can be written.
    db.execute("BEGIN IMMEDIATE")
    db.execute(_SCHEMA)
    db.execute(f"SELECT {_FIRST_COLUMNS} FROM keys LIMIT 1")
    if "plan" not in {row[1] for row in db.execute("PRAGMA table_info(keys)")}:
        db.execute("ALTER TABLE keys ADD COLUMN plan TEXT")
    db.execute("COMMIT")
    return db


def _sha256(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _record(row: tuple[str, str, str | None, float, float | None]) -> KeyRecord:
    return KeyRecord(id=row[0], name=row[1], plan=row[2], created_s=row[3], revoked_s=row[4])
