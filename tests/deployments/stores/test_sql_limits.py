"""What is of SQLite or of PostgreSQL alone: files that are held, servers that end, layouts of other releases."""

import asyncio
import os
import sqlite3
import stat
from pathlib import Path

import psycopg
import pytest
from postgres import Server

from cluster.errors import ConfigurationError, Unavailable
from cluster.limits import Limit, Reservation
from deployments.stores.postgres_limits import PostgresLimits
from deployments.stores.sqlite_limits import SqliteLimits

BUDGET = Limit(currency="usd", amount=100, period="month")


def asked(key: str, usd: float) -> Reservation:
    return Reservation(id=key, amounts={"usd": usd})


async def test_a_file_that_another_process_holds_is_unavailable_in_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.stores.limit_rows.ANSWER_S", 0.1)
    limits = SqliteLimits(tmp_path / "limits.sqlite")
    other = sqlite3.connect(tmp_path / "limits.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match=r"did not answer in 0\.1 s"):
        await limits.reserve("key_a", [BUDGET], asked("a", 10))
    other.close()
    monkeypatch.undo()
    assert (await limits.reserve("key_a", [BUDGET], asked("b", 90))).granted  # asked in vain, "a" has 10 or nothing
    await limits.close()


async def test_a_call_needs_no_thread_where_the_file_is_free(tmp_path: Path) -> None:
    limits = SqliteLimits(tmp_path / "limits.sqlite")
    limits._threads.shutdown()
    assert (await limits.reserve("key_a", [BUDGET], asked("a", 10))).granted
    assert await limits.settle("key_a", "a", {"usd": 5.0})
    limits._file.close()


async def test_a_call_waits_in_a_thread_while_somebody_else_writes_and_the_loop_goes_on(tmp_path: Path) -> None:
    limits = SqliteLimits(tmp_path / "limits.sqlite")
    other = sqlite3.connect(tmp_path / "limits.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    asking = asyncio.create_task(limits.reserve("key_a", [BUDGET], asked("a", 10)))
    await asyncio.sleep(0)  # the loop goes on
    assert not asking.done()
    other.close()
    assert (await asking).granted
    await limits.close()


async def test_the_log_beside_the_file_does_not_grow_with_the_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.stores.sqlite_limits.CHECKPOINT_CALLS", 10)
    limits = SqliteLimits(tmp_path / "limits.sqlite")
    calls, page_bytes = 300, 4096
    for number in range(calls):
        await limits.reserve("key_a", [BUDGET], asked(f"{number}", 0.1))
        await asyncio.wrap_future(limits._threads.submit(int))  # whatever the thread had to do is done
    log = tmp_path / "limits.sqlite-wal"
    assert log.stat().st_size < calls * page_bytes / 2, "each call wrote two pages or more"
    await limits.close()


async def test_a_call_that_reads_many_reservations_has_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.stores.limit_rows.MOST_AT_ONCE", 2)
    limits = SqliteLimits(tmp_path / "limits.sqlite")
    for key in "abc":
        await limits.reserve("key_a", [BUDGET], asked(key, 10))
    limits._threads.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        await limits.renew("key_a", ["a", "b", "c"], 60.0)
    limits._file.close()


async def test_counts_survive_a_gateway_that_never_closed(tmp_path: Path) -> None:
    before = SqliteLimits(tmp_path / "limits.sqlite")
    await before.reserve("key_a", [BUDGET], asked("a", 60))
    again = SqliteLimits(tmp_path / "limits.sqlite")
    assert not (await again.reserve("key_a", [BUDGET], asked("b", 50))).granted
    await again.close()
    await before.close()


def test_a_file_is_its_users_alone_and_another_layout_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state" / "limits.sqlite"
    asyncio.run(SqliteLimits(file).close())
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    sqlite3.connect(file).execute("PRAGMA user_version = 9").connection.close()
    with pytest.raises(ConfigurationError, match="layout is version 9; version 1 is allowed"):
        SqliteLimits(file)
    file.write_text("no database")
    with pytest.raises(ConfigurationError, match="a database of limits that this process may write"):
        SqliteLimits(file)


async def test_a_server_that_ends_is_unavailable_and_has_forgotten_nothing_when_it_is_back(database: Server) -> None:
    limits = PostgresLimits(database.fresh())
    assert (await limits.reserve("key_a", [BUDGET], asked("a", 70))).granted
    database.stop()
    try:
        with pytest.raises(Unavailable, match="the database does not answer"):
            await limits.reserve("key_a", [BUDGET], asked("b", 10))
    finally:
        database.start()
    assert (await limits.reserve("key_a", [BUDGET], asked("a", 70))).granted
    assert await limits.settle("key_a", "a", {"usd": 60})
    assert [each.remaining for each in await limits.state("key_a", [BUDGET])] == [40]
    await limits.close()


async def test_an_account_that_another_transaction_holds_is_unavailable_in_bounded_time(
    database: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.stores.postgres_limits.ANSWER_S", 0.2)
    url = database.fresh()
    limits = PostgresLimits(url)
    await limits.reserve("key_a", [BUDGET], asked("a", 10))
    with psycopg.connect(url) as other:
        other.execute("SELECT tenant FROM limit_accounts FOR UPDATE")
        with pytest.raises(Unavailable):
            await limits.reserve("key_a", [BUDGET], asked("b", 10))
        assert (await limits.reserve("key_b", [BUDGET], asked("b", 100))).granted
    assert await limits.settle("key_a", "a", {"usd": 0})
    await limits.close()


async def test_a_server_that_is_not_there_at_the_start_may_come_later(database: Server) -> None:
    url = database.fresh()
    database.stop()
    try:
        limits = PostgresLimits(url)
        with pytest.raises(Unavailable, match="limits: "):
            await limits.reserve("key_a", [BUDGET], asked("a", 10))
    finally:
        database.start()
    assert (await limits.reserve("key_a", [BUDGET], asked("a", 10))).granted
    await limits.close()
