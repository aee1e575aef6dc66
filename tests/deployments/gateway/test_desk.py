"""The desk in virtual time. The world is what routers publish: a step takes 10 ms and 1 ms per sequence."""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twin_world import family, tier
from virtual_time import run

from cluster.breaker import LEAST_S
from cluster.errors import MorayError, Overloaded, ReplicaLost, StartTimeout
from cluster.family import Family, Slo
from cluster.fleet import ReplicaReport
from cluster.request import Usage
from cluster.tiering import Range
from deployments import seen
from deployments.gateway.asked import Asked, Place
from deployments.gateway.desk import Desk

USAGE = Usage(prompt_tokens=100, completion_tokens=50)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    clean()
    yield
    clean()


def clean() -> None:
    for known in (seen._replicas, seen._listeners, seen.routing_decisions):
        known.clear()


def spec(*names: str, **changed: Any) -> Family:
    return family(
        *(tier(name, **({"max_running": 4, "start_timeout_s": 60.0} | changed)) for name in names or ("pro",))
    )


class World:
    """Replicas that report every second what the test says of them."""

    def __init__(self, served: Family) -> None:
        clean()
        self.loop = asyncio.get_running_loop()
        self.slept: list[str] = []
        self.draws = iter(range(10**9))
        self.desk = Desk(
            served, clock=self.loop.time, draw=lambda: next(self.draws) * 0.618 % 1, on_sleep=self.slept.append
        )
        self.numbers = iter(range(10**9))
        self.tasks: list[asyncio.Task[Place]] = []

    def show(self, key: str = "pro", /, **running: int | None) -> None:
        """Replicas by name, with how many run there; None: no report yet."""
        told = tuple(
            seen.SeenReplica(
                replica_id=name, metrics_address="", report=None if count is None else self.report(name, count)
            )
            for name, count in running.items()
        )
        seen.publish(key, told)

    def report(self, name: str, running: int, step_ms: float = 0.0) -> ReplicaReport:
        return ReplicaReport(
            replica_id=name,
            at_s=self.loop.time(),
            running=running,
            waiting=0,
            waiting_prefill_tokens=0,
            kv_used_tokens=200 * running,
            kv_capacity_tokens=100_000,
            step_ms=step_ms,
            prefill_us_per_token=100.0,
        )

    def asked(
        self,
        *tiers: str,
        tenant: str = "a",
        priority: int = 0,
        prompt: int = 100,
        patience: float = 1.0,
        spare: bool = False,
    ) -> Asked:
        return Asked(
            request_id=str(next(self.numbers)),
            range=Range(tiers or ("pro",), "asked by name", False),
            tenant=tenant,
            priority=priority,
            share=1.0,
            prompt_tokens=prompt,
            arrived_s=self.loop.time(),
            patience=patience,
            spare=spare,
        )

    def ask(self, *tiers: str, **of: Any) -> asyncio.Task[Place]:
        task = asyncio.ensure_future(self.desk.place(self.asked(*tiers, **of)))
        self.tasks.append(task)
        return task

    def placed(self) -> list[str]:
        """The requests that have a place."""
        return [task.result().asked.request_id for task in self.tasks if task.done() and not error_of(task)]


def error_of(task: asyncio.Task[Place]) -> BaseException | None:
    return None if task.cancelled() else task.exception()


def play(scenario: Callable[[World], Awaitable[None]], served: Family | None = None) -> None:
    async def played() -> None:
        world = World(served or spec())
        await scenario(world)
        for task in world.tasks:
            task.cancel()
        await asyncio.gather(*world.tasks, return_exceptions=True)

    run(played())


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def nothing_is_left(desk: Desk) -> bool:
    return not any(count for pair in desk.held().values() for count in pair) and not any(desk.ongoing().values())


