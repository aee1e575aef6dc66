"""What is of PostgreSQL alone: claims that do not wait, servers that end, passwords, and layouts."""

import re
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from job_stores import job, numbers, video_id
from lossy import Lossy
from postgres import PASSWORD, Server

from cluster.errors import ConfigurationError, Unavailable
from deployments.stores import postgres_tables
from deployments.stores.postgres import PostgresJobs


@pytest.fixture
def url(database: Server) -> str:
    return database.fresh()


@pytest.fixture
def store(url: str) -> Iterator[PostgresJobs]:
    store = PostgresJobs(url)
    yield store
    store.close()


def test_a_claim_passes_over_a_job_that_another_transaction_holds(store: PostgresJobs, url: str) -> None:
    for number in (1, 2):
        store.create(job(number))
    with psycopg.connect(url) as other:
        other.execute("SELECT id FROM video_jobs WHERE id = %s FOR UPDATE", (video_id(1),))
        held = store.claim("gateway_a", 0, 10)
        assert held is not None
        assert held.id == video_id(2)
        assert store.claim("gateway_b", 0, 10) is None
    assert store.claim("gateway_b", 0, 10) is not None


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
def test_a_server_that_ends_is_unavailable_and_has_lost_no_job_when_it_is_back(
    store: PostgresJobs, database: Server, how: signal.Signals
) -> None:
    store.create(job(1, idempotency_key="again"))
    held = store.claim("gateway_a", 0, 10)
    assert held is not None
    database.stop(how)
    try:
        with pytest.raises(Unavailable, match="the database does not answer"):
            store.create(job(2))
        with pytest.raises(Unavailable):
            store.claim("gateway_a", 0, 10)
    finally:
        database.start()
    assert store.create(job(3, idempotency_key="again")) == held
    assert store.update(held.begun())
    assert numbers(store.unfinished()) == [1]


def test_a_connection_that_was_cut_is_made_anew(store: PostgresJobs, database: Server) -> None:
    for number in range(1, 4):
        database.cut()
        assert store.create(job(number)) == job(number)
    database.cut()
    assert numbers(store.unfinished()) == [1, 2, 3]


def test_a_server_that_is_not_there_at_the_start_is_unavailable_until_it_comes(
    url: str, database: Server, tmp_path: Path
) -> None:
    away = PostgresJobs(url.replace(f"host={database.folder}", f"host={tmp_path}"))
    with pytest.raises(Unavailable, match="the database does not answer"):
        away.counts()
    (tmp_path / database.socket.name).symlink_to(database.socket)
    assert away.create(job(1)) == job(1)
    away.close()


def lossy_url(url: str, folder: Path) -> str:
    return re.sub(r"host=[^&]+&port=\d+", f"host={folder}&port=5432", url)


@pytest.fixture
def lossy(database: Server) -> Iterator[Lossy]:
    with (
        tempfile.TemporaryDirectory(prefix="moray-lossy-", dir="/tmp") as folder,
        Lossy(Path(folder), database.socket) as way,
    ):
        yield way


def test_a_creation_whose_answer_was_lost_is_confirmed_though_another_gateway_has_claimed_it(
    store: PostgresJobs, url: str, lossy: Lossy, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = PostgresJobs(lossy_url(url, lossy.path.parent))
    far.counts()
    run = far._run

    def claimed_between(statement: str, values: Sequence[object]) -> list[Any]:
        if statement.startswith("SELECT") and lossy.lost:
            store.claim("gateway_b", 0, 10)
        return run(statement, values)

    monkeypatch.setattr(far, "_run", claimed_between)
    lossy.lose = b"INSERT INTO video_jobs"
    assert far.create(job(1)) == job(1)
    assert lossy.lost == 1
    assert [each.claimed_by for each in store.unfinished()] == ["gateway_b"]
    far.close()


def test_a_server_that_hangs_holds_nobody_longer_than_an_answer_may_take(
    url: str, lossy: Lossy, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = PostgresJobs(lossy_url(url, lossy.path.parent))
    assert far.create(job(1)) == job(1)
    lossy.deaf = True
    with monkeypatch.context() as patch:
        for name in ("ANSWER_S", "WAIT_S"):
            patch.setattr(postgres_tables, name, 0.2)
        with pytest.raises(Unavailable, match="the database does not answer"):
            far.create(job(2))
    lossy.deaf = False
    far.close()
    assert numbers(far.unfinished()) == [1]
    far.close()


def test_a_statement_waits_for_no_other_threads(store: PostgresJobs, url: str) -> None:
    store.create(job(1))
    with psycopg.connect(url) as other, ThreadPoolExecutor(1) as threads:
        other.execute("SELECT id FROM video_jobs WHERE id = %s FOR UPDATE", (video_id(1),))
        held = threads.submit(store.update, job(1).begun())  # waits for the row
        assert numbers(store.unfinished()) == [1]
        other.rollback()
        assert held.result()


def test_a_password_belongs_into_its_file(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (f"{url}&password=secret", url.replace("moray@", "moray:secret@")):
        with pytest.raises(ConfigurationError, match="given with a password") as refused:
            PostgresJobs(given)
        assert "secret" not in refused.value.message
    monkeypatch.setenv("PGPASSFILE", "/nonexistent")
    with pytest.raises(Unavailable):
        PostgresJobs(url).counts()


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a URL such as"):
        PostgresJobs("postgresql://moray@host/db?colour=red")


def test_gateways_that_start_at_once_make_one_layout(url: str) -> None:
    stores: list[PostgresJobs] = []
    threads = [threading.Thread(target=lambda: stores.append(PostgresJobs(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 4
    for number, store in enumerate(stores):
        store.create(job(number))
    assert numbers(stores[0].unfinished()) == [0, 1, 2, 3]
    for store in stores:
        store.close()


def test_a_layout_of_another_release_is_refused_and_left_alone(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE video_layout AS SELECT 9 AS version")
    with pytest.raises(ConfigurationError, match="layout is version 9; version 3 is allowed"):
        PostgresJobs(url)


def test_a_layout_of_the_release_before_learns_what_is_new_while_its_gateways_run(url: str) -> None:
    older = PostgresJobs(url)
    older.create(job(1))
    with psycopg.connect(url) as connection:
        connection.execute("ALTER TABLE video_jobs DROP COLUMN broke, DROP COLUMN way")
        connection.execute("UPDATE video_layout SET version = 2")
    PostgresJobs(url).close()
    newer = PostgresJobs(url)
    (kept,) = newer.unfinished()
    assert (kept.broke, kept.way) == (0, None)
    assert newer.update(kept.broken())
    assert older.unfinished()[0].broke == 1
    newer.close()
    older.close()


def test_a_user_that_may_make_no_tables_is_told_so(database: Server, url: str) -> None:
    schema = url.rpartition("%3D")[2]
    database.run(f"CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'")
    database.run(f"GRANT USAGE ON SCHEMA {schema} TO reader")
    try:
        with pytest.raises(ConfigurationError, match="permission denied"):
            PostgresJobs(url.replace("moray@", "reader@"))
    finally:
        database.run("DROP OWNED BY reader; DROP ROLE reader")
