"""However many keys there are, one is found at the cost of one."""

import sqlite3
from pathlib import Path

import pytest
from key_stores import sqlite_keys
from postgres import Server

from deployments.stores.key_rows import FIND, sha256
from deployments.stores.keys import KEYS_FILE
from deployments.stores.postgres_keys import PostgresKeys


def test_of_100000_keys_one_is_found_by_its_hash_without_reading_others(tmp_path: Path) -> None:
    store = sqlite_keys(tmp_path)()
    secret, record = store.create("one", 0.0)
    store.close()
    with sqlite3.connect(tmp_path / KEYS_FILE) as db:
        db.executemany(
            "INSERT INTO keys (sha256, id, name, created_s) VALUES (?, ?, 'many', 1.0)",
            ((sha256(str(index)), f"key_{index:06}") for index in range(100_000)),
        )
        steps = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {FIND}", (sha256(secret), sha256(secret)))]
    db.close()
    assert not [step for step in steps if step.startswith("SCAN")], steps
    many = sqlite_keys(tmp_path)()
    assert many.find(secret) == record
    assert many.find("sk-moray-none") is None
    many.close()


def test_with_postgresql_a_look_up_asks_the_database_nothing(database: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PostgresKeys(database.fresh())
    try:
        secret, record = store.create("one", 0.0)
        assert store.find(secret) == record
        monkeypatch.setattr(store, "_run", lambda *_: pytest.fail("it was asked"))
        monkeypatch.setattr(store, "_read", lambda *_: pytest.fail("all were read"))
        assert store.find(secret) == record
        assert store.find("sk-moray-none") is None
    finally:
        monkeypatch.undo()
        store.close()
