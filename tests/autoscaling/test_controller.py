"""The loop: what it carries on, what it survives, and when it ticks."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import virtual_time

from autoscaling.controller import REST_S, Controller, Shown, World
from autoscaling.parameters import Parameters
from autoscaling.readings import Count, Fleet
from autoscaling.record import Lending, Record, Scaling, differing, line
from autoscaling.series import Look, Sample
from autoscaling.signals import JobSeen, Spec, spec_of
from cluster.family import load
from cluster.lending import Awaiting, Moves, Room, Wish, WorkerHeld

H200 = spec_of(load("h200"))
assert H200.video is not None
SPEC = Spec(tiers={"mini": replace(H200.tiers["mini"], min=1)}, video=replace(H200.video, min=0, max=9))
INITIAL = {"mini": 2, "video": 1}
NAMES = ("arrivals_total", "arrived_prompt_tokens_total", "ongoing_requests", "held_requests", "held_prompt_tokens")
EPOCH_S = 1.8e9
FLEET = Fleet(counts={"mini": Count(ready=2)}, gpus=16)
JOB = JobSeen(left_gpu_s=600.0, deadline_s=EPOCH_S + 1e5, value_usd=50.0)


def samples(at_s: float, held: float = 0) -> tuple[Sample, ...]:
    values = dict.fromkeys(NAMES, 0.0) | {"held_requests": held}
    return tuple(
        Sample(name=f"moray_{name}", labels={"tier": "mini"}, instance="a", value=value, at_s=at_s)
        for name, value in values.items()
    )


@dataclass(frozen=True, kw_only=True)
class Cluster:
    fleet: Fleet = FLEET
    rooms: tuple[Room, ...] = (Room(node="n", cell="c", gpus=8, free_gpus=6),)
    awaiting: tuple[Awaiting, ...] = ()
    gpus_held: Mapping[str, int] = field(default_factory=lambda: {"mini": 2, "video": 0})
    nodes_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Outside:
    """Everything around the loop. A part named in `broken` raises, one in `hung` never answers."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.hung: set[str] = set()
        self.skew_s = 0.0
        self.held = 0.0
        self.cluster = Cluster()
        self.jobs: tuple[JobSeen, ...] | None = (JOB,)
        self.records: list[Record] = []
        self.moves: list[Moves] = []
        self.ticks: list[float] = []
        self.cold_start_s: float | None = None

    def world(self) -> World:
        return World(
            source=_Source(self),
            observe=self.observe,
            jobs=lambda: self.jobs,
            pool=_Pool(self),
            wish=lambda target, _: Wish(target=target, gpus=1, cells=("c",)),
            record=self.record,
            clock=self.clock,
        )

    def controller(self, last: Scaling | None = None, world: World | None = None) -> Controller:
        return Controller(world or self.world(), SPEC, INITIAL, last, Parameters())

    def clock(self) -> float:
        return EPOCH_S + self.skew_s + asyncio.get_running_loop().time()

    async def meets(self, part: str) -> None:
        if part in self.hung:
            await asyncio.Event().wait()
        if part in self.broken:
            raise RuntimeError(part)

    async def observe(self) -> Cluster:
        await self.meets("observe")
        return self.cluster

    def record(self, record: Record) -> None:
        if "record" in self.broken:
            raise OSError("no space left on device")
        self.records.append(record)

    @property
    def scalings(self) -> list[Scaling]:
        return [record for record in self.records if isinstance(record, Scaling)]

    def ticked(self, shown: Shown) -> None:
        self.ticks.append(asyncio.get_running_loop().time())
        if "ticked" in self.broken:
            raise RuntimeError("ticked")


class _Source:
    def __init__(self, outside: Outside) -> None:
        self._outside = outside

    async def look(self) -> Look:
        await self._outside.meets("look")
        if "dark" in self._outside.broken:
            return Look(now_s=0.0, fault="no route")
        now_s = self._outside.clock()
        return Look(now_s=now_s, samples=samples(now_s, self._outside.held))

    async def close(self) -> None:
        pass


class _Pool:
    def __init__(self, outside: Outside) -> None:
        self._outside = outside

    @property
    def cold_start_s(self) -> float | None:
        return self._outside.cold_start_s

    def count(self) -> Count:
        return Count(ready=1)

    def held(self) -> tuple[WorkerHeld, ...]:
        if "lend" in self._outside.broken:
            raise RuntimeError("lend")
        return (WorkerHeld(worker_id="w", node="n", gpus=1, leaving=False, idle=True),)

    async def apply(self, moves: Moves) -> None:
        await self._outside.meets("apply")
        self._outside.moves.append(moves)


def ticks(outside: Outside, controller: Controller, count: int = 1, apart_s: float = 2.0) -> Any:
    async def ticking() -> None:
        for _ in range(count):
            await controller.tick()
            await asyncio.sleep(apart_s)

    return ticking()


