import hashlib
import multiprocessing
import re
import sqlite3
import stat
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from cluster.errors import ConfigurationError, InvalidRequest, NotFound
from deployments.stores.keys import KeyStore


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "state" / "keys.db")


def test_a_key_is_found_and_another_is_not(store: KeyStore) -> None:
    key, record = store.create("ada's laptop", now_s=5.0)
    assert re.fullmatch(r"sk-moray-[A-Za-z0-9_-]{40}", key)
    assert re.fullmatch(r"key_[0-9a-f]{12}", record.id)
    assert (record.name, record.created_s, record.revoked_s) == ("ada's laptop", 5.0, None)
    assert store.find(key) == record
    assert store.find(key[:-1]) is None
    assert store.find(record.id) is None


def test_a_key_keeps_its_plan(store: KeyStore) -> None:
    key, record = store.create("a", now_s=1.0, plan="professional")
    assert store.find(key) == record
    assert [each.plan for each in store.list()] == ["professional"]


def test_a_file_from_before_plans_is_migrated_in_place(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    store = KeyStore(path)
    key, record = store.create("a", now_s=1.0)
    store.close()
    before = sqlite3.connect(path)
    before.execute("ALTER TABLE keys DROP COLUMN plan")
    before.close()
    for _ in range(2):
        store = KeyStore(path)
        assert store.find(key) == record
        store.close()
    again = KeyStore(path)
    assert again.create("b", now_s=2.0, plan="team")[1] == again.list()[1]


def test_a_file_from_before_organisations_keeps_its_keys_with_all_scopes_but_that_of_admins(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    before = sqlite3.connect(path)
    before.execute("PRAGMA journal_mode = WAL")
    before.execute(
        "CREATE TABLE keys (sha256 BLOB PRIMARY KEY, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, "
        "created_s REAL NOT NULL, revoked_s REAL, plan TEXT) STRICT, WITHOUT ROWID"
    )
    hashed = hashlib.sha256(b"sk-moray-old").digest()
    before.execute("INSERT INTO keys VALUES (?, 'key_1', 'ada', 1.0, NULL, 'pro')", (hashed,))
    before.execute("INSERT INTO keys VALUES (?, 'key_2', 'bob', 2.0, 3.0, NULL)", (hashed[::-1],))
    before.commit()
    before.close()
    for _ in range(2):
        store = KeyStore(path)
        ada = store.find("sk-moray-old")
        assert ada is not None
        assert (ada.id, ada.name, ada.plan, ada.created_s) == ("key_1", "ada", "pro", 1.0)
        assert (ada.org, ada.project, ada.expires_s) == ("default", "default", None)
        assert ada.scopes == ("chat", "videos", "files")
        assert store.list()[1].revoked_s == 3.0
        store.close()


@pytest.mark.parametrize("secret", ["", "sk-moray-", "\ud800", "x" * 100_000, "' OR 1=1 --", "\0"])
def test_no_string_is_more_than_unknown(store: KeyStore, secret: str) -> None:
    store.create("a", now_s=1.0)
    assert store.find(secret) is None


def test_keys_are_listed_oldest_first_with_the_revoked(store: KeyStore) -> None:
    second, first = store.create("b", now_s=2.0)[1], store.create("a", now_s=1.0)[1]
    revoked = store.revoke(second.id, now_s=3.0)
    assert revoked.revoked_s == 3.0
    assert store.list() == (first, revoked)


def test_the_file_never_holds_a_key_and_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.db")
    key, _ = store.create("a", now_s=1.0)
    files = list(tmp_path.iterdir())
    assert len(files) == 3, "the database, its log and its index"
    for file in files:
        assert key.removeprefix("sk-moray-").encode() not in file.read_bytes()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "keys.db").touch(mode=0o644)
    KeyStore(tmp_path / "keys.db")
    assert stat.S_IMODE((tmp_path / "keys.db").stat().st_mode) == 0o600


@pytest.mark.parametrize("how", ["id", "beginning", "key"])
def test_a_key_is_revoked_by_id_by_its_beginning_or_by_itself(store: KeyStore, how: str) -> None:
    key, record = store.create("a", now_s=1.0)
    which = {"id": record.id, "beginning": record.id[:8], "key": key}[how]
    assert store.revoke(which, now_s=2.0).id == record.id
    assert store.find(key) is None


def test_revoking_twice_keeps_the_first_time(store: KeyStore) -> None:
    _, record = store.create("a", now_s=1.0)
    store.revoke(record.id, now_s=2.0)
    assert store.revoke(record.id, now_s=3.0).revoked_s == 2.0


@pytest.mark.parametrize("which", ["key_000000000000", "", "%", "sk-moray-x"])
def test_revoking_what_is_unknown_says_where_to_look(store: KeyStore, which: str) -> None:
    store.create("a", now_s=1.0)
    with pytest.raises(NotFound, match="is unknown; ids as listed are allowed; list the keys"):
        store.revoke(which, now_s=2.0)


def test_a_beginning_of_several_ids_revokes_none(store: KeyStore) -> None:
    store.create("a", now_s=1.0)
    store.create("b", now_s=1.0)
    with pytest.raises(InvalidRequest, match="one key is meant"):
        store.revoke("key_", now_s=2.0)
    assert all(record.revoked_s is None for record in store.list())


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\ud800"])
def test_a_name_is_printable(store: KeyStore, name: str) -> None:
    with pytest.raises(InvalidRequest, match="printable text is allowed"):
        store.create(name, now_s=1.0)


def test_keys_outlive_the_process(tmp_path: Path) -> None:
    first = KeyStore(tmp_path / "keys.db")
    key, record = first.create("a", now_s=1.0)
    first.close()
    assert KeyStore(tmp_path / "keys.db").find(key) == record


def test_a_file_that_is_no_database_is_named_with_the_mend(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    path.write_bytes(b"not a database, but long enough to look like a page" * 100)
    with pytest.raises(ConfigurationError, match=f"^{re.escape(str(path))}: file is not a database; .*; mend"):
        KeyStore(path)


def test_a_damaged_database_is_refused_at_start(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    store = KeyStore(path)
    for number in range(200):
        store.create(f"key {number}", now_s=1.0)
    store.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\x5a" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match=re.escape(str(path))):
        KeyStore(path)


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE keys (door TEXT)")
    other.commit()
    other.close()
    with pytest.raises(ConfigurationError, match="no such column"):
        KeyStore(path)


def test_a_path_that_cannot_be_written_is_refused_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir(mode=0o755)
    for path in (tmp_path / "folder", tmp_path / "file" / "keys.db"):
        with pytest.raises(ConfigurationError, match="read and write"):
            KeyStore(path)
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755


def test_a_look_up_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.db")
    key, record = store.create("a", now_s=1.0)
    writer = sqlite3.connect(tmp_path / "keys.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE keys SET revoked_s = 2.0")
    assert store.find(key) == record, "not committed, so not revoked"
    writer.execute("COMMIT")
    assert store.find(key) is None


def _gateway(path: Path, pipe: Connection) -> None:
    store = KeyStore(path)
    while (key := pipe.recv()) is not None:
        pipe.send(store.find(key))


def _creator(path: Path, count: int) -> None:
    store = KeyStore(path)
    for number in range(count):
        store.create(f"key {number}", now_s=float(number))


@pytest.mark.slow
def test_another_process_sees_a_key_and_its_revoking_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_gateway, args=(tmp_path / "keys.db", theirs))
    process.start()
    store = KeyStore(tmp_path / "keys.db")
    for round_ in range(20):
        key, record = store.create(f"key {round_}", now_s=1.0)
        ours.send(key)
        assert ours.recv() == record
        store.revoke(record.id, now_s=2.0)
        ours.send(key)
        assert ours.recv() is None
    ours.send(None)
    process.join(timeout=30)
    assert process.exitcode == 0


@pytest.mark.slow
def test_processes_that_create_the_file_and_keys_together_lose_none(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_creator, args=(tmp_path / "keys.db", 50)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(KeyStore(tmp_path / "keys.db").list()) == 150
