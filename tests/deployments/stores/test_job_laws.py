"""Whatever gateways, clients and faults do in whatever order, every accepted job is seen to by one gateway at a time.

A store is held to a model: the jobs in order of creation, and what each gateway believes to hold. A connection is cut
as by a process that is killed or a server that restarts.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from job_stores import Open, job, postgresql, sqlite, video_id
from postgres import Server

from deployments.video.jobs import Jobs, VideoJob

OWNERS = ("key_a", "key_b")
GATEWAYS = st.sampled_from(["gateway_a", "gateway_b"])
LEASE_S = 10.0
EFFORT = settings(max_examples=30, stateful_step_count=30)
LESS = settings(EFFORT, max_examples=8)  # a connection to a server costs more than one to a file


class Gateways(RuleBasedStateMachine):
    """`rows`: accepted and not deleted, by id, in order of creation, as they should read."""

    seen = Bundle("seen")  # jobs as a gateway has them in mind, perhaps long out of date

    def __init__(self, fresh: Callable[[], Open], cut: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.open = fresh()
        self.store: Jobs = self.open()
        self.killed: list[Jobs] = []
        self.cut = cut
        self.rows: dict[str, VideoJob] = {}
        self.now_s = 0.0
        self.created = 0

    @rule(owner=st.sampled_from(OWNERS), key=st.none() | st.sampled_from("xy"), priority=st.integers(0, 2))
    def create(self, owner: str, key: str | None, priority: int) -> None:
        self.created += 1
        asked = job(self.created, owner, idempotency_key=key, priority=priority)
        earlier = [row for row in self.rows.values() if key and (row.owner, row.idempotency_key) == (owner, key)]
        expected = earlier[0] if earlier else self.rows.setdefault(asked.id, asked)
        assert self.store.create(asked) == expected

    @rule(target=seen, gateway=GATEWAYS)
    def claim(self, gateway: str) -> VideoJob | None:
        free = [row for row in self.rows.values() if not row.finished and (row.lease_until_s or 0.0) <= self.now_s]
        claimed = self.store.claim(gateway, self.now_s, LEASE_S)
        if free:
            first = max(free, key=lambda row: row.priority)  # max takes the oldest of equals
            held = replace(first.requeued(), claimed_by=gateway, lease_until_s=self.now_s + LEASE_S)
            self.rows[first.id] = held
            assert claimed == held
        else:
            assert claimed is None
        return claimed

    @rule(seconds=st.sampled_from([1.0, 4.0, LEASE_S]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(known=seen, gateway=GATEWAYS)
    def renew(self, known: VideoJob | None, gateway: str) -> None:
        row = self.rows.get(known.id) if known else None
        holds = row is not None and not row.finished and row.claimed_by == gateway
        if row and holds:
            self.rows[row.id] = replace(row, lease_until_s=self.now_s + LEASE_S)
        asked = [known.id] if known else []
        assert self.store.renew(gateway, asked, self.now_s, LEASE_S) == frozenset(asked if holds else ())

    @rule(target=seen, known=seen, step=st.integers(1, 12))
    def step(self, known: VideoJob | None, step: int) -> VideoJob | None:
        return (
            self._write(known, (known if known.status == "in_progress" else known.begun()).stepped(step, 12))
            if known
            else None
        )

    @rule(target=seen, known=seen)
    def complete(self, known: VideoJob | None) -> VideoJob | None:
        return self._write(known, known.completed(int(self.now_s))) if known else None

    @rule(gateway=GATEWAYS)
    def release_all(self, gateway: str) -> None:
        self.store.release(gateway)
        for row in list(self.rows.values()):
            if row.claimed_by == gateway and not row.finished:
                self.rows[row.id] = replace(row.requeued(), claimed_by=None, lease_until_s=None)

    @rule(number=st.integers(1, 12), owner=st.sampled_from(OWNERS))
    def delete(self, number: int, owner: str) -> None:
        row = self.rows.get(video_id(number))
        mine = row is not None and row.owner == owner
        assert self.store.delete(owner, video_id(number)) == mine
        if mine:
            del self.rows[video_id(number)]

    @rule()
    def the_gateway_is_killed_and_starts_again(self) -> None:
        self.killed.append(self.store)  # not closed meanwhile
        self.store = self.open()

    @rule()
    def the_connection_is_cut(self) -> None:
        self.cut()

    @invariant()
    def every_accepted_job_is_there_for_its_owner_alone(self) -> None:
        for owner in OWNERS:
            own = tuple(row for row in self.rows.values() if row.owner == owner)
            assert self.store.page(owner, limit=100, order="asc") == (own, False)
        assert self.store.unfinished() == tuple(row for row in self.rows.values() if not row.finished)

    def teardown(self) -> None:
        """When all leases are over, every job that is not finished is claimed, each once."""
        self.now_s += 2 * LEASE_S
        left = {row.id for row in self.rows.values() if not row.finished}
        claimed = [self.store.claim("gateway_c", self.now_s, LEASE_S) for _ in range(len(left) + 1)]
        assert claimed.pop() is None
        assert {each.id for each in claimed if each} == left
        for store in (self.store, *self.killed):
            store.close()

    def _write(self, known: VideoJob, changed: VideoJob) -> VideoJob:
        """Written only by who holds the job still, or while nobody ever held it; its end stays."""
        row = self.rows.get(known.id)
        may = (
            row is not None
            and row.claimed_by == known.claimed_by
            and (not row.finished or row.status == changed.status)
        )
        assert self.store.update(changed) == may
        if row and may:
            self.rows[row.id] = replace(changed, claimed_by=row.claimed_by, lease_until_s=row.lease_until_s)
        return changed


def test_no_order_of_events_loses_a_job_or_gives_it_to_two_on_sqlite(tmp_path: Path) -> None:
    folders = (tmp_path / f"{number}" for number in itertools.count())
    hold(lambda: Gateways(lambda: sqlite(next(folders))), EFFORT)


def test_no_order_of_events_loses_a_job_or_gives_it_to_two_on_postgresql(database: Server) -> None:
    hold(lambda: Gateways(partial(postgresql, database), database.cut), LESS)


def hold(machine: Callable[[], Gateways], effort: settings) -> None:
    run_state_machine_as_test(machine, settings=effort)  # type: ignore[arg-type]  # any factory does
