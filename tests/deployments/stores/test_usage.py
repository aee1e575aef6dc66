"""What the ledger of usage promises, on SQLite and on a real PostgreSQL, and by a process that is killed."""

import asyncio
import itertools
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integration.server import eventually
from postgres import Server
from usage_events import OpenUsage, event

from cluster.errors import Unavailable
from cluster.usage import Held, Usage
from deployments.stores import usage_journal
from deployments.stores.usage import PostgresUsage, SqliteUsage
from deployments.stores.usage_journal import Journal
from deployments.stores.usage_rows import BATCH, UsageRows

ROOT = Path(__file__).parents[3]
SOON_S = 30.0
ALL = (0, 2**40)


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> OpenUsage:
    if request.param == "sqlite":
        return lambda: SqliteUsage(tmp_path / "usage.sqlite")
    url = request.getfixturevalue("database").fresh()
    return lambda: PostgresUsage(url)


@pytest.fixture
def store(opened: OpenUsage) -> Iterator[UsageRows]:
    store = opened()
    yield store
    store.close()


def ids(store: UsageRows) -> list[str]:
    return [row[0] for row in store._run("SELECT id FROM usage_events ORDER BY seq", ())]


def test_an_event_that_is_written_again_counts_once_and_stays_as_it_was(store: UsageRows, opened: OpenUsage) -> None:
    store.add([event(1), event(2), event(1, output_tokens=99)])
    other = opened()
    other.add([event(2, code="lost"), event(3)])
    other.close()
    (whole,) = store.report(*ALL, 2**40)
    assert (whole.events, whole.input_tokens, whole.output_tokens, whole.price_nusd) == (3, 30, 15, 3_750_000)


def test_an_event_is_neither_changed_nor_deleted(store: UsageRows) -> None:
    store.add([event(1)])
    for statement in ("UPDATE usage_events SET price_nusd = 0", "DELETE FROM usage_events"):
        with pytest.raises(Exception, match="only added to"):
            store._run(statement, ())
    assert ids(store) == [event(1).id]


