from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twin_world import one_service

from autoscaling.twin_nodes import Lease, Nodes, Orders
from autoscaling.twin_pool import FIRST_SLOTS, Pool
from autoscaling.twin_replica import Replica, Request

HORIZON_S = 100.0
Event = tuple[float, Callable[[float, int], None], int]


def nodes(budget: int | None = 16, size: int = 8) -> Nodes:
    return Nodes(size, budget, HORIZON_S)


def orders(on: Nodes, ranks: int = 1, owner: str = "pro") -> tuple[Orders, list[Event], list[Lease]]:
    """With cold starts of 10 s, what they schedule, and what becomes ready."""
    events: list[Event] = []
    ready: list[Lease] = []
    schedule = lambda at_s, call, argument: events.append((at_s, call, argument))  # noqa: E731
    return Orders(owner, ranks, on, schedule, lambda: 10.0, lambda _, lease: ready.append(lease)), events, ready


def test_a_replica_goes_where_the_fewest_gpus_are_free() -> None:
    on = nodes()
    taken = [on.take("pro", ranks, 0.0) for ranks in (4, 6, 2, 4)]
    assert [lease.places for lease in taken if lease] == [((0, 4),), ((1, 6),), ((1, 2),), ((0, 4),)]
    assert on.take("pro", 1, 0.0) is None
    assert (on.used_gpus, on.gpus) == (16, 16)


def test_free_gpus_on_several_nodes_are_no_room_for_one_group() -> None:
    on = nodes()
    for ranks in (5, 5):
        assert on.take("pro", ranks, 0.0)
    assert on.take("ultra", 6, 0.0) is None


def test_a_group_larger_than_a_node_takes_whole_nodes() -> None:
    on = nodes(budget=36)
    assert on.take("pro", 1, 0.0)  # on the last node, which has but 4 GPUs
    huge = on.take("ultra", 20, 0.0)
    assert huge is not None
    assert huge.places == ((0, 8), (1, 8), (2, 4))
    assert on.take("ultra", 9, 0.0) is None
    on.give(huge, 1.0)
    again = on.take("ultra", 16, 1.0)
    assert again is not None
    assert again.places == ((0, 8), (1, 8))


def test_without_a_budget_nodes_appear_as_they_are_needed() -> None:
    on = nodes(budget=None)
    assert on.gpus == 0
    first, huge = on.take("pro", 4, 0.0), on.take("ultra", 12, 0.0)
    assert first is not None
    assert huge is not None
    assert (first.places, huge.places) == (((0, 4),), ((1, 8), (2, 4)))
    assert on.gpus == 24


def test_gpus_of_a_dead_node_do_not_come_back() -> None:
    on = nodes()
    huge = on.take("ultra", 12, 0.0)
    assert huge is not None
    assert huge.on(1)
    on.fail(0)
    on.give(huge, 5.0)
    assert (on.used_gpus, on.gpus) == (0, 8)
    assert on.take("ultra", 12, 5.0) is None
    on.fail(7)  # there is none
    assert on.gpus == 8


def test_a_lease_is_billed_once_from_order_to_release_within_the_horizon() -> None:
    on = nodes()
    leases = [
        on.take(owner, 2, since_s) for owner, since_s in (("pro", 0.0), ("pro", 90.0), ("mini", 50.0), ("mini", 110.0))
    ]
    for lease, at_s in zip(leases[:2], (30.0, 130.0), strict=True):
        assert lease is not None
        on.give(lease, at_s)
        with pytest.raises(KeyError):
            on.give(lease, at_s)
    on.settle()
    on.settle()
    assert on.gpu_s == {"pro": 2 * 30.0 + 2 * 10.0, "mini": 2 * 50.0}


def test_an_order_waits_for_room_and_takes_what_comes_back() -> None:
    on = nodes(budget=8)
    first, events, ready = orders(on, ranks=4)
    second, later, _ = orders(on, ranks=2, owner="mini")
    first.order(0.0, 3)
    second.order(0.0, 1)
    assert (len(first), first.pending, len(first.starting), second.pending) == (3, 1, 2, 1)
    for at_s, call, number in events:
        call(at_s, number)
    assert (len(first), [lease.since_s for lease in ready], first.measured_s) == (1, [0.0, 0.0], 10.0)
    on.give(ready[0], 20.0)
    assert (first.pending, second.pending, events[-1][0]) == (0, 1, 30.0)  # those made known first go first
    on.give(ready[1], 21.0)
    assert (second.pending, later[-1][0]) == (0, 31.0)


def test_those_ordered_last_are_cancelled_first() -> None:
    on = nodes(budget=2)
    line, events, ready = orders(on)
    assert line.measured_s is None
    line.order(0.0, 2)
    line.order(1.0, 2)
    assert line.cancel(2.0, 3) == 0  # two that wait, and the second that starts
    assert (len(line), on.used_gpus, on.gpu_s) == (1, 1, {"pro": 2.0})
    for at_s, call, number in events:
        call(at_s, number)
    assert len(ready) == 1  # the event of the cancelled one is void
    assert line.cancel(3.0, 2) == 2


def test_of_those_that_start_the_last_ordered_is_cancelled() -> None:
    on = nodes(budget=2)
    line, _, _ = orders(on)
    line.order(0.0, 1)
    line.order(1.0, 1)
    line.cancel(2.0, 1)
    assert ([lease.since_s for lease in line.starting.values()], on.gpu_s) == ([0.0], {"pro": 1.0})