def test_a_request_goes_at_once_to_the_replica_that_is_free() -> None:
    async def scenario(world: World) -> None:
        world.show(busy=3, free=0)
        place = await world.desk.place(world.asked())
        assert (place.served.tier, place.served.replica, place.served.queued_s) == ("pro", "free", 0)
        assert (place.served.resumed, place.served.spilled) == (0, None)
        assert (world.desk.ongoing(), world.desk.held()) == ({"pro": 1}, {"pro": (0, 0)})
        world.desk.ended(place, USAGE, False)
        world.desk.ended(place, USAGE, False)  # again: nothing happens
        assert world.desk.ongoing() == {"pro": 0}
        assert world.desk.admissions == {("pro", "dispatch"): 1}
        assert seen.routing_decisions == {("pro", "predicted"): 1}

    play(scenario)


def test_what_was_sent_counts_until_it_ends_whatever_is_reported_meanwhile() -> None:
    async def scenario(world: World) -> None:
        world.show(one=0, two=0)
        first = await world.desk.place(world.asked())
        world.show(one=0, two=0)  # reports made before it came
        second = await world.desk.place(world.asked())
        assert {first.served.replica, second.served.replica} == {"one", "two"}
        world.desk.ended(first, USAGE, False)
        assert (await world.desk.place(world.asked())).served.replica == first.served.replica

    play(scenario)


def test_a_crowd_before_a_sleeping_tier_wakes_it_and_goes_when_a_replica_appears() -> None:
    async def scenario(world: World) -> None:
        for _ in range(200):
            world.ask()
        await asyncio.sleep(10)
        assert set(world.slept) == {"pro"}
        assert len(world.slept) <= 11
        assert world.desk.held() == {"pro": (200, 20_000)}
        world.show(new=None)
        places = await asyncio.gather(*world.tasks)
        assert len({place.number for place in places}) == 200
        assert min(place.served.queued_s for place in places) == pytest.approx(10)
        assert world.desk.ongoing() == {"pro": 200}

    play(scenario)


def test_a_new_replica_gets_no_more_of_those_who_wait_than_it_can_serve_in_time() -> None:
    async def scenario(world: World) -> None:
        world.show(a=8)
        for _ in range(10):
            world.ask(prompt=2000)
        await settled()
        before = len(world.placed())
        world.show(a=8, new=None)
        await settled()
        assert (before, world.desk.held()["pro"][0] + len(world.placed())) == (0, 10)
        assert 1 <= len(world.placed()) <= 5

    play(scenario)


def test_a_tier_that_does_not_start_in_its_time_ends_those_who_wait_for_it_and_nobody_sooner() -> None:
    async def scenario(world: World) -> None:
        early = world.ask()
        await asyncio.sleep(30)
        late = world.ask()
        await asyncio.sleep(29)
        assert not early.done()
        await asyncio.sleep(2)
        assert isinstance(error_of(early), StartTimeout)
        assert not late.done()
        await asyncio.sleep(30)
        assert isinstance(error_of(late), StartTimeout)
        assert nothing_is_left(world.desk)

    play(scenario)


def test_patience_counts_from_the_awakening() -> None:
    async def scenario(world: World) -> None:
        world.ask()
        await asyncio.sleep(40)
        world.show(full=8)
        reports = asyncio.ensure_future(every_second(world, full=8))
        await asyncio.sleep(6)
        assert not world.tasks[0].done()
        await asyncio.sleep(4.5)
        assert isinstance(error_of(world.tasks[0]), Overloaded)
        reports.cancel()

    play(scenario, spec(slo=Slo(ttft_s=0.5, tpot_ms=13)))


async def every_second(world: World, **running: int) -> None:
    while True:
        world.show(**running)
        await asyncio.sleep(1)


def test_who_leaves_while_waiting_leaves_no_trace() -> None:
    async def scenario(world: World) -> None:
        stays, leaves = world.ask(prompt=7), world.ask(tenant="b")
        await settled()
        assert world.desk.held() == {"pro": (2, 107)}
        leaves.cancel()
        await settled()
        assert world.desk.held() == {"pro": (1, 7)}
        world.show(one=0)
        assert (await stays).asked.prompt_tokens == 7
        assert world.desk.ongoing() == {"pro": 1}

    play(scenario)


