"""Small replicas scattered over two nodes of 4 GPUs, and groups of 4 that wait for a whole one."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from hypothesis import given
from hypothesis import strategies as st
from twin_world import Planned, decision, family, jobs, one_service, played, tier, video, workload

from autoscaling.twin_nodes import Nodes
from autoscaling.twin_pool import Pool
from autoscaling.twin_replica import Request
from autoscaling.twin_tier import TwinTier
from autoscaling.twin_video import VideoPool


class World:
    """Cold starts take 10 s."""

    def __init__(self, budget: int = 8) -> None:
        self.events: list[tuple[float, int, Callable[[float, int], None], int]] = []
        self.numbers = count()
        self.nodes = Nodes(4, budget, 1000.0)
        self.small, self.group = self.tier("small", 1), self.tier("group", 4)
        self.video = VideoPool(
            jobs=jobs((0.0, 10, 1.0, 900.0)), gpus=1, nodes=self.nodes, schedule=self.schedule, draw_s=lambda: 10.0
        )

    def tier(self, name: str, ranks: int) -> TwinTier:
        return TwinTier(
            name=name,
            pool=Pool(one_service(ranks=ranks), None),
            nodes=self.nodes,
            imbalance=1.0,
            cold_start_s=10.0,
            opened=lambda now_s, tier, replica: None,
            schedule=self.schedule,
            draw_s=lambda: 10.0,
        )

    def schedule(self, at_s: float, call: Callable[[float, int], None], argument: int) -> None:
        heappush(self.events, (at_s, next(self.numbers), call, argument))

    def run(self, until_s: float) -> None:
        while self.events and self.events[0][0] <= until_s:
            at_s, _, call, argument = heappop(self.events)
            call(at_s, argument)

    def clear(self, now_s: float) -> list[str]:
        vacate = {"small": self.small.vacate, "group": self.group.vacate, "video": self.video.vacate}
        found = self.nodes.in_the_way()
        for lease in found:
            vacate[lease.owner](now_s, lease)
        return [lease.owner for lease in found]

    def scatter(self) -> None:
        """Two small ones are left, one on each node."""
        self.small.orders.begin(8)
        for slot in (1, 2, 3, 5, 6, 7):
            self.small.leave(self.small.pool.replicas[slot], 0.0)


def nodes_of(tier: TwinTier) -> list[int]:
    return sorted(lease.places[0][0] for lease in (*tier.leases.values(), *tier.orders.starting.values()))


def test_a_small_one_in_the_way_of_a_group_starts_anew_elsewhere() -> None:
    world = World()
    world.scatter()
    world.group.steer(5.0, 1)
    assert len(world.group.orders.starting) == 0  # 6 GPUs are free, but 3 and 3
    assert world.clear(5.0) == ["small"]
    assert nodes_of(world.small) == [1, 1]  # at first on the other node
    assert nodes_of(world.group) == [0]
    assert world.clear(5.0) == []
    world.run(15.0)
    assert (world.small.pool.ready, world.group.pool.ready) == (2, 1)


def test_until_it_has_drained_nobody_else_takes_the_room() -> None:
    world = World()
    world.scatter()
    replica = world.small.pool.replicas[0]
    replica.arrive(Request(0, 0.0, 0.0, 100, 5, us_per_token=100.0, prefill_tokens=100), 0.0)
    world.group.steer(5.0, 1)
    world.clear(5.0)
    world.small.steer(5.0, 5)
    assert nodes_of(world.small) == [0, 1, 1, 1, 1]  # that on node 0 drains
    assert world.small.orders.pending == 1
    assert world.clear(6.0) == []  # it is on its way
    replica.sequences = 0
    world.small.leave(replica, 7.0)
    assert nodes_of(world.group) == [0]


def test_one_that_is_still_starting_starts_elsewhere() -> None:
    world = World()
    world.scatter()
    world.small.leave(world.small.pool.replicas[0], 0.0)
    world.small.orders.order(0.0, 4)  # three fill node 1, the last is on node 0
    world.small.leave(world.small.pool.replicas[4], 1.0)
    world.group.steer(2.0, 1)
    assert world.clear(2.0) == ["small"]
    assert (nodes_of(world.small), nodes_of(world.group)) == ([1, 1, 1, 1], [0])
    world.run(11.0)
    assert world.small.pool.ready == 3  # the fourth has begun anew
    world.run(12.0)
    assert world.small.pool.ready == 4


def test_video_too_gives_way_at_a_step_boundary_and_goes_on_elsewhere() -> None:
    world = World()
    world.small.orders.begin(3)
    world.video.orders.begin(1)
    world.small.orders.begin(1)
    for slot in (0, 1, 2):
        world.small.leave(world.small.pool.replicas[slot], 0.0)
    world.video.arrive(0.0, 0)
    world.group.steer(2.5, 1)
    assert world.clear(2.5) == ["video"]
    world.run(3.0)
    assert nodes_of(world.group) == [0]
    world.run(100.0)
    assert world.video.finished_s == {0: 19.5}  # 3 steps, and 7 from 12.5 s on
    world.video.steer(100.0, 0)
    world.video.steer(100.0, 1)
    world.nodes.take("small", 3, 100.0)
    world.group.steer(100.0, 2)
    assert world.clear(100.0) == []  # all is held, nothing is scattered


def test_a_video_replica_that_is_still_starting_starts_elsewhere() -> None:
    world = World()
    world.small.orders.begin(3)
    world.video.steer(0.0, 1)
    world.small.orders.begin(1)
    for slot in (0, 1, 2):
        world.small.leave(world.small.pool.replicas[slot], 0.0)
    world.group.steer(5.0, 1)
    assert world.clear(5.0) == ["video"]
    assert nodes_of(world.group) == [0]
    world.run(15.0)
    assert world.video.size == len(world.video.replicas) == 1


def test_where_replicas_drain_is_chosen_by_who_waits() -> None:
    world = World()
    world.small.orders.begin(7)
    world.small.leave(world.small.pool.replicas[1], 0.0)
    for slot in (4, 5, 6):
        world.small.pool.replicas[slot].sequences = 1
    world.small.steer(0.0, 5)
    assert nodes_of(world.small) == [0, 0, 1, 1, 1]  # nobody waits: the emptiest
    world.group.orders.order(0.0, 1)
    world.small.steer(0.0, 3)
    assert sorted(world.small.pool.replicas[slot].draining for slot in world.small.pool.replicas) == [False] * 3
    assert nodes_of(world.small) == [1, 1, 1]
    assert nodes_of(world.group) == [0]


def test_equals_do_not_make_way_for_each_other() -> None:
    world = World(budget=12)
    three = world.tier("three", 3)
    three.orders.begin(3)
    three.steer(0.0, 4)
    assert three.orders.pending == 1  # 3 GPUs are free, one on each node
    assert world.nodes.in_the_way() == []


def test_a_group_larger_than_a_node_moves_nobody() -> None:
    world = World()
    world.scatter()
    world.tier("large", 6).steer(0.0, 1)
    assert world.nodes.in_the_way() == []


def test_a_node_that_died_is_no_room() -> None:
    world = World()
    world.scatter()
    lease = world.small.leases[0]
    world.group.orders.order(0.0, 1)
    world.nodes.leave(lease)
    world.nodes.fail(0)
    assert world.nodes.room_beside(lease) == 0
    assert world.nodes.in_the_way() == []


@given(st.lists(st.integers(0, 15), max_size=15, unique=True), st.integers(0, 3))
def test_no_group_waits_while_scattered_gpus_would_do(gone: list[int], groups: int) -> None:
    """Idle replicas of one GPU on four nodes of 4, some of which leave; then groups come, as many as fit."""
    world = World(budget=16)
    world.small.orders.begin(16)
    for slot in gone:
        world.small.leave(world.small.pool.replicas[slot], 0.0)
    wanted = min(groups, len(gone) // 4)
    world.group.steer(1.0, wanted)
    for tick in range(4):
        world.clear(1.0 + tick)
    assert len(world.group.orders.starting) == wanted
    assert world.small.size == 16 - len(gone)
    assert world.nodes.used_gpus == 16 - len(gone) + 4 * wanted


def test_a_whole_rehearsal_clears_a_node() -> None:
    given = family(tier(first=7), tier("ultra", ranks=4, first=0, quality=2), node_gpus=4, video=video(first=0))
    plan = Planned({0.0: decision(0, pro=7, ultra=0), 20.0: decision(0, pro=4, ultra=1)})
    twin = played(workload((0.0, 100, 5), (60.0, 100, 5)), plan, given, gpus=8, jobs=jobs())
    assert [one.pool.ready for one in twin.tiers] == [4, 1]
    assert nodes_of(twin.tiers[1]) == [0]