def test_a_tick_decides_records_and_lends() -> None:
    async def scenario() -> None:
        outside = Outside()
        outside.held = 5000.0
        outside.cluster = Cluster(fleet=replace(FLEET, gpus=400))
        outside.jobs = (JOB,) * 3
        outside.cold_start_s = 33.0
        controller = outside.controller()
        assert controller.targets == INITIAL
        await controller.tick()
        assert controller.targets["mini"] > 2
        assert controller.targets["video"] == 3
        scaling, lending = outside.records
        assert isinstance(scaling, Scaling)
        assert isinstance(lending, Lending)
        assert scaling.after.targets == controller.targets
        assert scaling.seen.video is not None
        assert (scaling.seen.video.ready, scaling.seen.video.cold_start_s) == (1, 33.0)
        assert all(not differing([line(record)]) for record in outside.records)
        assert outside.moves == [lending.moves]
        assert lending.moves.start == ("n", "n")
        shown = controller.shown
        assert shown.targets == controller.targets
        assert shown.wanted.keys() == {"mini", "video"}
        assert shown.ticked_at_s == EPOCH_S
        assert (shown.decisions["mini", "rise"], shown.gpus, shown.counts["mini"]) == (1, 400, Count(ready=2))

    virtual_time.run(scenario())


@pytest.mark.parametrize("dark", [{"dark"}, {"look"}, {"observe"}])
def test_nothing_is_decided_before_anything_was_seen(dark: set[str]) -> None:
    async def scenario() -> None:
        outside = Outside()
        outside.jobs = None
        outside.broken |= dark
        controller = outside.controller()
        await ticks(outside, controller, 3)
        assert controller.targets == INITIAL
        assert outside.records == []
        assert controller.shown.ticked_at_s > 0.0
        assert controller.shown.faults["mini", "unreachable"] == 3
        outside.broken.clear()
        await controller.tick()
        assert len(outside.scalings) == 1

    virtual_time.run(scenario())


@pytest.mark.parametrize(
    ("how", "broken", "part"),
    [
        ("broken", "look", "look"),
        ("broken", "observe", "look"),
        ("broken", "record", "record"),
        ("broken", "lend", "lend"),
        ("broken", "apply", "apply"),
        ("hung", "look", "look"),
        ("hung", "observe", "look"),
        ("hung", "apply", "apply"),
    ],
)
def test_a_part_that_fails_is_counted_said_once_and_the_targets_stay(
    how: str, broken: str, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "moray.control")

    async def scenario() -> None:
        outside = Outside()
        controller = outside.controller()
        await controller.tick()
        before = dict(controller.targets)
        getattr(outside, how).add(broken)
        await ticks(outside, controller, 3)
        assert controller.targets == before
        assert dict(controller.shown.errors) == {part: 3}
        getattr(outside, how).clear()
        await controller.tick()
        assert dict(controller.shown.errors) == {part: 3}

    virtual_time.run(scenario())
    said = [
        record.message for record in caplog.records if "signals" not in record.message or "look at" in record.message
    ]
    assert len([message for message in said if "failed; the last" in message]) == 1
    assert len([message for message in said if "works again" in message]) == 1


def test_a_policy_that_raises_keeps_the_last_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        outside = Outside()
        controller = outside.controller()
        await controller.tick()
        before = dict(controller.targets)
        monkeypatch.setattr("autoscaling.controller.step", None)
        await controller.tick()
        assert controller.targets == before
        assert dict(controller.shown.errors) == {"step": 1}
        assert outside.moves[-1] == Moves()

    virtual_time.run(scenario())


def test_a_restart_goes_on_from_the_last_record() -> None:
    async def scenario() -> None:
        first = Outside()
        first.held = 5000.0
        controller = first.controller()
        await ticks(first, controller, 3)
        last = first.scalings[-1]
        again = Outside()
        again.broken.add("dark")
        restarted = again.controller(last)
        assert restarted.targets == controller.targets != INITIAL
        await restarted.tick()
        assert restarted.targets["mini"] == controller.targets["mini"]
        (blind,) = again.scalings
        assert blind.memory == last.after
        assert blind.decision.tiers["mini"].cause == "blind"

    virtual_time.run(scenario())


def sleeper(outside: Outside) -> Controller:
    """Of one tier that may sleep, and does."""
    mini = replace(SPEC.tiers["mini"], min=0, idle_s=5.0)
    outside.cluster = Cluster(fleet=Fleet(counts={"mini": Count()}, gpus=16))
    return Controller(outside.world(), Spec(tiers={"mini": mini}), {"mini": 0}, None, Parameters())


def test_a_minute_without_signals_puts_nobody_to_sleep_and_what_then_is_seen_counts_again() -> None:
    async def scenario() -> None:
        outside = Outside()
        outside.held = 1.0
        controller = sleeper(outside)
        await controller.tick()
        assert controller.targets == {"mini": 1}
        outside.broken.add("dark")
        outside.held = 0.0
        await ticks(outside, controller, 31)
        assert controller.targets == {"mini": 1}
        assert {record.decision.tiers["mini"].cause for record in outside.scalings[1:]} == {"blind"}
        assert controller.shown.faults["mini", "unreachable"] == 31
        outside.broken.clear()
        await controller.tick()
        assert controller.targets == {"mini": 0}

    virtual_time.run(scenario())