def test_who_leaves_in_the_moment_of_its_place_leaves_no_trace() -> None:
    async def scenario(world: World) -> None:
        task = world.ask()
        await settled()
        world.show(one=0)
        await asyncio.sleep(0)  # the place is given
        task.cancel()
        await settled()
        assert nothing_is_left(world.desk)

    play(scenario)


def test_the_highest_priority_goes_first_then_the_tenant_served_least_then_the_earliest() -> None:
    async def scenario(world: World) -> None:
        first = [world.ask(), world.ask(tenant="b"), world.ask(tenant="b"), world.ask(tenant="c", priority=5)]
        await settled()
        assert world.placed() == []
        order: list[str] = []
        world.show(one=None)
        for task in first:
            task.add_done_callback(lambda done: order.append(done.result().asked.request_id))
        await asyncio.gather(*first)
        assert order == ["3", "0", "1", "2"]  # the counter of a is charged, then that of b; a has no more

    play(scenario)


def test_with_an_open_idle_replica_nobody_is_held_however_slow_it_is() -> None:
    async def scenario(world: World) -> None:
        slow = seen.SeenReplica(replica_id="slow", metrics_address="", report=world.report("slow", 1, step_ms=100.0))
        seen.publish("pro", (slow,))
        first = world.ask()
        await settled()
        assert first.done()  # 109 ms of 50 promised, but 200 are what can be attained
        world.show(slow=0)

    play(scenario)


loads = st.lists(st.integers(0, 6), min_size=1, max_size=4)


@settings(deadline=None, max_examples=20)
@given(loads, st.integers(1, 12), st.integers(1, 9_000), st.sampled_from([0.001, 1.0]), st.sampled_from([1.0, 30.0]))
def test_nobody_is_held_while_a_replica_is_idle(
    running: list[int], count: int, prompt: int, ttft_s: float, tpot_ms: float
) -> None:
    async def scenario(world: World) -> None:
        world.show(**{f"r{index}": each for index, each in enumerate(running)})
        for _ in range(count):
            world.ask(prompt=prompt)
        await settled()
        idle = running.count(0)
        assert len([task for task in world.tasks if task.done() and not error_of(task)]) >= min(count, idle)

    play(scenario, spec(slo=Slo(ttft_s=ttft_s, tpot_ms=tpot_ms)))


def test_beyond_what_may_wait_the_lowest_priority_is_refused_first_and_told_when_to_come_back() -> None:
    async def scenario(world: World) -> None:
        low = [world.ask(), world.ask()]
        await settled()
        high = [world.ask(priority=1), world.ask(priority=1)]
        await settled()
        newcomer = world.ask()
        await settled()
        assert [isinstance(error_of(task), Overloaded) for task in (*low, newcomer) if task.done()] == [
            True,
            True,
            True,
        ]
        assert not any(task.done() for task in high)
        for task in (*low, newcomer):
            error = error_of(task)
            assert isinstance(error, Overloaded)
            assert 1 <= error.retry_after_s < math.inf
        assert world.desk.admissions == {("pro", "hold"): 5, ("pro", "refuse"): 3}

    play(scenario, spec(max_waiting=2))


def test_whose_wait_would_outlast_its_patience_is_refused_at_once_but_not_a_higher_priority() -> None:
    async def scenario(world: World) -> None:
        for _ in range(150):
            world.ask()
        await settled()
        reports = asyncio.ensure_future(every_second(world, one=8))
        await settled()
        newcomer, high = world.ask(), world.ask(priority=1)
        await settled()
        error = error_of(newcomer)
        assert isinstance(error, Overloaded)
        assert error.retry_after_s >= 1
        assert not high.done()
        reports.cancel()

    play(scenario, spec(slo=Slo(ttft_s=0.5, tpot_ms=14.5), patience_s=8.0))