def test_starts_on_a_dead_node_are_lost() -> None:
    on = nodes(budget=None, size=1)
    line, _, _ = orders(on)
    line.order(0.0, 2)
    on.fail(0)
    line.lose(4.0, 0)
    assert (len(line), on.used_gpus, on.gpu_s) == (1, 1, {"pro": 4.0})


def test_at_first_replicas_are_there_at_once_as_far_as_there_is_room() -> None:
    line, events, ready = orders(nodes(budget=2))
    line.begin(3)
    assert (len(ready), line.pending, events) == (2, 1, [])


class GpusAreConserved(RuleBasedStateMachine):
    """Leases of all sizes come and go, nodes die: every GPU is free, held or dead, and billed as long as it is held."""

    def __init__(self) -> None:
        super().__init__()
        self.on = Nodes(4, 14, HORIZON_S)
        self.leases: list[Lease] = []
        self.dead: set[int] = set()
        self.now_s = 0.0
        self.billed = 0.0

    @rule(gap_s=st.floats(0, 20))
    def wait(self, gap_s: float) -> None:
        within_s = max(0.0, min(self.now_s + gap_s, HORIZON_S) - self.now_s)
        self.billed += within_s * sum(lease.gpus for lease in self.leases)
        self.now_s += gap_s

    @rule(ranks=st.integers(1, 9), owner=st.sampled_from(["pro", "mini"]))
    def take(self, ranks: int, owner: str) -> None:
        lease = self.on.take(owner, ranks, self.now_s)
        if lease is not None:
            assert lease.gpus == ranks
            assert not any(lease.on(node) for node in self.dead)
            self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        self.on.give(self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1))), self.now_s)

    @rule(node=st.integers(0, 3))
    def fail(self, node: int) -> None:
        self.on.fail(node)
        self.dead.add(node)
        for lease in [lease for lease in self.leases if lease.on(node)]:
            self.leases.remove(lease)
            self.on.give(lease, self.now_s)

    @invariant()
    def no_node_is_over_its_size(self) -> None:
        for node in range(4):
            held = sum(gpus for lease in self.leases for place, gpus in lease.places if place == node)
            assert held <= (2 if node == 3 else 4)
        assert self.on.used_gpus == sum(lease.gpus for lease in self.leases)
        assert self.on.gpus == sum((4, 4, 4, 2)[node] for node in range(4) if node not in self.dead)

    def teardown(self) -> None:
        self.wait(HORIZON_S)
        self.on.settle()
        assert sum(self.on.gpu_s.values()) == pytest.approx(self.billed)


TestGpusAreConserved = GpusAreConserved.TestCase


# --- the columns


def pool(replicas: int = 0, block_tokens: int | None = None) -> Pool:
    made = Pool(one_service(), block_tokens)
    for _ in range(replicas):
        made.add(Replica(made.service, made.new_slot(), 0.0))
    return made


def load(on: Pool, slot: int, *prompts: int) -> None:
    replica = on.replicas[slot]
    for index, prompt in enumerate(prompts):
        replica.arrive(Request(index, 0.0, 0.0, prompt, 5, us_per_token=100.0, prefill_tokens=prompt - 10), 0.0)
    on.show(replica)


def test_the_columns_show_what_is_on_a_replica() -> None:
    on = pool(2)
    load(on, 1, 110, 210)
    loads = on.loads
    assert loads.sequences.tolist() == loads.ongoing.tolist() == [0, 2]
    assert loads.kv_tokens.tolist() == [0, 320]
    assert loads.prefill_tokens.tolist() == [0, 300]
    assert loads.prefill_done_s[1] == pytest.approx(
        0.020 + 0.020, rel=0.02
    )  # the first prompt in 20 ms, 20 ms after it
    assert loads.open.all()
    assert np.isinf(loads.heard_s).all()


@given(st.integers(1, 4 * FIRST_SLOTS))
def test_columns_grow_and_keep_what_they_say(replicas: int) -> None:
    on = pool()
    for number in range(replicas):
        on.add(Replica(on.service, on.new_slot(), 0.0))
        load(on, number, *[11] * (number + 1))
    assert on.loads.sequences.tolist() == list(range(1, replicas + 1))
    assert (on.slots, on.ready, len(on.loads.correction)) == (replicas, replicas, replicas)


def test_a_slot_is_used_again_and_nothing_of_who_was_there_is_left() -> None:
    on = pool(2, block_tokens=10)
    assert on.prefix is not None
    load(on, 0, 110)
    on.prefix.insert(0, [1], 5)
    on.remove(on.replicas[0])
    assert (on.ready, on.loads.open.tolist()) == (1, [False, True])
    assert [column.tolist() for column in (on.loads.sequences, on.loads.kv_tokens, on.loads.prefill_tokens)] == [
        [0, 0]
    ] * 3
    assert on.prefix.hits_tokens([1], 2).tolist() == [0, 0]
    assert on.new_slot() == 0


def test_one_that_drains_is_closed_and_not_ready() -> None:
    on = pool(3)
    load(on, 0, 110)
    load(on, 1, 110, 110)
    on.close(on.replicas[2])
    assert (on.ready, on.loads.open.tolist()) == (2, [True, True, False])
    on.remove(on.replicas[2])
    assert on.ready == 2


def test_the_correction_is_shown_where_experts_are_uneven() -> None:
    service = one_service(cost={"d_ms": 8.0, "experts": 32, "top_k": 4})
    on = Pool(service, None)
    on.add(Replica(service, on.new_slot(), 0.0, 2.0))
    assert on.loads.correction.tolist() == pytest.approx([13 / 12])