def test_usage_is_told_by_time_and_by_what_is_asked(store: UsageRows) -> None:
    store.add(
        [
            event(1, at_s=0),
            event(2, at_s=3599, key_id="key_b"),
            event(3, at_s=3600, tier_asked="pro", tier_served="turbo"),
            event(4, at_s=7200, org="other"),
        ]
    )
    hours = [(one.start_s, one.events) for one in store.report(*ALL, 3600)]
    assert hours == [(0, 2), (3600, 1), (7200, 1)]
    by_key = {one.by: one.events for one in store.report(*ALL, 86_400, ("org", "key_id"))}
    assert by_key == {("acme", "key_a"): 2, ("acme", "key_b"): 1, ("other", "key_a"): 1}
    assert [one.events for one in store.report(3599, 7200, 86_400)] == [2], "the end is not of it"
    assert [one.events for one in store.report(*ALL, 86_400, (), [("org", ("acme",)), ("key_id", ("key_a",))])] == [2]
    assert store.report(*ALL, 60, (), [("org", ("nobody",))]) == ()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    uses=st.lists(
        st.tuples(st.integers(0, 20_000), st.sampled_from("ab"), st.sampled_from(["pro", "mini"]), st.floats(0.1, 50)),
        min_size=1,
        max_size=20,
    ),
    held=st.lists(st.tuples(st.integers(0, 20_000), st.sampled_from(["pro", "mini"]), st.floats(0, 9000)), max_size=9),
)
def test_costs_and_what_nobody_used_sum_to_what_the_gpus_cost(
    tmp_path_factory: pytest.TempPathFactory,
    uses: list[tuple[int, str, str, float]],
    held: list[tuple[int, str, float]],
) -> None:
    store = SqliteUsage(tmp_path_factory.mktemp("usage") / "usage.sqlite")
    store.add([event(n, at_s=at, org=org, tier_served=tier, gpu_s=gpu) for n, (at, org, tier, gpu) in enumerate(uses)])
    store.hold(
        [Held(id=f"{n}", at_s=at, tier=tier, gpu_s=gpu, usd_per_gpu_hour=3.6) for n, (at, tier, gpu) in enumerate(held)]
    )
    used = {(at // 3600, tier) for at, _, tier, _ in uses}
    spent = sum(gpu * 3.6 / 3600 for at, tier, gpu in held if (at // 3600, tier) in used)
    for bucket_s in (60, 3600, 86_400):
        told = store.report(*ALL, bucket_s, ("org",))
        assert sum(one.cost_usd for one in told) == pytest.approx(spent)
        assert sum(one.price_nusd for one in told) == 1_250_000 * len(uses)
        idle = store.unused(*ALL, bucket_s)
        assert {one.by[0] for one in idle} <= {tier for _, tier, _ in held}
        assert sum(one.gpu_s for one in idle) + spent / 3.6 * 3600 == pytest.approx(sum(gpu for _, _, gpu in held))
        assert sum(one.cost_usd for one in idle) + spent == pytest.approx(sum(gpu for _, _, gpu in held) * 3.6 / 3600)
    store.close()


def test_when_a_key_was_used_last_is_known_once_it_was(store: UsageRows) -> None:
    store.add([event(n, at_s=at_s, key_id=key) for n, (at_s, key) in enumerate([(5, "a"), (9, "a"), (7, "b")])])
    assert store.last_used(["a", "c"]) == {"a": 9}
    assert store.last_used([]) == {}


def test_many_rows_are_written_at_once(store: UsageRows) -> None:
    store.add([event(number) for number in range(2 * BATCH + 1)])
    assert len(set(ids(store))) == 2 * BATCH + 1


def test_a_server_that_ends_is_unavailable_and_holds_back_nothing_when_it_is_back(
    database: Server, tmp_path: Path
) -> None:
    local, remote = SqliteUsage(tmp_path / "journal.sqlite"), PostgresUsage(database.fresh())
    journal = Journal(local, "gateway_a", remote)
    journal.start()
    try:
        journal.put(event(1))
        eventually(lambda: ids(remote) == [event(1).id], SOON_S, "shipped")
        database.stop()
        try:
            journal.put(event(2))
            eventually(lambda: journal.failures, SOON_S, "it failed")
            with pytest.raises(Unavailable):
                remote.add([event(9)])
        finally:
            database.start()
        eventually(lambda: len(ids(remote)) == 2, SOON_S, "shipped later")
        eventually(lambda: ids(local) == [], SOON_S, "the journal lets go")
    finally:
        journal.close()
        remote.close()


async def test_an_event_is_on_disk_when_settle_returns_and_its_request_is_open_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_journal, "WAIT_S", 60.0)
    path, heard = tmp_path / "usage.sqlite", list[Usage]()
    journal = Journal(SqliteUsage(path), "gateway_a", written=heard.extend)
    journal.start()
    try:
        journal.open(event(1, code="lost"))
        await asyncio.gather(*(journal.settle(event(number)) for number in range(50)))
        reader = SqliteUsage(path)
        assert sorted(ids(reader)) == sorted(event(number).id for number in range(50))
        assert reader._run("SELECT count(*) FROM usage_open", ()) == [(0,)]
        reader.close()
    finally:
        journal.close()
    assert len(heard) == 50


async def test_an_event_is_written_at_once_beside_what_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("SYNC_S", 600.0), ("AGAIN_S", 600.0), ("WAIT_S", 60.0)):
        monkeypatch.setattr(usage_journal, name, seconds)
    path, remote = tmp_path / "usage.sqlite", SqliteUsage(tmp_path / "remote.sqlite")
    journal = Journal(SqliteUsage(path), "gateway_a", remote)
    journal.start()
    try:
        for number in range(5):
            await journal.settle(event(number))
            assert journal.pending == 0
    finally:
        journal.close()
    assert len(ids(remote)) == 5
    remote.close()


async def test_an_event_needs_no_thread_where_the_file_is_free_and_its_request_is_never_written_as_open(
    tmp_path: Path,
) -> None:
    store = SqliteUsage(tmp_path / "usage.sqlite")
    journal = Journal(store, "gateway_a")  # its thread is not started
    journal.open(event(1, code="lost"))
    journal.open(event(2, code="lost"))
    await journal.settle(event(1))
    journal.forget(event(2).id)
    assert ids(store) == [event(1).id]
    journal.flush()
    assert store._run("SELECT count(*) FROM usage_open", ()) == [(0,)]
    store.close()


async def test_a_loop_is_not_held_up_while_somebody_else_writes_and_the_event_is_written_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_journal, "WAIT_S", 60.0)
    path = tmp_path / "usage.sqlite"
    journal = Journal(SqliteUsage(path), "gateway_a")
    journal.start()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        settling = asyncio.create_task(journal.settle(event(1)))
        await asyncio.sleep(0)  # the loop goes on
        assert not settling.done()
        other.execute("ROLLBACK")
        await settling
        assert other.execute("SELECT id FROM usage_events").fetchall() == [(event(1).id,)]
    finally:
        other.close()
        journal.close()


class Unheard(SqliteUsage):
    """What it commits, nobody hears of at first."""

    failure: Exception | None = None

    def commit(self, *given: Any, **named: Any) -> None:
        super().commit(*given, **named)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure


@pytest.mark.parametrize("failure", [Unavailable("usage: it hangs; one that answers is allowed"), RuntimeError("any")])
def test_a_commit_that_nobody_heard_of_is_made_again_and_counts_once(tmp_path: Path, failure: Exception) -> None:
    store, heard = Unheard(tmp_path / "usage.sqlite"), list[Usage]()
    journal, free = Journal(store, "gateway_a", written=heard.extend), event(0, code="lost", price_nusd=0)
    for name in ("stays", "settled", "forgotten"):
        journal.open(replace(free, id=name))
    journal.put(event(1, code="ok"))
    journal.put(replace(event(2), id="settled"))
    journal.forget("forgotten")
    store.failure = failure
    with pytest.raises(type(failure)):
        journal.flush()
    assert journal.pending == 2
    journal.flush()
    assert (journal.pending, len(heard), sorted(ids(store))) == (0, 2, [event(1).id, "settled"])
    assert store._run("SELECT id FROM usage_open", ()) == [("stays",)]
    store.close()


async def test_who_waits_no_more_is_not_kept_while_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_journal, "WAIT_S", 0.0)
    store = Unheard(tmp_path / "usage.sqlite")
    journal = Journal(store, "gateway_a")
    store.failure = hangs = Unavailable("usage: it hangs; one that answers is allowed; try again soon")
    await journal.settle(event(1))
    store.failure = hangs
    with pytest.raises(Unavailable):
        journal.flush()
    assert (journal.pending, journal._waiters) == (1, [])
    store.close()