def test_who_is_more_patient_waits_longer() -> None:
    async def scenario(world: World) -> None:
        world.show(one=8)
        reports = asyncio.ensure_future(every_second(world, one=8))
        for _ in range(8):
            world.ask(priority=1)  # they keep every place
        await settled()
        usual, patient = world.ask(), world.ask(priority=-1, patience=4.0)
        began_s = world.loop.time()
        ended_s: dict[asyncio.Task[Place], float] = {}
        for task in (usual, patient):
            task.add_done_callback(lambda task: ended_s.setdefault(task, world.loop.time() - began_s))
        await asyncio.wait((usual, patient))
        assert all(isinstance(error_of(task), Overloaded) for task in (usual, patient))
        assert ended_s[usual] <= 8 < 24 < ended_s[patient] <= 32, "when no place can be there in time, it is told"
        reports.cancel()

    play(scenario, spec(slo=Slo(ttft_s=0.5, tpot_ms=14.5), patience_s=8.0))


def test_a_saturated_tier_spills_where_the_caller_may_go_and_says_why() -> None:
    async def scenario(world: World) -> None:
        world.show("pro", one=8)
        world.show("ultra", two=0)
        stays, goes = world.ask("pro"), world.ask("pro", "ultra")
        place = await goes
        assert (place.served.tier, place.served.replica) == ("ultra", "two")
        assert place.served.spilled == "pro saturated: no replica keeps its promises; served by ultra"
        assert not stays.done()
        assert world.desk.ongoing() == {"pro": 0, "ultra": 1}
        assert world.desk.admissions["pro", "spill"] == 1

    play(scenario, spec("pro", "ultra", slo=Slo(ttft_s=0.5, tpot_ms=40)))


def test_a_resumed_request_goes_to_another_replica_ahead_of_newcomers() -> None:
    async def scenario(world: World) -> None:
        world.show(one=0)
        place = await world.desk.place(world.asked())
        world.desk.ended(place, None, True)
        newcomer_before = asyncio.ensure_future(world.desk.again(place, 20))
        await settled()
        assert not newcomer_before.done()  # the only one that there is has just lost it
        world.show(one=0, two=0)
        again = await newcomer_before
        assert (again.served.replica, again.served.resumed) == ("two", 1)
        assert (again.asked, again.prompt_tokens) == (place.asked, 120)
        assert world.desk.ongoing() == {"pro": 1}

    play(scenario)


def test_of_those_who_wait_the_resumed_goes_first() -> None:
    async def scenario(world: World) -> None:
        world.show(one=0)
        place = await world.desk.place(world.asked())
        world.show()
        order: list[str] = []

        def note(name: str, _: object) -> None:
            order.append(name)

        waiting = [world.ask(priority=9), asyncio.ensure_future(world.desk.again(place, 3))]
        for name, task in zip(("newcomer", "resumed"), waiting, strict=True):
            task.add_done_callback(partial(note, name))
        await settled()
        world.show(two=None)
        await asyncio.gather(*waiting)
        assert order == ["resumed", "newcomer"]

    play(scenario)


def test_a_lost_request_waits_beyond_its_patience_as_long_as_a_replica_may_take_to_start() -> None:
    async def scenario(world: World) -> None:
        world.show(one=0)
        place = await world.desk.place(world.asked())
        world.show()
        lost_s = world.loop.time()
        again = asyncio.ensure_future(world.desk.again(place, 3))
        await asyncio.sleep(50)
        assert not again.done()
        world.show(two=None)
        assert (await again).served.replica == "two"
        assert world.loop.time() == pytest.approx(lost_s + 50, abs=1)

    play(scenario, spec(patience_s=5.0))


def test_a_lost_request_goes_back_to_the_only_replica_once_its_breaker_lets_it() -> None:
    async def scenario(world: World) -> None:
        reports = asyncio.ensure_future(every_second(world, one=0))
        await settled()
        place = await world.desk.place(world.asked())
        lost_s = world.loop.time()
        again = await world.desk.again(place, 3)
        assert again.served.replica == "one"
        assert world.loop.time() == pytest.approx(lost_s + LEAST_S, abs=0.2)
        reports.cancel()

    play(scenario, spec(patience_s=1.0))


