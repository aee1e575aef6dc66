from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twin_world import jobs

from autoscaling.twin_nodes import Nodes
from autoscaling.twin_video import MOST_SEEN, VideoPool
from cluster.workload import Jobs

Row = tuple[float, int, float, float]


class World:
    """A pool of two-GPU replicas on nodes of two GPUs; a cold start takes 10 s. Calls go in order of time."""

    def __init__(self, *rows: Row, budget: int | None = 8, replicas: int = 0) -> None:
        self.events: list[tuple[float, int, Callable[[float, int], None], int]] = []
        self.numbers = count()
        self.nodes = Nodes(2, budget, 10_000.0)
        self.given: Jobs = jobs(*rows)
        self.pool = VideoPool(
            jobs=self.given, gpus=2, nodes=self.nodes, schedule=self.schedule, draw_s=lambda: 10.0
        )  # fmt: skip
        self.pool.orders.begin(replicas)
        for job, row in enumerate(rows):
            self.schedule(row[0], self.pool.arrive, job)

    def schedule(self, at_s: float, call: Callable[[float, int], None], argument: int) -> None:
        heappush(self.events, (at_s, next(self.numbers), call, argument))

    def run(self, until_s: float = 1e9) -> None:
        while self.events and self.events[0][0] <= until_s:
            at_s, _, call, argument = heappop(self.events)
            call(at_s, argument)


def test_a_job_runs_its_steps_on_one_replica() -> None:
    world = World((5.0, 10, 3.0, 100.0), replicas=1)
    world.run()
    assert world.pool.finished_s == {0: 35.0}


def test_waiting_jobs_go_earliest_deadline_first() -> None:
    world = World((0.0, 10, 1.0, 900.0), (1.0, 10, 1.0, 500.0), (2.0, 10, 1.0, 400.0), replicas=1)
    world.run()
    assert world.pool.finished_s == {0: 10.0, 2: 20.0, 1: 30.0}


def test_an_idle_replica_is_given_back_at_once_and_the_least_urgent_job_next() -> None:
    world = World((0.0, 10, 1.0, 50.0), (0.0, 10, 1.0, 90.0), replicas=3)
    world.run(0.0)
    world.pool.steer(2.5, 1)
    assert world.nodes.used_gpus == 4  # the idle one has gone, job 1 goes on to its next step boundary
    world.run(3.0)
    assert world.nodes.used_gpus == 2
    world.run()
    assert world.pool.finished_s == {0: 10.0, 1: 10.0 + 7.0}


@pytest.mark.parametrize(("at_s", "left"), [(0.0, 10), (2.0, 8), (2.0001, 7), (8.9, 1)])
def test_a_job_given_back_keeps_its_finished_steps(at_s: float, left: int) -> None:
    world = World((0.0, 10, 1.0, 50.0), replicas=1)
    world.run(at_s)
    world.pool.steer(at_s, 0)
    assert world.pool.seen(at_s).draining == 1
    world.run()
    assert (world.pool.left_steps, world.nodes.used_gpus, world.pool.finished_s) == ([left], 0, {})


def test_in_its_last_step_a_job_is_finished_first() -> None:
    world = World((0.0, 10, 1.0, 50.0), replicas=1)
    world.run(9.5)
    world.pool.steer(9.5, 0)
    world.run()
    assert (world.pool.finished_s, world.nodes.used_gpus) == ({0: 10.0}, 0)


def test_a_target_above_orders_and_one_below_cancels() -> None:
    world = World((0.0, 4, 1.0, 50.0))
    world.run(0.0)
    world.pool.steer(0.0, 3)
    assert (world.pool.size, world.pool.seen(0.0).starting) == (3, 3)
    world.pool.steer(1.0, 1)
    assert (world.pool.size, world.nodes.used_gpus) == (1, 2)
    world.run()
    assert (world.pool.finished_s, world.pool.seen(20.0).cold_start_s) == ({0: 14.0}, 10.0)


