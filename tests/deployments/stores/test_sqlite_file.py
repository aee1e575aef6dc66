"""What the stores in SQLite share: who waits for whom, and what reaches the disk."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.stores import sqlite_file
from deployments.stores.sqlite_file import Busy, SqliteFile


def laid_out(connection: sqlite3.Connection) -> int:
    connection.executescript("CREATE TABLE IF NOT EXISTS numbers (number INTEGER); PRAGMA user_version = 1")
    return 1


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SqliteFile]:
    file = SqliteFile(tmp_path / "numbers.sqlite", "numbers", 1, laid_out)
    yield file
    file.close()


@pytest.fixture
def other(tmp_path: Path, file: SqliteFile) -> Iterator[sqlite3.Connection]:
    """Another process's."""
    other = sqlite3.connect(tmp_path / "numbers.sqlite", isolation_level=None)
    yield other
    other.close()


def put(file: SqliteFile, at_once: bool = False) -> None:
    with file.transaction(at_once=at_once) as connection:
        connection.execute("INSERT INTO numbers VALUES (1)")


def fail(file: SqliteFile) -> None:
    with file.transaction(at_once=True) as connection:
        connection.execute("INSERT INTO numbers VALUES (1)")
        raise ZeroDivisionError


def count(file: SqliteFile) -> int:
    return int(file.run("SELECT count(*) FROM numbers", ())[0][0])


def test_who_may_not_wait_is_told_that_another_process_writes(file: SqliteFile, other: sqlite3.Connection) -> None:
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Busy):
        put(file, at_once=True)
    other.execute("COMMIT")
    put(file, at_once=True)
    assert count(file) == 1


def test_who_may_not_wait_is_told_that_another_thread_writes(file: SqliteFile) -> None:
    with file.transaction(), pytest.raises(Busy):
        put(file, at_once=True)


def test_what_fails_at_once_is_undone_and_holds_up_nobody(file: SqliteFile) -> None:
    with pytest.raises(ZeroDivisionError):
        fail(file)
    assert count(file) == 0
    assert file.run("PRAGMA busy_timeout", ()) == [(10_000,)]
    put(file)


def test_a_checkpoint_says_whether_all_of_it_is_on_the_disk(file: SqliteFile, other: sqlite3.Connection) -> None:
    other.execute("BEGIN")
    other.execute("SELECT * FROM numbers").fetchall()
    put(file)
    assert not file.checkpoint(), "who reads needs the file as it was"
    other.execute("COMMIT")
    assert file.checkpoint()


def test_a_log_that_is_long_begins_anew(file: SqliteFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "LONG_PAGES", 5)
    file.checkpoints_apart()
    for _ in range(10):
        put(file)
    long = (tmp_path / "numbers.sqlite-wal").stat().st_size
    file.checkpoint()
    for _ in range(5):
        put(file)
    assert (tmp_path / "numbers.sqlite-wal").stat().st_size == long


def test_a_checkpoint_leaves_the_layout_of_a_later_release_as_it_is(
    file: SqliteFile, other: sqlite3.Connection
) -> None:
    other.execute("PRAGMA user_version = 2")
    file.checkpoint()
    assert other.execute("PRAGMA user_version").fetchone() == (2,)