def test_a_lost_request_that_finds_no_place_in_all_that_time_is_told_that_its_replica_was_lost() -> None:
    async def scenario(world: World) -> None:
        reports = asyncio.ensure_future(every_second(world, one=8))
        await settled()
        world.show(one=0)
        place = await world.desk.place(world.asked())
        world.show(one=8)
        lost_s = world.loop.time()
        again = asyncio.ensure_future(world.desk.again(place, 3))
        await asyncio.wait((again,))
        assert isinstance(again.exception(), ReplicaLost)
        assert world.loop.time() == pytest.approx(lost_s + 60, abs=1)
        assert nothing_is_left(world.desk)
        reports.cancel()

    play(scenario, spec(slo=Slo(ttft_s=0.5, tpot_ms=14.5)))


def test_a_replica_that_failed_gets_nothing_for_a_while_then_one_on_trial() -> None:
    async def scenario(world: World) -> None:
        reports = asyncio.ensure_future(every_second(world, bad=0, good=3))
        await settled()
        place = await world.desk.place(world.asked())
        assert place.served.replica == "bad"
        world.desk.ended(place, None, True)
        assert world.desk.open_breakers() == {"pro": 1}
        assert (await world.desk.place(world.asked())).served.replica == "good"
        await asyncio.sleep(2.5)
        trial = await world.desk.place(world.asked())
        assert trial.served.replica == "bad"
        assert (await world.desk.place(world.asked())).served.replica == "good"
        world.desk.ended(trial, USAGE, False)
        assert world.desk.open_breakers() == {"pro": 0}
        assert (await world.desk.place(world.asked())).served.replica == "bad"
        reports.cancel()

    play(scenario)


def test_where_all_have_failed_breakers_do_not_count_and_who_is_gone_is_forgotten() -> None:
    async def scenario(world: World) -> None:
        world.show(only=0)
        world.desk.ended(await world.desk.place(world.asked()), None, True)
        place = await world.desk.place(world.asked())
        assert place.served.replica == "only"
        world.show(other=0)
        world.desk.ended(place, None, True)
        assert world.desk.open_breakers() == {"pro": 0}
        assert world.desk.ongoing() == {"pro": 0}

    play(scenario)


def test_a_replica_that_was_slow_is_avoided_while_idle_and_later_given_another_chance() -> None:
    async def scenario(world: World) -> None:
        def show(**slow: float) -> None:
            told = [
                seen.SeenReplica(
                    replica_id=name, metrics_address="", report=world.report(name, int(step_ms > 0), step_ms)
                )
                for name, step_ms in slow.items()
            ]
            seen.publish("pro", tuple(told))

        show(slow=500.0, other=0.0)
        await world.desk.place(world.asked())
        show(slow=0.0, other=0.0)
        for _ in range(5):
            place = await world.desk.place(world.asked())
            assert place.served.replica == "other"
            world.desk.ended(place, None, False)
        await asyncio.sleep(600.0)
        show(slow=0.0, other=0.0)
        served = {(await world.desk.place(world.asked())).served.replica for _ in range(2)}
        assert served == {"slow", "other"}

    play(scenario)


def test_a_fault_of_the_desk_ends_the_one_whom_it_hit_and_nobody_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        hit, behind = world.ask(), world.ask()
        await settled()
        judged, faults = world.desk._judged, iter([True])

        def faulty(waiting: Any, now_s: float) -> Any:
            if next(faults, False):
                raise ZeroDivisionError
            return judged(waiting, now_s)

        monkeypatch.setattr(world.desk, "_judged", faulty)
        world.show(a=0)
        await settled()
        error = error_of(hit)
        assert isinstance(error, MorayError)
        assert (error.status, behind.result().served.replica) == (500, "a")

    play(scenario)


def test_a_dead_replica_gets_nothing() -> None:
    async def scenario(world: World) -> None:
        dead = seen.SeenReplica(replica_id="dead", metrics_address="", report=world.report("dead", 0), dead=True)
        seen.publish("pro", (dead,))
        world.ask()
        await settled()
        assert (world.slept, world.desk.held()["pro"][0]) == (["pro"], 1)

    play(scenario)


