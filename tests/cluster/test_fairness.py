"""The laws hold for a queue that serves one request at a time and always the head that fair share names."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.admission import Head, next_head
from cluster.fairness import YIELDED_SHARE, charged, lifted, yielded

costs = st.lists(st.floats(0.01, 10), min_size=60, max_size=60)
shares = st.floats(0.1, 10)


def test_a_charge_counts_by_the_share() -> None:
    assert charged(3, 10, 4) == 5.5  # 3 + 10/4
    assert charged(5.5, -2, 4) == 5  # expected 10, measured 8


@pytest.mark.parametrize(
    ("counter", "active", "after"),
    [(1, [5, 7], 5), (6, [5, 7], 6), (9, [5, 7], 9), (4, [], 4)],
)
def test_a_returning_tenant_starts_at_the_least_counter_of_the_active_ones(
    counter: float, active: list[float], after: float
) -> None:
    assert lifted(counter, active) == after


@dataclass
class Queue:
    """Costs of waiting requests by tenant, first come first. One priority."""

    shares: dict[str, float]
    waiting: dict[str, list[float]] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    served_gpu_s: dict[str, float] = field(default_factory=dict)
    last: str | None = None

    def ask(self, tenant: str, cost_gpu_s: float) -> None:
        if tenant not in self.waiting:
            active = list(self.waiting) or ([self.last] if self.last else [])
            self.counters[tenant] = lifted(self.counters.get(tenant, 0), [self.counters[key] for key in active])
        self.waiting.setdefault(tenant, []).append(cost_gpu_s)

    def serve(self) -> None:
        heads = [
            Head(tenant=tenant, priority=0, deadline_s=0, cost_gpu_s=costs[0]) for tenant, costs in self.waiting.items()
        ]
        goes = heads[next_head(heads, self.counters)]
        self.waiting[goes.tenant].pop(0)
        self.counters[goes.tenant] = charged(self.counters[goes.tenant], goes.cost_gpu_s, self.shares[goes.tenant])
        self.served_gpu_s[goes.tenant] = self.served_gpu_s.get(goes.tenant, 0) + goes.cost_gpu_s
        if not self.waiting[goes.tenant]:
            del self.waiting[goes.tenant]
            self.last = goes.tenant

    def served_per_share(self, tenant: str) -> float:
        return self.served_gpu_s.get(tenant, 0) / self.shares[tenant]


def bound(queue: Queue, **costs_gpu_s: list[float]) -> float:
    """Twice the largest single charge, with room for rounding."""
    return 2 * max(max(costs) / queue.shares[tenant] for tenant, costs in costs_gpu_s.items()) + 1e-6


@given(shares, shares, costs, costs, st.integers(0, 30))
def test_two_tenants_with_work_waiting_are_served_by_their_shares_over_any_time(
    a_share: float, b_share: float, a_gpu_s: list[float], b_gpu_s: list[float], start: int
) -> None:
    queue = Queue({"a": a_share, "b": b_share})
    for a_cost, b_cost in zip(a_gpu_s, b_gpu_s, strict=True):
        queue.ask("a", a_cost)
        queue.ask("b", b_cost)
    before = {"a": 0.0, "b": 0.0}
    for turn in range(len(a_gpu_s)):  # neither runs out in as many turns as each has requests
        if turn == start:
            before = {tenant: queue.served_per_share(tenant) for tenant in before}
        queue.serve()
        gap = (queue.served_per_share("a") - before["a"]) - (queue.served_per_share("b") - before["b"])
        assert abs(gap) <= bound(queue, a=a_gpu_s, b=b_gpu_s)


@given(shares, shares, costs, costs, st.integers(1, 50))
def test_an_idle_tenant_banks_no_credit(
    a_share: float, b_share: float, a_gpu_s: list[float], b_gpu_s: list[float], idle_turns: int
) -> None:
    queue = Queue({"a": a_share, "b": b_share})
    for cost in a_gpu_s:
        queue.ask("a", cost)
    for _ in range(idle_turns):
        queue.serve()
    for cost in b_gpu_s:
        queue.ask("b", cost)
    alone = queue.served_per_share("a")
    for _ in range(len(a_gpu_s) - idle_turns):
        queue.serve()
        together = queue.served_per_share("a") - alone
        assert abs(queue.served_per_share("b") - together) <= bound(queue, a=a_gpu_s, b=b_gpu_s)


def test_who_comes_to_an_empty_queue_starts_at_the_last_that_left_it() -> None:
    queue = Queue({"a": 1, "b": 1})
    queue.ask("a", 100)
    queue.serve()
    queue.ask("b", 1)
    assert queue.counters["b"] == 100  # at 0 it would go ahead of a for the next 100 GPU-seconds


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.01, 10), st.integers(0, 2)), max_size=60))
def test_as_long_as_anything_waits_something_is_served_and_all_of_it_in_the_end(
    asks: list[tuple[str, float, int]],
) -> None:
    queue = Queue({"a": 1, "b": 2, "c": 5})
    served = 0
    for tenant, cost, turns in asks:
        queue.ask(tenant, cost)
        for _ in range(min(turns, sum(map(len, queue.waiting.values())))):
            queue.serve()
            served += 1
    while queue.waiting:
        queue.serve()
        served += 1
    assert served == len(asks)
    assert sum(queue.served_gpu_s.values()) == pytest.approx(sum(cost for _, cost, _ in asks))


@given(st.floats(0, 1e6), st.lists(st.floats(0, 1e6)))
def test_who_was_served_more_than_a_tenant_that_waits_leaves_it_half_the_queue(
    mine: float, waiting: list[float]
) -> None:
    assert yielded(mine, waiting) == (YIELDED_SHARE if any(mine > other for other in waiting) else 0)