class Busy(SqliteUsage):
    """Whenever it commits there is more to commit."""

    more: Callable[[], None] = staticmethod(lambda: None)
    synced = 0

    def commit(self, *given: Any, **named: Any) -> None:
        super().commit(*given, **named)
        self.more()

    def sync(self) -> bool:
        self.synced += 1
        return super().sync()


def test_what_was_committed_reaches_the_disk_however_busy_the_gateway_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_journal, "SYNC_S", 0.01)
    store, numbers = Busy(tmp_path / "usage.sqlite"), itertools.count()
    journal = Journal(store, "gateway_a")
    store.more = lambda: journal.put(event(next(numbers)))
    store.more()
    journal.start()
    try:
        eventually(lambda: store.synced > 2, SOON_S, "synced")
    finally:
        journal.close()
    store.close()


def test_requests_of_a_gateway_that_lives_stay_open_and_those_of_a_dead_one_are_lost_at_no_charge(
    tmp_path: Path,
) -> None:
    path = tmp_path / "usage.sqlite"
    lives, dies, free = SqliteUsage(path), SqliteUsage(path), event(1, code="lost", price_nusd=0)
    for store, name, number in ((lives, "gateway_a", 1), (dies, "gateway_b", 2)):
        store.live(name)
        store.commit(name, [replace(free, id=f"{number}")], [])
    assert SqliteUsage(path).lost() == ()
    dies.close()
    heard: list[Usage] = []
    Journal(SqliteUsage(path), "gateway_c", written=heard.extend)
    assert heard == [replace(free, id="2")]
    assert SqliteUsage(path).lost() == ()
    lives.close()


@pytest.mark.slow
@pytest.mark.parametrize("lines", [1, 2, 9, 60, 400])
def test_a_process_that_is_killed_loses_no_settled_event_and_doubles_none(tmp_path: Path, lines: int) -> None:
    path, remote = tmp_path / "journal.sqlite", tmp_path / "remote.sqlite"
    settled: set[str] = set()
    for life in range(2):
        command = [sys.executable, str(ROOT / "tests" / "usage_events.py"), str(path), f"gateway_{life}", str(remote)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        assert process.stdout is not None
        for _ in range(lines + life):
            what, which = process.stdout.readline().split()
            settled |= {which} if what == "settled" else set()
        process.kill()
        for line in process.stdout.read().splitlines():
            what, _, which = line.partition(" ")
            settled |= {which} if what == "settled" else set()
        process.wait()
        process.stdout.close()
    there, far = SqliteUsage(path), SqliteUsage(remote)
    journal = Journal(there, "heir", far)
    journal.start()
    eventually(lambda: there.unshipped(1)[1] == (), SOON_S, "shipped")
    journal.close()
    counted = Counter(dict(far._run("SELECT id, count(*) FROM usage_events GROUP BY id", ())))
    assert settled <= counted.keys()
    assert set(counted.values()) <= {1}
    assert there._run("SELECT count(*) FROM usage_open", ()) == [(0,)]
    charged = {row[0] for row in far._run("SELECT id FROM usage_events WHERE code = 'lost' AND price_nusd > 0", ())}
    assert charged == set()
    far.close()