def test_without_fresh_reports_it_is_power_of_two_choices_and_nobody_waits() -> None:
    async def scenario(world: World) -> None:
        world.show(a=64, b=64, c=64)
        await asyncio.sleep(2.5)
        places = [await world.desk.place(world.asked()) for _ in range(30)]
        assert seen.routing_decisions == {("pro", "two_choices"): 30}
        assert max(Counter(place.served.replica for place in places).values()) <= 12

    play(scenario)


def test_a_changed_family_holds_for_new_requests() -> None:
    async def scenario(world: World) -> None:
        early = world.ask()
        await settled()
        world.desk.follow(spec("pro", "ultra", start_timeout_s=5.0))
        assert world.desk.held() == {"pro": (1, 100), "ultra": (0, 0)}
        world.ask("ultra")
        await asyncio.sleep(6)
        assert all(isinstance(error_of(task), StartTimeout) for task in world.tasks)
        assert early.done()

    play(scenario)


events = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "leave", "end", "fail", "show", "again", "sleep"]),
        st.integers(0, 9),
        st.integers(0, 2),
    ),
    max_size=40,
)


class Crowd:
    """Does as it is told, and knows who holds a place."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.waiting: list[asyncio.Task[Place]] = []
        self.places: list[Place] = []
        self.ends = Counter[str]()

    async def do(self, what: str, number: int, other: int) -> None:
        world = self.world
        if what == "ask":
            self.waiting.append(world.ask(tenant="abc"[other], priority=number % 3, prompt=1 + 500 * number))
        elif what == "leave" and self.waiting:
            self.waiting[number % len(self.waiting)].cancel()
        elif what in ("end", "fail") and self.places:
            place = self.places.pop(number % len(self.places))
            world.desk.ended(place, USAGE if other else None, what == "fail")
            self.ends["ended"] += 1
        elif what == "again" and self.places:
            task = asyncio.ensure_future(world.desk.again(self.places.pop(), number))
            world.tasks.append(task)
            self.waiting.append(task)
        elif what == "show":
            world.show(**{name: number for name in "xyz"[:other]})
        elif what == "sleep":
            await asyncio.sleep(number / 2)
        await settled()
        self.note()

    def note(self) -> None:
        for task in [task for task in self.waiting if task.done()]:
            self.waiting.remove(task)
            if task.cancelled():
                self.ends["left"] += 1
            elif task.exception() is not None:
                assert isinstance(task.exception(), MorayError)
                self.ends["refused"] += 1
            else:
                self.places.append(task.result())


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(events)
def test_no_request_is_lost_or_placed_twice(told: list[tuple[str, int, int]]) -> None:
    async def scenario(world: World) -> None:
        crowd = Crowd(world)
        for what, number, other in told:
            await crowd.do(what, number, other)
            assert world.desk.held()["pro"][0] == len(crowd.waiting)
            assert world.desk.ongoing()["pro"] == len(crowd.places)
            assert len({place.number for place in crowd.places}) == len(crowd.places)
        world.show()
        for place in crowd.places:
            world.desk.ended(place, None, False)
        crowd.places.clear()
        await asyncio.sleep(8)  # whoever still waits is told that no replica starts
        crowd.note()
        assert crowd.waiting == []
        assert nothing_is_left(world.desk)

    play(scenario, spec(max_waiting=3, start_timeout_s=4.0, patience_s=2.0))


def test_what_runs_on_what_is_left_over_wakes_no_tier_and_is_not_seen_as_demand() -> None:
    async def scenario(world: World) -> None:
        asleep = world.ask(spare=True)
        await settled()
        assert isinstance(error_of(asleep), Overloaded)
        assert (world.slept, world.desk.admissions) == ([], {("pro", "refuse"): 0})
        world.show(a=0)
        placed = await world.ask(spare=True)
        world.show(a=8)
        held = [world.ask(prompt=2000, spare=spare) for spare in (True, False)]
        await settled()
        assert not any(task.done() for task in held)
        assert (world.desk.ongoing(), world.desk.held()) == ({"pro": 0}, {"pro": (1, 2000)})
        for task in held:
            task.cancel()
        await settled()
        world.desk.ended(placed, USAGE, False)
        assert nothing_is_left(world.desk)

    play(scenario)
