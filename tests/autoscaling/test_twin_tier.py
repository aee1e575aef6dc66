import math

import pytest
from twin_world import one_service

from autoscaling.twin_nodes import Nodes
from autoscaling.twin_pool import Pool
from autoscaling.twin_replica import Replica, Request
from autoscaling.twin_tier import TwinTier
from cluster.loads import PRIOR_OUTPUT_TOKENS


class World:
    """One tier with cold starts of 10 s, on 8 nodes of one GPU; `run` lets what is scheduled happen."""

    def __init__(self, replicas: int = 0) -> None:
        self.events: list[tuple[float, int]] = []
        self.nodes = Nodes(1, 8, 1000.0)
        self.opened: list[int] = []
        self.tier = TwinTier(
            name="pro",
            pool=Pool(one_service(), None),
            nodes=self.nodes,
            imbalance=1.0,
            cold_start_s=12.0,
            opened=lambda now_s, tier, replica: self.opened.append(replica.slot),
            schedule=lambda at_s, call, number: self.events.append((at_s, number)),
            draw_s=lambda: 10.0,
        )
        self.tier.orders.begin(replicas)

    def run(self) -> None:
        for at_s, number in self.events:
            self.tier.orders._ready(at_s, number)
        self.events.clear()

    def load(self, slot: int, requests: int) -> Replica:
        replica = self.tier.pool.replicas[slot]
        for index in range(requests):
            replica.arrive(Request(10 * slot + index, 0.0, 0.0, 100, 5, us_per_token=100.0, prefill_tokens=100), 0.0)
        self.tier.pool.show(replica)
        return replica


def sizes(tier: TwinTier) -> tuple[int, int, int]:
    seen = tier.seen()
    return seen.ready, seen.starting, seen.draining


def test_a_tier_orders_what_it_lacks() -> None:
    world = World(1)
    world.tier.steer(0.0, 3)
    assert sizes(world.tier) == (1, 2, 0)
    world.run()
    assert sizes(world.tier) == (3, 0, 0)
    assert world.opened == [0, 1, 2]
    assert world.tier.seen().cold_start_s == 10.0


def test_below_the_starting_ones_it_cancels_before_it_drains() -> None:
    world = World(2)
    world.tier.steer(0.0, 5)
    world.tier.steer(1.0, 3)
    assert sizes(world.tier) == (2, 1, 0)
    world.tier.steer(2.0, 1)
    assert sizes(world.tier) == (1, 0, 0)
    world.run()
    assert (sizes(world.tier), world.nodes.used_gpus) == ((1, 0, 0), 1)


def test_the_emptiest_drain_and_leave_when_they_are_empty() -> None:
    world = World(3)
    busy, light = world.load(0, 3), world.load(2, 1)
    world.tier.steer(0.0, 1)
    assert sizes(world.tier) == (1, 0, 1)  # the empty one has left, the light one drains
    assert (light.draining, busy.draining, world.nodes.used_gpus) == (True, False, 2)
    world.tier.leave(light, 1.0)
    assert world.nodes.used_gpus == 1


def test_it_packs_while_it_has_more_than_it_should() -> None:
    world = World(2)
    world.tier.steer(0.0, 1)
    assert world.tier.packing
    world.tier.steer(2.0, 1)
    assert not world.tier.packing


def test_the_fullest_replica_is_lost_with_its_requests() -> None:
    world = World(2)
    world.load(0, 1)
    world.load(1, 3)
    assert [request.index for request in world.tier.lose(0.5, None)] == [10, 11, 12]
    assert (sizes(world.tier), world.nodes.used_gpus) == ((1, 0, 0), 1)
    assert World().tier.lose(0.5, None) == []


def test_with_a_node_everything_on_it_is_lost() -> None:
    world = World(2)
    world.load(0, 1)
    world.load(1, 1)
    world.tier.steer(0.0, 3)
    for node in (1, 2):
        world.nodes.fail(node)
    assert [request.index for node in (1, 2) for request in world.tier.lose(0.5, node)] == [10]
    assert (sizes(world.tier), world.nodes.gpus) == ((1, 0, 0), 6)


@pytest.mark.parametrize(("replicas", "target", "at_s", "wait_s"), [
    (0, 0, 5.0, 12.0),  # asleep: as long as a start takes
    (0, 1, 5.0, 7.0),
    (0, 1, 15.0, 0.0),  # overdue
    (1, 1, 5.0, math.inf),
    (1, 2, 5.0, 7.0),
])  # fmt: skip
def test_the_wait_for_the_next_replica_is_guessed_from_past_starts(
    replicas: int, target: int, at_s: float, wait_s: float
) -> None:
    world = World(replicas)
    world.tier.steer(0.0, target)
    assert world.tier.next_ready_s(at_s) == wait_s


def test_once_a_start_was_measured_that_is_what_the_next_one_takes() -> None:
    world = World()
    world.tier.steer(0.0, 1)
    world.run()
    world.tier.steer(20.0, 2)
    assert world.tier.next_ready_s(20.0) == 10.0


def test_the_first_answers_replace_the_prior_length_and_later_ones_move_it_slowly() -> None:
    tier = World().tier
    assert tier.lengths.mean == PRIOR_OUTPUT_TOKENS
    for output in (10, 30):
        tier.finished(100, output)
    assert tier.lengths.mean == pytest.approx(20)
    assert tier.lengths.square == pytest.approx((100 + 900) / 2)
    for _ in range(98):
        tier.finished(100, 20)
    tier.finished(100, 120)
    assert tier.lengths.mean == pytest.approx(21)
    seen = tier.seen()
    assert (seen.finished_requests, seen.finished_output_tokens) == (101, 10 + 30 + 98 * 20 + 120)
    assert seen.finished_context_token_steps == 10 * 105 + 30 * 115 + 98 * 20 * 110 + 120 * 160