@pytest.mark.parametrize("known", [True, False])
def test_a_request_for_a_sleeping_tier_wakes_it_though_nothing_is_seen(known: bool) -> None:
    async def scenario() -> None:
        outside = Outside()
        controller = sleeper(outside)
        await ticks(outside, controller, int(known))
        outside.broken.add("dark")
        await ticks(outside, controller, 2)
        assert controller.targets == {"mini": 0}
        controller.wake("nobody's")
        controller.wake("mini")
        await ticks(outside, controller, 5)
        assert controller.targets == {"mini": 1}
        assert controller.shown.decisions["mini", "rise"] == 1
        assert differing(line(record) for record in outside.records) == []

    virtual_time.run(scenario())


def test_time_neither_goes_back_nor_stands_still() -> None:
    async def scenario() -> None:
        outside = Outside()
        controller = outside.controller()
        await ticks(outside, controller, 2)
        outside.skew_s = -100.0
        await ticks(outside, controller, 10)
        times = [record.seen.now_s - EPOCH_S for record in outside.scalings]
        assert times == [0.0, 2.0, *(3.0 + tick for tick in range(10))]
        later = outside.controller(outside.scalings[-1])
        await later.tick()
        assert outside.scalings[-1].seen.now_s == times[-1] + EPOCH_S

    virtual_time.run(scenario())


def test_jobs_that_cannot_be_told_cost_a_tick_and_no_target() -> None:
    def broken() -> tuple[JobSeen, ...]:
        raise RuntimeError("jobs")

    async def scenario() -> None:
        outside = Outside()
        controller = outside.controller(world=replace(outside.world(), jobs=broken))
        await ticks(outside, controller, 2)
        assert controller.targets == INITIAL
        assert dict(controller.shown.errors) == {"look": 2}

    virtual_time.run(scenario())


def test_without_a_pool_the_cluster_tells_how_many_video_replicas_there_are() -> None:
    async def scenario() -> None:
        outside = Outside()
        controller = outside.controller(world=replace(outside.world(), pool=None))
        await ticks(outside, controller)
        assert controller.shown.counts == FLEET.counts

    virtual_time.run(scenario())


def test_gpu_seconds_are_those_held_also_while_nobody_can_be_asked() -> None:
    async def scenario() -> None:
        outside = Outside()
        controller = outside.controller()
        await ticks(outside, controller, 3)
        outside.broken.add("observe")
        await ticks(outside, controller, 2)
        assert controller.shown.gpu_s == {"mini": 2 * 8.0, "video": 0.0}
        assert controller.shown.gpus == 16

    virtual_time.run(scenario())


def test_a_changed_family_keeps_targets_within_its_bounds() -> None:
    async def scenario() -> None:
        outside = Outside()
        controller = outside.controller()
        await controller.tick()
        mini = replace(SPEC.tiers["mini"], min=5, max=9)
        controller.adopt(Spec(tiers={"mini": mini, "pro": H200.tiers["pro"]}), {"mini": 5, "pro": 1})
        assert controller.targets == {"mini": 5, "pro": 1}
        await controller.tick()
        assert outside.scalings[-1].decision.tiers.keys() == {"mini", "pro"}
        assert len(outside.moves) == 1

    virtual_time.run(scenario())


def running(outside: Outside, controller: Controller) -> asyncio.Task[None]:
    return asyncio.create_task(controller.run(outside.ticked))


async def until(outside: Outside, at_s: float) -> list[float]:
    await asyncio.sleep(at_s - asyncio.get_running_loop().time())
    return outside.ticks


def test_ticks_are_due_on_an_absolute_schedule_whatever_fails() -> None:
    async def scenario() -> None:
        outside = Outside()
        outside.broken |= {"look", "record", "lend", "ticked"}
        loop = running(outside, outside.controller())
        assert await until(outside, 7.0) == [0.0, 2.0, 4.0, 6.0]
        outside.hung.add("observe")  # for 5 s: ticks that are missed are not caught up with
        assert await until(outside, 20.0) == [0.0, 2.0, 4.0, 6.0, 13.0, 19.0]
        loop.cancel()

    virtual_time.run(scenario())


def test_waking_ticks_at_once_but_not_within_the_rest() -> None:
    async def scenario() -> None:
        outside = Outside()
        controller = outside.controller()
        loop = running(outside, controller)
        for at_s in (0.1, 0.2, 1.5):
            await until(outside, at_s)
            controller.wake()
        assert await until(outside, 4.5) == [0.0, REST_S, 1.5, 2.0, 4.0]
        await until(outside, 5.9)
        controller.wake()
        assert (await until(outside, 8.5))[5:] == [5.9, 6.0, 8.0]
        loop.cancel()

    virtual_time.run(scenario())