def test_on_a_dead_node_jobs_keep_their_finished_steps_and_go_on_elsewhere() -> None:
    world = World((0.0, 10, 1.0, 50.0), (0.0, 10, 1.0, 90.0), (0.0, 10, 1.0, 95.0), replicas=2)
    world.run(3.5)
    world.pool.steer(3.5, 4)  # two more start
    world.nodes.fail(0)
    world.pool.lose(3.5, 0)
    world.nodes.fail(3)
    world.pool.lose(3.5, 3)
    assert (world.pool.left_steps[0], world.nodes.used_gpus, world.pool.size) == (7, 4, 2)
    world.run()
    assert world.pool.finished_s == {1: 10.0, 0: 17.0, 2: 23.5}


def test_a_replica_without_a_job_dies_alone() -> None:
    world = World(replicas=1)
    world.nodes.fail(0)
    world.pool.lose(1.0, 0)
    assert (world.pool.replicas, world.nodes.used_gpus) == ({}, 0)


def test_a_job_whose_node_dies_while_it_is_given_back_is_not_given_back_again() -> None:
    world = World((0.0, 10, 1.0, 50.0), replicas=1)
    world.run(2.5)
    world.pool.steer(2.5, 0)
    world.nodes.fail(0)
    world.pool.lose(2.7, 0)
    world.run()
    assert (world.pool.left_steps, len(world.pool.waiting), world.nodes.used_gpus) == ([8], 1, 0)


def test_a_policy_sees_what_is_left_the_most_urgent_first() -> None:
    world = World((0.0, 10, 2.0, 90.0), (0.0, 5, 2.0, 50.0), replicas=1)
    world.run(5.0)  # job 1 goes on: at first only one was there
    seen = world.pool.seen(5.0)
    assert [(job.left_gpu_s, job.deadline_s, job.value_usd) for job in seen.jobs] == [
        (20.0, 50.0, 1.0),
        (32.0, 90.0, 1.0),
    ]
    assert (seen.ready, seen.starting, seen.draining, seen.cold_start_s) == (1, 0, 0, None)


def test_of_many_waiting_jobs_the_most_urgent_are_seen() -> None:
    world = World(*[(0.0, 1, 1.0, 100.0 + job) for job in range(MOST_SEEN + 5)])
    world.run()
    seen = world.pool.seen(0.0).jobs
    assert (len(seen), seen[-1].deadline_s) == (MOST_SEEN, 100.0 + MOST_SEEN - 1)


moves = st.lists(
    st.tuples(st.floats(0, 60), st.one_of(st.integers(0, 5), st.integers(-3, -1))), max_size=12
)  # a target, or a node that dies
rows = st.lists(
    st.tuples(st.floats(0, 50), st.integers(1, 12), st.sampled_from([0.5, 1.0, 3.3]), st.floats(50, 99)), max_size=6
)


@settings(deadline=None)
@given(rows, moves)
def test_every_job_ends_once_and_after_at_least_its_own_time(given: list[Row], moves: list[tuple[float, int]]) -> None:
    world = World(*given, budget=None, replicas=1)
    for at_s, move in sorted(moves):
        world.run(at_s)
        if move >= 0:
            world.pool.steer(at_s, move)
        else:
            world.nodes.fail(-move - 1)
            world.pool.lose(at_s, -move - 1)
        assert world.nodes.used_gpus == 2 * (len(world.pool.replicas) + len(world.pool.orders.starting))
    world.run(60.0)
    world.pool.steer(60.0, max(1, world.pool.size))
    world.run()
    assert sorted(world.pool.finished_s) == list(range(len(given)))
    for job, (at_s, steps, step_s, _) in enumerate(given):
        assert world.pool.finished_s[job] >= at_s + steps * step_s - 1e-6
    assert (world.pool.left_steps, world.pool.waiting) == ([0] * len(given), [])
